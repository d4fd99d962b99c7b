# SPDX-License-Identifier: Apache-2.0
"""The data planes as one turn as the node's uses them: opened, kept running, handed over, stopped."""

from collections.abc import Awaitable, Callable, Mapping
from socket import socket
from typing import Protocol

from svcproxy.admin.state import AgentState
from svcproxy.agent.surroundings import Derived
from svcproxy.config import DNS_PORT, Config, DataplaneMode
from svcproxy.dataplane.contract import Dataplane
from svcproxy.dataplane.none import NoDataplane
from svcproxy.dataplane.userspace.plane import UserspaceDataplane
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import FrontendKey
from svcproxy.model import Touched

RELEASED_MAX = 86400.0
"""Seconds that connections established before a successor took over may go on in this process."""


class Plane(Protocol):
    """A data plane and its ways."""

    @property
    def dataplane(self) -> Dataplane:
        """Itself."""
        ...

    def show(self, state: AgentState) -> None:
        """Tell the state what there is to see."""
        ...

    def touched(self, touched: Touched) -> None:
        """What is known has changed."""
        ...

    def surrounded(self, derived: Derived) -> None:
        """Node and cluster are others, as far as rules in a kernel have to know of them."""
        ...

    async def run(self, damaged: Callable[[str], None]) -> None:
        """What goes on besides programming once everything is in force, until cancelled.

        `damaged` is told when a resync is needed, and why.
        """
        ...

    def lend(self) -> Mapping[str, socket]:
        """Let a successor begin: the sockets that it takes."""
        ...

    def take_back(self) -> None:
        """The successor does without."""
        ...

    def release(self) -> None:
        """The successor has taken over: let go of what it has, at once."""
        ...

    async def outlive(self) -> None:
        """Live on after `release` as long as there is something to live for, then close."""
        ...

    async def stop(self, timeout: float) -> None:
        """Let established connections end for `timeout` seconds, then close."""
        ...


class NoPlane:
    """`none`. See `Plane`."""

    def __init__(self) -> None:
        self.dataplane = NoDataplane()

    def show(self, state: AgentState) -> None:
        """Nothing is counted."""

    def touched(self, touched: Touched) -> None:
        """Frontends tell all."""

    def surrounded(self, derived: Derived) -> None:
        """It has no rules."""

    async def run(self, damaged: Callable[[str], None]) -> None:
        """Nothing goes on."""

    def lend(self) -> Mapping[str, socket]:
        """Nothing to take."""
        return {}

    def take_back(self) -> None:
        """Nothing to take back."""

    def release(self) -> None:
        """Nothing to let go of."""

    async def outlive(self) -> None:
        """Nothing to live for."""

    async def stop(self, timeout: float) -> None:
        """Nothing to close."""


class UserspacePlane:
    """`userspace`: sockets pass to a successor, connections stay. See `Plane`."""

    def __init__(self, dataplane: UserspaceDataplane) -> None:
        self.dataplane = dataplane

    def show(self, state: AgentState) -> None:
        """Its own counts."""
        state.connections = self._connections

    async def _connections(self) -> Mapping[FrontendKey, int]:
        return {key: counters.flows for key, counters in self.dataplane.counters.items()}

    def touched(self, touched: Touched) -> None:
        """Frontends tell all."""

    def surrounded(self, derived: Derived) -> None:
        """It has no rules."""

    async def run(self, damaged: Callable[[str], None]) -> None:
        """Its tasks are its own, and nobody else can change it."""

    def lend(self) -> Mapping[str, socket]:
        """Its sockets, which it goes on reading."""
        return self.dataplane.sockets()

    def take_back(self) -> None:
        """It never stopped."""

    def release(self) -> None:
        """Stop reading from the sockets."""
        self.dataplane.release()

    async def outlive(self) -> None:
        """Established connections go on."""
        try:
            await self.dataplane.drain(RELEASED_MAX)
        finally:
            await self.dataplane.close()

    async def stop(self, timeout: float) -> None:
        """See `Plane`."""
        await self.dataplane.drain(timeout)
        await self.dataplane.close()


async def open_plane(
    mode: DataplaneMode,
    config: Config,
    source_kind: Callable[[str], SourceKind],
    inherited: Mapping[str, socket],
    nftables: Callable[[], Awaitable[Plane]],
) -> Plane:
    """The data plane of a mode, not `auto`. `inherited`: the predecessor's sockets, ours from now on.

    Raises `DataplaneLost` when it cannot be opened.
    """
    if mode is DataplaneMode.USERSPACE:
        # The DNS role starts later than an address that it has left behind goes.
        elsewhere = [(ip, DNS_PORT) for ip in config.dns.intercept]
        userspace = UserspaceDataplane(
            config.dataplane, source_kind=source_kind, inherited=inherited, elsewhere=elsewhere
        )
        await userspace.__aenter__()
        return UserspacePlane(userspace)
    for unused in inherited.values():
        unused.close()
    return await nftables() if mode is DataplaneMode.NFTABLES else NoPlane()
