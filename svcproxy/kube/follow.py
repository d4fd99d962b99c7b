# SPDX-License-Identifier: Apache-2.0
"""Follows one kind on whichever API server works: LIST, then WATCH, for ever.

The reducer (`reflector`) knows what to ask and what an answer means, `servers` whom to ask; this module asks, waits,
and tells both how it went. Failures of one kind do not delay another.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic

from svcproxy.config import KubeConfig
from svcproxy.errors import ApiForbidden, ApiGone, ApiUnauthorized, ApiUnavailable, DecodeError, SvcproxyError
from svcproxy.kube.client import ApiClient, BodyTooLarge, raise_for
from svcproxy.kube.credentials import Authenticator
from svcproxy.kube.decoding import KindDecoder, Status, WatchEvent
from svcproxy.kube.framing import LineReader, Oversized
from svcproxy.kube.reflector import List, Reflector, Step, Watch
from svcproxy.kube.resources import NotServed, Resource, ServerBehind
from svcproxy.kube.servers import Server, ServerSet
from svcproxy.kube.source import KindStatus, ObjectSink
from svcproxy.model.changes import T
from svcproxy.process.backoff import Backoff

log = logging.getLogger(__name__)

FIRST_WAIT = 0.2
"""Seconds of the first wait after a failure, before jitter."""
RETRY_AFTER_MAX = 60.0
"""Longest wait that a server can impose with Retry-After."""
WATCH_SECONDS = (300.0, 600.0)
"""A watch is renewed after a time between these, as client-go does: spreads over servers again, finds dead ends."""
OPTIONAL_WAITS = 10
"""An optional kind that the server has not, or that the role may not read, is asked for again after that many of the
longest waits: five minutes."""
SETTLED_AFTER = 5.0
"""A watch that lived this long and ended cleanly is renewed without a wait."""


@dataclass(slots=True)
class FollowStats:
    """Counters of one kind since start."""

    lists: int = 0
    """Lists begun; the first one included."""
    pages: int = 0
    watches: int = 0
    """Watches begun."""
    failures: dict[str, int] = field(default_factory=dict)
    """What ended a list or watch, by cause: `closed`, `cut`, `unavailable`, `expired`, `behind`, `unauthorized`,
    `forbidden`, `not served`, `lost`, `too large`."""
    failovers: int = 0
    """Times that another server was asked than the time before."""
    events: int = 0
    bookmarks: int = 0
    stale_events: int = 0
    """Events dropped because they repeat the past."""
    invalid: int = 0
    """Objects left out because they do not decode."""
    octets: int = 0
    """Of lists and watches, decompressed."""

    def count(self, cause: str) -> None:
        """One more end for `cause`."""
        self.failures[cause] = self.failures.get(cause, 0) + 1


class Follower(Generic[T]):
    """One kind. `run` is its only task; everything else reads."""

    def __init__(
        self,
        resource: Resource,
        reflector: Reflector[T],
        decoder: KindDecoder[T],
        client: ApiClient,
        authenticator: Authenticator,
        servers: ServerSet,
        choose: Callable[[], Awaitable[Server]],
        config: KubeConfig,
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`choose` returns the server to ask now, and raises `ApiUnavailable` while there is none."""
        self._resource = resource
        self._reflector: Reflector[T] = reflector
        self._decoder: KindDecoder[T] = decoder
        self._client = client
        self._authenticator = authenticator
        self._servers = servers
        self._choose = choose
        self._config = config
        self._random = random
        self._clock = clock
        self._backoff = Backoff(min(FIRST_WAIT, config.backoff_max), config.backoff_max, random=random)
        self._moves = 0
        """Failures answered by asking another server at once, since the last wait."""
        self._refused_credentials = False
        self._server = ""
        self._error = "not started"
        self._last_contact: float | None = None
        self.stats = FollowStats()

    @property
    def reflector(self) -> Reflector[T]:
        """What is held."""
        return self._reflector

    def status(self) -> KindStatus:
        """How it goes."""
        return KindStatus(
            kind=self._resource.name,
            synced=self._reflector.synced,
            server=self._server,
            last_contact=self._last_contact,
            resource_version=self._reflector.floor,
            error=self._error,
            optional=self._resource.optional,
        )

    async def run(self, sink: ObjectSink) -> None:
        """Follow until cancelled."""
        while True:
            if pause := await self._attempt(sink):
                self._moves = 0
                await asyncio.sleep(pause)

    async def _attempt(self, sink: ObjectSink) -> float:
        """One page or one watch. Returns the seconds to wait after it."""
        try:
            server = await self._choose()
        except ApiUnavailable as exc:
            return self._failed("unavailable", str(exc))
        if server.url != self._server:
            self.stats.failovers += bool(self._server)
            self._server = server.url
        action = self._reflector.action
        try:
            if isinstance(action, Watch):
                return await self._watch(server.url, action, sink)
            await self._list(server.url, action, sink)
        except (ApiGone, ApiUnauthorized, ApiForbidden, ApiUnavailable, DecodeError) as exc:
            return await self._react(server.url, action, exc)
        return 0.0

    async def _react(self, server: str, action: List | Watch, exc: SvcproxyError) -> float:
        """Do what a failure asks for. Returns the seconds to wait."""
        match exc:
            case ApiGone():
                self._reflector.expired()
                return self._failed("expired", str(exc))
            case ApiUnauthorized():
                return await self._unauthorized(server, exc)
            case ApiForbidden():
                verb = "watch" if isinstance(action, Watch) else "list"
                wait = self._failed("forbidden", f"{self._resource.missing_rule(verb)}: {exc}")
                return self._rarely(wait) if self._resource.optional else wait
            case NotServed() if self._resource.optional:
                return self._rarely(self._failed("not served", self._resource.not_served(), level=logging.INFO))
            case ServerBehind():
                self._reflector.behind(server, self._servers.urls(), self._clock())
                return self._unavailable(server, "behind", exc)
            case BodyTooLarge():
                if self._reflector.too_large():
                    self.stats.count("too large")
                    return 0.0
                return self._unavailable(server, "too large", exc)
            case _:
                return self._unavailable(server, "unavailable", exc)

    async def _list(self, server: str, action: List, sink: ObjectSink) -> None:
        if not action.continue_token:
            self.stats.lists += 1
        query = {
            "resourceVersion": action.version,
            "resourceVersionMatch": action.match,
            "continue": action.continue_token,
            "limit": str(action.limit or ""),
            "fieldSelector": self._resource.field_selector,
        }
        body = await self._client.page(server, self._resource.path, {k: v for k, v in query.items() if v})
        read_at = self._contact(len(body))
        self.stats.pages += 1
        for page in self._decoder.pieces(body):
            self._deliver(self._reflector.page(page), read_at, sink)
            await asyncio.sleep(0)
        self._worked(server)

    async def _watch(self, server: str, action: Watch, sink: ObjectSink) -> float:
        """Returns the seconds to wait after the watch has ended well."""
        self.stats.watches += 1
        low, high = WATCH_SECONDS
        seconds = low + (high - low) * self._random()
        query = {
            "watch": "1",
            "resourceVersion": action.version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": f"{seconds:.0f}",
            "fieldSelector": self._resource.field_selector,
        }
        query = {key: value for key, value in query.items() if value}
        started = self._clock()
        lines = LineReader(self._config.object_limit)
        # A server that does not keep to the time is cut off when it would have been silent for too long.
        lifetime = seconds + self._config.silence_timeout
        async with await self._client.watch(server, self._resource.path, query, lifetime) as stream:
            self._error = ""
            while data := await stream.read():
                read_at = self._contact(len(data))
                self._take(lines.feed(data), query, read_at, sink)
                if not isinstance(self._reflector.action, Watch):
                    return self._failed("lost", "an event names no object: listing again")
                self._progress(server)
        if lines.pending_octets:
            raise ApiUnavailable(f"{server}: the watch was cut in the middle of an event")
        self.stats.count("closed")
        self._servers.answered(server)
        return 0.0 if self._clock() - started >= SETTLED_AFTER else self._backoff.next()

    def _take(self, lines: list[bytes | Oversized], query: Mapping[str, str], read_at: float, sink: ObjectSink) -> None:
        """Decode and deliver; what came before a bad line counts. Raises the error that a bad line asks for."""
        events: list[WatchEvent[T]] = []
        bad: DecodeError | None = None
        ended: Status | None = None
        for line in lines:
            try:
                if isinstance(line, Oversized):
                    event = self._decoder.oversized(line.prefix, line.octets)
                else:
                    event = self._decoder.event(line)
            except DecodeError as exc:
                bad = exc
                break
            if isinstance(event, Status):
                ended = event
                break
            events.append(event)
        step = self._reflector.events(events)
        self.stats.events += len(events)
        self.stats.stale_events += step.stale
        self._deliver(step, read_at, sink)
        if ended is not None:
            text = f"the watch ended with {ended.code} {ended.reason}: {ended.message}"
            raise_for(ended.code, ended, text, query)
        if bad is not None:
            raise bad
        if step.behind:
            raise ServerBehind("a bookmark is older than what is known")

    def _deliver(self, step: Step[T], read_at: float, sink: ObjectSink) -> None:
        if step.changes:
            sink.changed(step.changes, read_at)
        self.stats.invalid += len(step.invalid)
        for report in step.invalid:
            sink.invalid(report)
        if step.synced:
            sink.synced(self._resource.kind)

    def _contact(self, octets: int) -> float:
        self._last_contact = self._clock()
        self.stats.octets += octets
        return self._last_contact

    def _worked(self, server: str) -> None:
        """The server answers; no progress yet that would end the back-off: lists and 410 may alternate for ever."""
        self._servers.answered(server)
        self._refused_credentials = False
        self._error = ""

    def _progress(self, server: str) -> None:
        self._worked(server)
        self._backoff.reset()
        self._moves = 0

    def _failed(self, cause: str, text: str, retry_after: float | None = None, level: int = logging.WARNING) -> float:
        """Note a failure. Returns the seconds to wait."""
        self.stats.count(cause)
        if text != self._error:
            log.log(level, "not followed", extra={"kind": self._resource.name, "server": self._server, "cause": text})
        self._error = text
        return max(self._backoff.next(), min(retry_after or 0.0, RETRY_AFTER_MAX))

    def _rarely(self, wait: float) -> float:
        """Seconds to wait where it is likely to stay as it is."""
        longest = self._config.backoff_max * OPTIONAL_WAITS
        return max(wait, longest * (1 - self._random() / 2))

    def _unavailable(self, server: str, cause: str, exc: SvcproxyError) -> float:
        """The server fails: go to another at once if there is one that was not tried since the last wait."""
        retry_after = exc.retry_after if isinstance(exc, ApiUnavailable) else None
        self._servers.failed(server, self._clock(), str(exc), retry_after)
        wait = self._failed(cause, self._servers.explained(server, str(exc)), retry_after)
        self._moves += 1
        if self._moves < len(self._servers.urls()) and self._servers.alternative(server):
            return 0.0
        return wait

    async def _unauthorized(self, server: str, exc: ApiUnauthorized) -> float:
        """Read the credentials again; try again at once, the first time."""
        first, self._refused_credentials = not self._refused_credentials, True
        try:
            await self._authenticator.renew()
        except ApiUnavailable as unreadable:
            return self._failed("unauthorized", str(unreadable))
        wait = self._failed("unauthorized", f"the credentials are refused: {exc}")
        if first:
            return 0.0
        self._servers.failed(server, self._clock(), str(exc))
        return wait
