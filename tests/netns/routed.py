# SPDX-License-Identifier: Apache-2.0
"""A client, a node with the nftables data plane, and backends behind it; and kernels that misbehave in one way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Self

from svcproxy.dataplane.nftables.answers import Elements, parse
from svcproxy.dataplane.nftables.messages import Element, Request, TableFlag, encode
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel, Rejected
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKind, Scope, ServicePortName
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import PATIENCE, Client, Server, serving
from tests.netns.namespaces import Namespace

UNOWNED = Ground(table_flags=TableFlag.NONE)
CLIENT = {Family.IPV4: "10.1.1.2", Family.IPV6: "fd01:1::2"}
HOSTS = {Family.IPV4: ("10.1.2.2", "10.1.2.3", "10.1.2.4"), Family.IPV6: ("fd01:2::2", "fd01:2::3", "fd01:2::4")}
PORT = 8080
BACKENDS = {family: tuple(Backend(ip, PORT) for ip in hosts) for family, hosts in HOSTS.items()}
FOUR = BACKENDS[Family.IPV4]
NOWHERE = Backend("10.1.2.9", 9)


class Routed:
    """Namespaces `client`, `node` and `backends`, the latter two hops from the first."""

    def __init__(self) -> None:
        """Raises OSError without privileges."""
        with ExitStack() as stack:
            self.client, self.node, self.backends = (stack.enter_context(Namespace()) for _ in range(3))
            self.node.forward()
            self.node.connect(self.client, "veth1", 1)
            self.node.connect(self.backends, "veth2", 2)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def plane(self, ground: Ground = UNOWNED, kernel: Callable[[], Kernel] = Kernel) -> NftablesDataplane:
        """A data plane of the node, not in force yet."""
        with self.node.entered():
            return NftablesDataplane(ground, kernel)

    def nft(self, *commands: str) -> str:
        """Have nft do something on the node, as a human would."""
        return self.node.run("nft", "-f", "-", text="\n".join(commands) + "\n")

    @asynccontextmanager
    async def serving(self, protocol: Protocol = Protocol.TCP) -> AsyncIterator[dict[str, Server]]:
        """All backends serve, under the names of their addresses."""
        with self.backends.entered():
            servers = {ip: Server(ip, protocol, ip, PORT) for hosts in HOSTS.values() for ip in hosts}
        async with serving(*servers.values()):
            yield servers

    async def ask(self, key: Address, patience: float = PATIENCE, source: str = "") -> str:
        """The backend that a new flow of the client meets."""
        with self.client.entered():
            flow = Client(key.protocol, source or CLIENT[key.family], (key.ip, key.port))
        with flow:
            return await flow.ask(patience=patience)

    async def met(self, key: Address, hoped: Collection[str]) -> set[str]:
        """What new flows meet: 12 of them, and more until all that was hoped for was met, but not many more."""
        met: set[str] = set()
        for _ in range(20):
            met.update(await asyncio.gather(*(self.ask(key) for _ in range(12))))
            if met >= set(hoped):
                break
        return met

    async def serves(self, key: Address, *names: str) -> bool:
        """Whether new flows meet these backends, all of them and nothing else."""
        return await self.met(key, names) == set(names)


def frontend(number: int, family: Family = Family.IPV4, protocol: Protocol = Protocol.TCP) -> Frontend:
    """One of thousands, each of a Service port of its own."""
    ip = f"10.96.{number >> 8}.{number & 255}" if family is Family.IPV4 else f"fd96::a:{number:x}"
    name = ServicePortName("shop", f"service-{number}", "", protocol)
    return Frontend(Address(ip, protocol, 80), name, FrontendKind.CLUSTER_IP)


def key_of(some: Frontend) -> Address:
    """Its address."""
    assert isinstance(some.key, Address)
    return some.key


def change(
    some: Frontend, added: Iterable[Backend] = (), removed: Iterable[Backend] = (), scope: Scope = Scope.CLUSTER
) -> FrontendDelta:
    """Its backends change."""
    return FrontendDelta(backends=(BackendSetDelta(some.backend_set(scope), tuple(added), tuple(removed)),))


def table_of(*some: Frontend, backends: Sequence[Backend] | None = None) -> FrontendTable:
    """These frontends, all with the same backends."""
    table = FrontendTable({each.key: each for each in some})
    for each in some:
        table.backends[each.backend_set(Scope.CLUSTER)] = set(BACKENDS[each.family] if backends is None else backends)
    return table


def elements_of(request: Request) -> tuple[str, Sequence[Element]]:
    """The set that a request is about, and the elements it names; none in another request."""
    for answer in parse(encode(request, 1)):
        if isinstance(answer.content, Elements):
            return answer.content.name, [each.element for each in answer.content.elements]
    return "", ()


Instead = Callable[[Kernel, Sequence[Request]], Committed | Rejected]


class Refusing(Kernel):
    """Refuses elements as the kernel does: the first of each request, and nothing of the batch comes into force."""

    def __init__(self) -> None:
        super().__init__()
        self.errno = 0
        self.refuses: Callable[[Request, str, Element], bool] = lambda request, name, element: False

    def commit(self, requests: Sequence[Request]) -> Committed | Rejected:
        failures = []
        for index, request in enumerate(requests):
            name, elements = elements_of(request)
            refused = (at for at, each in enumerate(elements) if self.refuses(request, name, each))
            if (element := next(refused, None)) is not None:
                failures.append(Failure(index, self.errno, element=element))
        return Rejected(tuple(failures)) if failures else super().commit(requests)


class Failing(Kernel):
    """Does something else instead of carrying out one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = False
        self._when: Callable[[Sequence[Request]], bool] = lambda requests: False
        self._instead: Instead = Kernel.commit

    def fail(self, when: Callable[[Sequence[Request]], bool], instead: Instead) -> None:
        """Do that with the first batch which is so."""
        self.failed = False
        self._when, self._instead = when, instead

    def commit(self, requests: Sequence[Request]) -> Committed | Rejected:
        if not self.failed and self._when(requests):
            self.failed = True
            return self._instead(self, requests)
        return super().commit(requests)
