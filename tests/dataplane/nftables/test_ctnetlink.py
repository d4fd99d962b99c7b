# SPDX-License-Identifier: Apache-2.0
"""The octets of ctnetlink: what a kernel (6.18) said, whole, cut, damaged; and what conntrack 1.4.7 sends."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.dataplane.nftables import ctnetlink
from svcproxy.dataplane.nftables.conntrack import Statistics
from svcproxy.dataplane.nftables.ctnetlink import Answer, CpuStatistics, End, Filter, Flow, Occupancy, parse
from svcproxy.dataplane.nftables.netlink import ErrorReport, attribute, frame, messages, nested
from svcproxy.errors import DecodeError
from svcproxy.frontends.keys import Address
from svcproxy.model.meta import Family, Protocol
from tests.dataplane.nftables.captured import CAPTURES

RECORDED = {
    name: bytes.fromhex(octets)
    for name, octets in (line.split() for line in (CAPTURES / "conntrack.txt").read_text().splitlines())
}
"""Datagrams as they came, of a namespace with ICMP, SCTP, TCP and UDP, translated by `dnat` or not, and a zone 7."""
NEW_FLOW = 0x100
UDP = Protocol.UDP

FLOWS = {
    "sctp": ("127.0.0.1:4449", Address("127.0.0.1", Protocol.SCTP, 3868), "127.0.0.1:3868"),
    "tcp": ("127.0.0.1:4448", Address("127.0.0.1", Protocol.TCP, 8080), "127.0.0.1:8080"),
    "zone": ("127.0.0.1:4447", Address("10.96.0.1", UDP, 53), "127.0.0.1:5353"),
    "udp": ("127.0.0.1:4444", Address("10.96.0.1", UDP, 53), "127.0.0.1:5353"),
    "udp6": ("[::1]:4444", Address("fd96::1", UDP, 53), "[::1]:5353"),
}
"""Source, destination, where the packets go."""


def contents(octets: bytes) -> list[ctnetlink.Content]:
    return [answer.content for answer in parse(octets)]


def flows(name: str) -> list[Flow]:
    return [each for each in contents(RECORDED[name]) if isinstance(each, Flow)]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        pytest.param("flows", ["sctp", "tcp", "zone", "udp"], id="IPv4, less ICMP"),
        pytest.param("flows-udp", ["zone", "udp"], id="UDP over IPv4, as the kernel filtered it"),
        pytest.param("flows-ipv6", ["udp6"], id="UDP over IPv6"),
    ],
)
def test_flows(name: str, kinds: list[str]) -> None:
    found = [(str(flow.source), flow.destination, str(flow.answering)) for flow in flows(name)]
    assert found == [FLOWS[kind] for kind in kinds]


def test_a_flow_has_the_id_and_zone_that_conntrack_prints() -> None:
    zoned, plain = flows("flows-udp")
    assert (zoned.zone, plain.zone, plain.id) == (b"\x00\x07", b"", 1860850354)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("end", [End(ErrorReport(0, "", None))], id="end of a list"),
        pytest.param("deleted", [End(ErrorReport(0, "", None))], id="acknowledgement"),
        pytest.param("absent", [End(ErrorReport(2, "", None))], id="no such flow"),
        pytest.param("occupancy", [Occupancy(6, 262144)], id="occupancy"),
        pytest.param(
            "statistics",
            [CpuStatistics(0, 0, 0, 0, 0, 0, 0, 0, 0, 0), CpuStatistics(0, 2, 0, 0, 0, 0, 2, 0, 0, 0)],
            id="statistics as `conntrack -S` prints them: invalid and error of the second CPU",
        ),
    ],
)
def test_answers(name: str, expected: list[ctnetlink.Content]) -> None:
    assert contents(RECORDED[name]) == expected


def test_counters_are_told_apart() -> None:
    body = b"".join(attribute(kind, kind.to_bytes(4)) for kind in range(1, 16))
    assert contents(frame(0x104, 0, 1, bytes(4) + body)) == [CpuStatistics(2, 4, 8, 9, 10, 11, 12, 13, 14, 15)]


@pytest.mark.parametrize(
    ("entries", "maximum", "crowded"),
    [
        pytest.param(79, 100, False, id="79 %"),
        pytest.param(80, 100, True, id="80 %"),
        pytest.param(80, 0, False, id="the maximum is not known"),
    ],
)
def test_a_table_is_crowded_from_80_percent_on(entries: int, maximum: int, crowded: bool) -> None:
    assert Statistics(entries, maximum, ()).crowded is crowded


def test_an_interrupted_list_is_marked() -> None:
    (message, *_) = messages(RECORDED["flows-udp"])
    (answer,) = parse(frame(message.kind, message.flags | 0x10, 5, message.payload))
    assert (answer.sequence, answer.interrupted) == (5, True)


# Octets of the kernel's headers in host order: the captures are from a little-endian machine, as is what follows.

HEAD = bytes.fromhex("02000000")
"""nfgenmsg: AF_INET."""


@pytest.mark.parametrize(
    ("wanted", "body"),
    [
        pytest.param(
            Filter(Family.IPV4, UDP), "10000180 0c000280 0500010011000000 0c001980 0800010008000000", id="all"
        ),
        pytest.param(
            Filter(Family.IPV4, UDP, "10.96.0.1", 53),
            "24000180 0c000180 080002000a600001 14000280 0500010011000000 0600030000350000 0c001980 080001002a000000",
            id="one address and port",
        ),
        pytest.param(
            Filter(Family.IPV6, UDP, "fd96::1", 53),
            "18000180 14000280 0500010011000000 0600030000350000 0c001980 0800010028000000",
            id="one port over IPv6, where the kernel gets addresses wrong",
        ),
        pytest.param(
            Filter(Family.IPV4, Protocol.SCTP, None, 30080),
            "18000180 14000280 0500010084000000 0600030075800000 0c001980 0800010028000000",
            id="one port",
        ),
    ],
)
def test_a_list_is_filtered_by_the_kernel(wanted: Filter, body: str) -> None:
    octets = ctnetlink.list_flows(wanted, 7)
    assert octets[:16] == struct.pack("=IHHII", len(octets), 0x101, 0x301, 7, 0)
    head = bytes.fromhex("0a000000" if wanted.family is Family.IPV6 else "02000000")
    assert octets[16:] == head + bytes.fromhex(body)


def test_a_removal_repeats_the_tuple_and_id_of_the_flow() -> None:
    """As `conntrack -D` sends it, less the reply tuple, state, time and mark, and with the id."""
    (udp,) = (flow for flow in flows("flows-udp") if not flow.zone)
    sent_by_conntrack = (
        "3400018014000180080001007f000001080002000a6000011c000280050001001100000006000200115c00000600030000350000"
    )
    octets = ctnetlink.delete_flow(udp, 9)
    assert octets[:20] == struct.pack("=IHHII", len(octets), 0x102, 0x005, 9, 0) + HEAD
    assert octets[20:] == bytes.fromhex(sent_by_conntrack) + bytes.fromhex("08000c00") + udp.id.to_bytes(4)


def test_a_removal_names_the_zone_of_the_flow() -> None:
    (zoned,) = (flow for flow in flows("flows-udp") if flow.zone)
    assert attribute(18, b"\x00\x07") in ctnetlink.delete_flow(zoned, 9)


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        pytest.param(Filter(Family.IPV4, UDP), ["zone", "udp"], id="protocol"),
        pytest.param(Filter(Family.IPV4, Protocol.SCTP), ["sctp"], id="another protocol"),
        pytest.param(Filter(Family.IPV6, UDP), [], id="family"),
        pytest.param(Filter(Family.IPV4, UDP, "10.96.0.1", 53), ["zone", "udp"], id="address and port"),
        pytest.param(Filter(Family.IPV4, UDP, "10.96.0.2", 53), [], id="another address"),
        pytest.param(Filter(Family.IPV4, UDP, None, 54), [], id="another port"),
    ],
)
def test_what_an_older_kernel_does_not_filter_is_filtered_here(wanted: Filter, admitted: list[str]) -> None:
    found = [(str(f.source), f.destination, str(f.answering)) for f in flows("flows") if wanted.admits(f)]
    assert found == [FLOWS[kind] for kind in admitted]


def tuple_of(*parts: bytes) -> bytes:
    return frame(NEW_FLOW, 0, 1, HEAD + b"".join(parts))


UDP_PROTO = nested(2, (attribute(1, b"\x11"),))


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(frame(NEW_FLOW, 0, 1, b"\2"), id="no room for the header"),
        pytest.param(tuple_of(), id="a flow of nothing"),
        pytest.param(tuple_of(nested(1, (UDP_PROTO,)), nested(2, (UDP_PROTO,))), id="no addresses"),
        pytest.param(tuple_of(nested(1, (nested(1, (attribute(1, b"abc"),)), UDP_PROTO))), id="a reply is missing"),
        pytest.param(
            tuple_of(
                *(nested(n, (nested(1, (attribute(1, b"abc"), attribute(2, b"abcd"))), UDP_PROTO)) for n in (1, 2))
            ),
            id="an address of three octets",
        ),
    ],
)
def test_garbage_is_a_decode_error(octets: bytes) -> None:
    with pytest.raises(DecodeError):
        list(parse(octets))


@given(name=st.sampled_from(sorted(RECORDED)), data=st.data())
def test_a_datagram_cut_short_yields_its_beginning(name: str, data: st.DataObject) -> None:
    octets = RECORDED[name]
    cut = data.draw(st.integers(0, len(octets)))
    whole, found = list(parse(octets)), list[Answer]()
    try:
        for answer in parse(octets[:cut]):
            found.append(answer)
    except DecodeError:
        assert cut < len(octets)
    assert found == whole[: len(found)]


@given(name=st.sampled_from(sorted(RECORDED)), places=st.lists(st.tuples(st.integers(0), st.integers(0, 255))))
def test_a_damaged_datagram_is_at_worst_a_decode_error(name: str, places: list[tuple[int, int]]) -> None:
    octets = bytearray(RECORDED[name])
    for at, value in places:
        octets[at % len(octets)] = value
    understood(bytes(octets))


@given(st.binary(max_size=200), st.sampled_from([2, 3, *range(0x100, 0x108)]), st.integers(0, 0xFFFF))
def test_anything_is_at_worst_a_decode_error(payload: bytes, kind: int, flags: int) -> None:
    understood(frame(kind, flags, 1, payload))
    understood(frame(kind, flags, 1, HEAD + payload))
    understood(payload)


def understood(octets: bytes) -> None:
    try:
        for answer in parse(octets):
            assert isinstance(answer, Answer)
            if isinstance(answer.content, Flow):
                ctnetlink.delete_flow(answer.content, 1)
    except DecodeError:
        pass
