# SPDX-License-Identifier: Apache-2.0
"""Frames: every one survives the wire, however cut; whatever else arrives is a FeedError."""

from itertools import pairwise

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from svcproxy.errors import FeedError
from svcproxy.feed.codec import (
    CHUNK_RECORDS,
    CLIENT_FRAME_LIMIT,
    FRAME_LIMIT,
    NAMES,
    PROTOCOL_VERSION,
    FrameReader,
    decode_agent_frame,
    decode_client_frame,
    encode_chunk,
    encode_delta,
    encode_frame,
)
from svcproxy.feed.frames import (
    Ack,
    AgentFrame,
    ClientFrame,
    Delta,
    Hello,
    Ping,
    Pong,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SourceState,
    Welcome,
)
from svcproxy.model.meta import Protocol
from svcproxy.names.records import (
    EndpointRecord,
    NamedPort,
    NamespaceRecord,
    NodePodRecord,
    PodRecord,
    Record,
    ServiceRecord,
)
from tests.feed.world import Wire, record

RECORDS: list[Record] = [
    NamespaceRecord("prod"),
    ServiceRecord("prod", "db", ("10.0.0.7", "fd00::7"), (NamedPort("", Protocol.TCP, 5432),)),
    ServiceRecord("prod", "out", external_name="example.com"),
    EndpointRecord("prod", "db", "10.1.0.3", "db-0", "db-0", (NamedPort("dns", Protocol.UDP, 53),)),
    PodRecord("prod", "10.1.0.3"),
    NodePodRecord("prod", "10.1.0.3", "db-0"),
]
EMPTY = msgspec.Raw(NAMES.encode([]))
SOME = msgspec.Raw(NAMES.encode(RECORDS))

CLIENT_FRAMES: list[ClientFrame] = [Hello(PROTOCOL_VERSION, "names", "e", 7, True, "dns-0", 42), Ack(7), Pong()]
AGENT_FRAMES: list[AgentFrame] = [
    Welcome("e", 7, False),
    SnapshotBegin(7),
    SnapshotChunk(SOME),
    SnapshotEnd(7),
    Delta(8, False, SOME, EMPTY),
    SourceState(True, True, 1000.5),
    Ping(),
]


def payloads(octets: bytes, limit: int = FRAME_LIMIT) -> list[bytes]:
    reader = FrameReader(limit)
    reader.feed(octets)
    return list(reader)


@pytest.mark.parametrize("frame", CLIENT_FRAMES, ids=lambda frame: type(frame).__name__)
def test_client_frames_survive_the_wire(frame: ClientFrame) -> None:
    assert [decode_client_frame(payload) for payload in payloads(encode_frame(frame), CLIENT_FRAME_LIMIT)] == [frame]


@pytest.mark.parametrize("frame", AGENT_FRAMES, ids=lambda frame: type(frame).__name__)
def test_agent_frames_survive_the_wire(frame: AgentFrame) -> None:
    (payload,) = payloads(encode_frame(frame))
    decoded = decode_agent_frame(payload)
    assert encode_frame(decoded) == encode_frame(frame)
    assert type(decoded) is type(frame)


def test_records_survive_the_wire() -> None:
    (frame,) = encode_chunk(NAMES, RECORDS).frames
    chunk = decode_agent_frame(frame[4:])
    assert isinstance(chunk, SnapshotChunk)
    assert NAMES.decode(chunk.records) == RECORDS


STREAM = b"".join(map(encode_frame, AGENT_FRAMES))


@given(cuts=st.lists(st.integers(0, len(STREAM))).map(sorted))
def test_payloads_do_not_depend_on_fragmentation(cuts: list[int]) -> None:
    reader, found = FrameReader(FRAME_LIMIT), list[bytes]()
    for start, end in pairwise([0, *cuts, len(STREAM)]):
        reader.feed(STREAM[start:end])
        found += reader
    assert found == payloads(STREAM)
    assert len(found) == len(AGENT_FRAMES)


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(bytes(4), id="empty frame"),
        pytest.param((CLIENT_FRAME_LIMIT + 1).to_bytes(4, "big"), id="one octet over the limit, known from its length"),
        pytest.param(b"\xff\xff\xff\xff", id="4 GiB"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
    ],
)
def test_lengths_out_of_bounds_are_refused(octets: bytes) -> None:
    with pytest.raises(FeedError, match="octets"):
        payloads(octets, CLIENT_FRAME_LIMIT)


def test_the_longest_frame_is_taken() -> None:
    assert payloads(CLIENT_FRAME_LIMIT.to_bytes(4, "big") + bytes(CLIENT_FRAME_LIMIT), CLIENT_FRAME_LIMIT) == [
        bytes(CLIENT_FRAME_LIMIT)
    ]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xc1", id="an octet that msgpack never uses"),
        pytest.param(msgspec.msgpack.encode(["nonsense"]), id="unknown tag"),
        pytest.param(msgspec.msgpack.encode(["ack"]), id="field missing"),
        pytest.param(msgspec.msgpack.encode(["ack", "7"]), id="field of another type"),
        pytest.param(msgspec.msgpack.encode({"ack": 7}), id="a map"),
        pytest.param(msgspec.msgpack.encode(["ack", 7]) + b"\x00", id="something after the frame"),
        pytest.param(b"\x91" * 4096, id="nested without end"),
    ],
)
def test_what_is_no_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(FeedError):
        decode_client_frame(payload)


def test_fields_of_later_versions_are_passed_over() -> None:
    assert decode_client_frame(msgspec.msgpack.encode(["ack", 7, "new"])) == Ack(7)


@given(octets=st.binary(max_size=300))
def test_noise_from_a_worker_is_an_error_or_incomplete(octets: bytes) -> None:
    try:
        for payload in payloads(octets, CLIENT_FRAME_LIMIT):
            decode_client_frame(payload)
    except FeedError:
        pass


@given(payload=st.binary(min_size=1, max_size=300))
def test_noise_in_the_place_of_records_is_an_error(payload: bytes) -> None:
    wire = Wire()
    wire.subscriber.connected()
    assert wire.feed(encode_frame(Welcome("e", 7, False)) + encode_frame(SnapshotBegin(7))) is None
    octets = msgspec.msgpack.encode(["chunk", msgspec.Raw(payload)])
    wire.feed(len(octets).to_bytes(4, "big") + octets)
    assert all(type(entry) in (NamespaceRecord, ServiceRecord, EndpointRecord) for entry in wire.sink.known)


@given(place=st.integers(0, len(STREAM) - 1), octet=st.integers(0, 255))
def test_a_damaged_stream_ends_in_nothing_worse_than_a_feed_error(place: int, octet: int) -> None:
    wire = Wire()
    wire.subscriber.connected()
    whole = wire.feed(STREAM[:place] + bytes([octet]) + STREAM[place + 1 :])
    assert whole is not None or wire.subscriber.state.connected or place < 4


def test_a_change_that_fits_is_one_frame() -> None:
    added = [record(number) for number in range(CHUNK_RECORDS - 1)]
    assert len(encode_delta(NAMES, 1, added, [record("x")]).frames) == 1


def test_a_large_change_is_cut_into_frames_that_end_it_once() -> None:
    added = [record(number) for number in range(CHUNK_RECORDS + 1)]
    encoded = encode_delta(NAMES, 1, added, [record("x")])
    parts = [decode_agent_frame(frame[4:]) for frame in encoded.frames]
    assert [part.more for part in parts if isinstance(part, Delta)] == [True, True, False]
    assert encoded.left_out == 0


def test_records_too_many_for_the_octets_of_a_frame_are_divided() -> None:
    big = [record(str(number) * (FRAME_LIMIT // 3)) for number in range(5)]
    encoded = encode_chunk(NAMES, big)
    assert len(encoded.frames) > 1
    assert all(len(frame) <= FRAME_LIMIT + 4 for frame in encoded.frames)
    assert encoded.left_out == 0


@pytest.mark.parametrize("verb", ["chunk", "delta"])
def test_a_record_too_large_for_any_frame_is_left_out_and_counted(verb: str) -> None:
    records = [record("x" * (FRAME_LIMIT + 1)), record("fits")]
    encoded = encode_chunk(NAMES, records) if verb == "chunk" else encode_delta(NAMES, 1, records, [])
    assert encoded.left_out == 1
    kept = [decode_agent_frame(frame[4:]) for frame in encoded.frames]
    arrays = [part.records for part in kept if isinstance(part, SnapshotChunk)]
    arrays += [part.added for part in kept if isinstance(part, Delta)]
    assert [entry for array in arrays for entry in NAMES.decode(array)] == [record("fits")]


def test_more_records_than_a_frame_may_carry_are_refused() -> None:
    array = msgspec.Raw(NAMES.encode([record(number) for number in range(CHUNK_RECORDS + 1)]))
    with pytest.raises(FeedError, match="257"):
        NAMES.decode(array)
