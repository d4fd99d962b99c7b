# SPDX-License-Identifier: Apache-2.0
"""Removes stale flows from connection tracking, beside the way of changes and never in it.

For the nftables data plane alone: with another one a flow that goes to its frontend itself is what it should be.

A change is noted at the price of looking at it. A pass lists the flows of the frontends that have changed, in a thread
of its own, and keeps where they go, not the flows; the loop says which of these translations are stale; their flows are
removed, and the next pass reads the table again to see that they are gone. Passes are at least `PASS_INTERVAL` and the
length of the last one apart, so that the thread works half of the time at most, however many changes there are.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from svcproxy.dataplane.nftables.conntrack import Conntrack
from svcproxy.dataplane.nftables.ctnetlink import Translation
from svcproxy.dataplane.nftables.flows import Examination, Serving, Suspects
from svcproxy.errors import ConntrackError
from svcproxy.frontends.keys import ServicePortName
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import Family
from svcproxy.process.backoff import Backoff

PASS_INTERVAL = 0.25
"""Seconds between two passes, at least."""
REMOVALS_PER_PASS = 20_000
"""Flows removed in one pass, at most; the next one goes on."""
BACKOFF_INITIAL = 0.5
BACKOFF_MAX = 30.0
"""Seconds between passes while the kernel refuses."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class FlowCleaner:
    """Keeps flows over UDP and SCTP from going where nobody is.

    Notes and counters belong to the loop that `run` is on.
    """

    def __init__(self, conntrack: Conntrack, serving: Serving, backoff: Backoff | None = None) -> None:
        """Takes over `conntrack` and closes it when `run` ends. `serving` is called on the loop."""
        self._conntrack = conntrack
        self._serving = serving
        self._backoff = backoff or Backoff(BACKOFF_INITIAL, BACKOFF_MAX)
        self._suspects = Suspects()
        self._noted = asyncio.Event()
        self.passes = 0
        """Passes that came to their end."""
        self.failures = 0
        """Passes that did not: the kernel refused, or an answer was lost. They are made again."""
        self.given_up = 0
        """Times that flows came back as often as they were removed: somebody else translates them."""
        self.dumped = 0
        """Flows listed, less those that the kernel lists unasked."""
        self.deleted = dict.fromkeys(Family, 0)
        """Flows removed."""
        self.last_pass_seconds = 0.0
        self.pass_seconds = 0.0
        """Of all passes together."""
        self.error = ""
        """Why the last pass failed; empty if it did not."""

    @property
    def pending(self) -> int:
        """Frontends whose flows are still to be examined."""
        return len(self._suspects)

    def note(self, delta: FrontendDelta) -> None:
        """The data plane has applied a delta."""
        self._suspects.changed(delta, time.monotonic())
        self._noted.set()

    def note_stopped(self, ports: Iterable[tuple[ServicePortName, Family]]) -> None:
        """Endpoints may have stopped serving: what `frontends.serving.stopped_serving` yields."""
        self._suspects.stopped(ports, time.monotonic())
        self._noted.set()

    def note_resync(self, table: FrontendTable, repairs: FrontendDelta) -> None:
        """The data plane has been compared with a table, and repaired. Everything is examined."""
        self._suspects.resynced(table, repairs, time.monotonic())
        self._noted.set()

    async def run(self) -> None:
        """Examine what is noted until cancelled. A call to the kernel under way then ends in its own time."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="conntrack")
        try:
            while True:
                await self._due()
                await asyncio.sleep(await self._attempt(thread))
        finally:
            thread.submit(self._conntrack.close)
            thread.shutdown(wait=False)

    async def _due(self) -> None:
        """Wait until there is something to examine."""
        while True:
            self._noted.clear()
            now = time.monotonic()
            at = self._suspects.next_at(now)
            if at is not None and at <= now:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else at - now):
                    await self._noted.wait()

    async def _attempt(self, thread: ThreadPoolExecutor) -> float:
        """Make a pass, and return the seconds until there may be another one."""
        started = time.monotonic()
        try:
            await self._pass(thread, started)
        except ConntrackError as exc:
            self.failures += 1
            if str(exc) != self.error:
                log.warning("cannot examine connection tracking, trying again", extra={"cause": str(exc)})
            self.error = str(exc)
            return self._backoff.next()
        self._backoff.reset()
        self.error = ""
        self.passes += 1
        self.last_pass_seconds = time.monotonic() - started
        self.pass_seconds += self.last_pass_seconds
        return max(PASS_INTERVAL, self.last_pass_seconds)

    async def _pass(self, thread: ThreadPoolExecutor, started: float) -> None:
        examination = self._suspects.examine()
        surveyed = await _in(thread, lambda: survey(self._conntrack, examination))
        self.dumped += surveyed.listed
        stale = self._suspects.stale(surveyed.translations, self._serving)
        if not stale:
            self._suspects.clean(started)
            return
        purged = await _in(thread, lambda: purge(self._conntrack, examination, stale))
        self.dumped += purged.listed
        for family, count in purged.deleted.items():
            self.deleted[family] += count
        if not self._suspects.removed(started, all_of_them=purged.complete):
            self.given_up += 1
            destination, answering = min(stale)
            log.warning(
                "flows come back though they are removed: does something else translate them?",
                extra={"frontend": str(destination), "destination": str(answering), "translations": len(stale)},
            )


@dataclass(frozen=True, slots=True)
class Surveyed:
    """Where flows go."""

    listed: int
    """Flows that the kernel listed."""
    translations: set[Translation]
    """Those of the flows that are looked at: at most frontends times backends, however many flows there are."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What was removed."""

    listed: int
    """Flows that the kernel listed."""
    deleted: Mapping[Family, int]
    complete: bool
    """Whether there were no more than may be removed at once."""


def survey(conntrack: Conntrack, examination: Examination) -> Surveyed:
    """See where the flows go. Raises `ConntrackError`."""
    listings = [conntrack.listing(wanted) for wanted in examination.filters]
    translations = {each for listing in listings for each in listing.translations if examination.concerns(each[0])}
    return Surveyed(sum(listing.listed for listing in listings), translations)


def purge(conntrack: Conntrack, examination: Examination, stale: frozenset[Translation]) -> Purged:
    """Remove the flows with these translations, at most `REMOVALS_PER_PASS`. Raises `ConntrackError`."""
    listed, room = 0, REMOVALS_PER_PASS
    deleted: Counter[Family] = Counter()
    for wanted in examination.filters:
        listing = conntrack.listing(wanted, stale, room)
        listed += listing.listed
        room -= len(listing.flows)
        deleted[wanted.family] += conntrack.delete(listing.flows)
        if not room:
            break
    return Purged(listed, deleted, complete=room > 0)


async def _in(thread: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.wrap_future(thread.submit(call))
