# SPDX-License-Identifier: Apache-2.0
"""Properties of messages that nobody should send: valid ones changed at random, and made up ones."""

import dns.flags
import dns.message
import dns.name
import pytest
from dns.edns import GenericOption, Option, OptionType
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy_dns.answers import Answers
from svcproxy_dns.framing import frame
from svcproxy_dns.rendered import TCP
from svcproxy_dns.wire import Query, parse_query
from tests.dns.oracles import CACHED, check_query, check_reply, check_stream, populated, response_to
from tests.dns.test_replies import ADDRESSES, DENIAL, message

_NAMES = (
    "web.shop.svc.cluster.local",
    "_http._tcp.web.shop.svc.cluster.local",
    "hl.shop.svc.cluster.local",
    "big.shop.svc.cluster.local",
    "ext.shop.svc.cluster.local",
    "alias.shop.svc.cluster.local",
    "self.shop.svc.cluster.local",
    "10-1-2-3.shop.pod.cluster.local",
    "1.10.96.10.in-addr.arpa",
    "9.9.9.9.in-addr.arpa",
    "cluster.local",
    "nope.cluster.local",
    "www.example.com",
    CACHED,
    ".",
)
_TYPES = st.one_of(st.sampled_from([1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 65, 252, 255]), st.integers(0, 65535))
_CLASSES = st.sampled_from([1, 1, 1, 3, 4, 254, 255, 0])
_LABEL = st.binary(min_size=1, max_size=63)


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    """Valid ones, of every kind."""
    known = st.sampled_from([dns.name.from_text(name) for name in _NAMES])
    name = draw(st.one_of(known, st.lists(_LABEL, max_size=3).map(lambda labels: dns.name.Name([*labels, b""]))))
    made = dns.message.make_query(name, RdataType.make(draw(_TYPES)), RdataClass.make(draw(_CLASSES)))
    made.flags = dns.flags.Flag(draw(st.integers(0, 65535)) & 0x7FFF if draw(st.booleans()) else 0x0100)
    if draw(st.booleans()):
        options: list[Option] = [GenericOption(OptionType.make(code), octets) for code, octets in draw(_OPTIONS)]
        payload = draw(st.sampled_from([0, 100, 512, 1232, 4096, 65535]))
        version = draw(st.sampled_from([0, 0, 0, 1, 255]))
        made.use_edns(version, draw(st.sampled_from([0, 0x8000])), payload, options=options)
    wire = bytearray(made.to_wire())
    if draw(st.booleans()):  # spelled as some resolvers do
        for position in range(0, len(wire), 3):
            wire[position] ^= 0x20 if 97 <= wire[position] <= 122 else 0
    return bytes(wire)


_OPTIONS = st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=20)), max_size=3)


@st.composite
def changed(draw: st.DrawFn, octets: bytes) -> bytes:
    """A few octets replaced, put in or left out, counts of sections and pointers preferred."""
    found = bytearray(octets)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(found)))
        match draw(st.sampled_from(["replace", "insert", "cut", "pointer", "count", "repeat"])):
            case "replace":
                found[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                found[at:at] = draw(st.binary(max_size=12))
            case "cut":
                del found[at : at + draw(st.integers(1, 12))]
            case "pointer":
                found[at : at + 2] = (0xC000 | draw(st.integers(0, 0x3FFF) | st.integers(0, 40))).to_bytes(2, "big")
            case "count":
                section = draw(st.integers(2, 5)) * 2
                found[section : section + 2] = draw(st.integers(0, 4)).to_bytes(2, "big")
            case _:
                found[at:at] = found[at : at + draw(st.integers(1, 40))]
    return bytes(found)


@pytest.fixture(scope="module")
def answers() -> Answers:
    return populated()


@given(octets=queries().flatmap(changed) | st.binary(max_size=100), transport=st.integers(0, 3))
@settings(max_examples=500)
def test_every_message_is_answered_or_dropped(answers: Answers, octets: bytes, transport: int) -> None:
    check_query(answers, octets, transport)


@pytest.mark.parametrize("transport", [0, TCP])
@pytest.mark.parametrize("payload", [None, 512, 1232, 4096])
@pytest.mark.parametrize("name", _NAMES)
def test_valid_queries(answers: Answers, name: str, payload: int | None, transport: int) -> None:
    for qtype in (1, 28, 33, 255):
        query = dns.message.make_query(name, RdataType.make(qtype))
        if payload is not None:
            query.use_edns(0, payload=payload)
        check_query(answers, query.to_wire(), transport)


def test_what_is_kept_of_other_names_is_cut_to_what_is_asked_for(answers: Answers) -> None:
    query = dns.message.make_query(CACHED, "A").to_wire()
    over_udp, over_tcp = (response_to(answers, query, transport) for transport in (0, TCP))
    assert over_udp is not None
    assert over_tcp is not None
    assert dns.message.from_wire(over_udp).flags & dns.flags.TC
    assert len(dns.message.from_wire(over_tcp).answer[0]) == 200


@given(
    stream=st.lists(st.binary(max_size=300), max_size=6).map(lambda all_of: b"".join(map(frame, all_of)))
    | st.binary(max_size=600),
    cuts=st.lists(st.integers(0, 200), max_size=20),
    kept=st.integers(0, 200),
)
def test_streams(stream: bytes, cuts: list[int], kept: int) -> None:
    check_stream(stream, cuts, kept)


_REPLIES = st.sampled_from(
    [
        message(ADDRESSES),
        message([], [DENIAL], rcode="NXDOMAIN"),
        message(["www.example.com. 5 IN CNAME a.example.net.", "a.example.net. 7 IN A 192.0.2.1"]),
        message(
            ["www.example.com. 5 IN SRV 1 2 3 a.www.example.com.", 'www.example.com. 9 IN NAPTR 1 2 "a" "b" "c" .'],
            additional=["a.www.example.com. 5 IN A 192.0.2.1"],
            qtype="SRV",
        ),
        message(["example.com. 5 IN DNAME example.net.", "www.example.com. 5 IN CNAME www.example.net."]),
    ]
)


@given(octets=_REPLIES.flatmap(changed) | st.binary(max_size=200), qtype=_TYPES, dnssec=st.booleans())
@settings(max_examples=500)
def test_replies_of_upstreams_are_read_or_refused(octets: bytes, qtype: int, dnssec: bool) -> None:
    query = parse_query(
        dns.message.make_query("www.example.com", RdataType.make(qtype), use_edns=0, payload=1232).to_wire()
    )
    assert isinstance(query, Query)
    check_reply(octets, query, dnssec=dnssec)
