# SPDX-License-Identifier: Apache-2.0
"""The health-check node ports of Services with externalTrafficPolicy Local: what a cloud load balancer asks.

One listening socket per Service and node address, all served by one small handler that finds the Service by the local
port. A change costs the Services that it names, never all. The answers are kube-proxy's
(pkg/proxy/healthcheck/service_health.go, KEP-3836).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from svcproxy.admin.tcp import listen_tcp
from svcproxy.frontends.keys import HealthCheck
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model import NamespacedName

log = logging.getLogger(__name__)

RETRY_INTERVAL = 5.0
"""Seconds until a port that could not be opened is tried again."""
SOCKETS_MAX = 8192
"""Listening sockets at once; Services beyond it are reported like a port that cannot be opened."""
OPENED_PER_TURN = 32
"""Services whose sockets are opened between two turns of the event loop."""
BACKLOG = 16
"""Connections that may wait on one port; load balancers ask seldom."""
KEEPALIVE_TIMEOUT = 15.0
"""Seconds that an idle connection is kept: load balancers ask again within this."""

ReportFailure = Callable[[NamespacedName, str], None]
"""Called once for each Service and new reason, with a message for people."""


@dataclass(slots=True)
class _Opened:
    """The sockets of one Service."""

    port: int
    servers: dict[str, asyncio.Server]
    """By address."""


class HealthChecks:
    """Serves the health-check node ports of a table. `change` is cheap; `run` opens and closes sockets."""

    def __init__(
        self, healthy: Callable[[], bool], report_failure: ReportFailure, retry_interval: float = RETRY_INTERVAL
    ) -> None:
        """`healthy`: whether the data plane keeps up; asked at every request. `retry_interval`: seconds."""
        self._retry_interval = retry_interval
        self._healthy = healthy
        self._report_failure = report_failure
        self._wanted: dict[NamespacedName, HealthCheck] = {}
        self._addresses: frozenset[str] = frozenset()
        self._opened: dict[NamespacedName, _Opened] = {}
        self._by_port: dict[int, NamespacedName] = {}
        self._dirty: dict[NamespacedName, None] = {}
        self._failed: dict[NamespacedName, str] = {}
        self._sockets = 0
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def failed(self) -> dict[NamespacedName, str]:
        """Services whose port is not served on every address, with the reason. A copy."""
        return dict(self._failed)

    def change(self, delta: FrontendDelta) -> None:
        """Take in what a delta says about health checks and node addresses; counts change at once."""
        for check in delta.health_checks:
            before = self._wanted.get(check.service)
            self._wanted[check.service] = check
            if before is None or before.port != check.port:
                self._touch((check.service,))
        for service in delta.health_checks_removed:
            if self._wanted.pop(service, None) is not None:
                self._touch((service,))
        if delta.node_port_addresses is not None and delta.node_port_addresses != self._addresses:
            self._addresses = delta.node_port_addresses
            self._touch(self._wanted)

    def replace(self, table: FrontendTable) -> None:
        """Serve what a whole table says."""
        gone = tuple(service for service in self._wanted if service not in table.health_checks)
        self.change(
            FrontendDelta(
                health_checks=tuple(table.health_checks.values()),
                health_checks_removed=gone,
                node_port_addresses=table.node_port_addresses,
            )
        )

    async def settled(self) -> None:
        """Return once every change so far has been acted upon; ports that cannot be opened count as done."""
        if self._dirty:
            await self._settled.wait()

    async def run(self) -> None:
        """Keep the sockets as wanted until cancelled; all are closed then."""
        server = web.Server(
            self._answer, access_log=None, keepalive_timeout=KEEPALIVE_TIMEOUT, lingering_time=0.0, max_line_size=2048
        )
        try:
            while True:
                await self._bring_up_to_date(server)
                try:
                    async with asyncio.timeout(self._retry_interval if self._failed else None):
                        await self._wake.wait()
                except TimeoutError:
                    self._touch(self._failed)
                self._wake.clear()
        finally:
            for service in list(self._opened):
                self._close(service)
            await server.shutdown(0)

    def _touch(self, services: Iterable[NamespacedName]) -> None:
        self._dirty.update(dict.fromkeys(services))
        self._settled.clear()
        self._wake.set()

    async def _bring_up_to_date(self, server: web.Server) -> None:
        """Close first, then open: a port may move from one Service to another in one delta."""
        while self._dirty:
            round_, self._dirty = self._dirty, {}
            for service in round_:
                check, opened = self._wanted.get(service), self._opened.get(service)
                if opened is not None and (check is None or check.port != opened.port):
                    self._close(service)
            for number, service in enumerate(round_, start=1):
                if service not in self._dirty:  # else it comes again in the next round, after what closes there
                    await self._open(service, server)
                if number % OPENED_PER_TURN == 0:
                    await asyncio.sleep(0)
        self._settled.set()

    async def _open(self, service: NamespacedName, server: web.Server) -> None:
        """Make the sockets of one Service those that are wanted, as far as possible."""
        check = self._wanted.get(service)
        if check is None:
            self._failed.pop(service, None)
            return
        holder = self._by_port.setdefault(check.port, service)
        if holder != service:
            self._fail(service, f"health-check port {check.port} is already that of {holder}")
            return
        opened = self._opened.setdefault(service, _Opened(check.port, {}))
        for address in [address for address in opened.servers if address not in self._addresses]:
            self._close_address(opened, address)
        failures = []
        for address in sorted(self._addresses - opened.servers.keys()):
            if self._sockets >= SOCKETS_MAX:
                failures.append(f"{SOCKETS_MAX} health-check sockets are open already")
                break
            try:
                listener = listen_tcp(address, check.port, BACKLOG)
                opened.servers[address] = await asyncio.get_running_loop().create_server(server, sock=listener)
                self._sockets += 1
            except OSError as exc:
                failures.append(f"cannot listen on {address} port {check.port}: {exc.strerror or exc}")
        if failures:
            self._fail(service, "; ".join(failures))
        else:
            self._failed.pop(service, None)

    def _fail(self, service: NamespacedName, reason: str) -> None:
        if self._failed.get(service) != reason:
            self._failed[service] = reason
            log.warning("health-check port not served", extra={"service": str(service), "cause": reason})
            self._report_failure(service, reason)

    def _close(self, service: NamespacedName) -> None:
        opened = self._opened.pop(service)
        for address in list(opened.servers):
            self._close_address(opened, address)
        if self._by_port.get(opened.port) == service:
            del self._by_port[opened.port]

    def _close_address(self, opened: _Opened, address: str) -> None:
        opened.servers.pop(address).close()
        self._sockets -= 1

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        """Any path, any method. A connection may outlive its port: it then hears that nothing is here."""
        transport = request.transport
        sockname = transport.get_extra_info("sockname") if transport is not None else None
        service = self._by_port.get(sockname[1]) if sockname else None
        check = self._wanted.get(service) if service is not None else None
        if check is None:
            return web.Response(status=503, text="no such health check\n")
        healthy = self._healthy()
        body = {
            "service": {"namespace": check.service.namespace, "name": check.service.name},
            "localEndpoints": check.local_endpoints,
            "serviceProxyHealthy": healthy,
        }
        return web.Response(
            status=200 if healthy and check.local_endpoints > 0 else 503,
            body=msgspec.json.encode(body),
            content_type="application/json",
            headers={
                "X-Content-Type-Options": "nosniff",
                "X-Load-Balancing-Endpoint-Weight": str(check.local_endpoints),
            },
        )
