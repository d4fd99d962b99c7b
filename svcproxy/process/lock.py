# SPDX-License-Identifier: Apache-2.0
"""The node lock: of several instances on a node, its holder alone writes the kernel and answers as the node.

The lock is flock(2) on a file, so the kernel releases it when its holder dies, however it dies, and it works between
containers that share nothing but the directory. The holder writes its name into the file for the others to read, and
unlinks the file before it lets go; whoever gets the lock makes sure that the file is still the one in the directory.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from pathlib import Path

import msgspec

from svcproxy.errors import LockedError

POLL_INTERVAL = 0.1
"""Seconds between two looks at a lock that somebody else holds: one system call each."""

_NOTE_OCTETS_MAX = 4096


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lock."""

    pid: int
    """In the holder's own pid namespace."""
    instance: str
    since: float
    """Unix seconds."""

    def __str__(self) -> str:
        return f"instance {self.instance} (pid {self.pid})"


class NodeLock:
    """One process's grip on the lock. Held until `release` or death; not inherited by programs it starts."""

    def __init__(self, path: Path, instance: str) -> None:
        self._path = path
        self._instance = instance
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def holder(self) -> Holder | None:
        """What the lock's holder says about itself; None when there is none or it has not said it yet.

        The answer may be out of date by the time it is read: use it to tell people, not to decide.
        """
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_NOTE_OCTETS_MAX), type=Holder)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def try_acquire(self) -> bool:
        """Take the lock unless somebody else has it, and return whether this object now holds it."""
        while self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, self._path):
                    self._sign(descriptor)
                    self._descriptor, descriptor = descriptor, -1
            except BlockingIOError:
                return False
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return True

    def acquire(self) -> None:
        """Take the lock, or raise `LockedError` with what is known of its holder."""
        if not self.try_acquire():
            holder = self.holder()
            raise LockedError(
                f"the node is held by {holder or 'an instance that has not given its name'}",
                pid=holder.pid if holder else None,
                instance=holder.instance if holder else "",
                since=holder.since if holder else None,
            )

    def adopt(self, descriptor: int) -> bool:
        """Go on with the lock that an earlier process has left open, and return whether it is the lock still.

        The descriptor is this object's from now on, or closed.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, self._path):
                self._sign(descriptor)
                self._descriptor, descriptor = descriptor, -1
        except OSError:
            return False
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return self.held

    def fileno(self) -> int:
        """The open file that is the lock: whoever has a copy holds it too. Negative if it is not held."""
        return -1 if self._descriptor is None else self._descriptor

    def leave(self) -> None:
        """Let go of this object's descriptor only: the lock stays with whoever has a copy."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def wait(self, poll_interval: float = POLL_INTERVAL) -> None:
        """Return once this object holds the lock, at most `poll_interval` seconds after it became free.

        Cancelled, it leaves the lock as it was. Waiting is polling, because a blocking flock(2) cannot be cancelled.
        """
        while not self.try_acquire():  # noqa: ASYNC110  # the one who releases is another process
            await asyncio.sleep(poll_interval)

    def release(self) -> None:
        """Let go, if held."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _sign(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(Holder(os.getpid(), self._instance, time.time())), 0)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: its former holder may have unlinked it."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
