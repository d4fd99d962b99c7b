# SPDX-License-Identifier: Apache-2.0
"""The worker put together, on the loop that production runs on."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import dns.asyncquery
import dns.message
import dns.rcode
import uvloop

from svcproxy.config import DnsConfig
from svcproxy.names.records import EndpointRecord, NamespaceRecord, ServiceRecord
from svcproxy_dns.admission import TcpLimits
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.worker import DnsWorker
from tests.dns.world import addresses, records

NOW = 1_800_000_000.0


def on_uvloop(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario)


@asynccontextmanager
async def serving(worker: DnsWorker, listen: str) -> AsyncIterator[tuple[str, int]]:
    await worker.start(bind_listeners([listen]))
    try:
        yield worker.sockets()[0].getsockname()[:2]
    finally:
        worker.close()


def fill(worker: DnsWorker) -> None:
    worker.sink.begin_snapshot()
    worker.sink.change(records(), ())
    for _ in worker.sink.sweep(100):
        pass


def test_from_records_to_clients_and_back_to_counters() -> None:
    async def scenario() -> None:
        worker = DnsWorker(DnsConfig(), clock=lambda: NOW)
        query = dns.message.make_query("web.shop.svc.cluster.local.", "A")
        async with serving(worker, "127.0.0.1:0") as (host, port):
            early = await dns.asyncquery.udp(query, host, port=port, timeout=5)
            assert early.rcode() == dns.rcode.SERVFAIL
            assert not worker.synced
            fill(worker)
            for ask in (dns.asyncquery.udp, dns.asyncquery.udp, dns.asyncquery.tcp):
                assert addresses(await ask(query, host, port=port, timeout=5)) == ["10.96.10.1"]
            await worker.drain(5)
        found = worker.statistics()
        assert found.responses == {("A", "SERVFAIL"): [1, 0, 0, 0], ("A", "NOERROR"): [2, 0, 1, 0]}
        assert (found.synced, found.namespaces, found.kept, found.rendered, found.connections) == (True, 4, 1, 2, 0)
        assert (found.services, found.endpoints) == (
            sum(isinstance(record, ServiceRecord) for record in records()),
            sum(isinstance(record, EndpointRecord) for record in records()),
        )

    on_uvloop(scenario())


def test_many_queries_in_one_segment_on_uvloop() -> None:
    """More than a turn takes, and more answers than the transport buffers."""

    async def scenario() -> None:
        worker = DnsWorker(DnsConfig())
        fill(worker)
        query = dns.message.make_query("big.shop.svc.cluster.local.", "A").to_wire()
        async with serving(worker, "[::1]:0") as (host, port), asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write((len(query).to_bytes(2, "big") + query) * 300)
            responses = [
                await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")) for _ in range(300)
            ]
            writer.close()
        assert {len(addresses(dns.message.from_wire(response))) for response in responses[::50]} == {200}

    on_uvloop(scenario())


def test_an_idle_client_is_closed_on_uvloop() -> None:
    async def scenario() -> None:
        worker = DnsWorker(DnsConfig(), limits=TcpLimits(message=0.02))
        async with serving(worker, "127.0.0.1:0") as (host, port), asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            assert worker.statistics().connections_expired == 1

    on_uvloop(scenario())


def test_m27_the_serial_is_the_time_of_the_last_change_and_always_grows() -> None:
    time = [NOW]
    worker = DnsWorker(DnsConfig(), clock=lambda: time[0])
    serials = [worker.statistics().serial]
    for seconds, name in ((100, "a"), (0, "b"), (-50, "c"), (200, "d")):
        time[0] += seconds
        worker.sink.change([NamespaceRecord(name)], ())
        serials.append(worker.statistics().serial)
    assert serials == [NOW, NOW + 100, NOW + 101, NOW + 102, NOW + 250]
    worker.sink.change([NamespaceRecord("a")], [NamespaceRecord("x")])
    assert worker.statistics().serial == NOW + 250, "nothing has changed"
    worker.sink.begin_snapshot()
    assert sum(worker.sink.sweep(2)) == 4
    assert worker.statistics().serial > NOW + 250


def test_the_server_is_known_by_the_addresses_that_clients_reach() -> None:
    listen = ("127.0.0.1:53", "0.0.0.0:53", "10.96.0.10:53", "[fd00::a]:53", "[::1]:53")
    worker = DnsWorker(DnsConfig(listen=listen, zones=("example.internal",)))
    for qtype, expected in (("A", "10.96.0.10"), ("AAAA", "fd00::a")):
        query = dns.message.make_query("ns.dns.example.internal.", qtype)
        response = worker.answers.respond(query.to_wire(), 0)
        assert isinstance(response, bytes)
        assert addresses(dns.message.from_wire(response)) == [expected]
