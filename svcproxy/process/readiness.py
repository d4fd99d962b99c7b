# SPDX-License-Identifier: Apache-2.0
"""Waiting for a descriptor without handing it over to the event loop."""

import asyncio
import socket


async def readable(descriptor: socket.socket) -> None:
    """Return when there is something to read, a connection to accept, or the other side is gone.

    Nobody else may wait for the same descriptor at the same time. Cancelled, it leaves nothing behind.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
