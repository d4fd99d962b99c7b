# SPDX-License-Identifier: Apache-2.0
"""Where each backend stands: dense slots of a backend set. Pure.

All frontends of a Service port draw from the same slots, so that they are kept once per backend set. One backend costs
one backend: a removal moves the last one into the hole.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from svcproxy.frontends.keys import Backend

INDEX_FROM = 32
"""Backends from which on a set keeps an index; fewer are searched."""


@dataclass(frozen=True, slots=True)
class SlotChange:
    """What a change of a backend set did to its slots."""

    size_before: int
    size: int
    slots: Mapping[int, tuple[Backend | None, Backend | None]]
    """Slots with another backend than before: old and new, None outside the respective size. In ascending order."""
    added: tuple[Backend, ...]
    """Those that were not in the set."""
    removed: tuple[Backend, ...]
    """Those that were."""


class Slots:
    """The backends of one set in slots 0 to `len - 1`. One owner."""

    __slots__ = ("_backends", "_index")

    def __init__(self, backends: Iterable[Backend] = ()) -> None:
        """`backends`: in slot order, each once."""
        self._backends = list(backends)
        self._index: dict[Backend, int] | None = None
        self._keep_index()

    def __len__(self) -> int:
        return len(self._backends)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends)

    def __getitem__(self, slot: int) -> Backend:
        return self._backends[slot]

    def __contains__(self, backend: Backend) -> bool:
        return self._find(backend) is not None

    def change(self, added: Collection[Backend], removed: Collection[Backend]) -> SlotChange:
        """Remove backends, then add some; those that are gone, or here, already are not counted.

        New backends take the places of removed ones first, so that a replacement changes one slot and no size; others
        come last, in the order given.
        """
        size_before = len(self._backends)
        if not size_before:
            self._backends = list(dict.fromkeys(added))
            self._keep_index()
            came: dict[int, tuple[None, Backend]] = {slot: (None, it) for slot, it in enumerate(self._backends)}
            return SlotChange(0, len(came), came, tuple(self._backends), ())
        leaving = [backend for backend in dict.fromkeys(removed) if backend in self]
        coming = [backend for backend in dict.fromkeys(added) if backend not in self]
        if leaving:
            stays = {backend for backend in added if backend in self}
            leaving = [backend for backend in leaving if backend not in stays]
        before: dict[int, Backend | None] = {}
        holes = [self._take_out(backend, before) for backend in leaving]
        holes.sort(reverse=True)
        for backend in coming:
            if holes:
                self._place(holes.pop(), backend)
            else:
                before[len(self._backends)] = None
                self._append(backend)
        for hole in holes:
            self._fill_from_the_end(hole, before)
        self._keep_index()
        size = len(self._backends)
        slots = {slot: (old, self._backends[slot] if slot < size else None) for slot, old in sorted(before.items())}
        return SlotChange(size_before, size, slots, tuple(coming), tuple(leaving))

    def _find(self, backend: Backend) -> int | None:
        if self._index is not None:
            return self._index.get(backend)
        return self._backends.index(backend) if backend in self._backends else None

    def _take_out(self, backend: Backend, before: dict[int, Backend | None]) -> int:
        slot = self._find(backend)
        assert slot is not None
        before[slot] = backend
        return slot

    def _place(self, slot: int, backend: Backend) -> None:
        if self._index is not None:
            if self._index.get(self._backends[slot]) == slot:
                del self._index[self._backends[slot]]
            self._index[backend] = slot
        self._backends[slot] = backend

    def _append(self, backend: Backend) -> None:
        if self._index is not None:
            self._index[backend] = len(self._backends)
        self._backends.append(backend)

    def _fill_from_the_end(self, hole: int, before: dict[int, Backend | None]) -> None:
        """Close a hole; holes come in descending order, so that the last slot is never another hole."""
        last = len(self._backends) - 1
        if hole < last:
            before.setdefault(last, self._backends[last])
            self._place(hole, self._backends[last])
        elif self._index is not None:
            del self._index[self._backends[hole]]
        self._backends.pop()

    def _keep_index(self) -> None:
        if len(self._backends) < INDEX_FROM // 2:
            self._index = None
        elif self._index is None and len(self._backends) >= INDEX_FROM:
            self._index = {backend: slot for slot, backend in enumerate(self._backends)}
