# SPDX-License-Identifier: Apache-2.0
"""The doors of a worker process.

Its own Unix socket answers everything, for its user and root alone. A TCP listener, where one is configured, has the
metrics and the health endpoints, among them CoreDNS' `/health` and `/ready`, and admits the same Hosts as the agent's.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from svcproxy import api, syntax
from svcproxy.admin.api import Handler, reply
from svcproxy.admin.metrics import CONTENT_TYPE
from svcproxy.admin.server import BACKLOG, application, only_known_hosts, runner
from svcproxy.admin.tcp import listen_tcp
from svcproxy.process.sockets import listen_unix

log = logging.getLogger(__name__)

RETRY_INTERVAL = 0.5
"""Seconds between attempts to open the TCP listener: a predecessor has it until it has given way."""


@dataclass(frozen=True, slots=True)
class WorkerAnswers:
    """What there is to say."""

    livez: Callable[[], api.Readiness]
    readyz: Callable[[], api.Readiness]
    metrics: Callable[[], Awaitable[bytes]]
    """Renders the Prometheus text format."""
    laggards: Callable[[], str] = lambda: ""
    """What `/ready` waits for, in CoreDNS' words; empty if for nothing."""
    more: Mapping[str, Handler] = field(default_factory=dict)
    """Further paths of the Unix socket."""


class WorkerServer:
    """Serves one worker's answers: 200 if it is live or ready, else 503."""

    def __init__(self, answers: WorkerAnswers, retry_interval: float = RETRY_INTERVAL) -> None:
        """`retry_interval`: seconds between attempts to open the TCP listener."""
        self._answers = answers
        self._retry_interval = retry_interval
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self.want_tcp(True)

    def want_tcp(self, wanted: bool) -> None:
        """Whether the TCP listener is to be open: another instance may want the address."""
        (self._wanted if wanted else self._unwanted).set()
        (self._unwanted if wanted else self._wanted).clear()

    @contextlib.asynccontextmanager
    async def serve_socket(self, path: Path) -> AsyncIterator[None]:
        """Serve everything on a Unix socket."""
        routes = {**self._probes(), **self._answers.more}
        async with runner(application(routes)) as made:
            await web.SockSite(made, listen_unix(path)).start()
            yield

    async def serve_tcp(self, address: str) -> None:
        """Serve on ADDRESS:PORT while that is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            listener = await self._bind(address)
            if listener is None:
                continue
            async with runner(application(self._probes(), only_known_hosts)) as made:
                await web.SockSite(made, listener).start()
                bound = syntax.join_address(*listener.getsockname()[:2])
                log.info("listening", extra={"listener": "metrics", "address": bound})
                await self._unwanted.wait()

    async def _bind(self, address: str) -> socket.socket | None:
        """A listening socket; None if it is no longer wanted."""
        told = ""
        while self._wanted.is_set():
            try:
                return listen_tcp(*syntax.split_address(address), BACKLOG)
            except OSError as exc:
                error = exc.strerror or str(exc)
            if error != told:
                told = error
                log.warning("cannot listen, trying again", extra={"address": address, "cause": error})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retry_interval):
                    await self._unwanted.wait()
        return None

    def _probes(self) -> dict[str, Handler]:
        return {
            "/livez": _probe(self._answers.livez),
            "/readyz": _probe(self._answers.readyz),
            "/metrics": self._scrape,
            "/health": self._health,
            "/ready": self._ready,
        }

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._answers.metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        live = self._answers.livez().ready
        return web.Response(text="OK" if live else "", status=200 if live else 503)

    async def _ready(self, _: web.Request) -> web.Response:
        waits_for = self._answers.laggards()
        return web.Response(text=waits_for or "OK", status=503 if waits_for else 200)


def _probe(ask: Callable[[], api.Readiness]) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        readiness = ask()
        return reply(readiness, 200 if readiness.ready else 503)

    return answer
