# SPDX-License-Identifier: Apache-2.0
"""The run directory: where the processes of one node find each other.

    <run_dir>/
        node.lock                       svcproxy.process.lock
        supervisor.json                 svcproxy.process.supervision
        current -> instances/<name>     the instance that answers as the node
        instances/<name>/               one for each live instance, flock(2)ed by its process for as long as it lives
            admin.sock  handover.sock   0600
            feed.sock                   0660
        <role>-<n>/                     the same again for each worker process, which is the node's one by one
            supervisor.json             of the first, where the role has a supervisor of its own

Directories are 0750 and belong to the process's own user and primary group. Workers that run under another uid share
the agent's primary group (`runAsGroup`, or `gid` in a launch plan) to reach its feed; everyone else is kept out. They
cannot write here, so that a hijacked worker cannot pass itself off as the agent: their own directory, owned by them, is
made beforehand by whoever starts them.
Liveness is a lock, not a pid, because the instances of a rolling update live in pid namespaces of their own.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from svcproxy.errors import ConfigError, LockedError, Problem
from svcproxy.process.identity import identity

DIRECTORY_MODE = 0o750
GROUP_SOCKET_MODE = 0o660

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """Where the files of one instance are."""

    path: Path

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.path.name

    @property
    def admin_socket(self) -> Path:
        """HTTP: health, metrics, status. For the agent's user and root."""
        return self.path / "admin.sock"

    @property
    def feed_socket(self) -> Path:
        """What workers subscribe to. For the agent's group."""
        return self.path / "feed.sock"

    @property
    def handover_socket(self) -> Path:
        """Where the sockets pass to the next instance. For the process's user and root."""
        return self.path / "handover.sock"


class Instance:
    """The directory of this very process's instance. Made by `RunDirectory.open_instance`, gone after `close`."""

    def __init__(self, run: "RunDirectory", paths: InstancePaths, descriptor: int) -> None:
        self._run = run
        self.paths = paths
        self._descriptor = descriptor

    def make_current(self) -> None:
        """Answer as the node. Only the holder of the node lock may ask for it."""
        with self._run.registry():
            following = self.paths.path.with_name(f".{self.paths.name}.current")
            following.unlink(missing_ok=True)
            following.symlink_to(Path("instances") / self.paths.name)
            following.replace(self._run.current)

    def close(self) -> None:
        """Remove the directory, and `current` if it names this instance. The second call does nothing."""
        if self._descriptor < 0:
            return
        with self._run.registry():
            if self._run.current_name() == self.paths.name:
                self._run.current.unlink()
            shutil.rmtree(self.paths.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1


class RunDirectory:
    """`run_dir`, shared by all instances of the node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.node_lock = path / "node.lock"
        self.supervisor_status = path / "supervisor.json"
        self.current = path / "current"
        self._instances = path / "instances"

    def prepare(self) -> None:
        """Make the directory where it is missing.

        Raises `ConfigError` if it cannot be made, is not a directory, or lies open to others: a directory that
        somebody else owns, or that everyone may write to, could be swapped under our feet.
        """
        try:
            for directory in (self.path, self._instances):
                _make_directory(directory)
        except OSError as exc:
            raise _unusable(f"cannot be made: {exc.strerror}: {exc.filename}") from exc
        status = self.path.stat()
        if status.st_uid not in (0, os.geteuid()):
            raise _unusable(f"{self.path} belongs to uid {status.st_uid}, neither to this user nor to root")
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise _unusable(f"{self.path} is writable for everyone")

    def open_instance(self, name: str = "") -> Instance:
        """Make and lock the directory of an instance; by default it is named after this process.

        Directories of instances that are dead are removed on the way, one of the same name is made anew. Raises
        `LockedError` if a live process has the name, `ConfigError` if the directory or the name cannot be used.
        """
        name = name or identity()
        if not _NAME.fullmatch(name):
            problem = Problem(f"not a name for an instance: {name!r} (letters, digits, '.', '_', '-'; 63 at most)")
            raise ConfigError([problem])
        self.prepare()
        with self.registry():
            self._remove_dead()
            paths = InstancePaths(self._instances / name)
            if paths.path.exists():
                raise LockedError(f"instance {name} is running already", instance=name)
            _make_directory(paths.path)
            descriptor = _lock_directory(paths.path)
        return Instance(self, paths, descriptor)

    def remove_dead(self) -> tuple[str, ...]:
        """Remove the directories of instances that are dead, and return their names. Raises OSError."""
        if not self._instances.is_dir():
            return ()
        with self.registry():
            return tuple(sorted(self._remove_dead()))

    def active(self) -> InstancePaths | None:
        """The instance that answers as the node; None when there is none. It may have died a moment ago."""
        name = self.current_name()
        paths = InstancePaths(self._instances / name)
        return paths if name and paths.path.is_dir() else None

    def instances(self) -> list[InstancePaths]:
        """All instances, sorted by name. Some may have died. A role's status file is no directory: it has none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(map(InstancePaths, self._instances.iterdir()), key=lambda paths: paths.name)
        return []

    def current_name(self) -> str:
        """What `current` points to; empty when there is none."""
        try:
            return self.current.readlink().name
        except FileNotFoundError:
            return ""

    @contextlib.contextmanager
    def registry(self) -> Iterator[None]:
        """Changes of the set of instances exclude one another. Held for a few system calls, never across an await."""
        descriptor = os.open(self._instances, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _remove_dead(self) -> list[str]:
        removed: list[str] = []
        for path in self._instances.iterdir():
            if not path.is_dir() or path.is_symlink():
                path.unlink()  # the beginning of a make_current that was cut short
                continue
            with contextlib.suppress(BlockingIOError):
                descriptor = _lock_directory(path)
                try:
                    shutil.rmtree(path)
                finally:
                    os.close(descriptor)
                removed.append(path.name)
        if (name := self.current_name()) and not (self._instances / name).is_dir():
            self.current.unlink()
        return removed


def worker_directory(run_dir: str, role: str, number: int) -> RunDirectory:
    """The run directory of a worker process."""
    return RunDirectory(Path(run_dir) / f"{role}-{number}")


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(DIRECTORY_MODE, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(DIRECTORY_MODE)  # whatever the umask


def _lock_directory(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unusable(message: str) -> ConfigError:
    return ConfigError([Problem(message, path="run_dir")])
