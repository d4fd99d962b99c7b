# SPDX-License-Identifier: Apache-2.0
"""What a supervisor is told, and what it tells: the launch plan, and the state of its roles in `supervisor.json`."""

from enum import StrEnum
from pathlib import Path

import msgspec

from svcproxy.process.privileges import Privileges

STATUS_OCTETS_MAX = 1 << 20


class RolePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process to keep running."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str] = {}
    """Added to the supervisor's own."""
    privileges: Privileges = Privileges()


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


class RoleState(StrEnum):
    """What a role is at."""

    RUNNING = "running"
    BACKOFF = "backoff"
    """Ended, and waits to be started again."""
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


def read_status(path: Path) -> tuple[RoleStatus, ...]:
    """What the supervisor says; nothing where there is none, or none that can be read."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(STATUS_OCTETS_MAX), type=tuple[RoleStatus, ...])
    except (OSError, msgspec.DecodeError):
        return ()


def write_status(path: Path, statuses: tuple[RoleStatus, ...]) -> None:
    """Replace the file in one step. Raises `OSError`."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(msgspec.json.encode(statuses))
    unfinished.replace(path)
