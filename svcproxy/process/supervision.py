# SPDX-License-Identifier: Apache-2.0
"""What a supervisor is told, and what it tells: the launch plan, and the state of its roles in `supervisor.json`."""

import contextlib
from enum import StrEnum
from pathlib import Path

import msgspec

from svcproxy.config import LogConfig
from svcproxy.process.identity import identity
from svcproxy.process.privileges import Privileges

STATUS_OCTETS_MAX = 1 << 20
WORKER_VARIABLE = "SVCPROXY_WORKER"
"""Tells a process of a role with several workers its number."""


class RolePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process to keep running."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str] = {}
    """Added to the supervisor's own."""
    privileges: Privileges = Privileges()
    group: str = ""
    """Neighbours of one group, such as the workers of a role, are stopped together. Empty: stopped alone."""
    keeps_sockets: bool = False
    """Whether its processes, one after the other, have a descriptor store: `svcproxy.process.descriptor_store`."""


class InterceptionPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses that stand on the node while a role answers at them. See `svcproxy.supervisor.interception`."""

    addresses: tuple[str, ...]
    group: str
    """Of the roles that have to prove it."""


class LaunchPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a supervisor knows."""

    roles: tuple[RolePlan, ...]
    """In the order in which they are started; they are stopped in reverse."""
    status_file: str
    stop_timeout: float
    """Seconds between SIGTERM and SIGKILL for each role."""
    backoff_initial: float = 0.2
    backoff_max: float = 30.0
    healthy_after: float = 10.0
    """Seconds after which a process counts as having started well: the next wait is a first one again."""
    crash_loop_after: int = 3
    """Ends in a row, each before `healthy_after`, that make a crash loop."""
    log: LogConfig = LogConfig()
    interception: InterceptionPlan | None = None


class RoleState(StrEnum):
    """What a role is at."""

    RUNNING = "running"
    BACKOFF = "backoff"
    """Ended or never started, and waits for its next start."""
    STOPPING = "stopping"
    """Was told to end and has not yet."""
    STOPPED = "stopped"


class RoleStatus(msgspec.Struct, frozen=True):
    """One role, as the supervisor sees it."""

    name: str
    state: RoleState
    pid: int | None
    restarts: int
    crash_loop: bool
    detail: str
    """How it ended last, empty if it never did."""
    since: float
    """Unix seconds when it came to be in this state."""


class _Status(msgspec.Struct, frozen=True):
    supervisor: str
    """Identity of the process that wrote it."""
    roles: tuple[RoleStatus, ...]


def read_status(path: Path) -> tuple[RoleStatus, ...]:
    """What the supervisor says; nothing where there is none, or none that is alive."""
    try:
        with path.open("rb") as file:
            status = msgspec.json.decode(file.read(STATUS_OCTETS_MAX), type=_Status)
        alive = identity(int(status.supervisor.partition("-")[0])) == status.supervisor
    except (OSError, ValueError):
        return ()
    return status.roles if alive else ()


def write_status(path: Path, statuses: tuple[RoleStatus, ...]) -> None:
    """Replace the file in one step, in this process's name. Raises `OSError`."""
    unfinished = path.with_name(f".{path.name}.{identity()}")
    try:
        unfinished.write_bytes(msgspec.json.encode(_Status(identity(), statuses)))
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def remove_status(path: Path) -> None:
    """Remove the file if this process wrote it."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        if msgspec.json.decode(path.read_bytes(), type=_Status).supervisor == identity():
            path.unlink()
