# SPDX-License-Identifier: Apache-2.0
"""What the agent does while its instance is the node's: the data plane, and the listeners that answer as the node."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from svcproxy.admin.health_checks import HealthChecks
from svcproxy.admin.server import AdminServer
from svcproxy.agent.pipeline import Pipeline
from svcproxy.config import Config, DataplaneMode
from svcproxy.dataplane.contract import Dataplane
from svcproxy.dataplane.none import NoDataplane
from svcproxy.dataplane.userspace.plane import UserspaceDataplane
from svcproxy.errors import ConfigError, Problem
from svcproxy.frontends.decision import SourceKind

AVAILABLE = (DataplaneMode.AUTO, DataplaneMode.USERSPACE, DataplaneMode.NONE)
RELEASED_MAX = 86400.0
"""Seconds that connections established before a successor took over may go on in this process."""


def check_mode(mode: DataplaneMode) -> None:
    """Raise `ConfigError` for a data plane that this version does not have."""
    if mode not in AVAILABLE:
        message = f"not available in this version: {mode} (available: {', '.join(AVAILABLE)})"
        raise ConfigError([Problem(message, path="dataplane.mode")])


@dataclass(frozen=True, slots=True)
class Parts:
    """What every turn uses."""

    config: Callable[[], Config]
    pipeline: Pipeline
    admin: AdminServer
    checks: HealthChecks
    source_kind: Callable[[str], SourceKind]
    group: asyncio.TaskGroup
    """Owns the tasks of every turn."""
    dataplane_chosen: Callable[[Dataplane], None]
    earlier: set[asyncio.Task[None]] = field(default_factory=set)
    """Data planes of earlier turns, each with connections that go on."""

    async def end_earlier(self) -> None:
        """Let the connections of earlier turns end for `shutdown_timeout`, then close them."""
        if self.earlier:
            await asyncio.wait(self.earlier, timeout=self.config().shutdown_timeout)
        for task in self.earlier:
            task.cancel()


class AgentTenant:
    """One turn as the node's. See `svcproxy.process.succession.Tenant`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._userspace: UserspaceDataplane | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, inherited: Mapping[str, socket]) -> None:
        """Put everything known in force; returns when it is."""
        parts, config = self._parts, self._parts.config()
        dataplane: Dataplane
        if config.dataplane.mode is DataplaneMode.NONE:
            for unused in inherited.values():
                unused.close()
            dataplane = NoDataplane()
        else:
            dataplane = self._userspace = UserspaceDataplane(
                config.dataplane, source_kind=parts.source_kind, inherited=inherited
            )
            await self._userspace.__aenter__()
        parts.dataplane_chosen(dataplane)
        await parts.pipeline.program_all(dataplane)
        parts.checks.replace(parts.pipeline.frontends.table)
        self._spawn(
            parts.pipeline.program(dataplane, lambda: parts.config().dataplane.resync_interval),
            "data plane programming",
        )
        self._spawn(parts.admin.serve_node(), "listeners of the node")
        self._spawn(parts.checks.run(), "health-check node ports")

    def sockets(self) -> Mapping[str, socket]:
        """The data plane's."""
        return self._userspace.sockets() if self._userspace is not None else {}

    def release(self) -> None:
        """Leave the sockets to the successor; established connections go on."""
        self._end_tasks()
        if self._userspace is not None:
            self._userspace.release()
            outliving = self._parts.group.create_task(_outlive(self._userspace), name="connections of an earlier turn")
            self._parts.earlier.add(outliving)
            outliving.add_done_callback(self._parts.earlier.discard)
            self._userspace = None

    async def stop(self) -> None:
        """Let established connections end for `shutdown_timeout`, then close."""
        self._end_tasks()
        if self._userspace is not None:
            await self._userspace.drain(self._parts.config().shutdown_timeout)
            await self._userspace.close()
            self._userspace = None

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(self._parts.group.create_task(work, name=name))

    def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._parts.pipeline.stop_programming()


async def _outlive(dataplane: UserspaceDataplane) -> None:
    try:
        await dataplane.drain(RELEASED_MAX)
    finally:
        await dataplane.close()
