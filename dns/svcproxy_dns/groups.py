# SPDX-License-Identifier: Apache-2.0
"""Items by key where nearly every key has one item: no container is kept for that one. Pure."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


class Groups(Generic[K, V]):
    """Sets of items by key. Items are no dictionaries; an item may have one key alone."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[K, V | dict[V, V]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __iter__(self) -> Iterator[V]:
        for held in self._by_key.values():
            if isinstance(held, dict):
                yield from held
            else:
                yield held

    def get(self, key: K) -> Sequence[V]:
        """The items of a key, in the order they came."""
        held = self._by_key.get(key)
        if held is None:
            return ()
        return tuple(held) if isinstance(held, dict) else (held,)

    def find(self, key: K, item: V) -> V | None:
        """The held item equal to this one."""
        held = self._by_key.get(key)
        if isinstance(held, dict):
            return held.get(item)
        return held if held == item else None

    def add(self, key: K, item: V) -> None:
        """Take in an item that is not held."""
        held = self._by_key.get(key)
        if held is None:
            self._by_key[key] = item
        elif isinstance(held, dict):
            held[item] = item
        else:
            self._by_key[key] = {held: held, item: item}

    def discard(self, key: K, item: V) -> None:
        """Take out an item that is held."""
        held = self._by_key[key]
        if isinstance(held, dict):
            del held[item]
            if len(held) == 1:
                self._by_key[key] = next(iter(held))
        else:
            del self._by_key[key]
