# SPDX-License-Identifier: Apache-2.0
"""The listeners for health, metrics and status.

Three doors to the same answers:

- the instance's own Unix socket: everything, for whoever the file's permissions admit (the CLI, exec probes);
- the health listener: `/livez`, `/readyz` and `/healthz`, for load balancers anywhere;
- the metrics listener: `/metrics`, `/healthz` (plain `ok`), `/proxyMode` and `/v1/…` but what takes long.

Everything is read-only: GET and HEAD, no body is ever read. The metrics listener answers only to IP addresses and to
`localhost` as Host, so that a page in somebody's browser cannot reach it under a name of its own (DNS rebinding). A TCP
listener that cannot be opened is tried again: at an update the old instance holds the address for a while.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler as AnyHandler
from aiohttp.typedefs import Middleware

from svcproxy import api, syntax
from svcproxy.admin import health
from svcproxy.admin.api import SOCKET_ONLY, Handler, StatusApi, reply
from svcproxy.admin.metrics import CONTENT_TYPE, AgentMetrics
from svcproxy.admin.state import AgentState
from svcproxy.admin.tcp import listen_tcp
from svcproxy.process.sockets import listen_unix

log = logging.getLogger(__name__)

RETRY_INTERVAL = 5.0
"""Seconds between attempts to open a TCP listener."""
REQUESTS_MAX = 64
"""Requests in work at once at one door; further ones are answered with 503."""
BACKLOG = 128
"""Connections that may wait at one TCP listener."""
KEEPALIVE_TIMEOUT = 15.0
"""Seconds that an idle connection is kept."""
SHUTDOWN_TIMEOUT = 1.0
"""Seconds that requests in work have at the end."""
HEAD_OCTETS_MAX = 8190
"""Longest request line, and longest header field."""

_READ_ONLY = frozenset({"GET", "HEAD"})
_HOST = re.compile(r"(?P<name>\[[^]]*\]|[^:]*)(:[0-9]+)?")


class AdminServer:
    """Serves one agent's state. Start `serve_socket` at once and `serve_node` when this instance is the node's."""

    def __init__(self, state: AgentState, metrics: AgentMetrics, retry_interval: float = RETRY_INTERVAL) -> None:
        """`retry_interval`: seconds between attempts to open a TCP listener."""
        self._retry_interval = retry_interval
        self._state = state
        self._metrics = metrics
        self._api = StatusApi(state, metrics)

    @contextlib.asynccontextmanager
    async def serve_socket(self, path: Path) -> AsyncIterator[None]:
        """Serve everything on a Unix socket for this user and root alone."""
        async with runner(application({**self._health(), **self._observed()})) as made:
            await web.SockSite(made, listen_unix(path)).start()
            yield

    async def serve_node(self) -> None:
        """Serve the configured TCP listeners until cancelled. Their state is in `AgentState.listeners`."""
        admin = self._state.config.admin
        observed = {path: handler for path, handler in self._observed().items() if path not in SOCKET_ONLY}
        observed |= {"/healthz": _plain_ok, "/proxyMode": self._proxy_mode}
        async with asyncio.TaskGroup() as tasks:
            if admin.health_listen is not None:
                served = application(self._health())
                tasks.create_task(self._listen("health", admin.health_listen, served), name="health listener")
            if admin.metrics_listen is not None:
                served = application(observed, only_known_hosts)
                tasks.create_task(self._listen("metrics", admin.metrics_listen, served), name="metrics listener")

    async def _listen(self, name: str, address: str, served: web.Application) -> None:
        async with runner(served) as made:
            while True:
                try:
                    listener = listen_tcp(*syntax.split_address(address), BACKLOG)
                    break
                except OSError as exc:
                    error = exc.strerror or str(exc)
                    if name not in self._state.listeners or self._state.listeners[name].error != error:
                        log.warning(
                            "cannot listen, trying again",
                            extra={
                                "listener": name,
                                "address": address,
                                "cause": error,
                                "interval": self._retry_interval,
                            },
                        )
                    self._state.listeners[name] = api.Listener(name, address, error)
                    await asyncio.sleep(self._retry_interval)
            await web.SockSite(made, listener).start()
            bound = syntax.join_address(*listener.getsockname()[:2])
            self._state.listeners[name] = api.Listener(name, bound, "")
            log.info("listening", extra={"listener": name, "address": bound})
            await asyncio.Event().wait()

    def _health(self) -> dict[str, Handler]:
        return {"/livez": self._livez, "/healthz": self._healthz, "/readyz": self._readyz}

    def _observed(self) -> dict[str, Handler]:
        return {"/metrics": self._scrape, **self._api.routes()}

    async def _livez(self, _: web.Request) -> web.Response:
        answer = health.livez(self._state.dataplane_health, self._state.clock())
        self._metrics.observe_health("livez", answer.status)
        return reply(answer.body, answer.status)

    async def _healthz(self, _: web.Request) -> web.Response:
        answer = health.healthz(self._state.dataplane_health, self._state.clock(), eligible=self._state.node_eligible())
        self._metrics.observe_health("healthz", answer.status)
        return reply(answer.body, answer.status)

    async def _readyz(self, _: web.Request) -> web.Response:
        answer = self._state.readiness(self._state.clock())
        return reply(answer, 200 if answer.ready else 503)

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _proxy_mode(self, _: web.Request) -> web.Response:
        return web.Response(text=self._state.dataplane_name)


async def _plain_ok(_: web.Request) -> web.Response:
    return web.Response(text="ok")


def application(routes: Mapping[str, Handler], *guards: Middleware) -> web.Application:
    """An application of read-only routes. Errors are `api.Failure` as JSON."""
    made = web.Application(middlewares=[_hardened(), *guards], client_max_size=1)
    for path, handler in routes.items():
        made.router.add_get(path, handler)
    return made


def _hardened() -> Middleware:
    """What holds at every door: read-only, a bounded number of requests, no guessing of types, errors as JSON."""
    in_work = 0

    @web.middleware
    async def hardened(request: web.Request, handler: AnyHandler) -> web.StreamResponse:
        nonlocal in_work
        if in_work >= REQUESTS_MAX:
            return _failure(503, "too many requests at once")
        in_work += 1
        response: web.StreamResponse
        try:
            if request.method not in _READ_ONLY:
                raise web.HTTPMethodNotAllowed(request.method, _READ_ONLY, text="this API is read-only")
            response = await handler(request)
        except web.HTTPException as exc:
            response = _failure(exc.status, _message(exc, request))
            if "Allow" in exc.headers:
                response.headers["Allow"] = exc.headers["Allow"]
        finally:
            in_work -= 1
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return hardened


def _message(exc: web.HTTPException, request: web.Request) -> str:
    """What the handler said; aiohttp's own words for a path that has no handler say too little."""
    if exc.text == f"{exc.status}: {exc.reason}" and exc.status == HTTPStatus.NOT_FOUND:
        return f"nothing at {request.path}"
    return exc.text or exc.reason


def _failure(status: int, message: str) -> web.Response:
    response = reply(api.Failure(status, message), status)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@web.middleware
async def only_known_hosts(request: web.Request, handler: AnyHandler) -> web.StreamResponse:
    """Refuse a Host that is a name, except `localhost`: a browser was made to believe that the name is us."""
    if not host_allowed(request.headers.get("Host", "")):
        raise web.HTTPMisdirectedRequest(text="ask for this listener by IP address or as localhost")
    return await handler(request)


def host_allowed(host: str) -> bool:
    """Whether a Host header names an IP address or localhost. HTTP/1.0 has none and cannot come from a browser."""
    if not host:
        return True
    if (parsed := _HOST.fullmatch(host)) is None:
        return False
    name = parsed["name"].strip("[]")
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@contextlib.asynccontextmanager
async def runner(served: web.Application) -> AsyncIterator[web.AppRunner]:
    """What serves an application until it is left."""
    made = web.AppRunner(
        served,
        access_log=None,
        keepalive_timeout=KEEPALIVE_TIMEOUT,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        lingering_time=0.0,
        max_line_size=HEAD_OCTETS_MAX,
        max_field_size=HEAD_OCTETS_MAX,
    )
    await made.setup()
    try:
        yield made
    finally:
        await made.cleanup()
