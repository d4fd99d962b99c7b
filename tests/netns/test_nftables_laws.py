# SPDX-License-Identifier: Apache-2.0
"""The nftables data plane keeps the contract, on the real kernel. What packets meet is in the acceptance cases."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from svcproxy.dataplane.nftables.elements import encode, packed
from svcproxy.dataplane.nftables.messages import Request, TableFlag, delete_elements, element_at
from svcproxy.dataplane.nftables.netlink import HEADER
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel, Rejected
from svcproxy.frontends.keys import Address
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.dataplane_conformance import DataplaneLaws, Harness
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

ENOSPC = 28


class Obstinate(Kernel):
    """Refuses every element that begins with some addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.obstructed: set[str] = set()

    def commit(self, requests: Sequence[Request]) -> Committed | Rejected:
        failures = []
        for index, request in enumerate(requests):
            for ip in self.obstructed:
                at = request.body.find(packed(ip))
                element = element_at(request, at + HEADER.size) if at >= 0 else None
                if element is not None:
                    failures.append(Failure(index, ENOSPC, element=element))
                    break
        return Rejected(tuple(failures)) if failures else super().commit(requests)


class NetnsHarness:
    """A plane in a namespace of its own, whose tables anyone may change."""

    node_ips = "192.0.2.11", "192.0.2.12"

    def __init__(self, node: Namespace, plane: NftablesDataplane, kernel: Obstinate) -> None:
        self.node = node
        self.plane = plane
        self.kernel = kernel

    def address(self, number: int, protocol: Protocol) -> Address:
        return Address(f"10.96.0.{10 + number}", protocol, 80)

    def obstruct(self, key: Address) -> None:
        self.kernel.obstructed.add(key.ip)

    def clear(self, key: Address) -> None:
        self.kernel.obstructed.discard(key.ip)

    def damage(self, key: Address) -> None:
        with self.node.entered(), Kernel() as kernel:
            gone = encode(SetName.CLASS, (key.ip, key.protocol, key.port))
            assert kernel.commit([*delete_elements(TABLES[Family.IPV4], "class", gone)]) == Committed()


@asynccontextmanager
async def opened() -> AsyncIterator[Harness]:
    with Namespace() as node:
        kernel: list[Obstinate] = []

        def make() -> Kernel:
            kernel.append(Obstinate())
            return kernel[0]

        with node.entered():
            plane = NftablesDataplane(Ground(table_flags=TableFlag.NONE), make)
        async with plane:
            with node.entered():
                await plane.resync(FrontendTable())
            yield NetnsHarness(node, plane, kernel[0])


class TestNftablesDataplane(DataplaneLaws):
    without_traffic = "the acceptance cases have it"

    def open(self) -> AbstractAsyncContextManager[Harness]:
        return opened()
