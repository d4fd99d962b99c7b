# SPDX-License-Identifier: Apache-2.0
"""Who owns a table.

The kernel names an owner by the port of its netlink socket, which is a process's id only if that socket was the
process's first, and then in the pid namespace of that process.
"""

import contextlib
from pathlib import Path
from typing import Final

COMMAND_MAX: Final = 80
"""Characters of a command line that are shown."""

_NETFILTER: Final = "12"


def owner_of(port: int) -> str:
    """Who has the netlink socket of that port, which `TableState.owner` names, in words.

    Processes are seen that have an entry in this /proc, and only by those that may look into theirs.
    """
    inode = _inode(port)
    for path in Path("/proc").glob("[0-9]*/fd/*") if inode else ():
        with contextlib.suppress(OSError):
            if str(path.readlink()) == f"socket:[{inode}]":
                process = path.parents[1]
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                return f"process {process.name} ({' '.join(words).strip()[:COMMAND_MAX]})"
    return f"the process of netlink port {port}, which cannot be seen from here"


def _inode(port: int) -> str:
    """Of the netfilter socket of that port in the namespace of the calling thread; empty if there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/thread-self/net/netlink").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1:3] == [_NETFILTER, str(port)]:
                return fields[-1]
    return ""
