# SPDX-License-Identifier: Apache-2.0
"""Names outside the zone, through the DNS role as a process: configuration, a resolv.conf that changes, a successor."""

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from tests.dns.upstream import Upstream, upstream
from tests.dns.world import addresses
from tests.workers.test_roles import QNAME, TIMEOUT, World, eventually, world

__all__ = ["world"]


async def ask(world: World, qname: str, qtype: str = "A") -> dns.message.Message:
    query = dns.message.make_query(qname, qtype)
    return await dns.asyncquery.udp(query, "127.0.0.1", port=world.port, timeout=TIMEOUT)


async def started(world: World, **keys: Any) -> None:
    """The agent, and a DNS worker with these keys of `dns`."""
    world.tree["dns"] |= keys
    world.write_config()
    world.start("agent")
    world.start("dns", "one")
    await asyncio.to_thread(eventually, lambda: world.ready("dns-0", "one"), "DNS is ready")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Look again until it holds."""
    async with asyncio.timeout(TIMEOUT):
        while not await condition():  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.05)


async def was_asked(wanted: Upstream, name: str) -> None:
    async def asked() -> bool:
        return wanted.count(name) > 0

    await until(asked)


async def test_configured_upstreams_and_stub_domains(world: World) -> None:
    async with upstream() as first, upstream() as corp:
        await started(
            world,
            upstreams=[first.address],
            stub_domains={"Corp.Example.com.": [corp.address]},
            resolv_conf=None,
            forward={"policy": "sequential"},
        )
        assert addresses(await ask(world, "www.example.com")) == ["192.0.2.53"]
        assert (await ask(world, "x.corp.example.com")).rcode() == dns.rcode.NXDOMAIN
        assert [len([each for each in group.asked if each.qtype == "A"]) for group in (first, corp)] == [1, 1]
        assert (await ask(world, QNAME)).answer


async def test_without_upstreams_other_names_are_refused(world: World) -> None:
    await started(world, resolv_conf=None)
    assert (await ask(world, "www.example.com")).rcode() == dns.rcode.REFUSED


@pytest.mark.skipif(os.geteuid() != 0, reason="binds port 53: a resolv.conf names no ports")
@pytest.mark.parametrize("linked", [False, True], ids=["renamed over", "behind a link that is swapped"])
async def test_resolv_conf_is_followed(world: World, linked: bool) -> None:
    etc = world.directory / "etc"
    etc.mkdir()
    path = etc / "resolv.conf"

    def write(text: str) -> None:
        if linked:
            target = etc / f"resolv.{len(list(etc.iterdir()))}"
            target.write_text(text)
            link = etc / "next"
            link.symlink_to(target)
            link.rename(path)
        else:
            following = etc / "next"
            following.write_text(text)
            following.rename(path)

    write("# nothing yet\n")
    async with upstream("127.53.0.1", 53) as first, upstream("127.53.0.2", 53) as second:
        await started(world, resolv_conf=str(path))
        assert (await ask(world, "www.example.com")).rcode() == dns.rcode.SERVFAIL

        names = (f"n{number}.example.com" for number in itertools.count())

        async def asked(wanted: Upstream) -> bool:
            name = next(names)
            await ask(world, name)
            return wanted.count(name) > 0

        write("nameserver 127.53.0.1\n")
        await until(lambda: asked(first))
        write("search example.com\nnameserver 127.53.0.2\noptions ndots:5\n")
        await until(lambda: asked(second))
        write("")
        path.unlink()
        assert (await ask(world, "c.example.com")).rcode() == dns.rcode.NXDOMAIN, "the last good one stays"


async def test_a_loop_is_found_out_and_the_cluster_answered_all_along(world: World) -> None:
    """A resolver that asks us what we ask it, as systemd-resolved does where it is told that we are its upstream."""
    async with upstream() as looping, upstream() as good:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forwarder:
            looping.silent = True
            looping.forward_to = lambda octets: forwarder.sendto(octets, ("127.0.0.1", world.port))
            await started(
                world, upstreams=[looping.address, good.address], resolv_conf=None, forward={"policy": "sequential"}
            )

            async def left_alone() -> bool:
                name = f"n{len(good.asked)}.example.com"
                assert (await ask(world, QNAME)).answer
                assert (await ask(world, name)).rcode() == dns.rcode.NXDOMAIN
                return looping.count(name) == 0

            await until(left_alone)
            log = world.log("dnsone")
            await asyncio.to_thread(eventually, lambda: "sends questions back" in world.log("dnsone"), "it is logged")
            assert "Traceback" not in log


async def test_whoever_waits_for_an_upstream_gets_the_answer_also_when_the_worker_ends(world: World) -> None:
    """M30, of names outside the zone: what was asked before SIGTERM is answered after it."""
    async with upstream() as slow:
        world.tree["shutdown_timeout"] = 5
        await started(world, upstreams=[slow.address], resolv_conf=None)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(ask(world, "slow.example.com"), name="waiting")
            await was_asked(slow, "slow.example.com")
            world.children[-1].send_signal(signal.SIGTERM)
        assert addresses(waiting.result()) == ["192.0.2.56"]
        assert await asyncio.to_thread(world.children[-1].wait, TIMEOUT) == 0


async def test_whoever_waits_gets_the_answer_also_when_another_worker_takes_over(world: World) -> None:
    async with upstream() as slow:
        slow.delay = 2.5
        world.tree["shutdown_timeout"] = 8
        await started(world, upstreams=[slow.address], resolv_conf=None)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(ask(world, "www.example.com"), name="waiting")
            await was_asked(slow, "www.example.com")
            world.start("dns", "two")
        assert addresses(waiting.result()) == ["192.0.2.53"]
        await asyncio.to_thread(eventually, lambda: world.ready("dns-0", "two"), "the new worker serves")
        assert (await ask(world, QNAME)).answer
