# SPDX-License-Identifier: Apache-2.0
"""Replies of upstreams, read and written again; dnspython writes and reads what they are compared with."""

import struct
from collections.abc import Sequence

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.body import Body
from svcproxy_dns.replies import (
    POINTERS_MAX,
    RECORDS_MAX,
    Malformed,
    Relevant,
    is_below,
    read_front,
    read_reply,
    select,
)
from svcproxy_dns.wire import HEADER_OCTETS, Query, encode_name, parse_query

QNAME = "www.example.com."
ADDRESS = "www.example.com. 300 IN A 192.0.2.53"
ADDRESSES = [f"www.example.com. 9 IN A 192.0.2.{low}" for low in range(1, 4)]
BANK = "bank.example.net. 1 IN A 192.0.2.66"
DENIAL = "example.com. 900 IN SOA ns.example.com. hostmaster.example.com. 1 2 3 4 60"


def message(
    answer: list[str],
    authority: Sequence[str] = (),
    additional: Sequence[str] = (),
    rcode: str = "NOERROR",
    qtype: str = "A",
) -> bytes:
    """A reply, from records in presentation form."""
    made = dns.message.make_response(dns.message.make_query(QNAME, qtype, id=7), recursion_available=True)
    made.set_rcode(dns.rcode.from_text(rcode))
    for section, lines in ((made.answer, answer), (made.authority, authority), (made.additional, additional)):
        for line in lines:
            owner, ttl, rrclass, rrtype, rdata = line.split(maxsplit=4)
            section.append(dns.rrset.from_text(owner, int(ttl), rrclass, rrtype, rdata))
    return made.to_wire()


def query_for(qname: str, qtype: str = "A", **options: int) -> Query:
    query = parse_query(dns.message.make_query(qname, qtype, **options).to_wire())  # type: ignore[arg-type]
    assert isinstance(query, Query)
    return query


def relevant(octets: bytes, qtype: str = "A", *, dnssec: bool = False) -> Relevant:
    return select(read_reply(octets), encode_name(QNAME), dns.rdatatype.from_text(qtype), dnssec=dnssec)


def rendered(chosen: Relevant, qname: str = QNAME, limit: int = 65535, ttl: int = 9) -> dns.message.Message:
    body = Body.of(encode_name(qname).lower(), chosen, authentic=False)
    octets = body.render(query_for(qname), limit, ttl)
    assert len(octets) + 2 <= limit
    return dns.message.from_wire(b"\0\0" + octets)


def texts(rrsets: list[dns.rrset.RRset]) -> list[str]:
    return [line for rrset in rrsets for line in rrset.to_text().splitlines()]


_LABEL = st.sampled_from(["a", "b", "www", "Example", "x" * 63, "_sip", "_tcp"])
_NAME = st.lists(_LABEL, min_size=1, max_size=3).map(lambda labels: ".".join(labels) + ".example.com.")
_RDATA = st.one_of(
    st.tuples(st.just("A"), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just("AAAA"), st.ip_addresses(v=6).map(str)),
    st.tuples(st.sampled_from(["CNAME", "NS", "PTR", "DNAME"]), _NAME),
    st.tuples(st.sampled_from(["MX", "AFSDB", "KX", "RT"]), _NAME.map(lambda name: f"5 {name}")),
    st.tuples(st.just("SRV"), _NAME.map(lambda name: f"1 2 3 {name}")),
    st.tuples(st.just("RP"), st.tuples(_NAME, _NAME).map(" ".join)),
    st.tuples(st.just("SOA"), st.tuples(_NAME, _NAME).map(lambda names: f"{names[0]} {names[1]} 1 2 3 4 5")),
    st.tuples(st.just("NAPTR"), _NAME.map(lambda name: f'1 2 "s" "SIP+D2U" "" {name}')),
    st.tuples(st.just("PX"), st.tuples(_NAME, _NAME).map(lambda names: f"1 {names[0]} {names[1]}")),
    st.tuples(st.just("TXT"), st.text("abc ", max_size=20).map(lambda text: f'"{text}"')),
    st.tuples(st.just("HTTPS"), st.just("1 . alpn=h2")),
)
_RECORD = st.tuples(_NAME, st.integers(0, 2**31 - 1), _RDATA).map(
    lambda it: f"{it[0]} {it[1]} IN {it[2][0]} {it[2][1]}"
)


@given(st.lists(_RECORD, max_size=8), st.lists(_RECORD, max_size=4), st.lists(_RECORD, max_size=4))
def test_records_are_read_and_written_as_dnspython_does(
    answer: list[str], authority: list[str], additional: list[str]
) -> None:
    """All of them, compressed by it and compressed by us; only TTLs are ours."""
    octets = message(answer, authority, additional)
    reply = read_reply(octets)
    body = Body(encode_name(QNAME), 0, reply.answers, reply.authorities, reply.additionals)
    ours = dns.message.from_wire(b"\0\0" + body.render(query_for(QNAME), 65535, 300))
    theirs = dns.message.from_wire(octets)
    for mine, other in (
        (ours.answer, theirs.answer),
        (ours.authority, theirs.authority),
        (ours.additional, theirs.additional),
    ):
        assert {(each.name, each.rdtype, rdata) for each in mine for rdata in each} == {
            (each.name, each.rdtype, rdata) for each in other for rdata in each
        }
        assert all(each.ttl == 300 for each in mine)


@given(st.lists(_RECORD, max_size=8), st.integers(100, 700))
def test_what_does_not_fit_is_left_out_whole_and_said(answer: list[str], limit: int) -> None:
    reply = read_reply(message(answer))
    body = Body(encode_name(QNAME), 0, reply.answers)
    octets = body.render(query_for(QNAME), limit, 300)
    assert len(octets) + 2 <= limit
    read = dns.message.from_wire(b"\0\0" + octets)
    count = sum(len(each) for each in read.answer)
    assert bool(read.flags & dns.flags.TC) == (struct.unpack_from(">H", octets, 4)[0] < len(reply.answers))
    assert count <= len(reply.answers)


@given(st.binary(max_size=300), st.lists(_RECORD, max_size=4), st.data())
def test_any_octets_are_read_or_refused(noise: bytes, answer: list[str], data: st.DataObject) -> None:
    octets = bytearray(message([*ADDRESSES, *answer], [DENIAL]))
    for _ in range(data.draw(st.integers(0, 6))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    for tried in (noise, bytes(octets), bytes(octets[: data.draw(st.integers(0, len(octets)))])):
        if read_front(tried) is None:
            continue
        try:
            reply = read_reply(tried)
            chosen = select(reply, encode_name(QNAME), 1, dnssec=True)
            body = Body.of(encode_name(QNAME), chosen, authentic=True)
        except ValueError:
            continue
        for limit in (512, 512, 65535):
            written = read_reply(b"\0\0" + body.render(query_for(QNAME), limit, 0))
        assert sorted(each.rdata for each in written.answers) == sorted(each.rdata for each in chosen.answers)


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"\xc0\x2c\0\1\0\1\0\0\0\0\0\0", id="a pointer to itself"),
        pytest.param(b"\xc0\xff\0\1\0\1\0\0\0\0\0\0", id="a pointer forward"),
        pytest.param(b"\xc0\x02\0\1\0\1\0\0\0\0\0\0", id="a pointer into the header"),
        pytest.param(b"\x40a\0\1\0\1\0\0\0\0\0\0", id="a label of a kind unknown"),
        pytest.param(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\5abc", id="rdata cut"),
        pytest.param(b"\xc0\x0c\0\1\0\1\0\0", id="a record cut"),
        pytest.param(b"\xc0", id="a pointer cut"),
        pytest.param(b"\xc0\x0c\0\6\0\1\0\0\0\0\0\4\0\0\1\2", id="an SOA too short"),
        pytest.param(b"\xc0\x0c\0\5\0\1\0\0\0\0\0\1\xc0\x0c", id="a name longer than its rdata"),
        pytest.param(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\3abc", id="an address too short"),
        pytest.param(b"", id="no record where one is announced"),
    ],
)
def test_what_cannot_be_read_is_refused(rest: bytes) -> None:
    front = bytearray(message([]))
    front[7] = 1
    with pytest.raises(Malformed):
        read_reply(bytes(front) + rest)


@pytest.mark.parametrize(
    ("hops", "readable"), [pytest.param(POINTERS_MAX, True, id="all"), pytest.param(POINTERS_MAX + 1, False, id="more")]
)
def test_pointers_of_a_name_are_bounded(hops: int, readable: bool) -> None:
    """A first record whose rdata is a name and pointers, each to the one before; a second that is owned by the last."""
    header = struct.pack(">6H", 7, 0x8180, 0, 2, 0, 0)
    first = HEADER_OCTETS + 1 + 10
    places = [first, *(first + 1 + 2 * n for n in range(hops))]
    rdata = b"\0" + b"".join((0xC000 | place).to_bytes(2, "big") for place in places[: hops - 1])
    record = b"\0" + struct.pack(">2HIH", 16, 1, 0, len(rdata)) + rdata
    octets = header + record + (0xC000 | places[hops - 1]).to_bytes(2, "big") + struct.pack(">2HIH", 16, 1, 0, 0)
    if readable:
        assert read_reply(octets).answers[1].owner == b"\0"
    else:
        with pytest.raises(Malformed, match="lead back"):
            read_reply(octets)


def test_records_are_bounded() -> None:
    with pytest.raises(Malformed, match="too many"):
        read_reply(struct.pack(">6H", 7, 0x8180, 0, RECORDS_MAX, 1, 0))


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(message([ADDRESS]), (["www.example.com. 9 IN A 192.0.2.53"], 300, False), id="an answer"),
        pytest.param(
            message(["b.example.com. 50 IN A 192.0.2.1", "www.example.com. 300 IN CNAME b.example.com."]),
            (["www.example.com. 9 IN CNAME b.example.com.", "b.example.com. 9 IN A 192.0.2.1"], 50, False),
            id="the alias comes first, the least TTL counts",
        ),
        pytest.param(
            message([ADDRESS, BANK], additional=[BANK]),
            (["www.example.com. 9 IN A 192.0.2.53"], 300, False),
            id="what the question does not lead to is left out",
        ),
        pytest.param(message([], [DENIAL]), ([], 60, True), id="B16: NODATA holds as long as the SOA's minimum"),
        pytest.param(
            message([], [DENIAL.replace("900", "10")], rcode="NXDOMAIN"), ([], 10, True), id="B16: or its TTL, if less"
        ),
        pytest.param(message([], rcode="NXDOMAIN"), ([], None, True), id="M24: without SOA it is not kept"),
        pytest.param(
            message([], [DENIAL.replace("example.com. 900", "example.net. 900", 1)]),
            ([], None, True),
            id="nor with that of another zone",
        ),
        pytest.param(
            message(["www.example.com. 5 IN CNAME nx.example.com."], [DENIAL], rcode="NXDOMAIN"),
            (["www.example.com. 9 IN CNAME nx.example.com."], 5, True),
            id="an alias to what does not exist",
        ),
        pytest.param(
            message(["www.example.com. 5 IN CNAME www.example.com."]),
            (["www.example.com. 9 IN CNAME www.example.com."], None, True),
            id="an alias to itself",
        ),
        pytest.param(
            message(
                [
                    "example.com. 70 IN DNAME example.org.",
                    "www.example.com. 0 IN CNAME www.example.org.",
                    "www.example.org. 300 IN A 192.0.2.1",
                ]
            ),
            (
                [
                    "example.com. 9 IN DNAME example.org.",
                    "www.example.com. 9 IN CNAME www.example.org.",
                    "www.example.org. 9 IN A 192.0.2.1",
                ],
                0,
                False,
            ),
            id="DNAME",
        ),
    ],
)
def test_what_answers_the_question_is_kept(octets: bytes, expected: tuple[list[str], int | None, bool]) -> None:
    chosen = relevant(octets)
    assert (texts(rendered(chosen).answer), chosen.ttl, chosen.denies) == expected
    assert rendered(chosen).additional == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([f"www.example.com. 9 IN A 192.0.2.{low}" for low in range(1, 6)], id="of the name asked"),
        pytest.param(
            ["www.example.com. 9 IN CNAME b.example.net."]
            + [f"b.example.net. 9 IN A 192.0.2.{low}" for low in range(1, 6)],
            id="of what it leads to",
        ),
    ],
)
def test_m32_every_address_comes_first_once_and_an_alias_before_them(answer: list[str]) -> None:
    body = Body.of(encode_name(QNAME), relevant(message(answer)), authentic=False)
    firsts = []
    for _ in range(5):
        read = dns.message.from_wire(b"\0\0" + body.render(query_for(QNAME), 512, 9))
        *aliases, addresses = read.answer
        assert len(aliases) == len(answer) - 5
        assert len(addresses) == 5
        firsts.append(str(addresses[0]))
    assert sorted(firsts) == [f"192.0.2.{low}" for low in range(1, 6)]


def test_addresses_of_targets_are_kept() -> None:
    octets = message(
        ["www.example.com. 300 IN SRV 1 2 3 b.example.com."],
        additional=["B.example.com. 300 IN A 192.0.2.1", "c.example.com. 300 IN A 192.0.2.2"],
        qtype="SRV",
    )
    assert texts(rendered(relevant(octets, "SRV")).additional) == ["B.example.com. 9 IN A 192.0.2.1"]


def test_a_referral_is_no_answer() -> None:
    assert relevant(message([], ["com. 300 IN NS a.gtld.example."])).lame
    assert not relevant(message([], ["com. 300 IN NS a.gtld.example.", DENIAL])).lame


def test_a_name_may_be_spelled_anew_in_what_is_kept() -> None:
    """B13: the owner, and every name that ends like it."""
    body = Body.of(
        encode_name(QNAME), relevant(message(["www.example.com. 9 IN CNAME b.example.com."])), authentic=False
    )
    read = dns.message.from_wire(b"\0\0" + body.render(query_for("WWW.eXample.com."), 512, 9))
    assert str(read.answer[0]) == "WWW.eXample.com. 9 IN CNAME b.eXample.com."


@pytest.mark.parametrize(
    ("flags", "dnssec_ok", "expected"),
    [
        pytest.param(0, False, False, id="not asked"),
        pytest.param(dns.flags.AD, False, True, id="AD"),
        pytest.param(0, True, True, id="DO"),
    ],
)
def test_validation_is_told_to_those_who_ask(flags: int, dnssec_ok: bool, expected: bool) -> None:
    query = dns.message.make_query(QNAME, "A", want_dnssec=dnssec_ok)
    query.flags |= flags
    parsed = parse_query(query.to_wire())
    assert isinstance(parsed, Query)
    body = Body.of(encode_name(QNAME), relevant(message([ADDRESS])), authentic=True)
    read = dns.message.from_wire(b"\0\0" + body.render(parsed, 512, 9))
    assert bool(read.flags & dns.flags.AD) == expected


def test_proofs_are_for_those_who_ask_for_them() -> None:
    proof = "a.example.com. 300 IN NSEC z.example.com. A"
    octets = message([], [DENIAL, proof], rcode="NXDOMAIN")
    assert [each.rrtype for each in relevant(octets).authorities] == [6]
    assert [each.rrtype for each in relevant(octets, dnssec=True).authorities] == [6, 47]


@given(st.lists(_LABEL, max_size=3), st.lists(_LABEL, max_size=3))
def test_below_is_what_dnspython_says(left: list[str], right: list[str]) -> None:
    name, ancestor = (dns.name.from_text(".".join([*labels, ""]) or ".") for labels in (left, right))
    wires = [encode_name(str(each).lower()) if each.labels[0] else b"\0" for each in (name, ancestor)]
    assert is_below(*wires) == name.is_subdomain(ancestor)


def test_a_front_is_that_of_a_reply() -> None:
    octets = message([ADDRESS])
    front = read_front(octets)
    assert front is not None
    assert (front.ident, front.rcode, front.question) == (7, 0, encode_name(QNAME) + b"\0\1\0\1")
    assert read_front(octets[:11]) is None
    assert read_front(dns.message.make_query(QNAME, "A").to_wire()) is None
    assert read_front(octets[:20]) is None
    empty = read_front(octets[:3] + b"\x81" + bytes(8))
    assert empty is not None
    assert empty.question == b""


def test_a_reply_too_long_to_be_written_is_refused() -> None:
    """Names that were compressed where they may not be written so."""
    label = "x" * 60
    target = f"{label}.{label}.{label}.example.com."
    reply = read_reply(message([ADDRESS]))
    record = reply.answers[0]._replace(rrtype=33, rdata=bytes(6) + encode_name(target))
    with pytest.raises(ValueError, match="too long"):
        Body(encode_name(QNAME), 0, [record] * 400)
