# SPDX-License-Identifier: Apache-2.0
"""Walking big collections in small steps, so that the event loop is never held for long.

A collection may change between two steps: what comes or goes while it is walked may or may not be seen, everything else
is seen exactly once.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

STEP = 500
"""Items looked at between two turns of the event loop: well under a millisecond of work."""


class Ordered(Protocol):
    """Can be sorted."""

    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T")
K = TypeVar("K", bound=Ordered)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items in the order of their keys, and whether more follow."""

    items: tuple[T, ...]
    more: bool


async def steps(items: Collection[T], size: int = STEP) -> AsyncIterator[list[T]]:
    """The items as they are now, `size` at a time; other tasks run between two batches."""
    everything = list(items)
    for start in range(0, len(everything), size):
        if start:
            await asyncio.sleep(0)
        yield everything[start : start + size]


async def page(items: Collection[T], key: Callable[[T], K | None], *, after: K | None, limit: int) -> Page[T]:
    """The `limit` items with the smallest keys greater than `after`, sorted. Those whose key is None are left out."""
    smallest: list[tuple[K, T]] = []
    async for batch in steps(items):
        for item in batch:
            if (own := key(item)) is not None and (after is None or after < own):
                smallest.append((own, item))
        smallest = heapq.nsmallest(limit + 1, smallest, key=itemgetter(0))
    return Page(tuple(item for _, item in smallest[:limit]), more=len(smallest) > limit)
