# SPDX-License-Identifier: Apache-2.0
"""New connections, one after the other from many clients, for as long as something else goes on."""

import asyncio
from collections import Counter
from collections.abc import Awaitable

from svcproxy.model.meta import Protocol
from svcproxy.testing.traffic import Client
from tests.netns.namespaces import Namespace

CLIENTS, CONNECTS = 20, 100
"""2,000 connections at least, 20 at a time."""


async def connecting(node: Namespace, source: str, target: tuple[str, int], meanwhile: Awaitable[None]) -> Counter[str]:
    """What TCP connections from `node` met. `meanwhile` begins after the first, and they go on until it has ended."""
    met: Counter[str] = Counter()
    busy, over = asyncio.Event(), asyncio.Event()

    async def connect() -> None:
        connects = 0
        while connects < CONNECTS or not over.is_set():
            with node.entered():
                client = Client(Protocol.TCP, source, target)
            with client:
                met[await client.ask()] += 1
            connects += 1
            busy.set()

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(connect(), name=f"client {number}")
        await busy.wait()
        await meanwhile
        over.set()
    assert met.total() >= CLIENTS * CONNECTS
    return met
