# SPDX-License-Identifier: Apache-2.0
"""A worker's connection to the agent's feed. A shell: it moves octets between a socket and `Subscriber`.

The loop is given up after every slice. Whatever happens to the connection or to the agent, the sink keeps what it has,
and the client tries again, with bounded back-off, for ever.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from svcproxy.errors import FeedError
from svcproxy.feed.subscriber import FeedState, Subscriber
from svcproxy.process.backoff import Backoff
from svcproxy.process.sockets import connect_unix

READ_OCTETS: Final = 65536
"""Octets taken from the socket at once; the kernel and the stream hold back the rest."""
SILENCE_MAX: Final = 15.0
"""Seconds without an octet after which the agent counts as dead; it sends a Ping every 5."""
PATH_CHECK_INTERVAL: Final = 1.0
"""Seconds between two looks at whether the feed has moved to another path."""
BACKOFF_INITIAL: Final = 0.05
BACKOFF_MAX: Final = 2.0
"""Seconds between attempts. Short: it is a local socket, and a new agent should find its workers soon."""

log = logging.getLogger(__name__)


class FeedClient:
    """Keeps one `Subscriber` connected."""

    def __init__(
        self,
        path: Callable[[], Path],
        subscriber: Subscriber[Any],
        changed: Callable[[FeedState], None] = lambda _: None,
        *,
        silence_max: float = SILENCE_MAX,
        path_check_interval: float = PATH_CHECK_INTERVAL,
    ) -> None:
        """`path`: where the active instance serves its feed, asked again and again; `OSError` means nowhere now.
        `changed`: called when anything but the revision of `state` has changed."""
        self._path: Final = path
        self._subscriber: Final = subscriber
        self._changed: Final = changed
        self._silence_max: Final = silence_max
        self._path_check_interval: Final = path_check_interval
        self._backoff: Final = Backoff(BACKOFF_INITIAL, BACKOFF_MAX)
        self._told = subscriber.state
        self.last_contact: float | None = None
        """Monotonic seconds of the last octet from an agent, None before the first."""
        self.error = ""
        """Why there is no connection; empty while there is one."""

    @property
    def state(self) -> FeedState:
        """What is known of the feed."""
        return self._subscriber.state

    async def run(self) -> None:
        """Follow the feed until cancelled."""
        while True:
            await self._step(None)
            try:
                await self._follow(self._path())
            except (FeedError, OSError) as exc:
                error = str(exc) or type(exc).__name__
                if error != self.error:
                    log.warning("feed interrupted", extra={"cause": error})
                self.error = error
            await asyncio.sleep(self._backoff.next())

    async def _follow(self, path: Path) -> None:
        """One connection, from its start to its end. Raises `FeedError` and `OSError`, always one of them."""
        reader, writer = await asyncio.open_unix_connection(sock=connect_unix(path))
        subscriber = self._subscriber
        try:
            writer.write(subscriber.connected())
            await self._converse(path, reader, writer)
        finally:
            subscriber.disconnected()
            writer.transport.abort()
            self._tell()

    async def _converse(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = checked = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(self._path_check_interval):
                    octets = await reader.read(READ_OCTETS)
            except TimeoutError:
                octets = None
            now = time.monotonic()
            if octets is not None:
                if not octets:
                    raise FeedError("closed by the agent")
                heard = self.last_contact = now
                self._subscriber.receive(octets)
                await self._step(writer)
            elif now - heard >= self._silence_max:
                raise FeedError(f"agent silent for {self._silence_max:g} s")
            if now - checked >= self._path_check_interval:
                checked = now
                if self._path() != path:
                    self._backoff.reset()
                    raise FeedError("the feed has moved")

    async def _step(self, writer: asyncio.StreamWriter | None) -> None:
        """Do the work at hand, slice by slice, and answer; without a connection only a sweep can be left to do."""
        more = True
        while more:
            more = self._subscriber.step()
            octets = self._subscriber.outgoing()
            if octets and writer is not None:
                writer.write(octets)
                async with asyncio.timeout(self._silence_max):
                    await writer.drain()
            self._tell()
            if more:
                await asyncio.sleep(0)

    def _tell(self) -> None:
        state = self._subscriber.state
        told, self._told = self._told, state
        if state.connected and not told.connected:
            log.info("feed connected", extra={"epoch": state.epoch, "revision": state.revision})
            self.error = ""
            self._backoff.reset()
        if _without_revision(state) != _without_revision(told):
            self._changed(state)


def _without_revision(state: FeedState) -> tuple[object, ...]:
    return state.phase, state.epoch, state.complete, state.source
