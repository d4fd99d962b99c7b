# SPDX-License-Identifier: Apache-2.0
"""The zone as a sink of records."""

from collections.abc import Sequence

import dns.message
from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy.names.records import EndpointRecord, NamespaceRecord, Record, ServiceRecord
from svcproxy_dns.zone import Name, Unready, Zone
from tests.dns import world
from tests.dns.world import PROBES, UDP, Client, empty_zone, synced_zone, take

QUERIES = [
    dns.message.make_query(f"{probe}.cluster.local.".lstrip("."), qtype).to_wire()
    for probe in PROBES
    for qtype in ("A", "AAAA")
]
OWNED_BY_THE_QUESTION = b"\xc0\x0c"


def answers(client: Client) -> list[frozenset[bytes]]:
    """What is answered about every name that the records can make, record by record, whatever their order."""
    found = []
    for query in QUERIES:
        response = client.core.respond(query, UDP)
        assert isinstance(response, bytes)
        found.append(frozenset(response[2:].split(OWNED_BY_THE_QUESTION)))
    return found


batches = st.lists(st.tuples(st.lists(world.record, max_size=4), st.lists(world.record, max_size=3)), max_size=6)


def one_service_record_each(held: Sequence[Record]) -> list[Record]:
    """As at rest: of a Service's records the last stays."""
    last = {record.service: record for record in held if isinstance(record, ServiceRecord)}
    return [record for record in held if not isinstance(record, ServiceRecord) or last[record.service] is record]


@settings(max_examples=50, deadline=None)
@given(batches)
def test_incremental_equals_from_scratch(history: list[tuple[list[Record], list[Record]]]) -> None:
    """Every answer is right after every change, however many answers have been kept before it."""
    client = Client(synced_zone([]))
    held: dict[Record, None] = {}
    for added, removed in history:
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
        assert answers(client) == answers(Client(synced_zone(held)))
    for kind in (NamespaceRecord, ServiceRecord, EndpointRecord):
        assert client.zone.count(kind) == sum(isinstance(record, kind) for record in held)


@given(st.lists(world.record), st.lists(world.record))
def test_adding_the_known_and_removing_the_unknown_change_nothing(held: list[Record], others: list[Record]) -> None:
    held = one_service_record_each(list(dict.fromkeys(held)))
    zone = synced_zone(held)
    revision = zone.revision
    zone.change(held, [record for record in others if record not in held])
    assert zone.revision == revision


@settings(max_examples=50, deadline=None)
@given(st.lists(world.record), st.lists(world.record), st.lists(world.record, max_size=3), st.integers(1, 5))
def test_a_snapshot_replaces_everything_and_misses_nothing_in_between(
    old: list[Record], new: list[Record], late: list[Record], batch: int
) -> None:
    old, new = (one_service_record_each(list(dict.fromkeys(each))) for each in (old, new))
    zone = synced_zone(old)
    throughout = [record for record in old if record in new]
    kept = synced_zone(throughout)
    always = [name for name in map(split, PROBES) if isinstance(kept.lookup(name), Name) and stable(old, new)]

    def check() -> None:
        assert all(isinstance(zone.lookup(name), Name) for name in always)

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
    expected = synced_zone([*new, *late])
    assert answers(Client(zone)) == answers(Client(expected))


def total(zone: Zone) -> int:
    """How many records are known."""
    return zone.count(NamespaceRecord) + zone.count(ServiceRecord) + zone.count(EndpointRecord)


def stable(old: Sequence[Record], new: Sequence[Record]) -> bool:
    """Whether no Service changes its record, which may turn its names into others."""
    services = {record.service: record for record in old if isinstance(record, ServiceRecord)}
    return all(services.get(record.service, record) == record for record in new if isinstance(record, ServiceRecord))


def split(probe: str) -> list[str]:
    return [label for label in probe.split(".") if label]


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
    assert [(removed, zone.synced) for removed in sweep] == [(0, False), (0, False), (0, True)]
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
    zone = empty_zone()
    records = world.records()
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
