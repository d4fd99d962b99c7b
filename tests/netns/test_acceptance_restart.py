# SPDX-License-Identifier: Apache-2.0
"""What clients meet while the data plane's process goes and comes, and while others change nf_tables."""

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from svcproxy.dataplane.nftables.messages import TableFlag
from svcproxy.frontends.table import FrontendTable, diff
from svcproxy.model import Service
from svcproxy.model.meta import Family, Protocol
from tests.netns.doomed import READY
from tests.netns.nftables_stage import NftablesStage, nftables
from tests.netns.objects import NODE_PORT, PORT, load_balancer, service, slice_of
from tests.netns.places import AT, Addresses
from tests.netns.probes import PATIENCE, Outcome, Served
from tests.netns.world import TRANSPORTS, World

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
CLIENTS_AT_ONCE = 4
CHECKOUT = Path(__file__).parents[2]
TABLES = ("ip", "ip6")


@asynccontextmanager
async def asking(world: World, at: Addresses) -> AsyncIterator[list[Outcome]]:
    """Clients ask all the time, each flow a new one, the last ones after the block. Gives what they met."""
    met: list[Outcome] = []
    over = asyncio.Event()

    async def ask(protocol: Protocol) -> None:
        while True:
            last = over.is_set()
            met.append(await world.attempt("p1", protocol, (at.cluster_ip, PORT)))
            if last:
                return

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS_AT_ONCE):
            group.create_task(ask(TRANSPORTS[number % 2]), name=f"client {number}")
        await asyncio.sleep(0)  # the first flows are on their way
        yield met
        over.set()


def rules(world: World) -> list[str]:
    """Both tables as lines, without counters and owner."""
    lines = [
        line
        for family in TABLES
        for line in world.n1.run("nft", "--stateless", "list", "table", family, "svcproxy").splitlines()
    ]
    return [line for line in lines if not line.startswith(("table ", "\tflags "))]


def everything(at: Addresses) -> list[Service]:
    """Services that use all of the layout."""
    ranges = [at.outside, at.pods]
    return [
        load_balancer(at, externalTrafficPolicy="Local", loadBalancerSourceRanges=ranges),
        service(at, "t", clusterIP=at.other_cluster_ip, sessionAffinity="ClientIP", externalIPs=[at.external_ip]),
        service(at, "u", clusterIP=at.client(1), internalTrafficPolicy="Local"),
    ]


@FAMILIES
async def test_t39_a_killed_process_leaves_everything_and_its_successor_changes_nothing(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.stop()
            stage.cluster.apply(*everything(at), slice_of(at, "a1", "b1"), slice_of(at, "a2", name="t-1", of="t"))
            doomed = await asyncio.create_subprocess_exec(
                *("nsenter", f"--net=/proc/{os.getpid()}/fd/{world.n1.fd}"),
                *(sys.executable, "-m", "tests.netns.doomed"),
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                assert doomed.stdin is not None
                assert doomed.stdout is not None
                doomed.stdin.write(pickle.dumps(diff(FrontendTable(), stage.cluster.table)))
                assert await doomed.stdout.readline() == READY
                before = rules(world)
                async with asking(world, at) as met:
                    doomed.kill()
                    await doomed.wait()
                    assert rules(world) == before
                    stage.start()
                    assert not await stage.resync()
                    assert rules(world) == before
            finally:
                if doomed.returncode is None:
                    doomed.kill()
                    await doomed.wait()
        assert set(met) == {Served("a1", at.p1), Served("b1", at.p1)}
        assert world.syn_retransmits() == 0


@FAMILIES
async def test_t40_t41_what_changed_meanwhile_is_made_up_for(family: Family) -> None:
    """Without a process the old state serves; what is gone is out with the first look of the new one."""
    at = AT[family]
    old, both, new = ({Served(pod, at.p1) for pod in pods} for pods in (("a1", "a2"), ("a1", "a2", "b1"), ("a2", "b1")))
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at), slice_of(at, "a1", "a2"))
            async with asking(world, at) as met:
                await stage.stop()
                stage.cluster.apply(slice_of(at, "a2", "b1"))
                assert set(await world.attempts(100, "p1", Protocol.TCP, (at.cluster_ip, PORT))) == old
                stage.start()
                assert await stage.resync()
                assert set(await world.attempts(100, "p1", Protocol.TCP, (at.cluster_ip, PORT))) == new
        assert set(met) <= both
        assert world.syn_retransmits() == 0


@FAMILIES
async def test_t42_nobody_else_can_take_an_owned_table_away(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at), slice_of(at, "a1", "b1"))
            before = rules(world)
            assert stage.plane.owned
            async with asking(world, at) as met:
                world.n1.run("nft", "flush", "ruleset")
                for ip in TABLES:
                    with pytest.raises(subprocess.CalledProcessError):
                        world.n1.run("nft", "delete", "table", ip, "svcproxy")
                assert rules(world) == before
        assert set(met) == {Served("a1", at.p1), Served("b1", at.p1)}
        assert world.syn_retransmits() == 0


@FAMILIES
@pytest.mark.parametrize("damage", ["flush ruleset", "delete table ip svcproxy; delete table ip6 svcproxy"])
async def test_case_50_t42_t50_without_an_owner_what_others_took_is_put_back(family: Family, damage: str) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world, flags=TableFlag.NONE) as stage:
            await stage.apply(service(at), slice_of(at, "a1", "b1"))
            before = rules(world)
            assert not stage.plane.owned
            with world.flow("p1", Protocol.TCP, (at.cluster_ip, PORT)) as flow:
                first = await flow.ask()
                world.n1.run("nft", *damage.split())
                async with asyncio.timeout(PATIENCE):
                    await stage.plane.damaged()
                assert await stage.resync()
                assert rules(world) == before
                assert await world.attempt("p1", Protocol.TCP, (at.cluster_ip, PORT)) in both(at)
                assert await flow.ask() == first


def both(at: Addresses) -> set[Outcome]:
    return {Served("a1", at.p1), Served("b1", at.p1)}


@FAMILIES
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
async def test_t49_nft_lists_everything_with_and_without_a_process(family: Family, form: tuple[str, ...]) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(*everything(at), slice_of(at, "a1", "b1"), slice_of(at, "a2", name="t-1", of="t"))
            assert await world.attempt("x", Protocol.TCP, (at.external_ip, PORT)) == Served("a2", at.n1)
            for _ in range(2):
                listing = world.n1.run("nft", *form, "list", "ruleset")
                assert at.cluster_ip in listing
                if form:
                    assert json.loads(listing)["nftables"]
                    break  # `persist` alone, which nft 1.0.6 does not know, it writes as whatever its memory holds
                await stage.stop()


@FAMILIES
async def test_case_28_no_rules_for_headless_and_external_name(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            before = rules(world)
            await stage.apply(
                service(at, clusterIP="None", clusterIPs=["None"]),
                service(at, "t", type="ExternalName", clusterIP="", clusterIPs=[], externalName="example.org"),
                slice_of(at, "a1"),
                slice_of(at, "b1", name="t-1", of="t"),
            )
            assert rules(world) == before


@FAMILIES
@pytest.mark.parametrize("first", ["hostPort", "NodePort"])
async def test_t52_a_node_port_beats_a_host_port_of_the_same_number(family: Family, first: str) -> None:
    at = AT[family]
    target = at.n1, NODE_PORT

    def host_port(stage: NftablesStage) -> None:
        ip, pod = ("ip", at.a2) if family is Family.IPV4 else ("ip6", f"[{at.a2}]")
        stage.world.n1.run(
            *("nft", f"table {ip} hostport {{ chain pre {{ type nat hook prerouting priority dstnat; "),
            f"tcp dport {NODE_PORT} dnat to {pod}:9090; }}; }}",
        )

    with World() as world:
        async with nftables(world) as stage:
            if first == "hostPort":
                host_port(stage)
                assert await world.attempt("x", Protocol.TCP, target) == Served("a2:9090", at.x)
            await stage.apply(load_balancer(at), slice_of(at, "a1"))
            if first == "NodePort":
                host_port(stage)
            assert await world.attempt("x", Protocol.TCP, target) == Served("a1", at.n1)
            await stage.remove(Service, "s")
            assert await world.attempt("x", Protocol.TCP, target) == Served("a2:9090", at.x)
