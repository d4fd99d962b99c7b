# SPDX-License-Identifier: Apache-2.0
"""The agent's feed on a Unix stream socket. A shell: it moves octets between sockets and `Publisher`.

Each connection has two tasks: one reads, one writes what `Subscription.pull` says, a piece per loop turn, and waits
while the socket is full. A connection that breaks the protocol or is silent is dropped and logged; the others do not
notice.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from svcproxy.errors import FeedError
from svcproxy.feed.codec import CLIENT_FRAME_LIMIT
from svcproxy.feed.publisher import PULL_OCTETS, Publisher, Subscription
from svcproxy.process.sockets import Peer, peer_of

CONNECTIONS_MAX: Final = 64
"""Connections at once; a further one is closed at once."""
PING_INTERVAL: Final = 5.0
"""Seconds between two Pings, whatever else is sent: most of it asks for no answer."""
SILENCE_MAX: Final = 30.0
"""Seconds without an octet from a subscriber after which it counts as dead."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when no connection can be accepted, such as for want of file descriptors."""
READ_OCTETS: Final = 4 * CLIENT_FRAME_LIMIT

log = logging.getLogger(__name__)


class FeedServer:
    """Serves one publisher on one listening socket."""

    def __init__(
        self,
        publisher: Publisher[Any],
        admit: Callable[[Peer], bool],
        *,
        ping_interval: float = PING_INTERVAL,
        silence_max: float = SILENCE_MAX,
    ) -> None:
        """`admit` says whether a peer, as the kernel knows it, may subscribe."""
        self._publisher: Final = publisher
        self._admit: Final = admit
        self._ping_interval: Final = ping_interval
        self._silence_max: Final = silence_max
        self._connections = 0
        self.refused = 0
        """Connections closed at once: not admitted, or too many."""
        self.dropped = 0
        """Connections ended because the subscriber broke the protocol or was silent."""

    async def run(self, listener: socket.socket) -> None:
        """Serve until cancelled. `listener`: non-blocking and listening; it stays the caller's."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as exc:
                    log.warning("cannot accept feed connection", extra={"cause": str(exc)})
                    await asyncio.sleep(ACCEPT_PAUSE)
                    continue
                if (peer := self._admitted(connection)) is None:
                    self.refused += 1
                    connection.close()
                    continue
                self._connections += 1
                tasks.create_task(self._serve(connection, peer), name=f"feed connection of pid {peer.pid}")

    def _admitted(self, connection: socket.socket) -> Peer | None:
        peer = peer_of(connection)
        if not self._admit(peer):
            log.warning("feed subscriber not admitted", extra={"uid": peer.uid, "pid": peer.pid})
            return None
        if self._connections >= CONNECTIONS_MAX:
            log.warning("too many feed subscribers", extra={"limit": CONNECTIONS_MAX, "pid": peer.pid})
            return None
        return peer

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        wake = asyncio.Event()
        subscription = self._publisher.subscribe(wake.set)
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            writer.transport.set_write_buffer_limits(high=PULL_OCTETS)
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(
                    self._write(subscription, writer, wake), name=f"feed writer of pid {peer.pid}"
                )
                await self._read(subscription, reader)
                writing.cancel()
        except* FeedError as group:
            self.dropped += 1
            log.warning(
                "feed subscriber dropped", extra={"pid": peer.pid, "cause": "; ".join(map(str, group.exceptions))}
            )
        except* OSError as group:
            log.info("feed connection lost", extra={"pid": peer.pid, "cause": "; ".join(map(str, group.exceptions))})
        finally:
            self._connections -= 1
            self._publisher.unsubscribe(subscription)
            if writer is None:
                connection.close()
            else:
                writer.transport.abort()

    async def _read(self, subscription: Subscription[Any], reader: asyncio.StreamReader) -> None:
        """Returns when the subscriber has closed. Raises `FeedError` and `OSError`."""
        while True:
            try:
                async with asyncio.timeout(self._silence_max):
                    octets = await reader.read(READ_OCTETS)
            except TimeoutError as exc:
                raise FeedError(f"silent for {self._silence_max:g} s") from exc
            if not octets:
                return
            subscription.receive(octets, time.monotonic())

    async def _write(self, subscription: Subscription[Any], writer: asyncio.StreamWriter, wake: asyncio.Event) -> None:
        due = time.monotonic() + self._ping_interval
        while True:
            wake.clear()
            if (now := time.monotonic()) >= due:
                due = now + self._ping_interval
                subscription.ping()
            if octets := subscription.pull():
                writer.write(octets)
                await writer.drain()
                await asyncio.sleep(0)  # drain() returns at once while the socket takes all: others have their turn
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(due - now):
                    await wake.wait()
