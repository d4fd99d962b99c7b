# SPDX-License-Identifier: Apache-2.0
"""API JSON into model objects: pages of a LIST and lines of a WATCH. Pure.

Bytes decode straight into `svcproxy.model` structs. A page is decoded whole; only when that fails is it decoded object
by object, so that one bad object costs itself and not its neighbours. Resource versions stay outside the model: they
change without the object changing for anyone here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import msgspec

from svcproxy.errors import DecodeError
from svcproxy.kube.interning import Interner
from svcproxy.kube.source import InvalidObject
from svcproxy.model import NamespacedName
from svcproxy.model.changes import T

PIECE_OCTETS = 8 << 20
"""A page larger than this is decoded in pieces, between which the caller can let others run."""
PIECE_OBJECTS = 500
"""Objects in one piece."""

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON asked for; RecursionError for JSON nested too deeply."""


@dataclass(frozen=True, slots=True)
class RefusedObject:
    """An object that does not decode, in a page or in an event."""

    report: InvalidObject
    key: NamespacedName | None
    """Which object it is, None if that could not be read: any object may be the one."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a LIST, or a piece of one."""

    objects: Sequence[T]
    version: str
    """Resource version of the whole list, equal on all its pages."""
    continue_token: str = ""
    """Asks for the next page; empty on the last one."""
    refused: tuple[RefusedObject, ...] = ()
    more: bool = False
    """Whether further pieces of the same page follow; the token counts only on the last piece."""


@dataclass(frozen=True, slots=True)
class Applied(Generic[T]):
    """ADDED or MODIFIED."""

    object: T
    version: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """DELETED."""

    key: NamespacedName
    version: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Everything up to `version` has been sent."""

    version: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An object came or changed, and does not decode."""

    refused: RefusedObject
    version: str
    """Empty if it could not be read."""


@dataclass(frozen=True, slots=True)
class Status:
    """A meta/v1 Status: why the server refuses or ends something."""

    code: int
    reason: str
    message: str
    too_large: bool
    """Whether the version asked for is newer than what the server knows."""


WatchEvent = Applied[T] | Deleted | Bookmark | Refused | Status


class _ListMeta(msgspec.Struct, gc=False, rename="camel"):
    resource_version: str
    continue_token: str | None = msgspec.field(default=None, name="continue")


class _TypedList(msgspec.Struct, Generic[T], gc=False):
    metadata: _ListMeta
    items: list[T] | None


class _RawList(msgspec.Struct, gc=False):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None


class _RawEvent(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


class _HeadMeta(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Head(msgspec.Struct, gc=False):
    metadata: _HeadMeta


class _LooseHead(msgspec.Struct, gc=False):
    metadata: dict[str, Any]


class _Cause(msgspec.Struct, gc=False):
    reason: str | None = None


class _Details(msgspec.Struct, gc=False):
    causes: list[_Cause] | None = None


class _Status(msgspec.Struct, gc=False):
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


_RAW_LIST = msgspec.json.Decoder(_RawList)
_EVENT = msgspec.json.Decoder(_RawEvent)
_HEAD = msgspec.json.Decoder(_Head)
_LOOSE_HEAD = msgspec.json.Decoder(_LooseHead)
_FLAT = msgspec.json.Decoder(_HeadMeta)
_STATUS = msgspec.json.Decoder(_Status)

_EVENT_TYPE = re.compile(rb'\s*\{\s*"type"\s*:\s*"([A-Z]+)"')
_METADATA = re.compile(rb'"metadata"\s*:\s*\{')
_NESTED = re.compile(rb"[\[{}]")


class KindDecoder(Generic[T]):
    """Decodes one kind. Keeps a table of shared values, nothing else."""

    def __init__(self, kind: type[T], interner: Interner | None = None) -> None:
        self._name = kind.__name__
        self._object: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._list: msgspec.json.Decoder[_TypedList[T]] = msgspec.json.Decoder(_TypedList[kind])  # type: ignore[valid-type]  # mypy knows no types made at run time
        self._interner = interner or Interner()

    def pieces(self, body: bytes) -> Iterator[Page[T]]:
        """The page in `body`, in one piece or, if it is big, in several. Raises `DecodeError` if it is no list."""
        if len(body) <= PIECE_OCTETS:
            yield self.page(body)
            return
        meta, raws = self._raw_list(body)
        for start in range(0, max(len(raws), 1), PIECE_OBJECTS):
            yield self._piece(meta, raws[start : start + PIECE_OBJECTS], more=start + PIECE_OBJECTS < len(raws))

    def page(self, body: bytes) -> Page[T]:
        """The page in `body`, whole. Raises `DecodeError` if it is no list."""
        try:
            typed = self._list.decode(body)
        except _MALFORMED:
            return self._piece(*self._raw_list(body), more=False)
        if not typed.metadata.resource_version:
            raise DecodeError("the list has no resource version", name=self._name)
        objects = typed.items or []
        share = self._interner.share
        for obj in objects:
            share(obj)
        return Page(objects, typed.metadata.resource_version, typed.metadata.continue_token or "")

    def event(self, line: bytes) -> WatchEvent[T]:
        """The event in one line of a watch. Raises `DecodeError` if the line is no watch event at all."""
        try:
            envelope = _EVENT.decode(line)
        except _MALFORMED as exc:
            raise DecodeError(f"not a watch event: {exc}", name=self._name) from exc
        match envelope.type:
            case "ADDED" | "MODIFIED":
                return self._applied(envelope.object)
            case "DELETED":
                key, version = _head(envelope.object)
                if key is None:
                    return Refused(self._refused(envelope.object, "a deletion without a readable name"), version)
                return Deleted(key, version)
            case "BOOKMARK":
                return Bookmark(_head(envelope.object)[1])
            case "ERROR":
                return decode_status(bytes(envelope.object))
            case _:
                raise DecodeError(f"unknown watch event type {envelope.type[:32]!r}", name=self._name)

    def oversized(self, prefix: bytes, octets: int) -> WatchEvent[T]:
        """What can be known of an event of which only the first octets were kept, because it is too large.

        A deletion needs no more than the name, which API servers send first; anything else is refused.
        """
        head = _flat_head(prefix)
        name = f"{head.namespace}/{head.name}".lstrip("/")
        report = InvalidObject(self._name, name, f"larger than allowed: {octets} octets in one watch event")
        if not head.name:
            return Refused(RefusedObject(report, None), head.resource_version)
        key = NamespacedName(head.namespace, head.name)
        found = _EVENT_TYPE.match(prefix)
        if found is not None and found[1] == b"DELETED":
            return Deleted(key, head.resource_version)
        return Refused(RefusedObject(report, key), head.resource_version)

    def _raw_list(self, body: bytes) -> tuple[_ListMeta, list[msgspec.Raw]]:
        try:
            raw = _RAW_LIST.decode(body)
        except _MALFORMED as exc:
            raise DecodeError(f"not a list: {exc}", name=self._name) from exc
        if not raw.metadata.resource_version:
            raise DecodeError("the list has no resource version", name=self._name)
        return raw.metadata, raw.items or []

    def _piece(self, meta: _ListMeta, raws: Sequence[msgspec.Raw], *, more: bool) -> Page[T]:
        objects: list[T] = []
        refused: list[RefusedObject] = []
        for raw in raws:
            try:
                obj = self._object.decode(raw)
            except _MALFORMED as exc:
                refused.append(self._refused(raw, _reason(exc)))
                continue
            self._interner.share(obj)
            objects.append(obj)
        return Page(objects, meta.resource_version, meta.continue_token or "", tuple(refused), more)

    def _applied(self, raw: msgspec.Raw) -> Applied[T] | Refused:
        key, version = _head(raw)
        try:
            obj = self._object.decode(raw)
        except _MALFORMED as exc:
            return Refused(self._refused(raw, _reason(exc)), version)
        if key is None:
            return Refused(self._refused(raw, "metadata: not readable"), version)
        self._interner.share(obj)
        return Applied(obj, version)

    def _refused(self, raw: msgspec.Raw, reason: str) -> RefusedObject:
        key, _ = _head(raw)
        return RefusedObject(InvalidObject(self._name, str(key) if key else _readable_name(raw), reason), key)


def decode_status(body: bytes) -> Status:
    """A Status from `body`; from anything else one without code and reason, whose message begins like `body`."""
    try:
        status = _STATUS.decode(body)
    except _MALFORMED:
        return Status(0, "", body[:200].decode("utf-8", "replace"), too_large=False)
    causes = status.details.causes if status.details is not None else None
    # apimachinery storage.NewTooLargeResourceVersionError; servers before 1.19 say it in the message alone.
    too_large = any(cause.reason == "ResourceVersionTooLarge" for cause in causes or ()) or (
        status.reason == "Timeout" and status.message.startswith("Too large resource version")
    )
    return Status(status.code, status.reason, status.message, too_large)


def _head(raw: msgspec.Raw) -> tuple[NamespacedName | None, str]:
    """Key and resource version, None and the empty string as far as they cannot be read."""
    try:
        meta = _HEAD.decode(raw).metadata
    except _MALFORMED:
        return None, ""
    return (NamespacedName(meta.namespace, meta.name) if meta.name else None), meta.resource_version


def _readable_name(raw: msgspec.Raw) -> str:
    """What can be read of `namespace/name` when one of the two is no string."""
    try:
        meta = _LOOSE_HEAD.decode(raw).metadata
    except _MALFORMED:
        return ""
    return "/".join(str(meta[part])[:253] for part in ("namespace", "name") if isinstance(meta.get(part), str))


def _flat_head(prefix: bytes) -> _HeadMeta:
    """The members of `metadata` before the first nested one, from the beginning of an object."""
    start = _METADATA.search(prefix)
    if start is None:
        return _HeadMeta()
    end = _NESTED.search(prefix, start.end())
    flat = prefix[start.end() : end.start() if end is not None else len(prefix)]
    members = flat if end is not None and end[0] == b"}" else flat[: max(flat.rfind(b","), 0)]
    try:
        return _FLAT.decode(b"{" + members + b"}")
    except _MALFORMED:
        return _HeadMeta()


def _reason(exc: Exception) -> str:
    """msgspec's message with the field first: `spec.ports[0].port: Expected …`."""
    message, separator, path = str(exc).rpartition(" - at `$.")
    return f"{path.rstrip('`')}: {message}" if separator else str(exc)
