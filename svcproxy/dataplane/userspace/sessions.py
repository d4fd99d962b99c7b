# SPDX-License-Identifier: Apache-2.0
"""UDP sessions in the order of their last use, and by the backend they go to. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from svcproxy.dataplane.userspace.balancer import Choice


class Session(Hashable, Protocol):
    """What the table needs to know of a session."""

    choice: Choice
    """Does not change while the session is in the table."""
    last_used: float
    """Monotonic seconds; only the table writes it."""


S = TypeVar("S", bound=Session)


class SessionTable(Generic[S]):
    """Sessions of all frontends. Whoever ends one calls `remove` and frees what the session holds."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[S, None] = OrderedDict()
        """The longest idle first."""
        self._by_choice: dict[Choice, set[S]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: S, now: float) -> None:
        """Take in a new session, as used now."""
        session.last_used = now
        self._sessions[session] = None
        self._by_choice.setdefault(session.choice, set()).add(session)

    def touch(self, session: S, now: float) -> None:
        """A datagram passed, in either direction."""
        session.last_used = now
        self._sessions.move_to_end(session)

    def remove(self, session: S) -> None:
        """Take a session out; one that is not there is fine."""
        if session not in self._sessions:
            return
        del self._sessions[session]
        siblings = self._by_choice[session.choice]
        siblings.discard(session)
        if not siblings:
            del self._by_choice[session.choice]

    def longest_idle(self) -> S | None:
        """The session that makes room for another."""
        return next(iter(self._sessions), None)

    def idle_since(self, then: float) -> list[S]:
        """Sessions without a datagram after `then`."""
        found = []
        for session in self._sessions:
            if session.last_used > then:
                break
            found.append(session)
        return found

    def going_to(self, choice: Choice) -> tuple[S, ...]:
        """Sessions of a backend, as chosen from a set."""
        return tuple(self._by_choice.get(choice, ()))

    def all(self) -> tuple[S, ...]:
        """Every session, the longest idle first."""
        return tuple(self._sessions)
