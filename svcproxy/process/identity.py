# SPDX-License-Identifier: Apache-2.0
"""A name for a process that no other process of this boot and pid namespace ever has."""

import os
from pathlib import Path

_START_TIME_FIELD = 22
_AFTER_COMMAND = 3
"""Number of the first field after the command's name, which may hold anything (proc(5))."""


def identity(pid: int | None = None) -> str:
    """Pid and start time in clock ticks, such as `4711-52631`; of this process by default.

    Raises `ProcessLookupError` when there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError as exc:
        raise ProcessLookupError(f"no process {pid}") from exc
    return f"{pid}-{line.rpartition(')')[2].split()[_START_TIME_FIELD - _AFTER_COMMAND]}"
