# SPDX-License-Identifier: Apache-2.0
"""Notices when files change, however they are replaced.

Looking a path up goes through directories: one name in each, links followed. `look_ups` lists those pairs, and each
directory among them is watched for its name. So a file may be written in place, renamed over, appear late, vanish with
its directories and come back, or sit behind a link at any level, such as `..data` of a ConfigMap volume: the kernel
reports a change of some pair, and the pairs are computed anew. A file written in place counts when it is closed.

A notice means "look again", nothing more: there may be some too many, never one too few.
"""

import asyncio
import errno
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

from asyncinotify import Event, Inotify, Mask, Watch

from svcproxy.config import Config
from svcproxy.errors import ConfigError

QUIET = 0.05
"""Seconds without an event that end a burst of changes."""
BURST_MAX = 1.0
"""Seconds after which a burst is told of even if it goes on."""
POLL_INTERVAL = 2.0
"""Seconds between two looks where the kernel refuses to watch."""
POLLS_BEFORE_RETRY = 30
"""Looks after which the kernel is asked again."""
ENTRIES_MAX = 20_000
"""Entries of a directory that are compared while polling."""

_ARM_ATTEMPTS = 8
_LINKS_MAX = 40  # as the kernel's (path_resolution(7))
_MASK = (
    Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.CLOSE_WRITE | Mask.ATTRIB
    | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
)  # fmt: skip
_ALWAYS_RELEVANT = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED | Mask.UNMOUNT

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

log = logging.getLogger(__name__)

Names = set[str] | None
"""Names looked up in a directory; None for all of them."""


def look_ups(path: str) -> dict[str, Names]:
    """The directories that looking up `path` goes through as things are now, and the names looked up in each.

    If it leads to a directory, that one is in the result with all names; if it leads nowhere, the result ends where it
    breaks off. What may not be searched counts as leading nowhere.
    """
    found: dict[str, Names] = {}
    steps = _steps(path if path.startswith("/") else os.path.join(os.getcwd(), path))  # noqa: PTH109, PTH118
    at, links = "/", 0
    while steps:
        step = steps.pop()
        if step == "..":
            at = os.path.dirname(at)  # noqa: PTH120  (links are resolved already)
            continue
        names = found.setdefault(at, set())
        if names is not None:
            names.add(step)
        entry = os.path.join(at, step)  # noqa: PTH118
        try:
            mode = os.lstat(entry).st_mode
            target = os.readlink(entry) if stat.S_ISLNK(mode) else None  # noqa: PTH115
        except OSError:
            return found
        if target is not None:
            links += 1
            if links > _LINKS_MAX:
                return found
            at = "/" if target.startswith("/") else at
            steps += _steps(target)
        elif stat.S_ISDIR(mode):
            at = entry
        else:
            return found
    found[at] = None
    return found


def _steps(path: str) -> list[str]:
    """The components of a path, the first one last."""
    return [step for step in reversed(path.split("/")) if step not in {"", "."}]


@dataclass(slots=True)
class _Armed:
    watch: Watch
    names: Names


class _Watcher:
    """The watches of one inotify instance. Raises OSError where the kernel refuses one."""

    def __init__(self, inotify: Inotify, paths: tuple[str, ...], quiet: float, burst_max: float) -> None:
        self._inotify = inotify
        self._paths = paths
        self._quiet = quiet
        self._burst_max = burst_max
        self._armed: dict[tuple[int, int], _Armed] = {}
        """By device and inode, for a directory may be reached by several names."""

    def arm(self) -> None:
        """Watch every directory that matters now. Whatever changes afterwards is an event."""
        for _ in range(_ARM_ATTEMPTS):
            wanted = self._wanted()
            for identity in self._armed.keys() - wanted.keys():
                with suppress(OSError):  # its directory is gone
                    self._inotify.rm_watch(self._armed.pop(identity).watch)
            added = False
            for identity, (directory, names) in wanted.items():
                if (armed := self._armed.get(identity)) is not None:
                    armed.names = names
                else:
                    added = self._add(identity, directory, names) or added
            if not added:
                return

    def _add(self, identity: tuple[int, int], directory: str, names: Names) -> bool:
        try:
            watch = self._inotify.add_watch(directory, _MASK)
        except OSError as exc:
            if exc.errno in _GONE:
                return True
            raise
        self._armed[identity] = _Armed(watch, names)
        return True

    def _wanted(self) -> dict[tuple[int, int], tuple[str, Names]]:
        wanted: dict[tuple[int, int], tuple[str, Names]] = {}
        for path in self._paths:
            for directory, names in look_ups(path).items():
                with suppress(OSError):  # gone in the meantime: its parent tells
                    status = os.stat(directory)  # noqa: PTH116
                    identity = (status.st_dev, status.st_ino)
                    _, others = wanted.get(identity, (directory, set()))
                    wanted[identity] = directory, None if names is None or others is None else names | others
        return wanted

    async def burst(self) -> None:
        """Return when something that matters has happened and nothing more has for a moment."""
        while not self._matters(await self._inotify.get()):
            pass
        now = asyncio.get_running_loop().time
        end = now() + self._burst_max
        until = now() + self._quiet
        while now() < min(until, end):
            try:
                async with asyncio.timeout_at(min(until, end)):
                    event = await self._inotify.get()
            except TimeoutError:
                return
            if self._matters(event):
                until = now() + self._quiet

    def _matters(self, event: Event) -> bool:
        if event.mask & Mask.Q_OVERFLOW:
            return True
        watch = event.watch
        found = next(((identity, armed) for identity, armed in self._armed.items() if armed.watch is watch), None)
        if found is None:
            return False  # a watch given up before
        identity, armed = found
        if event.mask & Mask.IGNORED:
            del self._armed[identity]  # the inode is gone; its number may come back with another directory
        if event.mask & _ALWAYS_RELEVANT or armed.names is None:
            return True
        return event.name is not None and str(event.name) in armed.names


class FileFollower:
    """Tells when what stands at some paths, each a file or a directory, may have changed."""

    def __init__(
        self, *paths: str, quiet: float = QUIET, burst_max: float = BURST_MAX, poll_interval: float = POLL_INTERVAL
    ) -> None:
        self._paths = paths
        self._quiet = quiet
        self._burst_max = burst_max
        self._poll_interval = poll_interval
        self._degraded = ""

    @property
    def degraded(self) -> str:
        """Why the kernel does not watch and the files are polled; empty while it does."""
        return self._degraded

    async def changes(self) -> AsyncGenerator[None, None]:
        """A notice at once, when watching has begun, then one after every burst of changes. Never ends by itself.

        Whoever does not iterate to the end closes the generator (`contextlib.aclosing`).
        """
        while True:
            try:
                with Inotify() as inotify:
                    watcher = _Watcher(inotify, self._paths, self._quiet, self._burst_max)
                    watcher.arm()
                    self._degraded = ""
                    while True:
                        yield
                        await watcher.burst()
                        watcher.arm()
            except OSError as exc:
                self._report(exc)
            seen = _fingerprint(self._paths)
            yield
            for _ in range(POLLS_BEFORE_RETRY):
                await asyncio.sleep(self._poll_interval)
                if (now := _fingerprint(self._paths)) != seen:
                    seen = now
                    yield

    def _report(self, exc: OSError) -> None:
        limits = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
        cause = exc.strerror or str(exc)
        if exc.errno in limits:
            cause += f" (see {limits[exc.errno]})"
        if cause != self._degraded:
            log.warning(
                "files cannot be watched, polling them",
                extra={"cause": cause, "paths": self._paths, "interval": self._poll_interval},
            )
        self._degraded = cause


def _fingerprint(paths: tuple[str, ...]) -> list[object]:
    """Something that differs when a file at `paths`, or an entry of a directory there, was changed or replaced."""
    marks: list[object] = []
    for path in paths:
        for directory, names in look_ups(path).items():
            marks += [_mark(os.path.join(directory, name)) for name in sorted(names or ())]  # noqa: PTH118
            if names is None:
                with suppress(OSError):
                    entries = sorted(os.listdir(directory))[:ENTRIES_MAX]  # noqa: PTH208
                    marks += [_mark(os.path.join(directory, name)) for name in entries]  # noqa: PTH118
    return marks


def _mark(entry: str) -> tuple[object, ...]:
    try:
        status = os.stat(entry)  # noqa: PTH116
    except OSError as exc:
        return entry, exc.errno
    if stat.S_ISDIR(status.st_mode):  # its own times change with every entry
        return entry, status.st_dev, status.st_ino
    return entry, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


class ConfigFollower:
    """Keeps the last good configuration while its files change."""

    def __init__(
        self,
        load: Callable[[], Config],
        current: Config,
        on_change: Callable[[Config, Config], None],
        on_error: Callable[[ConfigError], None],
    ) -> None:
        """`on_error` is called for a bad configuration, `on_change(old, new)` for a good one: when it differs, or, with
        two equal ones, when a bad one was put right again.
        """
        self.current = current
        self.error: ConfigError | None = None
        """What is wrong with the files as they are now; `current` stays in force."""
        self._load = load
        self._on_change = on_change
        self._on_error = on_error

    def reload(self) -> None:
        """Read the configuration again and tell what came of it. What was told already is not told again."""
        try:
            new = self._load()
        except ConfigError as exc:
            if self.error is None or exc.problems != self.error.problems:
                self.error = exc
                self._on_error(exc)
            return
        recovered, self.error = self.error is not None, None
        if recovered or new != self.current:
            old, self.current = self.current, new
            self._on_change(old, new)

    async def run(self, follower: FileFollower) -> None:
        """Reload on every notice of `follower`, until cancelled."""
        async with aclosing(follower.changes()) as changes:
            async for _ in changes:
                self.reload()
