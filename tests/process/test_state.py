# SPDX-License-Identifier: Apache-2.0
"""The state on disk: what is written comes back, what is damaged is noticed, and no failure to write stops anything."""

import asyncio
import hashlib
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from svcproxy.errors import StateError
from svcproxy.model import (
    AddressType,
    Changes,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Namespace,
    Node,
    ObjectMeta,
    Pod,
    Service,
    ServiceCIDR,
    Store,
)
from svcproxy.model.node import NodeMeta
from svcproxy.model.pod import PodAddress, PodStatus
from svcproxy.model.service import ServiceMeta, ServicePort, ServiceSpec
from svcproxy.model.service_cidr import ServiceCIDRSpec
from svcproxy.model.slice import SliceLabels, SliceMeta
from svcproxy.process.state import (
    BLOCK_WEIGHT,
    FORMAT_VERSION,
    FUTURE_MAX,
    MAGIC,
    SnapshotWriter,
    StateSnapshot,
    decode,
    encode,
    read_state,
    write_state,
)

NOW = 1_800_000_000.0
MAX_AGE = 86400.0

T = TypeVar("T")

names = st.text("abcdefghij-", min_size=1, max_size=12)
ports = st.integers(0, 65535)
services = st.builds(
    Service,
    metadata=st.builds(ServiceMeta, name=names, namespace=names, uid=names),
    spec=st.builds(
        ServiceSpec,
        cluster_ip=st.none() | st.ip_addresses().map(str),
        ports=st.none() | st.lists(st.builds(ServicePort, port=ports, name=names), max_size=3).map(tuple),
    ),
)
slices = st.builds(
    EndpointSlice,
    metadata=st.builds(
        SliceMeta, name=names, namespace=names, labels=st.none() | st.builds(SliceLabels, service_name=names)
    ),
    address_type=st.sampled_from(AddressType),
    endpoints=st.none()
    | st.lists(st.builds(Endpoint, addresses=st.tuples(st.ip_addresses(v=4).map(str))), max_size=3).map(tuple),
    ports=st.none() | st.lists(st.builds(EndpointPort, name=names, port=ports), max_size=2).map(tuple),
)
namespaces = st.builds(Namespace, metadata=st.builds(ObjectMeta, name=names))
nodes = st.builds(Node, metadata=st.builds(NodeMeta, name=names))
service_cidrs = st.builds(
    ServiceCIDR,
    metadata=st.builds(ObjectMeta, name=names),
    spec=st.builds(ServiceCIDRSpec, cidrs=st.none() | st.tuples(names)),
)

pods = st.builds(
    Pod,
    metadata=st.builds(ObjectMeta, name=names, namespace=names),
    status=st.builds(PodStatus, pod_ips=st.none() | st.tuples(st.builds(PodAddress, ip=names))),
)


def tuples(of: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(of, max_size=4).map(tuple)


snapshots = st.builds(
    StateSnapshot,
    written_at=st.just(NOW),
    services=tuples(services),
    slices=tuples(slices),
    namespaces=tuples(namespaces),
    nodes=tuples(nodes),
    service_cidrs=tuples(service_cidrs),
    pods=tuples(pods),
    versions=tuples(st.tuples(names, names)),
    servers=tuples(names),
)

SMALL = StateSnapshot(
    NOW,
    services=(Service(ServiceMeta("db", "prod"), ServiceSpec(ports=(ServicePort(80),))),),
    namespaces=(Namespace(ObjectMeta("prod")),),
    versions=(("Service", "77"),),
    servers=("https://10.0.0.1:6443",),
)
OCTETS = b"".join(encode(SMALL))


@given(snapshot=snapshots)
def test_what_is_encoded_is_decoded(snapshot: StateSnapshot) -> None:
    assert decode(b"".join(encode(snapshot)), NOW, MAX_AGE) == snapshot


def test_many_objects_are_encoded_in_small_pieces() -> None:
    endpoints = tuple(Endpoint((f"10.0.0.{number % 250}",)) for number in range(100))
    big = StateSnapshot(
        NOW,
        services=tuple(Service(ServiceMeta(f"s{number}")) for number in range(3 * BLOCK_WEIGHT)),
        slices=tuple(EndpointSlice(SliceMeta(f"s{number}"), AddressType.IPV4, endpoints) for number in range(100)),
    )
    pieces = list(encode(big))
    assert len(pieces) > 3 + 100 * 100 // (2 * BLOCK_WEIGHT)
    assert max(map(len, pieces)) < 128 * 1024
    assert decode(b"".join(pieces), NOW, MAX_AGE) == big


def test_a_snapshot_is_the_content_of_the_store() -> None:
    store = Store()
    store.apply(Changes.of(Service, SMALL.services))
    store.apply(Changes.of(Namespace, SMALL.namespaces))
    assert StateSnapshot.of(store, SMALL.versions, SMALL.servers, NOW) == SMALL


@given(place=st.integers(0, len(OCTETS) - 1), flip=st.integers(1, 255))
def test_damage_at_any_octet_is_noticed(place: int, flip: int) -> None:
    with pytest.raises(StateError):
        decode(OCTETS[:place] + bytes([OCTETS[place] ^ flip]) + OCTETS[place + 1 :], NOW, MAX_AGE)


@given(size=st.integers(0, len(OCTETS) - 1))
def test_truncation_at_any_octet_is_noticed(size: int) -> None:
    with pytest.raises(StateError, match="truncated"):
        decode(OCTETS[:size], NOW, MAX_AGE)


@given(octets=st.binary(max_size=200))
def test_noise_is_an_error(octets: bytes) -> None:
    for noise in (octets, MAGIC + octets, MAGIC + FORMAT_VERSION.to_bytes(2, "big") + octets):
        with pytest.raises(StateError):
            decode(noise, NOW, MAX_AGE)


def sealed(*blocks: bytes) -> bytes:
    """A file of these blocks with a right checksum."""
    body = MAGIC + FORMAT_VERSION.to_bytes(2, "big")
    body += b"".join(len(block).to_bytes(4, "big") + block for block in (*blocks, b""))
    return body + hashlib.sha256(body).digest()


HEADING = msgspec.msgpack.encode({"written_at": NOW})


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        pytest.param(b"#!/bin/sh\nexit\n", "not a state file", id="another file"),
        pytest.param(MAGIC + b"\x00\x02" + OCTETS[10:], "format 2, this is 1", id="another version"),
        pytest.param(OCTETS[:-1], "truncated", id="truncated"),
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(OCTETS + b"\x00", "damaged", id="something appended"),
        pytest.param(OCTETS[:-1] + bytes([OCTETS[-1] ^ 1]), "damaged", id="damaged"),
        pytest.param(sealed(), "without a heading", id="no heading"),
        pytest.param(sealed(b"\xc1"), "does not decode", id="no msgpack"),
        pytest.param(sealed(HEADING, msgspec.msgpack.encode({"type": "Pod"})), "does not decode", id="unknown kind"),
        pytest.param(
            sealed(HEADING, b"\x82\xa4type\xa4Node\xa7objects\x91\xa2\xff\xfe"), "does not decode", id="text not UTF-8"
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(octets: bytes, reason: str) -> None:
    with pytest.raises(StateError, match=reason):
        decode(octets, NOW, MAX_AGE)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        pytest.param(NOW + MAX_AGE + 1, "86401 s old, at most 86400", id="too old"),
        pytest.param(NOW - FUTURE_MAX - 1, "from the future, by 301 s", id="from the future"),
    ],
)
def test_a_file_of_another_time_is_refused(now: float, reason: str) -> None:
    with pytest.raises(StateError, match=reason):
        decode(OCTETS, now, MAX_AGE)


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(NOW + MAX_AGE, id="as old as allowed"),
        pytest.param(NOW - FUTURE_MAX, id="the clock was set back a little"),
    ],
)
def test_a_file_at_the_edge_of_its_time_is_taken(now: float) -> None:
    assert decode(OCTETS, now, MAX_AGE) == SMALL


def test_unknown_fields_are_passed_over() -> None:
    heading = msgspec.msgpack.encode({"written_at": NOW, "mood": "good"})
    block = msgspec.msgpack.encode(
        {"type": "Namespace", "more": 1, "objects": [{"metadata": {"name": "prod", "color": "red"}, "spec": {}}]}
    )
    assert decode(sealed(heading, block), NOW, MAX_AGE).namespaces == SMALL.namespaces


def contents(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_file_is_written_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(path, StateSnapshot(0.0))
    write_state(path, SMALL)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert read_state(path, NOW, MAX_AGE) == SMALL
    assert contents(tmp_path) == ["state"]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".state.77.tmp").write_bytes(b"half")
    (tmp_path / ".other.77.tmp").write_bytes(b"not ours")
    write_state(tmp_path / "state", SMALL)
    assert contents(tmp_path) == [".other.77.tmp", "state"]


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"{tmp_path}/state: no state file"):
        read_state(tmp_path / "state", NOW, MAX_AGE)


def test_what_is_no_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"{tmp_path}: Is a directory"):
        read_state(tmp_path, NOW, MAX_AGE)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A file size limit stands in for the disk: the kernel refuses the octets beyond it in the same way."""
    path = tmp_path / "state"
    write_state(path, SMALL)
    big = StateSnapshot(NOW, namespaces=tuple(Namespace(ObjectMeta(f"n{number}")) for number in range(4096)))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_state(path, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert read_state(path, NOW, MAX_AGE) == SMALL
    assert contents(tmp_path) == ["state"]


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds, none of which signals
            await asyncio.sleep(0.001)


class Taken:
    """What there is to write, and how often it was asked for."""

    def __init__(self, snapshot: StateSnapshot | None = SMALL) -> None:
        self.snapshot = snapshot
        self.count = 0
        self.asked = asyncio.Event()

    def __call__(self) -> StateSnapshot | None:
        self.count += 1
        self.asked.set()
        return self.snapshot


@asynccontextmanager
async def writing(
    path: Path, take: Taken, write_interval: float = 3600.0, refresh_interval: float = 3600.0
) -> AsyncIterator[SnapshotWriter]:
    """A writer that runs during the block and is closed at its end."""
    writer = SnapshotWriter(path, take, write_interval, refresh_interval)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(writer.run(), name="state writer")
        yield writer
        running.cancel()
    await writer.close()


async def test_changes_within_an_interval_are_written_once_and_at_the_end(tmp_path: Path) -> None:
    take = Taken()
    async with writing(tmp_path / "state", take) as writer:
        writer.changed()
        await eventually(lambda: writer.written_at)
        first = read_state(tmp_path / "state", NOW, MAX_AGE)
        take.snapshot = later(SMALL)
        for _ in range(10):
            writer.changed()
            await asyncio.sleep(0)
        assert take.count == 1
    assert first == SMALL
    assert take.count == 2
    assert read_state(tmp_path / "state", NOW, MAX_AGE) == take.snapshot


def later(snapshot: StateSnapshot) -> StateSnapshot:
    return StateSnapshot(snapshot.written_at + 1, namespaces=snapshot.namespaces)


async def test_without_a_change_nothing_is_written(tmp_path: Path) -> None:
    take = Taken()
    async with writing(tmp_path / "state", take):
        await asyncio.sleep(0.01)
    assert take.count == 0
    assert not contents(tmp_path)


async def test_an_unchanged_state_is_written_again_to_show_its_age(tmp_path: Path) -> None:
    take = Taken()
    async with writing(tmp_path / "state", take, write_interval=0.001, refresh_interval=0.001):
        await eventually(lambda: take.count >= 3)


async def test_what_is_not_complete_is_not_written(tmp_path: Path) -> None:
    take = Taken(None)
    async with writing(tmp_path / "state", take) as writer:
        writer.changed()
        await eventually(lambda: take.count)
    assert not contents(tmp_path)


async def test_a_write_cut_off_by_the_end_is_made_good(tmp_path: Path) -> None:
    take = Taken()
    async with writing(tmp_path / "state", take) as writer:
        writer.changed()
        await take.asked.wait()
    assert read_state(tmp_path / "state", NOW, MAX_AGE) == SMALL


async def test_a_failure_is_reported_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    take = Taken()
    async with writing(tmp_path / "absent" / "state", take, write_interval=0.001) as writer:
        writer.changed()
        await eventually(lambda: take.count >= 3)
        assert writer.error == f"{tmp_path}/absent/state: No such file or directory"
        (tmp_path / "absent").mkdir()
        await eventually(lambda: not writer.error)
    assert read_state(tmp_path / "absent" / "state", NOW, MAX_AGE) == SMALL
    assert [entry.message for entry in caplog.records] == [
        "cannot write state, trying again",
        "state written again",
    ]


@settings(max_examples=20)
@given(snapshot=snapshots)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, snapshot: StateSnapshot) -> None:
    path = tmp_path_factory.mktemp("state", numbered=True) / "state"
    write_state(path, snapshot)
    assert read_state(path, NOW, MAX_AGE) == snapshot
