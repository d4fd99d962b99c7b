# SPDX-License-Identifier: Apache-2.0
"""The nftables data plane on a node: what it waits for, what it sets, what it takes over, what it cleans up.

In order: what else serves Services here has to be gone; the tables are programmed; then parameters of connection
tracking are set and what a kube-proxy has left is removed. Flows that lead nowhere are removed as changes come.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import socket

from svcproxy import api
from svcproxy.admin.state import AgentState, ConntrackState
from svcproxy.agent.kernel_view import kernel_view
from svcproxy.agent.surroundings import Derived
from svcproxy.config import Config
from svcproxy.dataplane.contract import Outcome
from svcproxy.dataplane.nftables.cleaner import FlowCleaner
from svcproxy.dataplane.nftables.conntrack import Conntrack
from svcproxy.dataplane.nftables.flows import Serving
from svcproxy.dataplane.nftables.foreign import detect
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.nftables.takeover import Fate, remove_kube_proxy
from svcproxy.dataplane.nftables.takeover import Outcome as Removal
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.errors import ConntrackError, DataplaneLost
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.serving import stopped_serving
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model import Touched
from svcproxy.model.meta import Protocol
from svcproxy.process import sysctls

log = logging.getLogger(__name__)

LOOK_INTERVAL = 2.0
"""Seconds between two looks whether what else serves Services is gone."""


class NftablesPlane:
    """See `svcproxy.agent.planes.Plane`."""

    def __init__(
        self, dataplane: NftablesDataplane, cleaner: FlowCleaner | None, config: Config, state: AgentState
    ) -> None:
        self._inner = dataplane
        self._cleaner = cleaner
        self._config = config
        self._state = state
        self._statistics: Conntrack | None = None
        self._asking = asyncio.Lock()
        self.dataplane = dataplane if cleaner is None else _Noting(dataplane, cleaner)

    def show(self, state: AgentState) -> None:
        """What the kernel counts, and what programming it took."""
        state.connections = self._inner.connections
        state.compromised = lambda: self._inner.compromised
        state.programming = self._programming
        state.inspect = self._inspect
        state.conntrack = self._conntrack

    def touched(self, touched: Touched) -> None:
        """Flows may have lost their endpoint."""
        if self._cleaner is not None:
            self._cleaner.note_stopped(stopped_serving(touched))

    def surrounded(self, derived: Derived) -> None:
        """Have other rules."""
        self._inner.set_ground(derived.surroundings, derived.hairpin_cidrs)

    async def run(self, damaged: Callable[[str], None]) -> None:
        """Settle in, clean up after changes, and hear of those by others."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle(), name="nftables settling in")
            group.create_task(self._inner.run(), name="nftables")
            group.create_task(self._watch(damaged), name="nftables watch")
            if self._cleaner is not None:
                group.create_task(self._cleaner.run(), name="stale flows")

    def lend(self) -> Mapping[str, socket]:
        """The tables have no owner until the successor claims them."""
        self._inner.lend()
        return {}

    def take_back(self) -> None:
        """The successor does without."""
        self._inner.take_back()

    def release(self) -> None:
        """The tables were let go of in `lend`."""

    async def outlive(self) -> None:
        """Connections are the kernel's."""
        await self.stop(0)

    async def stop(self, timeout: float) -> None:  # noqa: ARG002  # nothing to wait for
        """The tables stay."""
        await self._inner.close()
        async with self._asking:
            if self._statistics is not None:
                self._statistics.close()
                self._statistics = None

    async def _settle(self) -> None:
        """Set what has to be set, and remove what a kube-proxy left."""
        values = sysctls.wanted(self._config.dataplane.conntrack, os.cpu_count() or 1)
        record = Path(self._config.state_dir) / sysctls.FILE_NAME
        settings = await asyncio.to_thread(sysctls.apply, values, record)
        self._state.settings = tuple(
            api.Setting(each.name, each.wanted, each.before, each.after, each.error) for each in settings
        )
        if not self._config.dataplane.beside_others:
            await asyncio.to_thread(_remove_leftovers)

    # --- what there is to see

    async def _watch(self, damaged: Callable[[str], None]) -> None:
        while True:
            damaged(await self._inner.damaged())

    def _programming(self) -> Mapping[str, int]:
        totals = self._inner.totals
        return {
            "batches": totals.batches,
            "operations": totals.operations,
            "rejections": totals.rejections,
            "settled": totals.settled,
            "foreign_changes": self._inner.foreign_changes,
            "drift": self._inner.drifted,
        }

    async def _inspect(self, ip: str, protocol: Protocol, port: int, wanted: api.Trace) -> api.KernelView | None:
        near = wanted.source_kind != SourceKind.OTHER
        try:
            seen = await self._inner.inspect(ip, protocol, port, wanted.source, near=near)
        except DataplaneLost as exc:
            log.warning("the kernel cannot be asked", extra={"cause": exc.cause})
            return None
        return kernel_view(wanted, seen)

    async def _conntrack(self) -> ConntrackState | None:
        """How connection tracking does; None if it does not say."""
        async with self._asking:
            try:
                self._statistics = self._statistics or Conntrack()
                read = await asyncio.to_thread(self._statistics.statistics)
            except (OSError, ConntrackError) as exc:
                log.warning("connection tracking cannot be asked", extra={"cause": str(exc)})
                return None
        cleaner = self._cleaner
        return ConntrackState(
            entries=read.entries,
            maximum=read.maximum,
            insert_failed=read.insert_failed,
            dropped=read.dropped,
            early_dropped=read.early_dropped,
            passes=cleaner.passes if cleaner is not None else 0,
            pass_seconds=cleaner.pass_seconds if cleaner is not None else 0.0,
            failures=cleaner.failures if cleaner is not None else 0,
            deleted=dict(cleaner.deleted) if cleaner is not None else {},
        )


class _Noting:
    """The data plane, whose changes the cleaner of flows hears of. See `svcproxy.dataplane.contract.Dataplane`."""

    def __init__(self, inner: NftablesDataplane, cleaner: FlowCleaner) -> None:
        self._inner = inner
        self._cleaner = cleaner
        self.name = inner.name

    async def apply(self, delta: FrontendDelta) -> Mapping[FrontendKey, Outcome]:
        outcomes = await self._inner.apply(delta)
        self._cleaner.note(delta)
        return outcomes

    async def resync(self, desired: FrontendTable) -> FrontendDelta:
        repairs = await self._inner.resync(desired)
        self._cleaner.note_resync(desired, repairs)
        return repairs

    @property
    def refused(self) -> Mapping[FrontendKey, str]:
        return self._inner.refused

    async def drain(self, timeout: float) -> None:
        await self._inner.drain(timeout)

    async def close(self) -> None:
        await self._inner.close()


async def open_nftables(
    config: Config, ground: Callable[[], Ground], serving: Serving, state: AgentState
) -> NftablesPlane:
    """Open the data plane when nothing else serves Services here, or at once if it may serve beside others.

    `state` says meanwhile what it waits for; `ground` is asked when that is over, and nothing is awaited after it.
    Raises `DataplaneLost` if nf_tables cannot be reached.
    """
    await _alone(config, state)
    try:
        dataplane = NftablesDataplane(ground())
    except OSError as exc:
        raise DataplaneLost(f"netlink: {exc.strerror}") from exc
    cleaner = None
    try:
        cleaner = FlowCleaner(Conntrack(), serving)
    except OSError as exc:
        log.warning("stale flows are not removed: no connection tracking over netlink", extra={"cause": exc.strerror})
    return NftablesPlane(dataplane, cleaner, config, state)


async def _alone(config: Config, state: AgentState) -> None:
    """Wait for others to be gone."""
    while True:
        found = await asyncio.to_thread(_others)
        state.others = found
        serving = [each for each in found if each.alive or (each.alive is None and not each.removable)]
        if not serving:
            state.blocked = ""
            return
        named = "; ".join(f"{each.implementation} ({', '.join(each.evidence)})" for each in serving)
        if config.dataplane.beside_others:
            log.warning("serving beside another implementation of Services", extra={"others": named})
            return
        blocked = f"another implementation of Services is here: {named}; remove it, or set dataplane.beside_others"
        if blocked != state.blocked:
            log.error("not serving yet", extra={"cause": blocked})
            state.blocked = blocked
        await asyncio.sleep(LOOK_INTERVAL)


def _others() -> tuple[api.Foreign, ...]:
    try:
        with Kernel() as kernel:
            return detect(kernel)
    except (OSError, DataplaneLost) as exc:
        log.warning("cannot see whether something else serves Services here", extra={"cause": str(exc)})
        return ()


def _remove_leftovers() -> None:
    """What a kube-proxy that is gone left behind."""
    try:
        with Kernel() as kernel:
            left = [each for each in detect(kernel) if each.removable and each.alive is False]
            for outcome in remove_kube_proxy(kernel, left):
                _tell(outcome)
    except (OSError, DataplaneLost) as exc:
        log.warning("what a kube-proxy left is not removed", extra={"cause": str(exc)})


def _tell(outcome: Removal) -> None:
    if outcome.fate is Fate.FAILED:
        log.warning("left by kube-proxy and not removed", extra={"what": outcome.what, "cause": outcome.reason})
    elif outcome.fate is Fate.REMOVED:
        log.info("removed what kube-proxy left", extra={"what": outcome.what})
