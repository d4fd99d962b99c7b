# SPDX-License-Identifier: Apache-2.0
"""A user-space data plane on loopback: addresses of its own for each test process, a clock that is moved by hand."""

import asyncio
import itertools
import os
import random as random_module
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from types import MappingProxyType

from svcproxy.config import DataplaneConfig, UserspaceConfig
from svcproxy.dataplane.userspace import Notice, UserspaceDataplane
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Address
from svcproxy.model.meta import Protocol

SOURCES = {SourceKind.POD: "127.77.0.1", SourceKind.NODE: "127.0.0.1", SourceKind.OTHER: "127.88.0.1"}
PORT = 18080
TURNS_MAX = 10_000
"""Turns of a millisecond that `until` gives the loop."""
NETWORKS_APART = 257
"""Odd: successive numbers meet every network, and processes started one after the other meet late."""
_networks = itertools.count(os.getpid() * 401)
"""Numbers of /24 networks from 127.100.0.0 on, so that tests that run at the same time do not meet."""


def source_kind(ip: str) -> SourceKind:
    """The inverse of `SOURCES`."""
    return {address: kind for kind, address in SOURCES.items()}.get(ip, SourceKind.OTHER)


class UserspaceHarness:
    """See `svcproxy.testing.dataplane_traffic.TrafficHarness`."""

    def __init__(
        self,
        config: UserspaceConfig,
        inherited: Mapping[str, socket.socket],
        random: Callable[[], float] | None,
    ) -> None:
        number = next(_networks) * NETWORKS_APART % 32768
        self.network = f"127.{100 + number // 256}.{number % 256}"
        self.node_ips = (self.ip(101), self.ip(102))
        self.backend_ips = (self.ip(201), self.ip(202), self.ip(203))
        self.now = 1000.0
        self.notices: list[Notice] = []
        self._obstacles: dict[Address, socket.socket] = {}
        self.plane = UserspaceDataplane(
            DataplaneConfig(userspace=config),
            source_kind=source_kind,
            inherited=inherited,
            clock=lambda: self.now,
            report=self.notices.append,
            random=random or random_module.random,
        )

    def ip(self, number: int) -> str:
        return f"{self.network}.{number}"

    def address(self, number: int, protocol: Protocol) -> Address:
        return Address(self.ip(number + 1), protocol, PORT)

    def source(self, kind: SourceKind) -> str:
        return SOURCES[kind]

    def inside(self, ip: str) -> AbstractContextManager[None]:
        return nullcontext()

    def obstruct(self, key: Address) -> None:
        """Somebody else listens there."""
        self._obstacles[key] = socket.create_server((key.ip, key.port))

    def clear(self, key: Address) -> None:
        self._obstacles.pop(key).close()

    def damage(self, key: Address) -> None:
        """Somebody else closes the socket."""
        self.plane.sockets()[f"{key.protocol.lower()}/{key.ip}:{key.port}"].close()

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.plane.expire()

    def close(self) -> None:
        for obstacle in self._obstacles.values():
            obstacle.close()


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until something holds."""
    for _ in range(TURNS_MAX):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to hold")


@asynccontextmanager
async def userspace(
    config: UserspaceConfig = UserspaceConfig(),  # noqa: B008 - frozen
    *,
    inherited: Mapping[str, socket.socket] = MappingProxyType({}),
    random: Callable[[], float] | None = None,
) -> AsyncIterator[UserspaceHarness]:
    """An open data plane and its surroundings."""
    harness = UserspaceHarness(config, inherited, random)
    try:
        async with harness.plane:
            yield harness
    finally:
        harness.close()
