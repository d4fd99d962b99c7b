# SPDX-License-Identifier: Apache-2.0
"""What the agent does while its instance is the node's: the data plane, and the listeners that answer as the node."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from svcproxy.admin.health_checks import HealthChecks
from svcproxy.admin.server import AdminServer
from svcproxy.agent.pipeline import Pipeline
from svcproxy.agent.planes import Plane
from svcproxy.agent.surroundings import Derived
from svcproxy.config import Config
from svcproxy.model import Touched


@dataclass(frozen=True, slots=True)
class Parts:
    """What every turn uses."""

    config: Callable[[], Config]
    pipeline: Pipeline
    admin: AdminServer
    checks: HealthChecks
    open_plane: Callable[[Mapping[str, socket]], Awaitable[Plane]]
    """Of the predecessor's sockets, which it takes over."""
    group: asyncio.TaskGroup
    """Owns the tasks of every turn."""
    plane_chosen: Callable[[Plane], None]
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
        self._plane: Plane | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, inherited: Mapping[str, socket]) -> None:
        """Put everything known in force; returns when it is."""
        parts = self._parts
        self._plane = plane = await parts.open_plane(inherited)
        parts.plane_chosen(plane)
        await parts.pipeline.program_all(plane.dataplane)
        parts.checks.replace(parts.pipeline.frontends.table)
        self._spawn(
            parts.pipeline.program(plane.dataplane, lambda: parts.config().dataplane.resync_interval),
            "data plane programming",
        )
        self._spawn(plane.run(parts.pipeline.resync_soon), "data plane upkeep")
        self._spawn(parts.admin.serve_node(), "listeners of the node")
        self._spawn(parts.checks.run(), "health-check node ports")

    def touched(self, touched: Touched) -> None:
        """What is known has changed."""
        if self._plane is not None:
            self._plane.touched(touched)

    def surrounded(self, derived: Derived) -> None:
        """Node and cluster are others."""
        if self._plane is not None:
            self._plane.surrounded(derived)

    def sockets(self) -> Mapping[str, socket]:
        """What the successor's data plane goes on with."""
        return self._plane.lend() if self._plane is not None else {}

    def keep(self) -> None:
        """The successor does without: go on."""
        if self._plane is not None:
            self._plane.take_back()

    def release(self) -> None:
        """Leave the sockets to the successor; established connections go on."""
        self._end_tasks()
        if self._plane is not None:
            self._plane.release()
            outliving = self._parts.group.create_task(self._plane.outlive(), name="connections of an earlier turn")
            self._parts.earlier.add(outliving)
            outliving.add_done_callback(self._parts.earlier.discard)
            self._plane = None

    async def stop(self) -> None:
        """Let established connections end for `shutdown_timeout`, then close."""
        self._end_tasks()
        if self._plane is not None:
            await self._plane.stop(self._parts.config().shutdown_timeout)
            self._plane = None

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(self._parts.group.create_task(work, name=name))

    def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._parts.pipeline.stop_programming()
