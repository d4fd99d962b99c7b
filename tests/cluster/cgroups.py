# SPDX-License-Identifier: Apache-2.0
"""A cgroup for each cluster and node: what is in it belongs to the cluster, however the one who started it has ended.

Version 1 of the hierarchy has a folder in every controller's tree, version 2 has one.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNIFIED = "unified"
PREFIX = "svcproxy-cluster-"
_GONE_WITHIN = 20.0
"""Seconds that killed processes may take to disappear."""


def create(cluster: str, node: str) -> str:
    """Make the cgroup of a node and return its path, as the kubelet's `cgroupRoot` wants it."""
    path = f"{PREFIX}{cluster}/{node}"
    for tree in _trees():
        folder = tree
        for part in path.split("/"):
            if tree == ROOT:
                (folder / "cgroup.subtree_control").write_text(
                    " ".join(f"+{name}" for name in (folder / "cgroup.controllers").read_text().split())
                )
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if tree != ROOT and (parent / name).exists():
                    (folder / name).write_text((parent / name).read_text())
    return f"/{path}"


def enter(path: str) -> None:
    """Move this process into a group below a node's cgroup, with everything it starts from now on."""
    for tree in _trees():
        folder = tree / path.lstrip("/") / "node"
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if tree != ROOT and (folder.parent / name).exists():
                (folder / name).write_text((folder.parent / name).read_text())
        (folder / "cgroup.procs").write_text(str(os.getpid()))


def existing() -> set[str]:
    """The clusters that have cgroups."""
    return {path.name.removeprefix(PREFIX) for tree in _all_trees() for path in tree.glob(f"{PREFIX}*")}


def remove(cluster: str) -> None:
    """Kill every process in the cgroups of a cluster and remove them. Raises `TimeoutError` if some stay."""
    deadline = time.monotonic() + _GONE_WITHIN
    while left := [folder for tree in _all_trees() for folder in _folders(tree / f"{PREFIX}{cluster}")]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"cgroups of cluster {cluster} stay: {', '.join(map(str, left))}")
        for folder in left:
            _kill(folder)
            with contextlib.suppress(OSError):
                folder.rmdir()
        time.sleep(0.02)


def _kill(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _folders(top: Path) -> Iterator[Path]:
    """A cgroup and those below, the deepest first."""
    if top.exists():
        for folder, _, _ in os.walk(top, topdown=False):
            yield Path(folder)


def _trees() -> list[Path]:
    """Where a node's cgroup is made."""
    return [tree for tree in _all_trees() if tree.name != UNIFIED]


def _all_trees() -> list[Path]:
    """Those and, where both versions are mounted, the tree of version 2, in which runc makes cgroups by itself."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [tree for tree in ROOT.iterdir() if (tree / "cgroup.procs").exists()]
