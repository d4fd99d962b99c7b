# SPDX-License-Identifier: Apache-2.0
"""Objects from manifest files: a source like an API server, for running without a cluster.

The path is a file or a directory, of which the `*.yaml`, `*.yml` and `*.json` files count that are not hidden;
subdirectories are not entered. Changes are followed. While the path itself cannot be read, everything stays in force.
"""

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from svcproxy.document import OCTETS_MAX
from svcproxy.kube.manifest_reader import KIND_TYPES, Contents, Gone, ManifestReader, Unreadable, Update
from svcproxy.kube.source import InvalidObject, KindStatus, ObjectSink
from svcproxy.model import Changes
from svcproxy.process.follow import FileFollower

FILES_MAX = 10_000
"""Files of a directory, in sorted order, that are read."""
TOTAL_OCTETS_MAX = 256 << 20
"""Size of all files together; those beyond keep what they held."""
PIECE_OBJECTS = 500
"""Objects handed on between two turns of the event loop."""

_SUFFIXES = (".yaml", ".yml", ".json")
_SETTLED = 2.0
"""Seconds after which equal time stamps mean equal contents: clocks of file systems are coarse."""
_READ_ATTEMPTS = 3

log = logging.getLogger(__name__)

_Signature = tuple[int, ...]


@dataclass(slots=True)
class _Scan:
    """What was found at the path."""

    contents: dict[str, Contents] = field(default_factory=dict)
    """Of the files that may have changed."""
    signatures: dict[str, _Signature | None] = field(default_factory=dict)
    """Of all files; None for one to be read again next time."""
    octets: int = 0


def scan(path: str, known: Mapping[str, _Signature | None], now: float) -> _Scan:
    """Read what changed at `path` since the scan that gave `known`. `now`: seconds since 1970, as files have them.

    Raises OSError if the path cannot be read; a file that cannot is `Unreadable` and takes nothing with it.
    """
    names = _names(path)
    result = _Scan()
    for number, name in enumerate(names):
        if number >= FILES_MAX:
            result.signatures[name] = None
            result.contents[name] = Unreadable(f"not read: one of more than {FILES_MAX} files")
        else:
            _scan_file(name, known.get(name), now, result)
    if names == [path] and path not in result.signatures:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    for name in known.keys() - result.signatures.keys():
        result.contents[name] = Gone.GONE
    return result


def _names(path: str) -> list[str]:
    try:
        entries = os.listdir(path)  # noqa: PTH208  (paths stay strings, as they were given)
    except NotADirectoryError:
        return [path]
    return [
        os.path.join(path, entry)  # noqa: PTH118
        for entry in sorted(entries)
        if entry.endswith(_SUFFIXES) and not entry.startswith(".")
    ]


def _scan_file(name: str, known: _Signature | None, now: float, result: _Scan) -> None:
    """Add one file to `result`, unless it does not exist."""
    try:
        status = os.stat(name)  # noqa: PTH116
        refusal = _refusal(status, result.octets)
        contents: Contents | None = Unreadable(refusal) if refusal else None
        signature = _signature(status)
        if contents is None and (known is None or known != signature):
            contents = _read(name)
    except OSError as exc:
        if isinstance(exc, FileNotFoundError) and not os.path.islink(name):  # noqa: PTH114
            return
        contents, signature = Unreadable(f"cannot be read: {exc.strerror or exc}"), None
    else:
        result.octets += status.st_size
    settled = signature is not None and now - status.st_mtime > _SETTLED and not isinstance(contents, Unreadable)
    result.signatures[name] = signature if settled else None
    if contents is not None:
        result.contents[name] = contents


def _refusal(status: os.stat_result, octets: int) -> str:
    """Why a file is not to be read, where `octets` have been read before it; empty if it is."""
    if not stat.S_ISREG(status.st_mode):
        return "cannot be read: not a regular file"
    if octets + status.st_size > TOTAL_OCTETS_MAX:
        return f"not read: all files together exceed {TOTAL_OCTETS_MAX >> 20} MiB"
    return ""


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(name: str) -> bytes:
    """The contents, at most one octet more than a document may have. Read again if they change meanwhile."""
    with open(name, "rb", opener=_open_without_waiting) as file:
        for _ in range(_READ_ATTEMPTS):
            before = _signature(os.fstat(file.fileno()))
            file.seek(0)
            contents = file.read(OCTETS_MAX + 1)
            if _signature(os.fstat(file.fileno())) == before:
                break
    return contents


def _open_without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)  # a FIFO put in place since must not block


class ManifestSource:
    """Follows the manifests at a path. Implements `svcproxy.kube.source.Source`."""

    def __init__(self, path: str, follower: FileFollower | None = None) -> None:
        self._path = path
        self._follower = follower if follower is not None else FileFollower(path)
        self._reader = ManifestReader()
        self._known: dict[str, _Signature | None] = {}
        self._told: dict[str, str] = {}
        """Why files cannot be read, as last told."""
        self._error = "not read yet"
        self._synced = False
        self._last_contact: float | None = None
        self._generation = 0

    def status(self) -> Sequence[KindStatus]:
        """One entry per kind; all share one fate."""
        version = str(self._generation) if self._generation else ""
        return [
            KindStatus(kind.__name__, self._synced, self._path, self._last_contact, version, self._error)
            for kind in KIND_TYPES
        ]

    async def run(self, sink: ObjectSink) -> None:
        """Follow until cancelled. An unreadable path is looked at again when it, or what leads to it, changes."""
        async with aclosing(self._follower.changes()) as notices:
            async for _ in notices:
                await self._look(sink)

    async def _look(self, sink: ObjectSink) -> None:
        try:
            found = await asyncio.to_thread(scan, self._path, self._known, time.time())
        except OSError as exc:
            self._unreachable(exc.strerror or str(exc))
            return
        read_at = time.monotonic()
        if self._error and self._synced:
            log.info("manifests can be read again", extra={"path": self._path})
        update = await asyncio.to_thread(self._reader.apply, self._news(found))
        self._known = found.signatures
        self._last_contact = read_at
        self._generation += 1
        self._error = ""
        await self._tell(update, read_at, sink)
        if not self._synced:
            self._synced = True
            for kind in KIND_TYPES:
                sink.synced(kind)

    def _unreachable(self, cause: str) -> None:
        error = f"cannot be read: {cause}"
        if error != self._error:
            log.warning("manifests cannot be read, what is known stays", extra={"path": self._path, "cause": cause})
        self._error = error

    def _news(self, found: _Scan) -> dict[str, Contents]:
        """The contents without files that cannot be read for the reason told before."""
        told = {name: each.reason for name, each in found.contents.items() if isinstance(each, Unreadable)}
        repeated = {name for name, reason in told.items() if self._told.get(name) == reason}
        self._told = told
        return {name: each for name, each in found.contents.items() if name not in repeated}

    async def _tell(self, update: Update, read_at: float, sink: ObjectSink) -> None:
        for kind in update.ignored:
            log.info("objects of a kind that is not used", extra={"kind": kind, "path": self._path})
        for number, report in enumerate(update.invalid):
            sink.invalid(report)
            if number % PIECE_OBJECTS == PIECE_OBJECTS - 1:
                await asyncio.sleep(0)
        for changes in update.changes:
            for start in range(0, max(len(changes.applied), len(changes.removed)), PIECE_OBJECTS):
                piece = slice(start, start + PIECE_OBJECTS)
                sink.changed(Changes(changes.kind, changes.applied[piece], changes.removed[piece]), read_at)
                await asyncio.sleep(0)


def check(path: str) -> tuple[InvalidObject, ...]:
    """Everything that is wrong with the manifests at a path."""
    try:
        found = scan(path, {}, time.time())
    except OSError as exc:
        return (InvalidObject("", "", f"{path}: cannot be read: {exc.strerror or exc}"),)
    return tuple(ManifestReader().apply(found.contents).invalid)
