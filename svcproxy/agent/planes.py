# SPDX-License-Identifier: Apache-2.0
"""The data planes as one turn as the node's uses them: opened, kept running, handed over, stopped."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from socket import socket
from typing import Protocol

from svcproxy import api
from svcproxy.admin.state import AgentState
from svcproxy.agent.kernel_view import kernel_view
from svcproxy.config import Config, DataplaneMode
from svcproxy.dataplane.contract import Dataplane
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.none import NoDataplane
from svcproxy.dataplane.userspace.plane import UserspaceDataplane
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import FrontendKey
from svcproxy.model.meta import Protocol as Transport

log = logging.getLogger(__name__)

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

    def set_ground(self, ground: Ground) -> None:
        """What a data plane in the kernel stands on is another one."""
        ...

    async def run(self, damaged: Callable[[str], None]) -> None:
        """What goes on besides programming, until cancelled; `damaged` is told when a resync is needed, and why."""
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

    def set_ground(self, ground: Ground) -> None:
        """It stands on none."""

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

    def set_ground(self, ground: Ground) -> None:
        """It stands on none."""

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


class NftablesPlane:
    """`nftables`: connections are the kernel's, and tables have one owner at a time. See `Plane`."""

    def __init__(self, dataplane: NftablesDataplane) -> None:
        self.dataplane = dataplane

    def show(self, state: AgentState) -> None:
        """What the kernel counts, and what programming it took."""
        state.connections = self.dataplane.connections
        state.compromised = lambda: self.dataplane.compromised
        state.programming = self._programming
        state.inspect = self._inspect

    async def _inspect(self, ip: str, protocol: Transport, port: int, wanted: api.Trace) -> api.KernelView | None:
        near = wanted.source_kind != SourceKind.OTHER
        try:
            seen = await self.dataplane.inspect(ip, protocol, port, wanted.source, near=near)
        except DataplaneLost as exc:
            log.warning("the kernel cannot be asked", extra={"cause": exc.cause})
            return None
        return kernel_view(wanted, seen)

    def _programming(self) -> Mapping[str, int]:
        totals = self.dataplane.totals
        return {
            "batches": totals.batches,
            "operations": totals.operations,
            "rejections": totals.rejections,
            "settled": totals.settled,
            "foreign_changes": self.dataplane.foreign_changes,
            "drift": self.dataplane.drifted,
        }

    def set_ground(self, ground: Ground) -> None:
        """Another rule set, with the next resync."""
        self.dataplane.set_ground(ground.surroundings, ground.hairpin_cidrs)

    async def run(self, damaged: Callable[[str], None]) -> None:
        """Clean up after changes, and hear of those by others."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.dataplane.run(), name="nftables")
            group.create_task(self._watch(damaged), name="nftables watch")

    async def _watch(self, damaged: Callable[[str], None]) -> None:
        while True:
            damaged(await self.dataplane.damaged())

    def lend(self) -> Mapping[str, socket]:
        """The tables have no owner until the successor claims them."""
        self.dataplane.lend()
        return {}

    def take_back(self) -> None:
        """See `Plane`."""
        self.dataplane.take_back()

    def release(self) -> None:
        """The tables were let go of in `lend`."""

    async def outlive(self) -> None:
        """Connections are the kernel's."""
        await self.dataplane.close()

    async def stop(self, timeout: float) -> None:  # noqa: ARG002  # nothing to wait for
        """The tables stay."""
        await self.dataplane.close()


async def open_plane(
    config: Config,
    ground: Callable[[], Ground],
    source_kind: Callable[[str], SourceKind],
    inherited: Mapping[str, socket],
) -> Plane:
    """The data plane that the configuration asks for. `inherited`: the predecessor's sockets, ours from now on.

    Raises `DataplaneLost` when it cannot be opened.
    """
    if config.dataplane.mode in (DataplaneMode.NONE, DataplaneMode.NFTABLES):
        for unused in inherited.values():
            unused.close()
    if config.dataplane.mode is DataplaneMode.NONE:
        return NoPlane()
    if config.dataplane.mode is DataplaneMode.NFTABLES:
        try:
            return NftablesPlane(NftablesDataplane(ground()))
        except OSError as exc:
            raise DataplaneLost(f"netlink: {exc.strerror}") from exc
    userspace = UserspaceDataplane(config.dataplane, source_kind=source_kind, inherited=inherited)
    await userspace.__aenter__()
    return UserspacePlane(userspace)
