# SPDX-License-Identifier: Apache-2.0
"""The health-check node ports of Services, on real sockets of loopback addresses."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from svcproxy.admin import health_checks
from svcproxy.admin.health_checks import HealthChecks
from svcproxy.frontends.keys import HealthCheck
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model import NamespacedName

A, B = "127.0.0.2", "127.0.0.3"
WEB, DB = NamespacedName("shop", "web"), NamespacedName("shop", "db")


class World:
    """Health checks that run, what they reported, and a load balancer that asks."""

    def __init__(self) -> None:
        self.healthy = True
        self.reported: list[tuple[NamespacedName, str]] = []
        self.checks = HealthChecks(
            lambda: self.healthy, lambda service, reason: self.reported.append((service, reason)), retry_interval=0.01
        )

    async def change(self, delta: FrontendDelta) -> None:
        self.checks.change(delta)
        await self.checks.settled()

    async def ask(self, ip: str, port: int, method: str = "GET", path: str = "/") -> tuple[int, str, dict[str, object]]:
        async with (
            aiohttp.ClientSession() as client,
            client.request(method, f"http://{ip}:{port}{path}") as response,
        ):
            body: dict[str, object] = json.loads(await response.text() or "{}")
            return response.status, response.headers["X-Load-Balancing-Endpoint-Weight"], body

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # what is waited for sets no event
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    world = World()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(world.checks.run(), name="health checks")
        yield world
        task.cancel()


def free_port() -> int:
    with socket.create_server((A, 0)) as probe:
        return int(probe.getsockname()[1])


def closed(ip: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((ip, port)) != 0


def checks(*wanted: tuple[NamespacedName, int, int], addresses: frozenset[str] | None = None) -> FrontendDelta:
    return FrontendDelta(
        health_checks=tuple(HealthCheck(service, port, count) for service, port, count in wanted),
        node_port_addresses=addresses,
    )


@pytest.mark.parametrize(
    ("healthy", "count", "status"),
    [
        pytest.param(True, 2, 200, id="48: two addresses"),
        pytest.param(True, 0, 503, id="14: none that is ready"),
        pytest.param(False, 2, 503, id="49: the data plane is stale"),
    ],
)
async def test_answers(healthy: bool, count: int, status: int) -> None:
    async with running() as world:
        port, world.healthy = free_port(), healthy
        await world.change(checks((WEB, port, count), addresses=frozenset({A})))
        assert await world.ask(A, port) == (
            status,
            str(count),
            {
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": count,
                "serviceProxyHealthy": healthy,
            },
        )


@pytest.mark.parametrize(("method", "path"), [("GET", "/healthz"), ("POST", "/any/thing"), ("HEAD", "/")])
async def test_case_48_any_path_and_method(method: str, path: str) -> None:
    async with running() as world:
        port = free_port()
        await world.change(checks((WEB, port, 1), addresses=frozenset({A})))
        status, weight, _ = await world.ask(A, port, method, path)
        assert (status, weight) == (200, "1")


async def test_a_count_changes_without_touching_the_socket() -> None:
    async with running() as world:
        port = free_port()
        await world.change(checks((WEB, port, 1), addresses=frozenset({A})))
        async with aiohttp.ClientSession() as client:
            async with client.get(f"http://{A}:{port}/") as response:
                assert response.headers["X-Load-Balancing-Endpoint-Weight"] == "1"
            world.checks.change(checks((WEB, port, 5)))
            async with client.get(f"http://{A}:{port}/") as response:  # over the same connection
                assert response.headers["X-Load-Balancing-Endpoint-Weight"] == "5"


async def test_a_port_that_moves_between_services_in_one_delta() -> None:
    async with running() as world:
        first, second = free_port(), free_port()
        await world.change(checks((WEB, first, 1), (DB, second, 2), addresses=frozenset({A})))
        await world.change(checks((WEB, second, 1), (DB, first, 2)))
        answers = {port: (await world.ask(A, port))[2]["service"] for port in (first, second)}
        assert answers == {
            first: {"namespace": "shop", "name": "db"},
            second: {"namespace": "shop", "name": "web"},
        }
        assert world.reported == []


async def test_a_removed_service_closes_its_port() -> None:
    async with running() as world:
        port = free_port()
        await world.change(checks((WEB, port, 1), addresses=frozenset({A})))
        await world.change(FrontendDelta(health_checks_removed=(WEB,)))
        assert closed(A, port)


async def test_node_addresses_are_followed() -> None:
    async with running() as world:
        port = free_port()
        await world.change(checks((WEB, port, 1), addresses=frozenset({A})))
        await world.change(checks(addresses=frozenset({B})))
        assert closed(A, port)
        assert (await world.ask(B, port))[0] == 200


async def test_a_whole_table_replaces_what_was_there() -> None:
    async with running() as world:
        gone, kept = free_port(), free_port()
        await world.change(checks((WEB, gone, 1), addresses=frozenset({A})))
        table = FrontendTable(node_port_addresses=frozenset({A}), health_checks={DB: HealthCheck(DB, kept, 1)})
        world.checks.replace(table)
        await world.checks.settled()
        assert closed(A, gone)
        assert (await world.ask(A, kept))[0] == 200


async def test_a_port_in_use_is_reported_once_and_opened_when_it_is_free() -> None:
    async with running() as world:
        with socket.create_server((A, 0)) as holder:
            port = int(holder.getsockname()[1])
            await world.change(checks((WEB, port, 1), addresses=frozenset({A, B})))
            assert (await world.ask(B, port))[0] == 200, "the other address is served"
            assert list(world.checks.failed) == [WEB]
        await world.until(lambda: not world.checks.failed)
        assert (await world.ask(A, port))[0] == 200
        assert world.reported == [(WEB, f"cannot listen on {A} port {port}: Address already in use")]


async def test_two_services_with_one_port() -> None:
    async with running() as world:
        port = free_port()
        await world.change(checks((WEB, port, 1), (DB, port, 2), addresses=frozenset({A})))
        assert (await world.ask(A, port))[1] == "1"
        assert world.reported == [(DB, f"health-check port {port} is already that of shop/web")]
        await world.change(FrontendDelta(health_checks_removed=(WEB,)))
        await world.until(lambda: not world.checks.failed)
        assert (await world.ask(A, port))[1] == "2"


async def test_many_services_are_opened_in_turns_and_all_closed_at_the_end() -> None:
    count = 2 * health_checks.OPENED_PER_TURN + 1
    services = [NamespacedName("many", f"s{number}") for number in range(count)]
    with_ports: list[tuple[NamespacedName, int, int]] = []
    for service in services:
        port = free_port()
        while port in {each[1] for each in with_ports}:
            port = free_port()
        with_ports.append((service, port, 1))
    async with running() as world:
        await world.change(checks(*with_ports, addresses=frozenset({A})))
        assert not any(closed(A, port) for _, port, _ in with_ports)
        assert world.checks.failed == {}
    assert all(closed(A, port) for _, port, _ in with_ports)
