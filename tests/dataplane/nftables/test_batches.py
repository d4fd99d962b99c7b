# SPDX-License-Identifier: Apache-2.0
"""Operations as batches: nothing is lost, frontends stay whole, and a refusal is blamed on the right operation."""

from collections.abc import Sequence
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from svcproxy.dataplane.nftables.answers import Elements, StoredElement, parse
from svcproxy.dataplane.nftables.batches import compose, cut
from svcproxy.dataplane.nftables.counts import Counts
from svcproxy.dataplane.nftables.elements import encode
from svcproxy.dataplane.nftables.messages import Element, Kind, Request
from svcproxy.dataplane.nftables.messages import encode as message
from svcproxy.dataplane.nftables.netlink import NLM_F_ECHO
from svcproxy.dataplane.nftables.operations import (
    DROP,
    AddElement,
    BackendChain,
    DeleteElement,
    EnsureChain,
    Form,
    Goto,
    Operation,
    ReplaceElement,
    SetName,
    frontend_of,
)
from svcproxy.dataplane.nftables.sticky import stale
from svcproxy.dataplane.nftables.tables import COMMENT, TABLES, schema_of
from svcproxy.frontends.keys import Address, Scope
from svcproxy.model.meta import Family, Protocol

FOUR = Family.IPV4
N3 = BackendChain(Form.ADDRESS, Scope.CLUSTER, 3)


def slot(service: int, number: int) -> AddElement:
    return AddElement(FOUR, SetName.EP, (f"10.96.0.{service}", Protocol.TCP, 80, number), ("10.1.0.1", 80))


def elements(request: Request) -> Sequence[Element]:
    (answer,) = parse(message(request, 1))
    assert isinstance(answer.content, Elements)
    return [each.element for each in answer.content.elements]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), max_size=12), st.integers(1, 20))
def test_parts_are_all_of_it_and_no_frontend_is_cut(runs: list[tuple[int, int]], size: int) -> None:
    operations = [slot(service, at) for service, length in runs for at in range(length)]
    parts = list(cut(operations, size))
    assert [each for part in parts for each in part] == operations
    assert all(parts)
    for part, following in pairwise(parts):
        assert len(part) >= size
        assert frontend_of(part[-1]) != frontend_of(following[0])


def test_what_goes_goes_before_what_comes_and_chains_are_first() -> None:
    operations: list[Operation] = [
        AddElement(FOUR, SetName.CLASS, ("10.96.0.1", Protocol.TCP, 80), Goto(N3)),
        ReplaceElement(FOUR, SetName.CLASS, ("10.96.0.2", Protocol.TCP, 80), DROP),
        DeleteElement(FOUR, SetName.NODE_IPS, ("192.0.2.1",)),
        EnsureChain(FOUR, N3),
    ]
    batch = compose(operations)
    kinds = [each.kind for each in batch.requests]
    assert kinds[:2] == [Kind.NEW_CHAIN, Kind.DELETE_RULE]
    assert kinds[-3:] == [Kind.DELETE_ELEMENTS, Kind.DELETE_ELEMENTS, Kind.NEW_ELEMENTS]
    assert [bool(each.flags & NLM_F_ECHO) for each in batch.requests[-3:-1]] == [True, False]
    assert batch.blamed(0, None) == batch.blamed(3, None) == (operations[3],)
    assert batch.blamed(len(kinds) - 3, 0) == (operations[1],)
    assert batch.blamed(len(kinds) - 1, 0) == (operations[0],)
    assert batch.blamed(len(kinds) - 1, 1) == (operations[1],)
    assert batch.blamed(len(kinds) - 1, None) == (operations[0], operations[1])


@pytest.mark.parametrize("size", [1, 7, 500])
def test_each_element_is_blamed_on_its_operation(size: int) -> None:
    """Ranges take two elements; lists are cut between them, too."""
    operations: list[Operation] = [AddElement(FOUR, SetName.SVC_CIDR, (f"10.{number}.0.0/24",)) for number in range(20)]
    batch = compose(operations, size)
    named = [
        (batch.blamed(index, at), each)
        for index, request in enumerate(batch.requests)
        for at, each in enumerate(elements(request))
    ]
    assert all(len(elements(request)) <= size for request in batch.requests)
    assert named == [
        ((each,), element)
        for each in operations
        if isinstance(each, AddElement)
        for element in encode(each.set, each.key)
    ]


@pytest.mark.parametrize(
    ("comment", "schema"),
    [
        pytest.param(COMMENT, 1, id="ours"),
        pytest.param("svcproxy schema 12", 12, id="another"),
        pytest.param("", None, id="none"),
        pytest.param("svcproxy schema ", None, id="no number"),
        pytest.param("svcproxy schema 1 ", None, id="more"),
        pytest.param("my svcproxy schema 1", None, id="something before"),
        pytest.param("svcproxy schema 9999999999", None, id="too long"),
        pytest.param("svcproxy schema ²", None, id="no ASCII digit"),
    ],
)
def test_schema_of_a_comment(comment: str, schema: int | None) -> None:
    assert schema_of(comment) == schema


# Counters

KEY = Address("10.96.0.1", Protocol.TCP, 80)
OTHER = Address("10.96.0.2", Protocol.TCP, 80)


def held(**packets: int) -> Elements:
    """Elements of `class`, by the last number of their address."""
    stored = tuple(
        StoredElement(each, packets=number)
        for last, number in packets.items()
        for each in encode(SetName.CLASS, (f"10.96.0.{last[1:]}", Protocol.TCP, 80), DROP)
    )
    return Elements(False, TABLES[FOUR], SetName.CLASS, stored)


def test_what_went_counts_on() -> None:
    counts = Counts()
    assert counts.total(lambda: [held(n1=5, n2=1)], {KEY, OTHER}) == {KEY: 5, OTHER: 1}
    counts.add(held(n1=7))
    assert counts.total(lambda: [held(n1=2, n2=1)], {KEY, OTHER}) == {KEY: 9, OTHER: 1}
    counts.forget([KEY])
    assert counts.total(lambda: [held(n1=2)], {KEY}) == {KEY: 2}


def test_no_number_falls_while_elements_are_replaced() -> None:
    counts = Counts()
    counts.total(lambda: [held(n1=5)], {KEY})

    def replaced_meanwhile() -> list[Elements]:
        counts.add(held(n1=6))
        return [held(n1=0)]

    assert counts.total(replaced_meanwhile, {KEY}) == {KEY: 6}
    assert counts.total(lambda: [held(n1=1)], {KEY}) == {KEY: 7}
    # Replaced in the kernel, and this process does not know yet what the old one had counted.
    assert counts.total(lambda: [held(n1=0)], {KEY}) == {KEY: 7}
    # Passed over, as the set changed while it was read.
    assert counts.total(lambda: [held()], {KEY}) == {KEY: 7}


def test_frontends_that_are_gone_are_not_counted() -> None:
    counts = Counts()
    counts.add(held(n2=3))
    assert counts.total(lambda: [held(n1=1, n2=1)], {KEY}) == {KEY: 1}
    counts.start_over({KEY})
    assert counts.total(lambda: [held(n2=1)], {OTHER}) == {OTHER: 1}


def test_elements_that_no_frontend_has_are_not_counted() -> None:
    foreign = Elements(False, TABLES[FOUR], SetName.CLASS, (StoredElement(Element(b"", None), packets=3),))
    assert Counts().total(lambda: [foreign], {KEY}) == {}


def test_memories_of_backends_that_have_no_id_are_stale() -> None:
    known = {FOUR: [Element(bytes(8), (number).to_bytes(4, "little")) for number in (1, 2, 3)]}
    assert stale(known, {FOUR: {1, 3}}) == {FOUR: [known[FOUR][1]]}
