# SPDX-License-Identifier: Apache-2.0
"""What the zone hands on because it does not hold it, and how the answer comes back. Pure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from svcproxy_dns.wire import Query

Deliver = Callable[[bytes], None]
"""Sends a whole response to the client that waits for it."""


class Later(Protocol):
    """A response that is not known yet."""

    def begin(self, client: str, deliver: Deliver) -> None:
        """Find it out for the client of that address. `deliver` is called once: before this returns, or within
        `Timing.deadline` seconds, on the same loop. It must not raise.
        """
        ...


class Alias(NamedTuple):
    """A CNAME of ours."""

    target: str
    """Lower case, without the final dot."""
    ttl: int


class Elsewhere(Protocol):
    """Resolves names that are not the zone's."""

    def resolve(self, query: Query, ident: bytes, transport: int, aliases: Sequence[Alias] = ()) -> bytes | Later:
        """The response to `query` after its ID `ident`, or what finds it out.

        `aliases`: CNAMEs of the zone that lead from the question's name to the one that is resolved; the response
        begins with them.
        """
        ...
