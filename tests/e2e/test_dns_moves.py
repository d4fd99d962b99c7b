# SPDX-License-Identifier: Apache-2.0
"""Endpoints move between the slices of their Service, one API write after the other, and no answer is without them."""

import asyncio
from pathlib import Path
from random import Random
from typing import Final

from tests.e2e.dns_differential.cluster import SYSTEM, ZONE
from tests.e2e.dns_differential.questions import Question
from tests.e2e.dns_differential.servers import Client, Options, Servers, two_servers
from tests.e2e.objects import Object

MOVES: Final = 40
IPS: Final = tuple(f"10.244.9.{low}" for low in range(1, 9))
SLICES: Final = ("move-1", "move-2", "move-3")
PATH: Final = f"/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices"
NAME: Final = f"move.{SYSTEM}.svc.{ZONE}."


def objects(places: dict[str, str]) -> dict[str, Object]:
    """A headless Service and its slices, each with the endpoints that are placed there."""
    ports = [{"name": "p", "port": 80, "protocol": "TCP"}]
    found: dict[str, Object] = {
        f"/api/v1/namespaces/{SYSTEM}/services/move": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "move", "namespace": SYSTEM},
            "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": ports},
        }
    }
    for name in SLICES:
        labels = {"kubernetes.io/service-name": "move"}
        found[f"{PATH}/{name}"] = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": SYSTEM, "labels": labels},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [
                {"addresses": [ip], "conditions": {"ready": True}} for ip, place in places.items() if place == name
            ],
        }
    return found


async def watch(client: Client, done: asyncio.Event, missing: list[set[str]]) -> int:
    """Ask until it is done; returns how often."""
    asked = 0
    while not done.is_set():
        reply = await client.ask(Question(NAME, "A"))
        assert reply is not None
        if gone := set(IPS) - {each.rdata for each in reply.answer}:
            missing.append(gone)
        asked += 1
    return asked


def move(servers: Servers, places: dict[str, str], rng: Random) -> None:
    """One endpoint leaves its slice with one write, and comes in another with the next."""
    ip = rng.choice(IPS)
    source = places[ip]
    target = rng.choice([name for name in SLICES if name != source])
    wanted = objects({**places, ip: target})
    for name in (source, target):
        servers.objects.put(f"{PATH}/{name}", wanted[f"{PATH}/{name}"])
    places[ip] = target


async def test_endpoints_that_move_between_slices_never_vanish(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    places = {ip: rng.choice(SLICES) for ip in IPS}
    missing: list[set[str]] = []
    done = asyncio.Event()
    async with two_servers(tmp_path, Options()) as servers:
        await servers.bring(objects(places))
        async with asyncio.TaskGroup() as group:
            watched = group.create_task(watch(servers.svcproxy.client, done, missing), name="watch")
            for _ in range(MOVES):
                await asyncio.to_thread(move, servers, places, rng)
            done.set()
        await servers.bring(objects(dict.fromkeys(IPS[1:], SLICES[0])))
        reply = await servers.svcproxy.client.ask(Question(NAME, "A"))
    assert watched.result() > MOVES
    assert missing == [], f"SVCPROXY_SEED={seed}"
    assert reply is not None
    assert {each.rdata for each in reply.answer} == set(IPS[1:]), "what really went is gone"
