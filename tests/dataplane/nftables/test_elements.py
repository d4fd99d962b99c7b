# SPDX-License-Identifier: Apache-2.0
"""Elements as the kernel has them: every set's come back as they went, and others' do no harm."""

import ipaddress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from svcproxy.dataplane.nftables.elements import decode, encode
from svcproxy.dataplane.nftables.expressions import ACCEPT, Code, Verdict, goto, jump
from svcproxy.dataplane.nftables.layout import AFFINITY_TIMEOUT_MAX, SETS, FieldType
from svcproxy.dataplane.nftables.messages import Element
from svcproxy.dataplane.nftables.operations import (
    DROP,
    FORM_OF,
    BackendChain,
    Data,
    Field,
    FixedChain,
    Form,
    Goto,
    Key,
    SetName,
    chain_name,
    chain_of,
    frontend_at,
)
from svcproxy.dataplane.nftables.render import BACKENDS_WITH_AFFINITY_MAX
from svcproxy.frontends.keys import Scope
from svcproxy.model.meta import Family, Protocol

BITS = {Family.IPV4: 32, Family.IPV6: 128}
SET = pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in SETS])
FAMILY = pytest.mark.parametrize("family", [pytest.param(family, id=family.label) for family in Family])


def address(number: int, family: Family) -> str:
    return str(ipaddress.IPv4Address(number) if family is Family.IPV4 else ipaddress.IPv6Address(number))


@st.composite
def prefixes(draw: st.DrawFn, family: Family) -> str:
    length = draw(st.integers(0, BITS[family]))
    at = draw(st.sampled_from([0, (1 << length) - 1, draw(st.integers(0, (1 << length) - 1))]))
    return f"{address(at << (BITS[family] - length), family)}/{length}"


chains = st.one_of(
    st.sampled_from(FixedChain),
    st.builds(
        BackendChain,
        st.sampled_from(Form),
        st.sampled_from(Scope),
        st.integers(1, 999_999_999),
        st.none() | st.integers(1, 999_999_999),
    ),
)


def fields(kind: FieldType, family: Family) -> st.SearchStrategy[Field]:
    match kind:
        case FieldType.ADDRESS:
            return st.integers(0, (1 << BITS[family]) - 1).map(lambda number: address(number, family))
        case FieldType.PREFIX:
            return prefixes(family)
        case FieldType.PROTOCOL:
            return st.sampled_from(Protocol)
        case FieldType.PORT:
            return st.sampled_from([0, 65535]) | st.integers(0, 65535)
        case FieldType.MARK:
            return st.sampled_from([0, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1)


def numbered(form: Form) -> st.SearchStrategy[BackendChain]:
    """Chains that a number has room for."""
    plain = st.builds(BackendChain, st.just(form), st.sampled_from(Scope), st.integers(1, (1 << 29) - 1))
    affine = st.builds(
        BackendChain,
        st.just(form),
        st.sampled_from(Scope),
        st.integers(1, BACKENDS_WITH_AFFINITY_MAX),
        st.integers(1, AFFINITY_TIMEOUT_MAX),
    )
    return plain | affine


@st.composite
def contents(draw: st.DrawFn, family: Family, name: SetName) -> tuple[Key, Data]:
    spec = SETS[name]
    key = tuple(draw(fields(kind, family)) for kind in spec.key)
    if spec.verdicts:
        return key, draw(st.just(DROP) | st.builds(Goto, st.sampled_from(FixedChain) | numbered(FORM_OF[name])))
    return key, tuple(draw(fields(kind, family)) for kind in spec.data) or None


@SET
@FAMILY
@given(data=st.data())
def test_what_was_encoded_comes_back(name: SetName, family: Family, data: st.DataObject) -> None:
    key, held = data.draw(contents(family, name))
    assert list(decode(family, name, encode(name, key, held))) == [(key, held)]


@FAMILY
@given(data=st.data())
def test_ranges_that_touch_come_back_apart(family: Family, data: st.DataObject) -> None:
    """The whole address space, cut anywhere."""
    cuts = sorted(data.draw(st.sets(st.integers(0, 7))) - {0})
    parts = zip([0, *cuts], [*cuts, 8], strict=True)
    eighth = 1 << BITS[family] - 3
    ranges = {
        cidr
        for first, end in parts
        for cidr in [f"{address(first * eighth, family)}-{address(end * eighth - 1, family)}"]
    }
    stored = [each for cidr in ranges for each in encode(SetName.SVC_CIDR, (cidr,))]
    found = [str(key[0]) for key, _ in decode(family, SetName.SVC_CIDR, reversed(stored))]
    assert sorted(map(bounds, found)) == sorted(map(bounds, ranges))


def bounds(cidr: str) -> tuple[int, int]:
    first, _, last = cidr.partition("-")
    if last:
        return int(ipaddress.ip_address(first)), int(ipaddress.ip_address(last))
    network = ipaddress.ip_network(cidr)
    return int(network.network_address), int(network.broadcast_address)


HTTP = bytes((10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0))
DCCP = bytes((10, 96, 0, 1, 33, 0, 0, 0, 0, 80, 0, 0))
PLACE: Key = ("10.96.0.1", "TCP", 80)
FROM, TO = bytes((10, 0, 0, 3)), bytes((10, 0, 0, 9))


@pytest.mark.parametrize(
    ("name", "element", "key", "data"),
    [
        pytest.param(SetName.CLASS, Element(HTTP, bytes(4)), PLACE, None, id="number of no chain"),
        pytest.param(SetName.CLASS, Element(HTTP, b"\1"), PLACE, None, id="number too short"),
        pytest.param(SetName.CLASS, Element(HTTP, ACCEPT), PLACE, None, id="verdict: accept"),
        pytest.param(SetName.CLASS, Element(HTTP, Verdict(Code.RETURN)), PLACE, None, id="verdict: return"),
        pytest.param(SetName.CLASS, Element(HTTP, Verdict(Code.QUEUE)), PLACE, None, id="verdict: queue"),
        pytest.param(SetName.CLASS, Element(HTTP, jump("n3")), PLACE, None, id="verdict: jump"),
        pytest.param(SetName.CLASS, Element(HTTP, goto("mine")), PLACE, None, id="verdict: another chain"),
        pytest.param(SetName.CLASS, Element(DCCP, ACCEPT), (f"0x{DCCP.hex()}",), None, id="another protocol"),
        pytest.param(SetName.CLASS, Element(b"", ACCEPT), ("0x",), None, id="all others"),
        pytest.param(SetName.EP, Element(HTTP + bytes(4), b"\1"), (*PLACE, 0), None, id="data too short"),
        pytest.param(
            SetName.SRC_OK, Element(HTTP + FROM, key_end=HTTP + TO), (*PLACE, "10.0.0.3-10.0.0.9"), None, id="no CIDR"
        ),
        pytest.param(SetName.SRC_OK, Element(HTTP + FROM), (*PLACE, "10.0.0.3/32"), None, id="one address"),
        pytest.param(
            SetName.SRC_OK,
            Element(HTTP + FROM, key_end=DCCP + TO),
            (f"0x{(HTTP + FROM).hex()}-{(DCCP + TO).hex()}",),
            None,
            id="a range of protocols",
        ),
        pytest.param(SetName.SRC_OK, Element(b""), ("0x",), None, id="all other sources"),
        pytest.param(SetName.SVC_CIDR, Element(b""), ("0x",), None, id="all other addresses"),
        pytest.param(SetName.HAIRPIN, Element(FROM), (f"0x{FROM.hex()}",), None, id="key too short"),
    ],
)
def test_what_others_put_in_can_be_told_and_deleted(name: SetName, element: Element, key: Key, data: Data) -> None:
    assert list(decode(Family.IPV4, name, [element])) == [(key, data)]
    (again,) = encode(name, key)
    assert (again.key, again.key_end or again.key) == (element.key, element.key_end or element.key)
    if str(key[0]).startswith("0x"):
        assert frontend_at(Family.IPV4, name, key) is None


@SET
@FAMILY
@given(key=st.binary(max_size=64), end=st.binary(max_size=64), data=st.none() | st.binary(max_size=64))
def test_no_octets_are_too_strange(name: SetName, family: Family, key: bytes, end: bytes, data: bytes | None) -> None:
    for found, _ in decode(family, name, [Element(key, data, end)]):
        frontend_at(family, name, found)
        assert encode(name, found)


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        pytest.param([(0, True), (5, False), (8, True)], ["0.0.0.5-0.0.0.7"], id="nft's end of nothing"),
        pytest.param([(1 << 31, False)], ["128.0.0.0/1"], id="up to the end"),
        pytest.param([(0, False)], ["0.0.0.0/0"], id="everything"),
        pytest.param([(8, True)], [], id="an end alone"),
        pytest.param([(4, False), (6, False), (8, True)], ["0.0.0.4/31", "0.0.0.6/31"], id="a start in between"),
    ],
)
def test_bounds_are_ranges(stored: list[tuple[int, bool]], found: list[str]) -> None:
    elements = [Element(number.to_bytes(4), interval_end=end) for number, end in stored]
    assert [key for key, _ in decode(Family.IPV4, SetName.SVC_CIDR, elements)] == [(each,) for each in found]


@given(chains)
def test_a_chain_is_known_by_its_name(chain: FixedChain | BackendChain) -> None:
    assert chain_of(chain_name(chain)) == chain


@given(st.text(max_size=12) | st.from_regex(r"(np-)?(local-)?[na][0-9]{1,3}(-[0-9]{1,3})?x?", fullmatch=True))
def test_no_two_names_are_one_chain(name: str) -> None:
    chain = chain_of(name)
    assert chain is None or chain_name(chain) == name
