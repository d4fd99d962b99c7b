# SPDX-License-Identifier: Apache-2.0
"""Reading lists fast is reading them: whatever comes, the same flows as `ctnetlink.parse` finds."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.dataplane.nftables import listing
from svcproxy.dataplane.nftables.ctnetlink import NEW_FLOW, Filter, Flow, parse
from svcproxy.dataplane.nftables.listing import Listing
from svcproxy.dataplane.nftables.netlink import attribute, frame, nested
from svcproxy.errors import ConntrackError, DecodeError
from svcproxy.frontends.keys import Address
from svcproxy.model.meta import Family, Protocol
from tests.dataplane.nftables.test_ctnetlink import RECORDED

SEQUENCE = {"flows": 7, "flows-udp": 8, "flows-ipv6": 9, "end": 7}
FILTERS = [Filter(family, protocol) for family in Family for protocol in Protocol]


def read(octets: bytes, wanted: Filter, sequence: int) -> Listing:
    """Every flow is picked."""
    translations = Listing(wanted, sequence, frozenset(), 0)
    translations.take(octets)
    found = Listing(wanted, sequence, translations.translations, translations.listed)
    found.take(octets)
    return found


def expected(octets: bytes, wanted: Filter, sequence: int) -> list[Flow]:
    return [
        answer.content
        for answer in parse(octets)
        if isinstance(answer.content, Flow) and answer.sequence == sequence and wanted.admits(answer.content)
    ]


@pytest.mark.parametrize("wanted", [pytest.param(each, id=f"{each.family.label} {each.protocol}") for each in FILTERS])
@pytest.mark.parametrize("name", ["flows", "flows-udp", "flows-ipv6"])
def test_a_list_is_read(name: str, wanted: Filter) -> None:
    octets, sequence = RECORDED[name], SEQUENCE[name]
    found = read(octets, wanted, sequence)
    assert found.flows == expected(octets, wanted, sequence)
    assert found.translations == {flow.translation for flow in found.flows}
    assert found.listed == len(found.flows)
    assert not found.complete


def ends(source: int, destination: int, ports: tuple[int, int], *, family: Family, protocol: int) -> tuple[bytes, ...]:
    octets, kind = (4, 1) if family is Family.IPV4 else (16, 3)
    prefix = bytes((10,)) + bytes(octets - 3) if family is Family.IPV4 else b"\xfd" + bytes(octets - 3)
    network = nested(
        1, (attribute(kind + at, prefix + each.to_bytes(2)) for at, each in enumerate((source, destination)))
    )
    transport = (
        attribute(1, bytes((protocol,))),
        attribute(2, ports[0].to_bytes(2)),
        attribute(3, ports[1].to_bytes(2)),
    )
    return network, nested(2, transport)


SMALL = st.integers(0, 2)
"""So that flows have parts in common."""


@st.composite
def messages(draw: st.DrawFn, family: Family) -> bytes:
    """A flow, at times written in another way than the kernel's."""
    protocol = draw(st.sampled_from([17, 17, 17, 6, 1]))
    tuples = [
        ends(draw(SMALL), draw(SMALL), (draw(SMALL), draw(SMALL)), family=family, protocol=protocol) for _ in range(2)
    ]
    if draw(st.integers(0, 5)) == 0:
        tuples = [each[::-1] for each in tuples]
    if draw(st.integers(0, 5)) == 0:
        tuples = [(*each, attribute(3, b"\0\7")) for each in tuples]
    body = b"".join(nested(kind, parts) for kind, parts in enumerate(tuples, 1))
    return frame(
        NEW_FLOW, 2, 1, bytes((2 if family is Family.IPV4 else 10, 0, 0, 0)) + body + attribute(12, b"\0\0\0\1")
    )


@given(
    st.sampled_from(Family).flatmap(lambda family: st.tuples(st.just(family), st.lists(messages(family), max_size=30)))
)
def test_flows_with_parts_in_common_are_told_apart(drawn: tuple[Family, list[bytes]]) -> None:
    family, datagram = drawn[0], b"".join(drawn[1])
    for wanted in (Filter(family, Protocol.UDP), Filter(family, Protocol.UDP, None, 1)):
        assert read(datagram, wanted, 1).flows == expected(datagram, wanted, 1)


@given(name=st.sampled_from(sorted(RECORDED)), places=st.lists(st.tuples(st.integers(0), st.integers(0, 255))))
def test_a_damaged_list_is_read_as_it_is_or_refused(name: str, places: list[tuple[int, int]]) -> None:
    octets = bytearray(RECORDED[name] * 2)
    for at, value in places:
        octets[at % len(octets)] = value
    wanted, sequence = Filter(Family.IPV4, Protocol.UDP), SEQUENCE.get(name, 1)
    try:
        found = read(bytes(octets), wanted, sequence)
    except (DecodeError, ConntrackError):
        return
    for flow in found.flows:
        assert wanted.admits(flow)


@given(st.binary(max_size=200), st.sampled_from([2, 3, *range(0x100, 0x108)]), st.integers(0, 0xFFFF))
def test_anything_is_read_or_refused(payload: bytes, kind: int, flags: int) -> None:
    for octets in (payload, frame(kind, flags, 1, payload), frame(kind, flags, 1, b"\2\0\0\0" + payload)):
        with contextlib.suppress(DecodeError, ConntrackError):
            read(octets, FILTERS[0], 1)


def test_only_what_is_picked_is_kept_and_no_more_than_there_is_room_for() -> None:
    octets, wanted = RECORDED["flows-udp"], Filter(Family.IPV4, Protocol.UDP)
    (translation,) = {flow.translation for flow in expected(octets, wanted, 8)}
    assert translation[0] == Address("10.96.0.1", Protocol.UDP, 53)
    for picked, room, kept in ((frozenset({translation}), 9, 2), (frozenset({translation}), 1, 1), (frozenset(), 9, 0)):
        found = Listing(wanted, 8, picked, room)
        found.take(octets)
        assert (found.listed, len(found.flows)) == (2, kept)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "KINDS_KEPT", 1)
    octets, wanted = RECORDED["flows"], Filter(Family.IPV4, Protocol.UDP)
    assert read(octets, wanted, 7).flows == expected(octets, wanted, 7)


def test_a_list_has_an_end() -> None:
    found = Listing(FILTERS[0], 7, frozenset(), 0)
    found.take(RECORDED["end"])
    assert found.complete


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        pytest.param(frame(2, 0, 1, struct.pack("=i", -1) + bytes(16)), "EPERM", id="refused"),
        pytest.param(frame(3, 2, 1, struct.pack("=i", -12)), "ENOMEM", id="ends with an error"),
        pytest.param(frame(NEW_FLOW, 0x12, 1, bytes(4)), "not consistent", id="interrupted"),
    ],
)
def test_a_list_that_fails_is_refused(octets: bytes, error: str) -> None:
    with pytest.raises(ConntrackError, match=error):
        Listing(FILTERS[0], 1, frozenset(), 0).take(octets)
    Listing(FILTERS[0], 2, frozenset(), 0).take(octets)
