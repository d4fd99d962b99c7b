# SPDX-License-Identifier: Apache-2.0
"""New connections of each frontend, counted by the kernel's elements and kept beyond them. Pure."""

from collections.abc import Callable, Collection, Container, Iterable, Mapping

from svcproxy.dataplane.nftables.answers import Elements
from svcproxy.dataplane.nftables.elements import decode
from svcproxy.dataplane.nftables.layout import SETS
from svcproxy.dataplane.nftables.operations import SetName, frontend_at
from svcproxy.frontends.keys import FrontendKey

COUNTED = tuple(name for name, spec in SETS.items() if spec.counter)
"""Sets whose elements count."""


class Counts:
    """What elements had counted that are gone. One owner."""

    def __init__(self) -> None:
        self._gone: dict[FrontendKey, int] = {}
        self._told: dict[FrontendKey, int] = {}

    def add(self, elements: Elements) -> None:
        """Take over what elements had counted when they went."""
        for key, packets in counted(elements):
            self._gone[key] = self._gone.get(key, 0) + packets

    def forget(self, keys: Iterable[FrontendKey]) -> None:
        """Frontends that are gone."""
        for key in keys:
            self._gone.pop(key, None)
            self._told.pop(key, None)

    def start_over(self, frontends: Collection[FrontendKey]) -> None:
        """There are these frontends, and elements may have gone without having been counted: numbers may fall."""
        self.forget([key for key in self._gone if key not in frontends])
        self._told.clear()

    def total(
        self, read: Callable[[], Iterable[Elements]], frontends: Container[FrontendKey]
    ) -> Mapping[FrontendKey, int]:
        """Connections of the frontends: what `read` finds, and what went before. No number falls.

        A frontend whose element went while `read` was at it counts without its new element, and one that `read` missed
        as it did before: that is in the next total.
        """
        before = dict(self._gone)
        present = {key: packets for elements in read() for key, packets in counted(elements)}
        for key, gone in list(self._gone.items()):
            if gone != before.get(key, 0):
                present[key] = gone
            elif key in present:
                present[key] += gone
        for key, told in list(self._told.items()):
            present[key] = max(told, present.get(key, 0))
        self._told = {key: number for key, number in present.items() if key in frontends}
        return self._told.copy()


def counted(elements: Elements) -> Iterable[tuple[FrontendKey, int]]:
    """Frontends and packets of elements of a counted set."""
    name = SetName(elements.name)
    family = elements.table.family
    for stored in elements.elements:
        for key, _ in decode(family, name, (stored.element,)):
            frontend = frontend_at(family, name, key)
            if frontend is not None:
                yield frontend, stored.packets
