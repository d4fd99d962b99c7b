# SPDX-License-Identifier: Apache-2.0
"""LIST and WATCH of one kind as a reducer: answers and failures in, changes and the next request out. Pure.

Invariants, whatever the order of answers and failures:
- An object comes out as removed only if a complete list lacks it or a deletion names it.
- What is held never becomes older. `floor` is the newest version of anything held; a list older than that is refused,
  an event that is not newer than the watch is dropped. The one exception is a restored etcd: see `behind`.
- An object that does not decode keeps its last good version in force, across lists too.

    nothing known ──LIST, consistent──▶ pages ──last page──▶ WATCH ──410, lost event──▶ LIST not older than floor ──▶ …
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, assert_never

from svcproxy.errors import ApiGone
from svcproxy.kube.decoding import Applied, Bookmark, Deleted, Page, Refused, Status, WatchEvent
from svcproxy.kube.resources import ServerBehind
from svcproxy.kube.source import InvalidObject
from svcproxy.model import Changes, NamespacedName
from svcproxy.model.changes import T

RESTORED_AFTER = 30.0
"""Seconds after which servers that all know less than we do are believed: etcd was restored from a backup."""
RESTORED_AFTER_ALONE = 300.0
"""The same when some servers do not answer at all and so cannot say."""
UNPAGED_AFTER = 2
"""Lists in a row whose continuation expired, after which a list is asked for in one piece."""


@dataclass(frozen=True, slots=True)
class List:
    """Ask for a page of a list."""

    version: str = ""
    """`resourceVersion`; empty asks for the newest (a consistent read)."""
    match: str = ""
    """`resourceVersionMatch`, empty to leave it out."""
    continue_token: str = ""
    limit: int = 0
    """0 asks for everything in one page."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch from `version` on."""

    version: str


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """What one input came to."""

    changes: Changes[T]
    invalid: tuple[InvalidObject, ...] = ()
    synced: bool = False
    """Whether this completes the first list."""
    stale: int = 0
    """Events dropped because they repeat the past."""
    behind: bool = False
    """Whether the server turned out to know less than we do: the watch is over, see `Reflector.behind`."""


@dataclass(slots=True)
class _Listing:
    """A list of which some pages have come."""

    version: str
    continue_token: str = ""
    seen: set[NamespacedName] = field(default_factory=set)
    anonymous: bool = False
    """Whether an object without a readable name is in it: then any object may be that one, and none is removed."""


class Reflector(Generic[T]):
    """The objects of one kind. `action` says what to ask next; the answer goes to the method named after it."""

    def __init__(self, kind: type[T], *, known: Iterable[T] = (), version: str = "", page_size: int = 500) -> None:
        """`known`: objects from an earlier life and `version`, its `floor`; the first list is a delta against them."""
        self._kind: type[T] = kind
        self._held: dict[NamespacedName, T] = {obj.key: obj for obj in known}
        self._floor = version
        self._version: str | None = None
        self._page_size = page_size
        self._limit = page_size
        self._listing: _Listing | None = None
        self._expirations = 0
        self._synced = False
        self._consistent = not version
        self._behind: set[str] = set()
        self._behind_since: float | None = None

    @property
    def held(self) -> Mapping[NamespacedName, T]:
        """The objects in force. Read-only."""
        return self._held

    @property
    def floor(self) -> str:
        """The newest resource version of anything held; to be given to the next life together with the objects."""
        return self._floor

    @property
    def synced(self) -> bool:
        """Whether a complete list has been taken in."""
        return self._synced

    @property
    def action(self) -> List | Watch:
        """What to ask next."""
        if self._version is not None:
            return Watch(self._version)
        if self._listing is not None and self._listing.continue_token:
            return List(continue_token=self._listing.continue_token, limit=self._limit)
        limit = 0 if self._expirations >= UNPAGED_AFTER else self._limit
        if self._consistent:
            return List(limit=limit)
        return List(self._floor, "NotOlderThan", limit=limit)

    def page(self, page: Page[T]) -> Step[T]:
        """Take in a page, or a piece of one. Objects come out at once, removals with the last page.

        Raises `ServerBehind` for a list older than what is held, and `ApiGone` if the list is not the one begun;
        nothing has been taken in then.
        """
        listing = self._begun(page.version)
        applied: list[T] = []
        for obj in page.objects:
            key = obj.key
            listing.seen.add(key)
            if self._held.get(key) != obj:
                self._held[key] = obj
                applied.append(obj)
        for refused in page.refused:
            if refused.key is None:
                listing.anonymous = True
            else:
                listing.seen.add(refused.key)
        invalid = tuple(refused.report for refused in page.refused)
        if page.more:
            return Step(Changes.of(self._kind, applied), invalid)
        listing.continue_token = page.continue_token
        if page.continue_token:
            return Step(Changes.of(self._kind, applied), invalid)
        removed = self._complete(listing)
        first, self._synced = not self._synced, True
        return Step(Changes.of(self._kind, applied, removed), invalid, synced=first)

    def events(self, events: Sequence[WatchEvent[T]]) -> Step[T]:
        """Take in events of a watch, all at once: an object that changed twice comes out once.

        Ends the watch (see `action`) when an event was about an object without a readable name. A Status is not for
        here: it is a failure, for `expired`, `behind` or the back-off.
        """
        before: dict[NamespacedName, T | None] = {}
        invalid: list[InvalidObject] = []
        stale = 0
        behind = lost = False
        for event in events:
            match event:
                case Bookmark(version):
                    behind = behind or older(version, self._floor)
                case Applied(_, version) | Deleted(_, version) | Refused(_, version):
                    if not self._advance(version):
                        stale += 1
                        continue
                    match event:
                        case Applied(obj):
                            before.setdefault(obj.key, self._held.get(obj.key))
                            self._held[obj.key] = obj
                        case Deleted(key):
                            before.setdefault(key, self._held.get(key))
                            self._held.pop(key, None)
                        case Refused(refused):
                            invalid.append(refused.report)
                            lost = lost or refused.key is None
                    continue
                case Status():
                    raise AssertionError("a Status is not an event to take in")
                case _:
                    assert_never(event)
            if not behind:
                self._advance(event.version)
        if lost:
            self._version = None
        return Step(self._difference(before), tuple(invalid), stale=stale, behind=behind)

    def expired(self) -> None:
        """410: the version or the continuation asked for is gone. List again, from the first page."""
        if self._listing is not None:
            self._expirations += 1
        self._restart()

    def too_large(self) -> bool:
        """A page does not fit: ask for half as many objects. Returns whether that is possible."""
        smaller = max(self._limit // 2, 1)
        possible = smaller < self._limit
        self._limit = smaller
        self._expirations = 0
        return possible

    def behind(self, server: str, servers: Collection[str], now: float) -> None:
        """`server`, one of `servers`, knows less than we do.

        One server that lags is to be passed over; that is for the caller. When every server has said so, and nothing
        newer was seen for `RESTORED_AFTER` seconds, etcd was restored: the next list is a consistent read, which no
        lagging server can answer from its cache, and is accepted even if it is older.
        """
        self._restart()
        self._behind.add(server)
        if self._behind_since is None:
            self._behind_since = now
        unanimous = self._behind.issuperset(servers)
        if now - self._behind_since >= (RESTORED_AFTER if unanimous else RESTORED_AFTER_ALONE):
            self._consistent = True

    def _begun(self, version: str) -> _Listing:
        """The listing that a page of `version` belongs to."""
        listing = self._listing
        if listing is not None:
            if listing.version != version:
                self.expired()
                raise ApiGone(f"the list changed from version {listing.version} to {version} between two pages")
            return listing
        if older(version, self._floor) and not self._consistent:
            raise ServerBehind(f"the server lists version {version}, {self._floor} is known")
        # From here on objects of this list are held: the next list must not be older, even if this one is never
        # completed.
        self._floor = version
        self._consistent = False
        self._behind.clear()
        self._behind_since = None
        self._listing = listing = _Listing(version)
        return listing

    def _complete(self, listing: _Listing) -> list[NamespacedName]:
        removed = [] if listing.anonymous else [key for key in self._held if key not in listing.seen]
        for key in removed:
            del self._held[key]
        self._version = listing.version
        self._listing = None
        self._expirations = 0
        self._limit = self._page_size
        return removed

    def _restart(self) -> None:
        self._version = None
        self._listing = None

    def _advance(self, version: str) -> bool:
        """Move the watch to `version`. Returns False if that is the past; without a readable version it stays."""
        if not version:
            return True
        if self._version is not None and not newer(version, self._version):
            return False
        self._version = version
        if not older(version, self._floor):
            self._floor = version
        return True

    def _difference(self, before: Mapping[NamespacedName, T | None]) -> Changes[T]:
        applied, removed = [], []
        for key, old in before.items():
            new = self._held.get(key)
            if new is None:
                if old is not None:
                    removed.append(key)
            elif new != old:
                applied.append(new)
        return Changes.of(self._kind, applied, removed)


def _ordinal(version: str) -> int | None:
    """A resource version as a number (KEP-5504: comparable since 1.35), None for any other text or over 38 digits."""
    return int(version) if version.isascii() and version.isdigit() and len(version) <= 38 else None


def older(version: str, than: str) -> bool:
    """Whether `version` is certainly older; versions that are no numbers cannot be compared."""
    left, right = _ordinal(version), _ordinal(than)
    return left is not None and right is not None and left < right


def newer(version: str, than: str) -> bool:
    """Whether `version` may be newer: certainly, or different where versions are no numbers."""
    left, right = _ordinal(version), _ordinal(than)
    if left is None or right is None:
        return version != than
    return left > right
