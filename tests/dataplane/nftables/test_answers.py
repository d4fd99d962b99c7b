# SPDX-License-Identifier: Apache-2.0
"""The parser: what a kernel (6.18) said, whole, cut, damaged, mixed; and whatever else may come."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.answers import (
    Answer,
    Elements,
    Generation,
    ListEnd,
    ObjectState,
    Reply,
    StoredElement,
    TableState,
    parse,
)
from svcproxy.dataplane.nftables.expressions import ACCEPT, DROP, RETURN, Code, Verdict, goto, jump
from svcproxy.dataplane.nftables.messages import Element, Kind, TableFlag
from svcproxy.dataplane.nftables.netlink import ErrorReport, attribute, frame, nested, text, u32
from svcproxy.errors import DecodeError
from tests.dataplane.nftables.captured import ADMITTED, CAPTURES, DNS, DNS3, HTTP, SERVICES, TABLE

RECORDED = {
    name: bytes.fromhex(octets)
    for name, octets in (line.split() for line in (CAPTURES / "answers.txt").read_text().splitlines())
}
"""Datagrams as they came. `refused-echoed` and `refused-plain` are from sockets without CAP_ACK, without EXT_ACK."""
PORT = 15746
SUCCESS = ErrorReport(0, "", None)


@pytest.mark.parametrize(
    ("name", "sequence", "content"),
    [
        pytest.param("acknowledgement", 50, Reply(SUCCESS), id="acknowledgement"),
        pytest.param("refused-element", 201, Reply(ErrorReport(2, "", 76)), id="refusal with the place"),
        pytest.param("refused-echoed", 301, Reply(ErrorReport(1, "", 20)), id="the request in it"),
        pytest.param("refused-plain", 301, Reply(ErrorReport(1, "", None)), id="refusal and no more"),
        pytest.param(
            "refused-with-words", 401, Reply(ErrorReport(34, "Attribute failed policy validation", 44)), id="words"
        ),
        pytest.param("list-end", 100, ListEnd(SUCCESS), id="end of a list"),
        pytest.param("generation", 104, Generation(2, PORT, "python3"), id="generation"),
        pytest.param(
            "tables",
            100,
            TableState(False, TABLE, TableFlag.OWNER | TableFlag.PERSIST, 18, PORT, "schema 1"),
            id="table",
        ),
        pytest.param(
            "elements-class",
            101,
            Elements(
                False,
                TABLE,
                "class",
                (
                    StoredElement(Element(DNS, DROP)),
                    StoredElement(Element(DNS3, ACCEPT)),
                    StoredElement(Element(HTTP, goto("n3"))),
                ),
            ),
            id="verdicts",
        ),
        pytest.param("elements-srcok", 102, Elements(False, TABLE, "srcok", (StoredElement(ADMITTED),)), id="ranges"),
        pytest.param(
            "elements-svccidr",
            103,
            Elements(
                False,
                TABLE,
                "svccidr",
                (
                    StoredElement(SERVICES[1]),
                    StoredElement(SERVICES[0]),
                    StoredElement(Element(bytes(4), interval_end=True)),
                ),
            ),
            id="intervals",
        ),
    ],
)
def test_what_a_kernel_said(name: str, sequence: int, content: object) -> None:
    (answer,) = parse(RECORDED[name])
    assert (answer.sequence, answer.interrupted, answer.content) == (sequence, False, content)


def test_notifications() -> None:
    """A chain is added, then the table deleted with everything in it."""
    contents = [each.content for each in parse(RECORDED["notifications"])]
    assert contents[0] == ObjectState(False, Kind.NEW_CHAIN, TABLE, "x", 44, 0)
    assert contents[1] == Generation(3, PORT, "python3")
    assert contents[-1] == Generation(4, PORT, "python3")
    assert contents[-2] == TableState(True, TABLE, TableFlag.NONE, 0, 0, "")
    rules = {each.name for each in contents if isinstance(each, ObjectState) and each.kind is Kind.NEW_RULE}
    assert rules == {"n3", "n4", "prerouting", "output", "postrouting", "forward"}
    assert {each.removed for each in contents[2:] if isinstance(each, ObjectState)} == {True}


def element_message(*attributes: bytes, flags: int = 0) -> bytes:
    head = bytes((2, 0, 0, 0)) + text(1, "t") + text(2, "s")
    return frame(0xA0C, flags, 1, head + nested(3, (nested(1, attributes),)))


KEY = nested(1, (attribute(1, b"\1\2\3\4"),))


def test_an_element_counts_and_expires() -> None:
    numbers = nested(2, (attribute(1, (99).to_bytes(8)), attribute(2, (7).to_bytes(8))))
    counted = nested(7, (text(1, "counter"), numbers))
    (answer,) = parse(element_message(KEY, attribute(5, (1500).to_bytes(8)), counted))
    assert isinstance(answer.content, Elements)
    assert answer.content.elements == (StoredElement(Element(b"\1\2\3\4"), 1500, 7, 99),)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(3 | 5 << 16, Verdict(Code.QUEUE), id="queue 5"),
        pytest.param(111 << 16, DROP, id="drop with an errno"),
        pytest.param(0xFFFFFFFF, Verdict(Code.CONTINUE), id="continue"),
        pytest.param(0xFFFFFFFB, RETURN, id="return"),
    ],
)
def test_foreign_verdicts_are_understood(code: int, expected: Verdict) -> None:
    (answer,) = parse(element_message(KEY, nested(2, (nested(2, (u32(1, code),)),))))
    assert isinstance(answer.content, Elements)
    assert answer.content.elements[0].element.data == expected


def test_a_list_that_was_interrupted_says_so() -> None:
    assert [each.interrupted for each in parse(element_message(KEY, flags=0x12))] == [True]


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(frame(0xA00, 0, 1, bytes((1, 0, 0, 0)) + text(1, "filter")), id="a table of family inet"),
        pytest.param(frame(0xA12, 0, 1, bytes((2, 0, 0, 0))), id="a stateful object"),
        pytest.param(frame(0x102, 0, 1, b""), id="another subsystem"),
        pytest.param(frame(1, 0, 1, b""), id="NLMSG_NOOP"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_does_not_concern_us_is_passed_over(octets: bytes) -> None:
    assert list(parse(octets + RECORDED["list-end"])) == list(parse(RECORDED["list-end"]))


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(bytes(15), id="less than a header"),
        pytest.param(bytes(16), id="a length of zero"),
        pytest.param(frame(2, 0, 1, b"\0\0"), id="an error without its number"),
        pytest.param(frame(2, 0x200, 1, bytes(4)), id="an error without the header it answers"),
        pytest.param(frame(2, 0x200, 1, bytes(20)), id="an error about a message of no length"),
        pytest.param(frame(0xA00, 0, 1, b"\2"), id="less than nfgenmsg"),
        pytest.param(frame(0xA00, 0, 1, bytes((2, 0, 0, 0, 1, 0))), id="half an attribute header"),
        pytest.param(frame(0xA00, 0, 1, bytes((2, 0, 0, 0, 3, 0, 1, 0))), id="an attribute shorter than its header"),
        pytest.param(frame(0xA00, 0, 1, bytes((2, 0, 0, 0, 9, 0, 1, 0))), id="an attribute longer than what is there"),
        pytest.param(element_message(KEY, nested(2, (nested(2, (u32(1, 77),)),))), id="no such verdict"),
        pytest.param(element_message(KEY, nested(2, (nested(2, (u32(1, 0xFFFFFFFC),)),))), id="goto nowhere"),
    ],
)
def test_garbage_is_a_decode_error(octets: bytes) -> None:
    with pytest.raises(DecodeError):
        list(parse(octets))


@given(names=st.lists(st.sampled_from(sorted(RECORDED)), max_size=6))
def test_messages_share_datagrams(names: list[str]) -> None:
    whole = b"".join(RECORDED[name] for name in names)
    assert list(parse(whole)) == list(chain.from_iterable(parse(RECORDED[name]) for name in names))


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


@given(st.binary(max_size=200), st.sampled_from([2, 3, *range(0xA00, 0xA12)]), st.integers(0, 0xFFFF))
def test_anything_is_at_worst_a_decode_error(payload: bytes, kind: int, flags: int) -> None:
    understood(frame(kind, flags, 1, payload))
    understood(frame(kind, flags, 1, bytes((2, 0, 0, 0)) + payload))
    understood(payload)


def understood(octets: bytes) -> None:
    try:
        for answer in parse(octets):
            assert isinstance(answer, Answer)
    except DecodeError:
        pass


VALUES = st.binary(min_size=1, max_size=64)
CHAINS = st.text("abcn-0123456789", min_size=1, max_size=20)
VERDICTS = st.sampled_from([ACCEPT, DROP, RETURN]) | CHAINS.map(goto) | CHAINS.map(jump)
ELEMENTS = st.builds(
    Element,
    key=VALUES,
    data=st.none() | VALUES | VERDICTS,
    key_end=st.just(b"") | VALUES,
    timeout_ms=st.integers(0, 1 << 40),
    interval_end=st.booleans(),
)


@given(st.lists(ELEMENTS, max_size=20))
def test_what_is_encoded_is_understood(elements: list[Element]) -> None:
    requests = nft.new_elements(TABLE, "s", elements)
    answers = list(chain.from_iterable(parse(nft.encode(each, 5)) for each in requests))
    found = [
        each.element for answer in answers if isinstance(answer.content, Elements) for each in answer.content.elements
    ]
    assert found == elements
