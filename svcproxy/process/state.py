# SPDX-License-Identifier: Apache-2.0
"""The last complete state of a source on disk, served when the source cannot be reached at start.

A file is, in this order: eight octets of magic; the format's version in two octets, big endian; blocks; an empty block;
the SHA-256 of all that. A block is a length in four octets, big endian, and that many octets of msgpack. The first
block is the heading, every other one an array of objects of one kind. A field that is not known is passed over, so that
a version of svcproxy can read what a later one wrote as long as the format's version is the same.

A file is replaced as a whole or not at all: written beside it, flushed to the disk, renamed.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from svcproxy.errors import StateError
from svcproxy.model import EndpointSlice, Namespace, Node, Pod, Service, ServiceCIDR, Store

MAGIC: Final = b"svcproxy"
FORMAT_VERSION: Final = 1
FILE_MODE: Final = 0o600
FILE_LIMIT: Final = 2 << 30
"""Octets; a larger file is refused. A cluster of 10,000 Services with 10 endpoints each takes about 20 MB."""
BLOCK_WEIGHT: Final = 256
"""Objects and endpoints in one block: encoding it keeps the interpreter for about 0.2 ms."""
FUTURE_MAX: Final = 300.0
"""Seconds that a file may be ahead of the clock: clocks are set, and not always forward."""
REFRESH_INTERVAL: Final = 3600.0
"""Seconds after which even an unchanged state is written again, so that its age says when it was last known good."""
PAUSE_FACTOR: Final = 200
"""A pause is so many times as long as the write before it: writing takes half a percent of a core at most."""
PAUSE_MAX: Final = 60.0
"""Seconds that a pause has at most, however long a write takes."""

_DIGEST_OCTETS: Final = 32
_PREFIX_OCTETS: Final = len(MAGIC) + 2
_LENGTH_OCTETS: Final = 4

log = logging.getLogger(__name__)

T = TypeVar("T", Service, EndpointSlice, Namespace, Node, ServiceCIDR, Pod)


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """What is known of a cluster at one moment. Objects are immutable, so that taking one costs their references."""

    written_at: float
    """Wall-clock seconds when the source last confirmed it."""
    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    nodes: tuple[Node, ...] = ()
    service_cidrs: tuple[ServiceCIDR, ...] = ()
    pods: tuple[Pod, ...] = ()
    """Empty unless Pods are followed."""
    versions: tuple[tuple[str, str], ...] = ()
    """(kind, resource version): what the API server is asked to be at least as new as."""
    servers: tuple[str, ...] = ()
    """URLs of the API servers known last."""

    @classmethod
    def of(
        cls, store: Store, versions: Iterable[tuple[str, str]], servers: Iterable[str], written_at: float
    ) -> "StateSnapshot":
        """The present content of a store."""
        return cls(
            written_at=written_at,
            services=tuple(store.services.values()),
            slices=tuple(store.slices.values()),
            namespaces=tuple(store.namespaces.values()),
            nodes=tuple(store.nodes.values()),
            service_cidrs=tuple(store.service_cidrs.values()),
            pods=tuple(store.pods.values()),
            versions=tuple(versions),
            servers=tuple(servers),
        )


class _Heading(msgspec.Struct, frozen=True, gc=False):
    written_at: float
    versions: tuple[tuple[str, str], ...] = ()
    servers: tuple[str, ...] = ()


class _Services(msgspec.Struct, frozen=True, gc=False, tag="Service"):
    objects: tuple[Service, ...]


class _Slices(msgspec.Struct, frozen=True, gc=False, tag="EndpointSlice"):
    objects: tuple[EndpointSlice, ...]


class _Namespaces(msgspec.Struct, frozen=True, gc=False, tag="Namespace"):
    objects: tuple[Namespace, ...]


class _Nodes(msgspec.Struct, frozen=True, gc=False, tag="Node"):
    objects: tuple[Node, ...]


class _ServiceCIDRs(msgspec.Struct, frozen=True, gc=False, tag="ServiceCIDR"):
    objects: tuple[ServiceCIDR, ...]


class _Pods(msgspec.Struct, frozen=True, gc=False, tag="Pod"):
    objects: tuple[Pod, ...]


_Block = _Services | _Slices | _Namespaces | _Nodes | _ServiceCIDRs | _Pods
_ENCODER: Final = msgspec.msgpack.Encoder()
_HEADING_DECODER: Final = msgspec.msgpack.Decoder(_Heading)
_BLOCK_DECODER: Final[msgspec.msgpack.Decoder[_Block]] = msgspec.msgpack.Decoder(_Block)


def encode(snapshot: StateSnapshot) -> Iterator[bytes]:
    """The octets of a file, in pieces that each take little time to make."""
    digest = hashlib.sha256()
    for piece in _pieces(snapshot):
        digest.update(piece)
        yield piece
    yield digest.digest()


def decode(octets: bytes, now: float, max_age: float) -> StateSnapshot:
    """The snapshot in a file's octets. `now`: wall-clock seconds; `max_age`: seconds.

    Raises `StateError` that says whether it is no such file, of another version, truncated, damaged, from the future or
    too old.
    """
    if octets[: len(MAGIC)] != MAGIC[: len(octets)]:
        raise StateError("not a state file")
    if len(octets) < _PREFIX_OCTETS:
        raise StateError("state file is truncated")
    version = int.from_bytes(octets[len(MAGIC) : _PREFIX_OCTETS], "big")
    if version != FORMAT_VERSION:
        raise StateError(f"state file of format {version}, this is {FORMAT_VERSION}")
    blocks = list(_blocks(memoryview(octets)))
    if hashlib.sha256(memoryview(octets)[:-_DIGEST_OCTETS]).digest() != octets[-_DIGEST_OCTETS:]:
        raise StateError("state file is damaged: its checksum is wrong")
    try:
        snapshot = _read(blocks)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise StateError(f"state file does not decode: {exc}") from exc
    if (age := now - snapshot.written_at) > max_age:
        raise StateError(f"state file is {age:.0f} s old, at most {max_age:.0f} s are allowed")
    if age < -FUTURE_MAX:
        raise StateError(f"state file is from the future, by {-age:.0f} s")
    return snapshot


def read_state(path: Path, now: float, max_age: float) -> StateSnapshot:
    """The snapshot in a file. Raises `StateError` as `decode` does, and when the file is absent or cannot be read."""
    try:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise StateError(f"{path}: state file of {size} octets, at most {FILE_LIMIT} are allowed")
        octets = path.read_bytes()
    except FileNotFoundError as exc:
        raise StateError(f"{path}: no state file") from exc
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}") from exc
    try:
        return decode(octets, now, max_age)
    except StateError as exc:
        raise StateError(f"{path}: {exc}") from exc


def write_state(path: Path, snapshot: StateSnapshot) -> None:
    """Replace the file, durably. Blocks on the disk; between two blocks other threads have their turn.

    Raises `OSError`; the file is then what it was.
    """
    prefix = f".{path.name}."
    for leftover in path.parent.glob(f"{prefix}*.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = path.parent / f"{prefix}{os.getpid()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            for piece in encode(snapshot):
                _write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


class SnapshotWriter:
    """Writes the state when it has changed, at bounded rate, in a thread of its own.

    `run` until cancelled, then `close`, which writes what is still unwritten. A failure to write is logged once and
    tried again; nothing else stops.
    """

    def __init__(
        self,
        path: Path,
        take: Callable[[], StateSnapshot | None],
        write_interval: float,
        refresh_interval: float = REFRESH_INTERVAL,
    ) -> None:
        """`take` returns what is to be written, None while that is nothing complete and confirmed."""
        self._path: Final = path
        self._take: Final = take
        self._write_interval: Final = write_interval
        self._refresh_interval: Final = refresh_interval
        self._dirty: Final = asyncio.Event()
        self._thread: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self.error = ""
        """Why the last write failed; empty if it did not."""
        self.written_at: float | None = None
        """Monotonic seconds of the last success, None before the first."""

    def changed(self) -> None:
        """The state has changed. Cheap: call it for every change."""
        self._dirty.set()

    async def run(self) -> None:
        """Write at most once per interval until cancelled, and seldom what takes long to write.

        A write under way when cancelled is completed all the same, before the one of `close`.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_interval):
                    await self._dirty.wait()
            started = time.monotonic()
            await self._write()
            pause = min((time.monotonic() - started) * PAUSE_FACTOR, PAUSE_MAX)
            await asyncio.sleep(max(self._write_interval, pause))

    async def close(self) -> None:
        """Write what has changed since the last write, and end the thread."""
        try:
            if self._dirty.is_set():
                await self._write()
        finally:
            self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        self._dirty.clear()
        if (snapshot := self._take()) is None:
            return
        writing: Future[None] = self._thread.submit(write_state, self._path, snapshot)
        try:
            await asyncio.wrap_future(writing)
        except asyncio.CancelledError:
            self._dirty.set()  # it may not have begun
            raise
        except OSError as exc:
            self._dirty.set()
            error = f"{self._path}: {exc.strerror or exc}"
            if not self.error:
                log.warning("cannot write state, trying again", extra={"cause": error})
            self.error = error
        else:
            if self.error:
                log.info("state written again", extra={"path": str(self._path)})
            self.error = ""
            self.written_at = time.monotonic()


def _pieces(snapshot: StateSnapshot) -> Iterator[bytes]:
    yield MAGIC + FORMAT_VERSION.to_bytes(2, "big")
    yield _block(_Heading(snapshot.written_at, snapshot.versions, snapshot.servers))
    for services in _batches(snapshot.services, _one):
        yield _block(_Services(services))
    for slices in _batches(snapshot.slices, _endpoints):
        yield _block(_Slices(slices))
    for namespaces in _batches(snapshot.namespaces, _one):
        yield _block(_Namespaces(namespaces))
    for nodes in _batches(snapshot.nodes, _one):
        yield _block(_Nodes(nodes))
    for service_cidrs in _batches(snapshot.service_cidrs, _one):
        yield _block(_ServiceCIDRs(service_cidrs))
    for pods in _batches(snapshot.pods, _one):
        yield _block(_Pods(pods))
    yield bytes(_LENGTH_OCTETS)


def _block(content: _Heading | _Block) -> bytes:
    octets = _ENCODER.encode(content)
    return len(octets).to_bytes(_LENGTH_OCTETS, "big") + octets


def _batches(objects: Sequence[T], weight: Callable[[T], int]) -> Iterator[tuple[T, ...]]:
    """Cut into batches, each closed by the object that reaches `BLOCK_WEIGHT`."""
    batch: list[T] = []
    total = 0
    for entry in objects:
        batch.append(entry)
        total += weight(entry)
        if total >= BLOCK_WEIGHT:
            yield tuple(batch)
            batch.clear()
            total = 0
    if batch:
        yield tuple(batch)


def _one(_: Service | Namespace | Node | ServiceCIDR | Pod) -> int:
    return 1


def _endpoints(entry: EndpointSlice) -> int:
    return 1 + len(entry.endpoints or ())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, octets: bytes) -> None:
    rest = memoryview(octets)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _blocks(octets: memoryview) -> Iterator[memoryview]:
    """The blocks before the empty one. Raises `StateError` if the octets end too early or go on after the digest."""
    place = _PREFIX_OCTETS
    while True:
        start = place + _LENGTH_OCTETS
        if start > len(octets):
            raise StateError("state file is truncated")
        length = int.from_bytes(octets[place:start], "big")
        place = start + length
        if length == 0:
            break
        if place > len(octets):
            raise StateError("state file is truncated")
        yield octets[start:place]
    if len(octets) < place + _DIGEST_OCTETS:
        raise StateError("state file is truncated")
    if len(octets) > place + _DIGEST_OCTETS:
        raise StateError("state file is damaged: it goes on after its end")


def _read(blocks: Sequence[memoryview]) -> StateSnapshot:
    if not blocks:
        raise StateError("state file without a heading")
    heading = _HEADING_DECODER.decode(blocks[0])
    services: list[Service] = []
    slices: list[EndpointSlice] = []
    namespaces: list[Namespace] = []
    nodes: list[Node] = []
    service_cidrs: list[ServiceCIDR] = []
    pods: list[Pod] = []
    for block in blocks[1:]:
        content = _BLOCK_DECODER.decode(block)
        match content:
            case _Services():
                services += content.objects
            case _Slices():
                slices += content.objects
            case _Namespaces():
                namespaces += content.objects
            case _Nodes():
                nodes += content.objects
            case _ServiceCIDRs():
                service_cidrs += content.objects
            case _Pods():
                pods += content.objects
    return StateSnapshot(
        written_at=heading.written_at,
        services=tuple(services),
        slices=tuple(slices),
        namespaces=tuple(namespaces),
        nodes=tuple(nodes),
        service_cidrs=tuple(service_cidrs),
        pods=tuple(pods),
        versions=heading.versions,
        servers=heading.servers,
    )
