# SPDX-License-Identifier: Apache-2.0
"""Frames of the feed as octets, and how a stream is cut into them. Performs no I/O.

A frame is a length of four octets, big endian, not counting itself, and that many octets of msgpack: one array whose
first element is the frame's tag. Records travel inside as msgpack arrays that only their topic can read, so that a new
topic changes no frame. Every failure is a `FeedError`.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from svcproxy.errors import FeedError
from svcproxy.feed.frames import AgentFrame, ClientFrame, Delta, SnapshotChunk
from svcproxy.names.records import Record

PROTOCOL_VERSION: Final = 3
"""Grows when a frame or a record changes, or one is added that a reader of the version before cannot read."""
FRAME_LIMIT: Final = 4 << 20
"""Octets of one frame from the agent, length not counted. The API server refuses objects over 1.5 MiB, so that a record
of its own always fits."""
CLIENT_FRAME_LIMIT: Final = 4096
"""Octets of one frame from a worker, length not counted."""
CHUNK_RECORDS: Final = 256
"""Records in one frame, at most: what a worker decodes and takes in within about 1 ms."""
SNAPSHOT_RECORDS: Final = 16
"""Records of a snapshot that a worker takes in, or looks at, before it answers what has come meanwhile: about 30 µs of
CPU time at the median; with `CHUNK_RECORDS` it was 280."""
NAME_LIMIT: Final = 256
"""Characters of a worker's name, a topic or an epoch."""

LENGTH_OCTETS: Final = 4

R = TypeVar("R")

_MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises; msgspec 0.22 lets the second through for text that is no UTF-8."""


class Topic(Generic[R]):
    """A named set of records of one type, and how they are written and read."""

    def __init__(self, name: str, record_type: Any) -> None:
        """`record_type`: a struct or a union of tagged structs, as `msgspec` takes it."""
        self.name: Final = name
        self._decoder: Final = msgspec.msgpack.Decoder(list[record_type])

    def encode(self, records: Sequence[R]) -> bytes:
        """A msgpack array of records."""
        return _ENCODER.encode(records)

    def decode(self, octets: msgspec.Raw) -> list[R]:
        """The records of a frame. Raises `FeedError` for other types, and for more than a frame may carry."""
        try:
            records: list[R] = self._decoder.decode(octets)
        except _MALFORMED as exc:
            raise FeedError(f"records of topic {self.name}: {exc}") from exc
        if len(records) > CHUNK_RECORDS:
            raise FeedError(f"{len(records)} records in one frame, at most {CHUNK_RECORDS} are allowed")
        return records


NAMES: Final[Topic[Record]] = Topic("names", Record)
"""What DNS workers need."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_CLIENT_DECODER: Final[msgspec.msgpack.Decoder[ClientFrame]] = msgspec.msgpack.Decoder(ClientFrame)
_AGENT_DECODER: Final[msgspec.msgpack.Decoder[AgentFrame]] = msgspec.msgpack.Decoder(AgentFrame)


def encode_frame(frame: ClientFrame | AgentFrame) -> bytes:
    """The octets of a frame, length included. Raises `FeedError` if it is too long to be sent."""
    payload = _ENCODER.encode(frame)
    if len(payload) > FRAME_LIMIT:
        raise FeedError(f"frame of {len(payload)} octets, at most {FRAME_LIMIT} are allowed")
    return len(payload).to_bytes(LENGTH_OCTETS, "big") + payload


def decode_client_frame(payload: bytes) -> ClientFrame:
    """A frame from a worker. Raises `FeedError`."""
    try:
        return _CLIENT_DECODER.decode(payload)
    except _MALFORMED as exc:
        raise FeedError(f"frame from worker: {exc}") from exc


def decode_agent_frame(payload: bytes) -> AgentFrame:
    """A frame from the agent, its records still closed. Raises `FeedError`."""
    try:
        return _AGENT_DECODER.decode(payload)
    except _MALFORMED as exc:
        raise FeedError(f"frame from agent: {exc}") from exc


class FrameReader:
    """Cuts a stream of octets into the payloads of frames; however it is fragmented, they are the same.

    It holds at most what was fed since `next_payload` last returned None, and less than one frame before that.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: octets of a payload."""
        self._limit: Final = limit
        self._pending: Final = bytearray()

    def feed(self, octets: bytes) -> None:
        """Append what was read."""
        self._pending.extend(octets)

    def next_payload(self) -> bytes | None:
        """The next whole payload, None if it is not there yet. Raises `FeedError` for an empty or oversized one, as
        soon as its length is known; the reader is spent after that."""
        pending = self._pending
        if len(pending) < LENGTH_OCTETS:
            return None
        length = int.from_bytes(pending[:LENGTH_OCTETS], "big")
        if not 0 < length <= self._limit:
            raise FeedError(f"frame of {length} octets, 1 to {self._limit} are allowed")
        end = LENGTH_OCTETS + length
        if len(pending) < end:
            return None
        payload = bytes(pending[LENGTH_OCTETS:end])
        del pending[:end]
        return payload

    def __iter__(self) -> Iterator[bytes]:
        """The whole payloads that are there. Raises as `next_payload`."""
        while (payload := self.next_payload()) is not None:
            yield payload


class EncodedRecords(NamedTuple):
    """Frames made of records, and how many records were too large for one."""

    frames: tuple[bytes, ...]
    left_out: int


class _Part(IntEnum):
    ADDED = 0
    REMOVED = 1


def encode_delta(
    topic: Topic[R], revision: int, added: Sequence[R], removed: Sequence[R], chunk_records: int = CHUNK_RECORDS
) -> EncodedRecords:
    """The frames of one change, at least one. A change of up to `chunk_records` records is one frame as a rule, and so
    one step for whoever takes it in."""
    left_out = 0
    if len(added) + len(removed) <= chunk_records:
        payload = _ENCODER.encode(
            Delta(revision, False, msgspec.Raw(topic.encode(added)), msgspec.Raw(topic.encode(removed)))
        )
        if len(payload) <= FRAME_LIMIT:
            return EncodedRecords((len(payload).to_bytes(LENGTH_OCTETS, "big") + payload,), 0)
    parts: list[tuple[_Part, bytes]] = []
    for part, records in ((_Part.ADDED, added), (_Part.REMOVED, removed)):
        for start in range(0, len(records), chunk_records):
            arrays, lost = _arrays(topic, records[start : start + chunk_records])
            left_out += lost
            parts.extend((part, array) for array in arrays)
    if not parts:
        parts.append((_Part.ADDED, _EMPTY))
    frames = []
    for index, (part, array) in enumerate(parts):
        more = index + 1 < len(parts)
        brought, taken = (array, _EMPTY) if part is _Part.ADDED else (_EMPTY, array)
        frames.append(encode_frame(Delta(revision, more, msgspec.Raw(brought), msgspec.Raw(taken))))
    return EncodedRecords(tuple(frames), left_out)


def encode_chunk(topic: Topic[R], records: Sequence[R]) -> EncodedRecords:
    """The frames of up to `CHUNK_RECORDS` records of a snapshot: one as a rule, and at least one."""
    arrays, left_out = _arrays(topic, records)
    if not arrays:
        arrays.append(_EMPTY)
    return EncodedRecords(tuple(encode_frame(SnapshotChunk(msgspec.Raw(array))) for array in arrays), left_out)


_EMPTY: Final = _ENCODER.encode(())
_ENVELOPE_OCTETS: Final = 64
"""More than the largest frame around an array of records has besides the array."""


def _arrays(topic: Topic[R], records: Sequence[R]) -> tuple[list[bytes], int]:
    """Arrays that fit into frames, and the number of records that fit into none: those are left out."""
    if not records:
        return [], 0
    array = topic.encode(records)
    if len(array) <= FRAME_LIMIT - _ENVELOPE_OCTETS:
        return [array], 0
    if len(records) == 1:
        return [], 1
    middle = len(records) // 2
    first, first_lost = _arrays(topic, records[:middle])
    second, second_lost = _arrays(topic, records[middle:])
    return first + second, first_lost + second_lost
