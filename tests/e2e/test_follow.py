# SPDX-License-Identifier: Apache-2.0
"""The agent follows a real API server, through everything that can happen to it."""

import asyncio
import random
from pathlib import Path

import pytest

from svcproxy.names.records import EndpointRecord
from svcproxy.testing.control_plane import ControlPlane
from tests.e2e.harness import (
    SERVICES,
    SLICES,
    AgentProcess,
    ChaosProxy,
    Population,
    SteadySink,
    endpoint_slice,
    eventually,
    expected_frontends,
    feed_client,
    service,
)

SEED = 20261125


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("https://").rpartition(":")
    return host, int(port)


async def in_step(agent: AgentProcess, plane: ControlPlane, server: int = 0) -> None:
    """Return once the agent's frontends are what the API says."""
    expected = await asyncio.to_thread(expected_frontends, plane, server)
    await eventually(lambda: agent.frontends() == expected, "the agent's frontends equal the API's")


async def test_lists_and_follows(shared_plane: ControlPlane, tmp_path: Path) -> None:
    plane = shared_plane
    plane.request("POST", SERVICES, service("before"))
    plane.request("POST", SLICES, endpoint_slice("before-1", "before", ["10.1.0.1"]))
    with AgentProcess(tmp_path, "--kubeconfig", str(plane.kubeconfig())) as agent:
        await agent.ready()
        await in_step(agent, plane)
        plane.request("POST", SERVICES, service("after"))
        plane.request("POST", SLICES, endpoint_slice("after-1", "after", ["10.1.0.2", "10.1.0.3"]))
        plane.request("DELETE", f"{SERVICES}/before")
        await in_step(agent, plane)
        assert not any(port.startswith("default/before") for port, _ in agent.frontends().values())
        assert agent.stop() == 0
    for path in (f"{SERVICES}/after", f"{SLICES}/before-1", f"{SLICES}/after-1"):
        plane.delete(path)


async def cause_trouble(plane: ControlPlane, proxy: ChaosProxy, agent: AgentProcess, population: Population) -> None:
    """Changes at random, and now and then the worst that can happen."""
    rng = random.Random(SEED)
    for number in range(600):
        await asyncio.to_thread(population.step)
        if number % 40 == 0:
            proxy.cut(0.5, rng)
        if number == 150:
            await asyncio.to_thread(plane.compact)
            proxy.cut(1.0)
        if number == 300:
            plane.apiservers[0].kill()
            await asyncio.to_thread(plane.restart)
        if number == 450:
            agent.kill()
            agent.start()


async def watch_steady(agent: AgentProcess, steady: dict[str, str], missing: list[tuple[str, str]]) -> None:
    """Look again and again, and note every steady endpoint that is not there."""
    while True:
        before = await asyncio.to_thread(agent.ready_pid)
        found = await asyncio.to_thread(agent.frontends)
        backends = dict(found.values())
        if before and before == await asyncio.to_thread(agent.ready_pid):  # else it is being started
            missing += [
                (name, address)
                for name, address in steady.items()
                if f"{address}:8080" not in backends.get(f"default/{name}:http", ())
            ]
        await asyncio.sleep(0.05)


async def test_no_steady_endpoint_is_ever_missing_through_cuts_restarts_compaction_and_kills(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """1,000 Services come, change and go while the watch is cut, the API server is killed, etcd is compacted and the
    agent is killed: in the end it agrees with the API, and endpoints that exist throughout never go missing."""
    population = Population(plane, random.Random(SEED))

    def populate() -> None:
        for number in range(1000):
            population.create(steady=number % 5 == 0)

    async with ChaosProxy(*address_of(plane.url)) as proxy:
        arguments = ("--kubeconfig", str(plane.kubeconfig()), "--api-server", proxy.url)
        with AgentProcess(tmp_path, *arguments) as agent:
            await agent.ready()
            await asyncio.to_thread(populate)
            await in_step(agent, plane)
            missing: list[tuple[str, str]] = []
            sink = SteadySink(population.steady)
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(watch_steady(agent, population.steady, missing), name="look")
                following = group.create_task(feed_client(agent, sink).run(), name="follow the feed")
                await cause_trouble(plane, proxy, agent, population)
                await in_step(agent, plane)
                looking.cancel()
                following.cancel()
            assert missing == [], f"seed {SEED}"
            assert sink.missing == [], f"seed {SEED}"
            told = {(each.name, each.ip) for each in sink.known if isinstance(each, EndpointRecord)}
            assert told >= set(population.steady.items())


async def test_two_api_servers_one_killed_under_change(two_servers: ControlPlane, tmp_path: Path) -> None:
    plane, population = two_servers, Population(two_servers, random.Random(SEED))
    servers = [argument for url in plane.urls for argument in ("--api-server", url)]
    with AgentProcess(tmp_path, "--kubeconfig", str(plane.kubeconfig()), *servers) as agent:
        await agent.ready()
        for number in range(50):
            await asyncio.to_thread(population.create, number % 2 == 0)
        await in_step(agent, plane)
        for victim, survivor in ((0, 1), (1, 0)):
            plane.apiservers[victim].kill()
            population.server = survivor
            for _ in range(60):
                await asyncio.to_thread(population.step)
            await in_step(agent, plane, survivor)
            await asyncio.to_thread(plane.restart, victim)
        await in_step(agent, plane)
        backends = dict(agent.frontends().values())
        for name, address in population.steady.items():
            assert f"{address}:8080" in backends[f"default/{name}:http"]


async def test_started_without_an_api_server_it_serves_the_saved_state_marked_stale(
    plane: ControlPlane, tmp_path: Path
) -> None:
    plane.request("POST", SERVICES, service("kept"))
    plane.request("POST", SLICES, endpoint_slice("kept-1", "kept", ["10.1.0.1"]))
    with AgentProcess(tmp_path, "--kubeconfig", str(plane.kubeconfig())) as agent:
        await agent.ready()
        await in_step(agent, plane)
        before = agent.frontends()
        await eventually((agent.state_dir / "state").exists, "the state is saved")
        assert agent.stop() == 0, "what is unsaved is saved at the end"
        plane.apiservers[0].kill()
        agent.start()
        await agent.ready()
        assert agent.readiness()["stale"] is True
        assert agent.frontends() == before
        plane.restart()
        plane.request("POST", SERVICES, service("new"))
        await eventually(lambda: agent.readiness().get("stale") is False, "the state is fresh again")
        await in_step(agent, plane)


async def test_a_second_instance_takes_the_node_and_gives_it_back_when_it_dies(
    shared_plane: ControlPlane, tmp_path: Path
) -> None:
    arguments = ("--kubeconfig", str(shared_plane.kubeconfig()))
    with (
        AgentProcess(tmp_path, *arguments, instance="old") as old,
        AgentProcess(tmp_path, *arguments, instance="new") as new,
    ):
        await eventually(lambda: bool(old.readiness() and new.readiness()), "both live")
        await eventually(lambda: sum(bool(each.ready_pid()) for each in (old, new)) == 1, "one of them is ready")
        holder, waiting = (old, new) if old.ready_pid() else (new, old)
        await eventually(lambda: waiting.readiness().get("waiting") is True, "the other one waits")
        holder.kill()
        await eventually(lambda: bool(waiting.readiness().get("ready")), "the other one takes the node")


@pytest.mark.parametrize("signal_first", [True, False], ids=["ended by SIGTERM", "killed"])
async def test_it_starts_again_where_it_was(shared_plane: ControlPlane, tmp_path: Path, signal_first: bool) -> None:
    with AgentProcess(tmp_path, "--kubeconfig", str(shared_plane.kubeconfig())) as agent:
        await agent.ready()
        await in_step(agent, shared_plane)
        if signal_first:
            assert agent.stop() == 0
        else:
            agent.kill()
        agent.start()
        await agent.ready()
        await in_step(agent, shared_plane)
