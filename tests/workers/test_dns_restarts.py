# SPDX-License-Identifier: Apache-2.0
"""What clients notice when a DNS worker is killed, is restarted, or gives way to another: sockets outlive processes."""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Sequence

import dnslib
import pytest

from svcproxy.process.supervision import RoleStatus, read_status
from tests.workers.dns_load import Client, asked, load
from tests.workers.test_roles import QNAME, TIMEOUT, World, eventually, world

__all__ = ["world"]


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(eventually, condition, what)


def roles(world: World) -> tuple[RoleStatus, ...]:
    """What the supervisor of `svcproxy dns` says."""
    return read_status(world.run_dir / "dns-0" / "supervisor.json")


def workers(world: World) -> dict[str, int]:
    """Pids of the worker processes, by name."""
    return {role.name: role.pid for role in roles(world) if role.pid is not None}


def answers_on(world: World, number: int = 0, instance: str = "") -> bool:
    return world.ready(f"dns-{number}", instance)


async def started(world: World, *instances: str, workers: int = 1) -> list[tuple[str, int]]:
    """An agent and DNS instances with so many workers each; the addresses they listen on.

    The agent has a configuration file of its own: it does not restart when that of DNS changes.
    """
    world.start("agent")
    world.config = world.directory / "dns.yaml"
    world.tree["dns"] |= {"listen": [f"127.0.0.1:{world.port}", f"[::1]:{world.port}"], "workers": workers}
    world.write_config()
    for instance in instances:
        world.start("dns", instance)
        for number in range(workers):
            await until(lambda number=number, name=instance: answers_on(world, number, name), "DNS is ready")  # type: ignore[misc]
    return [("127.0.0.1", world.port), ("::1", world.port)]


async def more(clients: Sequence[Client], count: int = 200) -> None:
    """Return when clients have asked that many more queries."""
    enough = asked(clients) + count
    async with asyncio.timeout(TIMEOUT):
        while asked(clients) < enough:  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.01)


def lost(clients: Sequence[Client]) -> list[str]:
    return [failure for client in clients for failure in client.failures]


async def restarted(world: World, before: dict[str, int], name: str = "dns-0") -> None:
    def new() -> bool:
        now = workers(world)
        return now.get(name, before[name]) != before[name] and answers_on(world, int(name.rpartition("-")[2]))

    await until(new, f"{name} runs again")


async def test_what_is_asked_while_no_worker_runs_is_answered_by_the_next(world: World) -> None:
    addresses = await started(world, "one")
    before = workers(world)
    supervisor = world.children[-1]
    supervisor.send_signal(signal.SIGSTOP)  # so that nobody starts another
    os.kill(before["dns-0"], signal.SIGKILL)
    await until(lambda: not answers_on(world), "it is dead")
    query = dnslib.DNSRecord.question(QNAME).pack()
    with contextlib.ExitStack() as stack:
        waiting = []
        for host, port in addresses:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            udp = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            udp.connect((host, port))
            udp.send(query)
            tcp = stack.enter_context(socket.create_connection((host, port), TIMEOUT))
            tcp.sendall(len(query).to_bytes(2, "big") + query)
            waiting += [udp, tcp]
        supervisor.send_signal(signal.SIGCONT)
        for each in waiting:
            each.settimeout(TIMEOUT)
            answer = await asyncio.to_thread(each.recv, 512)
            octets = answer[2:] if each.type == socket.SOCK_STREAM else answer
            assert [str(record.rdata) for record in dnslib.DNSRecord.parse(octets).rr] == ["127.96.0.20"]


@pytest.mark.parametrize("count", [1, 2], ids=["one worker", "two that share the addresses"])
async def test_a_worker_killed_again_and_again_loses_what_it_had_in_hand(world: World, count: int) -> None:
    """At most one query of each client for each kill: those that wait in the sockets are answered."""
    addresses = await started(world, "one", workers=count)
    kills = 3
    async with load(QNAME, addresses) as clients:
        for _ in range(kills):
            await more(clients)
            before = workers(world)
            os.kill(before["dns-0"], signal.SIGKILL)
            await restarted(world, before)
        await more(clients)
    assert max(len(client.failures) for client in clients) <= kills
    assert not [failure for failure in lost(clients) if "Refused" in failure or failure.startswith("answer")]
    assert world.log("dnsone").count("inherited=4") == kills


async def test_a_change_of_configuration_loses_nothing(world: World) -> None:
    addresses = await started(world, "one")
    extra = f"127.0.0.3:{world.port}"
    async with load(QNAME, addresses) as clients:
        for change in ({"ttl": 7}, {"listen": [*world.tree["dns"]["listen"], extra]}):
            await more(clients)
            before = workers(world)
            world.tree["dns"] |= change
            world.write_config()
            await restarted(world, before)
        async with load(QNAME, [("127.0.0.3", world.port)]) as of_the_extra_address:
            await more(of_the_extra_address, 20)
        before = workers(world)
        world.tree["dns"]["listen"].remove(extra)
        world.write_config()
        await restarted(world, before)
        await more(clients)
    assert lost(clients) == lost(of_the_extra_address) == []
    assert re.findall(r"inherited=(\d)", world.log("dnsone")) == ["0", "4", "4", "4"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.3", world.port))  # nothing holds what is no longer configured


async def test_a_rolling_update_loses_nothing(world: World) -> None:
    addresses = await started(world, "old")
    old = world.children[-1]
    async with load(QNAME, addresses) as clients:
        await more(clients)
        world.start("dns", "new")
        await until(lambda: answers_on(world, 0, "new"), "the new instance serves")
        await more(clients)
        old.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(old.wait, TIMEOUT) == 0
        await more(clients)
    assert lost(clients) == []


async def test_a_killed_worker_that_took_over_goes_on_itself_although_another_instance_stands_by(world: World) -> None:
    addresses = await started(world, "old", "new")
    async with load(QNAME, addresses) as clients:
        await more(clients)
        before = workers(world)
        os.kill(before["dns-0"], signal.SIGKILL)
        await until(lambda: workers(world).get("dns-0", before["dns-0"]) != before["dns-0"], "it is started again")
        await until(lambda: answers_on(world, 0, "new"), "it serves again")
        assert not answers_on(world, 0, "old")
        await more(clients)
    assert max(len(client.failures) for client in clients) <= 1


async def test_an_instance_that_dies_whole_leaves_its_sockets_to_nobody(world: World) -> None:
    addresses = await started(world, "old", "new")
    world.children[-1].kill()
    await until(lambda: answers_on(world, 0, "old"), "the one that stood by serves")
    async with load(QNAME, addresses) as clients:
        await more(clients, 20)
    assert lost(clients) == []


async def test_a_worker_that_cannot_start_leaves_its_share_to_the_others(world: World) -> None:
    """Sockets of a reuse-port group that nobody reads would take queries and never answer."""
    addresses = await started(world, "one", workers=2)
    supervisor = world.children[-1]
    supervisor.send_signal(signal.SIGSTOP)
    os.kill(workers(world)["dns-0"], signal.SIGKILL)
    await until(lambda: not answers_on(world), "it is dead")
    directory = world.run_dir / "dns-0" / "instances" / "one"
    shutil.rmtree(directory)
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as if an instance of that name ran already
        supervisor.send_signal(signal.SIGCONT)
        await until(lambda: any(role.restarts >= 4 for role in roles(world)), "it waits for long")
        async with load(QNAME, addresses) as clients:
            await more(clients)
    finally:
        os.close(descriptor)
    assert lost(clients) == []


async def test_without_an_agent_the_next_worker_answers_soon(world: World) -> None:
    """SERVFAIL for what it cannot know, rather than silence in a socket."""
    addresses = await started(world, "one")
    agent = world.children[0]
    agent.kill()
    agent.wait()
    before = workers(world)
    os.kill(before["dns-0"], signal.SIGKILL)
    await until(lambda: workers(world).get("dns-0", before["dns-0"]) != before["dns-0"], "it is started again")
    client = Client(socket.AF_INET, socket.SOCK_DGRAM, addresses[0])
    answer = dnslib.DNSRecord.parse(await client.ask(dnslib.DNSRecord.question(QNAME).pack()))
    assert answer.header.rcode == dnslib.RCODE.SERVFAIL
