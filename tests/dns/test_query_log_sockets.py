# SPDX-License-Identifier: Apache-2.0
"""The query log of a worker with real sockets: every way that a response can take is logged once, with its client."""

import random
import time

import pytest

from svcproxy.config import DnsQueryLogConfig, QueryClass
from svcproxy_dns.query_log import Entry, QueryLog
from svcproxy_dns.worker import DnsWorker
from tests.dns.test_forwarder import node

NAMES = ["web.shop.svc.cluster.local", "nope.shop.svc.cluster.local", "www.example.com", "www.example.com"]
RCODES = ["NOERROR", "NXDOMAIN", "NOERROR", "NOERROR"]


def logging_to(entries: list[Entry], worker: DnsWorker) -> QueryLog:
    config = DnsQueryLogConfig(classes=(QueryClass.ALL,))
    return QueryLog(config, worker.pod_of, entries.append, time.monotonic, random.Random(1))


@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"])
async def test_every_response_is_logged_once_with_its_client(tcp: bool, listen: str) -> None:
    entries: list[Entry] = []
    client = "::1" if listen.startswith("[") else "127.0.0.1"
    async with node(listen=listen) as world:
        world.host = client
        await world.ask(NAMES[0], tcp=tcp)
        world.worker.use_query_log(logging_to(entries, world.worker))
        responses = [await world.ask(name, tcp=tcp) for name in NAMES]
        world.worker.use_query_log(None)
        await world.ask(NAMES[0], tcp=tcp)
    assert [each.name for each in entries] == [f"{name}." for name in NAMES]
    assert [each.rcode for each in entries] == RCODES
    assert [each.id for each in entries] == [response.id for response in responses]
    assert {each.client for each in entries} == {client}
    assert {each.proto for each in entries} == {"tcp" if tcp else "udp"}
    assert all(each.port and each.duration > 0 for each in entries)


async def test_a_log_that_is_in_use_is_that_of_the_sockets_to_come() -> None:
    entries: list[Entry] = []
    async with node() as world:
        worker = world.worker
        worker.use_query_log(logging_to(entries, worker))
        sockets = [each.dup() for each in worker.sockets()]
        await worker.drain(0)
        await worker.start(sockets)
        await world.ask(NAMES[0])
    assert len(entries) == 1
