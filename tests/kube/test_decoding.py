# SPDX-License-Identifier: Apache-2.0
"""API JSON into model objects: what is taken, what is refused and under which name."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.errors import DecodeError
from svcproxy.kube import decoding
from svcproxy.kube.decoding import (
    Applied,
    Bookmark,
    Deleted,
    KindDecoder,
    Page,
    Refused,
    RefusedObject,
    Status,
    decode_status,
)
from svcproxy.kube.interning import Interner
from svcproxy.kube.source import InvalidObject
from svcproxy.model import EndpointSlice, Namespace, NamespacedName, Node, Object, Pod, Service, ServiceCIDR

KEY = NamespacedName("prod", "db")
META = {"name": "db", "namespace": "prod", "resourceVersion": "7"}
GOOD = {"metadata": META, "spec": {"ports": [{"port": 80}]}}
BAD = {"metadata": META, "spec": {"ports": [{"port": 80}, {"port": "x"}]}}


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def body(*items: object, version: str = "9", token: str = "") -> bytes:
    return encode({"metadata": {"resourceVersion": version, "continue": token}, "items": items})


def refused(
    reason: str, key: NamespacedName | None = KEY, name: str = "prod/db", kind: str = "Service"
) -> RefusedObject:
    return RefusedObject(InvalidObject(kind, name, reason), key)


BAD_PORT = "spec.ports[1].port: Expected `int`, got `str`"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        pytest.param(BAD, refused(BAD_PORT), id="wrong type"),
        pytest.param({"metadata": META, "spec": {"ports": [{"port": 65536}]}},
                     refused("spec.ports[0].port: Expected `int` <= 65535"), id="port out of range"),
        pytest.param({"metadata": META, "spec": {"type": "Surprise"}},
                     refused("spec.type: Invalid enum value 'Surprise'"), id="unknown enumeration value"),
        pytest.param({"metadata": META, "spec": 5}, refused("spec: Expected `object`, got `int`"), id="no object"),
        pytest.param({"metadata": {"namespace": "prod"}},
                     refused("metadata: Object missing required field `name`", None, "prod"), id="no name"),
        pytest.param({"metadata": {"name": 5, "namespace": "prod"}},
                     refused("metadata.name: Expected `str`, got `int`", None, "prod"), id="name of the wrong type"),
        pytest.param({"metadata": {"name": "db", "namespace": ["prod"]}},
                     refused("metadata.namespace: Expected `str`, got `array`", None, "db"), id="namespace wrong"),
        pytest.param({}, refused("Object missing required field `metadata`", None, ""), id="no metadata"),
        pytest.param(None, refused("Expected `object`, got `null`", None, ""), id="null"),
        pytest.param([1], refused("Expected `object`, got `array`", None, ""), id="a list"),
    ],
)  # fmt: skip
def test_one_bad_object_costs_itself_alone(item: Any, expected: RefusedObject) -> None:
    neighbour = {"metadata": {"name": "other", "namespace": "prod"}}
    page = KindDecoder(Service).page(body(neighbour, item, GOOD))
    assert [obj.metadata.name for obj in page.objects] == ["other", "db"]
    assert page.refused == (expected,)


KINDS = [Service, EndpointSlice, Namespace, Node, Pod, ServiceCIDR]


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_object_of_each_kind(kind: type[Any]) -> None:
    least: dict[str, Any] = {"metadata": {"name": "a"}}
    if kind is EndpointSlice:
        least["addressType"] = "IPv4"
    page = KindDecoder(kind).page(body(least))
    assert [obj.key for obj in page.objects] == [NamespacedName("", "a")]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html></html>", id="HTML"),
        pytest.param(b'{"metadata":{"resourceVersion":"9"},"items":[{"metadata"', id="cut"),
        pytest.param(b"[]", id="an array"),
        pytest.param(encode({"kind": "Status", "code": 500}), id="a Status"),
        pytest.param(encode({"metadata": {"resourceVersion": "9"}}), id="no items"),
        pytest.param(encode({"metadata": {}, "items": []}), id="no resource version"),
        pytest.param(encode({"metadata": {"resourceVersion": ""}, "items": []}), id="empty resource version"),
        pytest.param(body({"metadata": {"name": "a"}}, version=""), id="empty resource version, with objects"),
        pytest.param(b"[" * 100_000, id="nested without end"),
    ],
)
def test_what_is_no_list(bad: bytes) -> None:
    decoder = KindDecoder(Service)
    with pytest.raises(DecodeError):
        decoder.page(bad)
    with pytest.raises(DecodeError):
        list(decoder.pieces(bad + b" " * decoding.PIECE_OCTETS))


def test_page_and_its_token() -> None:
    page = KindDecoder(Service).page(body(GOOD, version="12", token="next"))
    assert (page.version, page.continue_token, page.more) == ("12", "next", False)
    assert KindDecoder(Service).page(encode({"metadata": {"resourceVersion": "1"}, "items": None})).objects == []


def test_a_big_page_comes_in_pieces() -> None:
    names = [f"s{number}" for number in range(2 * decoding.PIECE_OBJECTS + 1)]
    items: list[Any] = [{"metadata": {"name": name, "padding": "x" * 9000}} for name in names]
    items.insert(700, BAD)
    pieces = list(KindDecoder(Service).pieces(body(*items, token="next")))
    assert [piece.more for piece in pieces] == [True, True, False]
    assert [obj.metadata.name for piece in pieces for obj in piece.objects] == names
    assert [piece.refused for piece in pieces] == [(), (refused(BAD_PORT),), ()]
    assert pieces[-1].continue_token == "next"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param({"type": "ADDED", "object": GOOD}, Applied(msgspec.convert(GOOD, Service), "7"), id="ADDED"),
        pytest.param({"type": "MODIFIED", "object": GOOD}, Applied(msgspec.convert(GOOD, Service), "7"), id="MODIFIED"),
        pytest.param({"type": "DELETED", "object": GOOD}, Deleted(KEY, "7"), id="DELETED"),
        pytest.param({"type": "DELETED", "object": BAD}, Deleted(KEY, "7"), id="DELETED, otherwise bad"),
        pytest.param({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "8"}}}, Bookmark("8"),
                     id="BOOKMARK"),
        pytest.param({"type": "MODIFIED", "object": BAD}, Refused(refused(BAD_PORT), "7"), id="bad object"),
        pytest.param({"type": "DELETED", "object": {"metadata": {"resourceVersion": "7"}}},
                     Refused(refused("a deletion without a readable name", None, ""), "7"), id="DELETED, no name"),
        pytest.param({"type": "ADDED", "object": {"metadata": {"name": "db", "resourceVersion": 7}}},
                     Refused(refused("metadata: not readable", None, "db"), ""), id="version of the wrong type"),
        pytest.param({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "old"}},
                     Status(410, "Expired", "old", too_large=False), id="ERROR"),
    ],
)  # fmt: skip
def test_events(event: object, expected: object) -> None:
    assert KindDecoder(Service).event(encode(event)) == expected


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"<html>", id="HTML"),
        pytest.param(b'{"type":"ADDED"}', id="no object"),
        pytest.param(b'{"type":"ADDED","object":{', id="cut"),
        pytest.param(encode({"type": "HELLO", "object": {}}), id="unknown type"),
        pytest.param(b'{"type":"ADDED","object":' + b"[" * 100_000, id="nested without end"),
    ],
)
def test_what_is_no_event(bad: bytes) -> None:
    with pytest.raises(DecodeError):
        KindDecoder(Service).event(bad)


@pytest.mark.parametrize(
    ("body_", "too_large"),
    [
        pytest.param({"code": 504, "reason": "Timeout", "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}},
                     True, id="cause"),
        pytest.param({"code": 504, "reason": "Timeout", "message": "Too large resource version: 9, current: 1"}, True,
                     id="message of old servers"),
        pytest.param({"code": 504, "reason": "Timeout", "message": "request timed out"}, False, id="mere timeout"),
    ],
)  # fmt: skip
def test_too_large_resource_version(body_: object, too_large: bool) -> None:
    assert decode_status(encode(body_)).too_large is too_large


def test_a_status_that_is_none() -> None:
    assert decode_status(b"<html>" * 100) == Status(0, "", "<html>" * 33 + "<h", too_large=False)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        pytest.param(b'{"type":"DELETED","object":{"kind":"Service","metadata":{"name":"db","namespace":"prod",'
                     b'"resourceVersion":"7","labels":{"a', Deleted(KEY, "7"), id="deletion"),
        pytest.param(b'{"type":"ADDED","object":{"metadata":{"name":"db","namespace":"prod","resourceVersion":"7"},"sp',
                     (KEY, "7"), id="addition"),
        pytest.param(b'{"type":"ADDED","object":{"metadata":{"name":"db","namespace":"prod","uid":"12', (KEY, ""),
                     id="cut within metadata"),
        pytest.param(b'{"type":"ADDED","object":{"spec":{', (None, ""), id="metadata not seen"),
        pytest.param(b'{"type":"DELETED","object":{"metadata":{"name":5,"namespace":"prod"}', (None, ""),
                     id="bad name"),
        pytest.param(b"<html>", (None, ""), id="HTML"),
    ],
)  # fmt: skip
def test_what_is_known_of_an_oversized_event(prefix: bytes, expected: object) -> None:
    event = KindDecoder(Service).oversized(prefix, 1_000_000)
    assert (event.refused.key, event.version) == expected if isinstance(event, Refused) else event == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("name", "namespace", "resourceVersion", "labels", "annotations", "spec", "ports", "port", "endpoints",
          "addresses", "conditions", "addressType", "clusterIP", "type", "status", "metadata", "protocol")  # fmt: skip
OBJECTS = st.recursive(
    JSON,
    lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=20,
)


@given(items=st.lists(OBJECTS, max_size=5), kind=st.sampled_from(KINDS))
def test_any_list_of_json_is_taken_apart(items: list[Any], kind: type[Any]) -> None:
    decoder = KindDecoder(kind)
    page: Page[Any] = decoder.page(
        body(*items, GOOD if kind is not EndpointSlice else {"metadata": META, "addressType": "IPv4"})
    )
    assert len(page.objects) + len(page.refused) == len(items) + 1
    assert page.objects[-1].key == KEY


@given(
    data=st.binary(max_size=200) | OBJECTS.map(encode) | OBJECTS.map(lambda o: encode({"type": "ADDED", "object": o}))
)
def test_any_octets_are_an_event_or_a_decode_error(data: bytes) -> None:
    decoder = KindDecoder(EndpointSlice)
    try:
        event = decoder.event(data)
    except DecodeError:
        return
    assert isinstance(event, Applied | Deleted | Bookmark | Refused | Status)


@given(data=st.binary(max_size=200), at=st.integers(0, 400))
def test_a_damaged_list_never_raises_anything_else(data: bytes, at: int) -> None:
    whole = body(GOOD, GOOD)
    with suppress(DecodeError):
        KindDecoder(Service).page(whole[:at] + data + whole[at + len(data) :])


SLICE = {
    "metadata": {**META, "labels": {"kubernetes.io/service-name": "db"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
    "addressType": "IPv4",
    "endpoints": [
        {"addresses": [f"10.0.0.{n}"], "conditions": {"ready": True, "serving": True, "terminating": False},
         "nodeName": "n1", "hints": {"forZones": [{"name": "z1"}]}} for n in range(2)
    ],
    "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
}  # fmt: skip


def test_equal_values_are_shared_and_objects_stay_equal() -> None:
    first, second = KindDecoder(EndpointSlice).page(body(SLICE, SLICE)).objects
    plain = msgspec.convert(SLICE, EndpointSlice)
    assert first == second == plain
    one, other = (first.endpoints or ())[0], (second.endpoints or ())[1]
    assert one.node_name is other.node_name
    assert one.conditions is other.conditions
    assert one.hints is other.hints
    assert first.ports is second.ports
    assert first.metadata.namespace is second.metadata.namespace


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(msgspec.convert(SLICE, EndpointSlice), id="EndpointSlice"),
        pytest.param(msgspec.convert({**GOOD, "status": {"loadBalancer": {}}}, Service), id="Service"),
        pytest.param(msgspec.convert({"metadata": META, "spec": {"nodeName": "n1"}}, Pod), id="Pod"),
        pytest.param(msgspec.convert({"metadata": META}, Node), id="Node"),
        pytest.param(
            msgspec.convert({"metadata": META, "spec": {"cidrs": ["10.96.0.0/16"]}}, ServiceCIDR), id="ServiceCIDR"
        ),
    ],
)
def test_sharing_changes_no_value(obj: Object) -> None:
    before = msgspec.json.encode(obj)
    Interner().share(obj)
    assert msgspec.json.encode(obj) == before


def test_the_table_of_shared_values_is_bounded() -> None:
    interner = Interner(limit=50)
    decoder = KindDecoder(Service, interner)
    for number in range(1000):
        decoder.page(body({"metadata": {"name": f"s{number}", "namespace": f"n{number}"}}))
        assert len(interner) <= 60
