# SPDX-License-Identifier: Apache-2.0
"""Which API server to talk to. Pure.

URLs given by the user are used alone. Otherwise, best first: the endpoints of `default/kubernetes`, followed and
remembered; the kubeconfig's server; the in-cluster address, a Service address, last. Within a rank each node prefers
the servers in an order of its own (rendezvous hashing), so that a fleet spreads over them, and goes back to its
preferred one at the next pick after it has recovered.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from svcproxy.model import EndpointSlice
from svcproxy.model.meta import API_SERVER

"""The Service whose endpoints are the API servers."""

FIRST_RETRY = 1.0
"""Seconds after its first failure in a row that a server counts as failing."""
RETRY_MAX = 60.0
"""Upper bound of the same."""
ENDPOINTS_MAX = 64
"""Endpoints of `default/kubernetes` used; further ones are left out."""


class Origin(IntEnum):
    """Where an address comes from, best first."""

    FLAG = 0
    ENDPOINT = 1
    KUBECONFIG = 2
    IN_CLUSTER = 3


class Health(IntEnum):
    """What is known of a server, best first."""

    ANSWERING = 0
    UNTRIED = 1
    FAILING = 2


_SERVICE_ADDRESS = (
    "this is the address of a Service, which nothing may be serving on this node yet: set kube.api_servers"
)


@dataclass(slots=True)
class Server:
    """One API server. Read-only outside this module."""

    url: str
    """Scheme, host and port, without a trailing slash."""
    origin: Origin
    health: Health = Health.UNTRIED
    failures: int = 0
    """In a row, as seen by whoever uses the server."""
    retry_at: float = 0.0
    """Monotonic seconds; a failing server is not probed before."""
    error: str = ""


class ServerSet:
    """The API servers of one cluster."""

    def __init__(self, node_name: str, explicit: Iterable[str], remembered: Iterable[str], random: Callable[[], float]):
        """`random` returns floats in [0, 1)."""
        self._node_name = node_name
        self._random = random
        self._servers: dict[str, Server] = {}
        for url in explicit:
            self._add(url, Origin.FLAG)
        self._explicit = bool(self._servers)
        self._endpoints: tuple[str, ...] = ()
        self._endpoints_allowed = not self._explicit
        self.discovered(remembered)

    def configured(self, url: str, origin: Origin, *, verified: bool) -> None:
        """The credentials name `url`, "" for none. `verified`: whether TLS proves that a server is of this cluster.

        Endpoints found in the API are used only then; URLs given by the user replace both.
        """
        self._endpoints_allowed = verified and not self._explicit
        keep: set[str] = {url.rstrip("/")} if url and not self._explicit else set()
        for known in [s for s in self._servers.values() if s.origin in {Origin.KUBECONFIG, Origin.IN_CLUSTER}]:
            if known.url not in keep:
                del self._servers[known.url]
        if keep and url.rstrip("/") not in self._servers:
            self._add(url, origin)
        self._admit_endpoints()

    def discovered(self, urls: Iterable[str]) -> None:
        """The endpoints of `default/kubernetes` are `urls`. None at all changes nothing: it would leave nobody."""
        found = tuple(dict.fromkeys(url.rstrip("/") for url in urls))[:ENDPOINTS_MAX]
        if found:
            self._endpoints = found
            self._admit_endpoints()

    def endpoints(self) -> tuple[str, ...]:
        """The endpoints last discovered, to be remembered."""
        return self._endpoints

    def servers(self) -> tuple[Server, ...]:
        """All servers in use, best first as things stand; none before the credentials have named one."""
        return tuple(sorted(self._servers.values(), key=self._preference))

    def urls(self) -> tuple[str, ...]:
        """Their URLs."""
        return tuple(server.url for server in self.servers())

    def pick(self) -> Server | None:
        """The server to use now: the best that answers, else one not tried, else the one that failed longest ago."""
        return min(self._servers.values(), key=self._preference, default=None)

    def answered(self, url: str, *, probe: bool = False) -> None:
        """The server works. A mere probe does not forget the failures of those who use it."""
        if (server := self._servers.get(url)) is not None:
            server.health = Health.ANSWERING
            server.error = ""
            if not probe:
                server.failures = 0

    def failed(self, url: str, now: float, error: str, retry_after: float | None = None) -> None:
        """The server failed; it is passed over while another works. `retry_after`: seconds it asked for."""
        if (server := self._servers.get(url)) is not None:
            server.health = Health.FAILING
            wait = min(FIRST_RETRY * float(1 << min(server.failures, 16)), RETRY_MAX)
            server.failures += 1
            server.retry_at = now + max(wait * (0.5 + 0.5 * self._random()), min(retry_after or 0.0, RETRY_MAX))
            server.error = error

    def explained(self, url: str, error: str) -> str:
        """An error of a server, with what a person can do about it."""
        server = self._servers.get(url)
        return f"{error}; {_SERVICE_ADDRESS}" if server and server.origin is Origin.IN_CLUSTER else error

    def to_probe(self, now: float) -> tuple[str, ...]:
        """Servers that are not known to answer and whose time has come."""
        return tuple(s.url for s in self._servers.values() if s.health is not Health.ANSWERING and s.retry_at <= now)

    def alternative(self, url: str) -> bool:
        """Whether a server other than `url` is worth a try without waiting."""
        return any(s.url != url and s.health is not Health.FAILING for s in self._servers.values())

    def _admit_endpoints(self) -> None:
        wanted = set(self._endpoints) if self._endpoints_allowed else set()
        for known in [s for s in self._servers.values() if s.origin is Origin.ENDPOINT]:
            if known.url not in wanted:
                del self._servers[known.url]
        for url in self._endpoints:
            if url in wanted and url not in self._servers:
                self._add(url, Origin.ENDPOINT)

    def _add(self, url: str, origin: Origin) -> None:
        url = url.rstrip("/")
        self._servers.setdefault(url, Server(url, origin))

    def _preference(self, server: Server) -> tuple[int, float, int, bytes]:
        retry_at = server.retry_at if server.health is Health.FAILING else 0.0
        digest = hashlib.blake2b(f"{self._node_name} {server.url}".encode(), digest_size=8).digest()
        return server.health, retry_at, server.origin, digest


def endpoint_urls(slices: Iterable[EndpointSlice]) -> tuple[str, ...]:
    """The URLs of the API servers in the slices of `default/kubernetes`: ready endpoints, port `https`. Sorted."""
    urls: set[str] = set()
    for obj in slices:
        if obj.service != API_SERVER:
            continue
        ports = [port.port for port in obj.ports or () if port.name == "https" and port.port]
        for endpoint in obj.endpoints or ():
            if endpoint.conditions.is_ready and endpoint.addresses:
                address = endpoint.addresses[0]
                host = f"[{address}]" if ":" in address else address
                urls.update(f"https://{host}:{port}" for port in ports)
    return tuple(sorted(urls))
