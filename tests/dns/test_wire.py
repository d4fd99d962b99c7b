# SPDX-License-Identifier: Apache-2.0
"""Messages as octets: what is read, what is refused, what comes back around the records."""

import struct

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from svcproxy_dns.rendered import TCP
from svcproxy_dns.wire import NAME_MAX_OCTETS, Query, Rcode, encode_name, parse_query
from tests.dns.world import UDP, Client, addresses, records, synced_zone

NAME = b"\x03web\x04shop\x03svc\x07cluster\x05local\x00"
A_IN = b"\0\1\0\1"
CLIENT = Client(synced_zone(records()))


def message(
    question: bytes = NAME + A_IN,
    *,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    rest: bytes = b"",
) -> bytes:
    return struct.pack(">6H", 0xBEEF, flags, *counts) + question + rest


def opt(payload: int = 1232, ttl: int = 0, options: bytes = b"", owner: bytes = b"\0") -> bytes:
    return owner + struct.pack(">2HIH", 41, payload, ttl, len(options)) + options


WITH_OPT = (1, 0, 0, 1)
TSIG = struct.pack(">2HIH", 250, 255, 0, 4) + bytes(4)
"""A record without its owner, of a type that is stepped over."""


@pytest.mark.parametrize(
    ("query", "rcode"),
    [
        pytest.param(message(flags=0x0800), "NOTIMP", id="M5: IQUERY"),
        pytest.param(message(flags=0x1000), "NOTIMP", id="M5: STATUS"),
        pytest.param(message(flags=0x2000), "NOTIMP", id="B9: NOTIFY"),
        pytest.param(message(flags=0x3000), "NOTIMP", id="M5: UPDATE"),
        pytest.param(message(counts=(0, 0, 0, 0)), "FORMERR", id="M6: no question"),
        pytest.param(message(NAME + A_IN + NAME + A_IN, counts=(2, 0, 0, 0)), "FORMERR", id="M6: two questions"),
        pytest.param(message(counts=(1, 2, 0, 0)), "FORMERR", id="M6: two answers"),
        pytest.param(message(counts=(1, 0, 2, 0)), "FORMERR", id="M6: two authorities"),
        pytest.param(message(counts=(1, 0, 0, 3)), "FORMERR", id="M6: three additional records"),
        pytest.param(message()[:20], "FORMERR", id="M8: question cut inside the name"),
        pytest.param(message(NAME + A_IN[:3]), "FORMERR", id="M8: question cut inside the class"),
        pytest.param(message(b"\xc0\x0c" + A_IN), "FORMERR", id="M8: name that points at itself"),
        pytest.param(message(b"\x03web\xc0\x0c" + A_IN), "FORMERR", id="name that points at its own beginning"),
        pytest.param(message(b"\x40" + b"a" * 64 + b"\0" + A_IN), "FORMERR", id="label of 64 octets"),
        pytest.param(message(b"\x80" + b"a" * 128 + b"\0" + A_IN), "FORMERR", id="reserved label type"),
        pytest.param(message((b"\x3f" + b"a" * 63) * 4 + b"\0" + A_IN), "FORMERR", id="name of 257 octets"),
        pytest.param(message(counts=WITH_OPT), "FORMERR", id="a record is announced and missing"),
        pytest.param(message(counts=WITH_OPT, rest=opt()[:-1]), "FORMERR", id="a record cut in its header"),
        pytest.param(
            message(counts=WITH_OPT, rest=opt(options=bytes(9))[:-1]), "FORMERR", id="a record cut in its data"
        ),
        pytest.param(message(counts=(1, 0, 0, 2), rest=opt() + opt()), "FORMERR", id="two OPTs"),
        pytest.param(message(counts=WITH_OPT, rest=opt(owner=b"\1a\0")), "FORMERR", id="an OPT with an owner"),
        pytest.param(message(counts=(1, 1, 0, 0), rest=opt()), "FORMERR", id="an OPT among the answers"),
    ],
)
def test_refused_by_header_alone(query: bytes, rcode: str) -> None:
    response = CLIENT.core.respond(query, UDP)
    assert isinstance(response, bytes)
    assert len(response) == 12
    read = dns.message.from_wire(response)
    assert (read.id, dns.rcode.to_text(read.rcode())) == (0xBEEF, rcode)
    assert read.opcode() == dns.opcode.from_flags(int.from_bytes(query[2:4], "big"))
    assert read.flags & dns.flags.QR


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(message()[:5], id="M7: five octets"),
        pytest.param(message()[:11], id="eleven octets"),
        pytest.param(message(flags=0x8100), id="M7: a response"),
        pytest.param(message(flags=0xFFFF, counts=(9, 9, 9, 9)), id="a response, however broken"),
    ],
)
def test_no_reply(datagram: bytes) -> None:
    assert CLIENT.core.respond(datagram, UDP) is None


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(message(), id="plain"),
        pytest.param(message(rest=bytes(3)), id="M9: three zero octets after the question"),
        pytest.param(message(counts=WITH_OPT, rest=opt() + b"junk"), id="octets after the OPT"),
        pytest.param(message(flags=0x0780), id="M4: TC, RA, AA and RD set"),
        pytest.param(message(flags=0x0000), id="M4: RD clear"),
        pytest.param(message(counts=WITH_OPT, rest=b"\xc0\x0c" + TSIG), id="a TSIG whose owner is compressed"),
        pytest.param(message(counts=(1, 1, 1, 2), rest=(b"\1x\0" + TSIG) * 3 + opt()), id="records of every section"),
    ],
)
def test_answered_all_the_same(query: bytes) -> None:
    response = CLIENT.core.respond(query, UDP)
    assert isinstance(response, bytes)
    assert addresses(dns.message.from_wire(response)) == ["10.96.10.1"]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        pytest.param(0x0000, dns.flags.AA, id="none"),
        pytest.param(0x0100, dns.flags.AA | dns.flags.RD, id="RD echoed"),
        pytest.param(0x0110, dns.flags.AA | dns.flags.RD | dns.flags.CD, id="CD echoed"),
        pytest.param(0x0020, dns.flags.AA, id="AD cleared"),
        pytest.param(0x06C0, dns.flags.AA, id="AA, TC, RA and Z ignored"),
        pytest.param(0x000F, dns.flags.AA, id="rcode ignored"),
    ],
)
@pytest.mark.parametrize("qname", [b"\x03web", b"\x03nop", b"\x03ext"])
def test_m4_flags(qname: bytes, asked: int, answered: int) -> None:
    for _ in range(2):
        response = CLIENT.core.respond(message(qname + NAME[4:] + A_IN, flags=asked), UDP)
        assert isinstance(response, bytes)
        assert dns.message.from_wire(response).flags & ~0xF == answered | dns.flags.QR


@pytest.mark.parametrize("qname", [b"\x03web", b"\x03nop", b"\x03ext", b"\x02hl", b"\x02v6"])
@pytest.mark.parametrize(
    ("payload", "do"),
    [
        pytest.param(1232, False, id="1232"),
        pytest.param(4096, True, id="4096 with DO"),
        pytest.param(100, False, id="100"),
        pytest.param(0, True, id="0 with DO"),
    ],
)
def test_m2_edns_is_echoed(qname: bytes, payload: int, do: bool) -> None:
    """Version 0, the size as asked, DO as asked, no options."""
    ttl = 0x8000 if do else 0
    query = message(qname + NAME[4:] + A_IN, counts=WITH_OPT, rest=opt(payload, ttl))
    plain = CLIENT.core.respond(message(qname + NAME[4:] + A_IN), UDP)
    for _ in range(2):
        response = CLIENT.core.respond(query, UDP)
        assert isinstance(response, bytes)
        assert response.endswith(opt(payload, ttl))
        assert isinstance(plain, bytes)
        assert len(response) == len(plain) + 11
        assert dns.message.from_wire(response).edns == 0


def test_m1_no_opt_without_opt() -> None:
    response = CLIENT.core.respond(message(), UDP)
    assert isinstance(response, bytes)
    assert dns.message.from_wire(response).edns == -1


def test_m3_another_edns_version_is_refused() -> None:
    response = CLIENT.core.respond(message(counts=WITH_OPT, rest=opt(ttl=0x018000)), UDP)
    assert isinstance(response, bytes)
    read = dns.message.from_wire(response)
    assert (read.rcode(), read.edns, read.answer, read.authority) == (dns.rcode.BADVERS, 0, [], [])


@pytest.mark.parametrize("qclass", [pytest.param(3, id="CH"), pytest.param(4, id="HS"), pytest.param(255, id="ANY")])
def test_b8_another_class_is_refused(qclass: int) -> None:
    response = CLIENT.core.respond(message(NAME + b"\0\1" + qclass.to_bytes(2, "big")), UDP)
    assert isinstance(response, bytes)
    assert dns.message.from_wire(response).rcode() == dns.rcode.REFUSED


# Properties

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=6).filter(lambda found: sum(map(len, found)) + len(found) < NAME_MAX_OCTETS)


def on_the_wire(name: list[bytes]) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name) + b"\0"


@given(names, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_questions_are_read_as_dnspython_reads_them(name: list[bytes], qtype: int, qclass: int) -> None:
    query = parse_query(message(on_the_wire(name) + struct.pack(">2H", qtype, qclass)))
    assert isinstance(query, Query)
    expected = dns.name.Name([*name, b""])
    assert [label.encode("latin-1") for label in query.labels] == [label.lower() for label in expected.labels[:-1]]
    assert (query.qtype, query.qclass) == (qtype, qclass)


@given(st.lists(st.from_regex(r"[a-z0-9_-]{1,63}", fullmatch=True), min_size=1, max_size=3).map(".".join))
def test_names_are_written_as_dnspython_writes_them(name: str) -> None:
    assert encode_name(name) == dns.name.from_text(name).to_wire()


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, ".".join(["a" * 63] * 4)])
def test_what_is_no_name_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match=r"label|long"):
        encode_name(name)


VALID = st.sampled_from(
    [
        message(),
        message(b"\x02hl" + NAME[4:] + A_IN),
        message(b"\x03big" + NAME[4:] + A_IN, counts=WITH_OPT, rest=opt(600)),
        message(b"\x08bigalias" + NAME[4:] + A_IN),
        message(b"\x05alias" + NAME[4:] + A_IN, counts=WITH_OPT, rest=opt()),
        message(b"\x04self" + NAME[4:] + A_IN),
        message(b"\x03big" + NAME[4:] + b"\0\x21\0\1", counts=WITH_OPT, rest=opt(700)),
        message(b"\x06_https\x04_tcp" + NAME + b"\0\x21\0\1"),
        message(b"\x011\x0210\x0296\x0210\x07in-addr\x04arpa\0" + b"\0\x0c\0\1"),
        message(NAME[13:] + b"\0\2\0\1"),
        message(b"\x07fd00--1\x04shop\x03pod" + NAME[13:] + b"\0\x1c\0\1"),
        message(NAME[13:] + b"\0\6\0\1", counts=(1, 0, 0, 2), rest=opt(options=bytes(12)) + opt()),
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid query with octets replaced, cut or added: nearer to the parser's edges than noise is."""
    query = bytearray(draw(VALID))
    for _ in range(draw(st.integers(0, 4))):
        query[draw(st.integers(0, len(query) - 1))] = draw(st.integers(0, 255))
    return bytes(query[: draw(st.integers(0, len(query)))]) + draw(st.binary(max_size=20))


@given(st.one_of(st.binary(max_size=600), mutated()), st.sampled_from([UDP, UDP | 1, TCP, TCP | 1]))
@example(b"", UDP)
@example(message((b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0" + A_IN), UDP)
def test_any_octets_get_a_valid_response_or_none(octets: bytes, transport: int) -> None:
    response = CLIENT.core.respond(octets, transport)
    if response is None:
        assert len(octets) < 12 or octets[2] & 0x80
        return
    assert isinstance(response, bytes)
    assert len(response) <= (65535 if transport & TCP else 4096)
    assert response[:2] == octets[:2]
    read = dns.message.from_wire(response)
    assert read.flags & dns.flags.QR
    query = parse_query(octets)
    if isinstance(query, Query):
        assert transport & TCP or len(response) <= query.udp_limit
        assert (read.edns == 0) == (query.opt_payload is not None)
        assert response[12 : 12 + len(query.question)] == query.question
        assert [rrset.rdtype for rrset in read.question] == [query.qtype]
        assert CLIENT.core.respond(octets, transport) is not None
    else:
        assert query in {Rcode.FORMERR, Rcode.NOTIMP}
        assert len(response) == 12
