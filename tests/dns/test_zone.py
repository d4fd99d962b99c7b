# SPDX-License-Identifier: Apache-2.0
"""The zone as a sink of records."""

from collections.abc import Iterable, Sequence
from typing import get_args

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy.config import PodNames
from svcproxy.names.records import EndpointRecord, NamespaceRecord, PodRecord, Record, ServiceRecord
from svcproxy_dns.contents import Schema
from svcproxy_dns.zone import Name, Unready, Zone
from tests.dns import world
from tests.dns.world import DOMAIN, PROBES, Answer, Client, empty_zone, synced_zone, take

QUERIES = [
    dns.message.make_query(f"{probe}.", qtype).to_wire()
    for probe in PROBES
    for qtype in (["PTR"] if probe.endswith(".arpa") else ["A", "AAAA", "SRV"])
] + [dns.message.make_query(f"{DOMAIN}.", "NS").to_wire()]
KINDS = get_args(Record)
VERIFIED = Schema(pods=PodNames.VERIFIED)
SCHEMAS = [
    pytest.param(VERIFIED, id="verified Pods"),
    pytest.param(Schema(ignore_empty_service=True, endpoint_pod_names=True), id="empty Services hidden, Pod names"),
    pytest.param(Schema(namespaces=frozenset({"shop"}), pods=PodNames.VERIFIED), id="one namespace"),
]
SERVERS = ["10.0.0.1", "10.96.0.2"]
"""Addresses of the server: an endpoint's and a Service's, while there are such."""


def answers(client: Client) -> list[Answer]:
    """What is answered about every name that the records can make, whatever the order."""
    return [world.read(client.exchange(query)) for query in QUERIES]


def from_scratch(held: Iterable[Record], schema: Schema) -> Client:
    zone = empty_zone(schema, SERVERS)
    take(zone, held)
    return Client(zone)


batches = st.lists(st.tuples(st.lists(world.record, max_size=4), st.lists(st.integers(0, 9), max_size=3)), max_size=6)
"""Records added, and the places of those removed among what is held."""


def one_service_record_each(held: Sequence[Record]) -> list[Record]:
    """As at rest: of a Service's records the last stays."""
    last = {record.service: record for record in held if isinstance(record, ServiceRecord)}
    return [record for record in held if not isinstance(record, ServiceRecord) or last[record.service] is record]


@pytest.mark.parametrize("schema", SCHEMAS)
@settings(max_examples=25, deadline=None)
@given(history=batches)
def test_incremental_equals_from_scratch(schema: Schema, history: list[tuple[list[Record], list[int]]]) -> None:
    """Every answer is right after every change, however many answers have been kept before it."""
    client = from_scratch([], schema)
    held: dict[Record, None] = {}
    for added, places in history:
        removed = [record for place, record in enumerate(held) if place in places]
        for record in removed:
            held.pop(record, None)
        for record in added:
            held.pop(record, None)
            held[record] = None
        superseded = [record for record in held if record not in set(one_service_record_each(list(held)))]
        client.zone.change(added, [*removed, *superseded])
        for record in superseded:
            if record in added:
                client.zone.change((), [record])
            del held[record]
        expected = from_scratch(held, schema)
        assert answers(client) == answers(expected)
        assert [client.zone.count(kind) for kind in KINDS] == [expected.zone.count(kind) for kind in KINDS]


@given(st.lists(world.record), st.lists(world.record))
def test_adding_the_known_and_removing_the_unknown_change_nothing(held: list[Record], others: list[Record]) -> None:
    held = one_service_record_each(list(dict.fromkeys(held)))
    zone = synced_zone(held, VERIFIED)
    revision = zone.revision
    zone.change(held, [record for record in others if record not in held])
    assert zone.revision == revision


@settings(max_examples=50, deadline=None)
@given(st.lists(world.record), st.lists(world.record), st.lists(world.record, max_size=3), st.integers(1, 5))
def test_a_snapshot_replaces_everything_and_misses_nothing_in_between(
    old: list[Record], new: list[Record], late: list[Record], batch: int
) -> None:
    old, new = (one_service_record_each(list(dict.fromkeys(each))) for each in (old, new))
    zone = synced_zone(old, VERIFIED)
    throughout = [record for record in old if record in new]
    kept = synced_zone(throughout, VERIFIED)
    always = [name for name in PROBES if isinstance(look_up(kept, name), Name) and stable(old, new)]

    def check() -> None:
        assert all(isinstance(look_up(zone, name), Name) for name in always)

    zone.begin_snapshot()
    for record in new:
        zone.change([record], ())
        check()
    before = total(zone)
    swept = 0
    late = [record for record in late if not isinstance(record, ServiceRecord)]
    for index, removed in enumerate(zone.sweep(batch)):
        assert removed <= batch
        swept += removed
        if index == 0:
            count = total(zone)
            zone.change(late, ())
            before += total(zone) - count
        check()
    assert total(zone) == before - swept
    expected = synced_zone([*new, *late], VERIFIED)
    assert answers(Client(zone)) == answers(Client(expected))


def total(zone: Zone) -> int:
    """How many records are known."""
    return sum(map(zone.count, KINDS))


def stable(old: Sequence[Record], new: Sequence[Record]) -> bool:
    """Whether no Service changes its record, which may turn its names into others."""
    services = {record.service: record for record in old if isinstance(record, ServiceRecord)}
    return all(services.get(record.service, record) == record for record in new if isinstance(record, ServiceRecord))


def look_up(zone: Zone, probe: str) -> Name | Unready | None:
    labels = probe.split(".")
    return zone.lookup_address(labels) if labels[-1] == "arpa" else zone.lookup(labels[:-2])


def test_a_second_snapshot_abandons_the_sweep_of_the_first() -> None:
    records = [NamespaceRecord(f"n{number}") for number in range(10)]
    zone = synced_zone(records)
    zone.begin_snapshot()
    sweep = zone.sweep(3)
    assert next(sweep) == 3
    zone.begin_snapshot()
    assert list(sweep) == []
    assert zone.count(NamespaceRecord) == 7
    zone.change(records[:2], ())
    for _ in zone.sweep(3):
        pass
    names = [record.name for record in records if isinstance(zone.lookup([record.name, "svc"]), Name)]
    assert names == ["n0", "n1"]


def test_unready_until_the_first_sweep_has_ended() -> None:
    zone = empty_zone()
    probe = ["web", "shop", "svc"]
    assert isinstance(zone.lookup(probe), Unready)
    zone.begin_snapshot()
    zone.change([NamespaceRecord(f"n{number}") for number in range(9)], ())
    sweep = zone.sweep(4)
    *before, last = [(removed, zone.synced) for removed in sweep]
    assert before
    assert set(before) == {(0, False)}
    assert last == (0, True)
    assert zone.lookup(probe) is None


def test_synced_for_good() -> None:
    zone = synced_zone([NamespaceRecord("shop")])
    zone.begin_snapshot()
    assert zone.synced
    assert zone.lookup(["web", "shop", "svc"]) is None


def test_the_service_added_last_is_in_force() -> None:
    """While a snapshot is taken two records of one Service may be known."""
    client = Client(synced_zone([ServiceRecord("shop", "web", ("10.96.0.1",))]))
    name = "web.shop.svc.cluster.local."
    newer = ServiceRecord("shop", "web", ("10.96.0.2",))
    client.zone.begin_snapshot()
    client.zone.change([newer], ())
    assert client.ask(name, "A") == world.noerror(f"{name} A 10.96.0.2")
    assert sum(client.zone.sweep(10)) == 1
    assert client.ask(name, "A") == world.noerror(f"{name} A 10.96.0.2")


def test_nothing_stays_of_what_is_removed() -> None:
    zone = empty_zone(VERIFIED)
    records = [*world.records(), PodRecord("shop", "10.0.0.1"), PodRecord("gone", "10.0.0.1")]
    take(zone, records)
    zone.change((), records)
    assert total(zone) == 0
    assert zone.lookup(["shop", "svc"]) is None


def test_endpoints_that_share_a_hostname_answer_together() -> None:
    held: list[Record] = [EndpointRecord("shop", "hl", f"10.0.0.{low}", "same") for low in range(1, 4)]
    client = Client(synced_zone([ServiceRecord("shop", "hl"), *held]))
    name = "same.hl.shop.svc.cluster.local."
    for left in (3, 2, 1):
        assert client.ask(name, "A") == world.noerror(*(f"{name} A 10.0.0.{low}" for low in range(1, left + 1)))
        client.zone.change((), [held[left - 1]])
    assert client.ask(name, "A") == world.NXDOMAIN


def test_an_address_stays_until_the_last_endpoint_that_has_it() -> None:
    """Endpoints may differ in hostname, Pod or ports and share an address."""
    held: list[Record] = [EndpointRecord("shop", "hl", "10.0.0.1", hostname) for hostname in ("", "a", "b")]
    client = Client(synced_zone([ServiceRecord("shop", "hl"), *held]))
    name = "hl.shop.svc.cluster.local."
    for record in held:
        assert client.ask(name, "A") == world.noerror(f"{name} A 10.0.0.1")
        client.zone.change((), [record])
    assert client.ask(name, "A") == world.NXDOMAIN
