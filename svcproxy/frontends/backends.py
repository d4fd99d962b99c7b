# SPDX-License-Identifier: Apache-2.0
"""The endpoints of one Service port in one family, and its two backend sets kept up to date from single offers. Pure.

Invariants, whenever a method returns: `choice` is `choose` of the traits at hand; the port's sets in the table hold
exactly the backends that its selectors take; `present` counts the backends of each traits but `ABSENT`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set

from svcproxy.frontends.demand import PortDemand
from svcproxy.frontends.keys import Backend, BackendSetKey, Scope
from svcproxy.frontends.offers import Offer, SharedOffer, share
from svcproxy.frontends.selection import ABSENT, LOCAL, NOTHING, READY, UNCHOSEN, Choice, Selector, choose
from svcproxy.frontends.table import BackendSetDelta

_READY_HERE = READY | LOCAL
_NO_BACKENDS: Set[Backend] = frozenset()

Turn = tuple[Backend, int, int]
"""A backend, its traits before and after."""
Offered = tuple[Backend, Offer]
Triggers = Callable[[str], str]
"""The trigger key of a slice of the Service by the slice's name."""


class BackendSets:
    """The backend sets of a table, and what changed in them since the last `collect`, net."""

    def __init__(self, sets: dict[BackendSetKey, set[Backend]]) -> None:
        self._sets = sets
        self._changes: dict[BackendSetKey, dict[Backend, bool]] = {}
        self.visited = 0
        """Backends looked at, since start."""

    def get(self, key: BackendSetKey) -> Set[Backend]:
        """The backends of a set."""
        return self._sets.get(key, _NO_BACKENDS)

    def change(self, key: BackendSetKey, added: Sequence[Backend], removed: Sequence[Backend]) -> None:
        """Add backends that are not in the set, and remove some that are."""
        if not added and not removed:
            return
        held = self._sets.get(key)
        changes = self._changes.get(key)
        if held is None and changes is None:
            self._sets[key] = set(added)
            self._changes[key] = dict.fromkeys(added, True)
            return
        held = set() if held is None else held
        changes = self._changes.setdefault(key, {})
        for backends, present in ((removed, False), (added, True)):
            for backend in backends:
                if changes.pop(backend, present) is present:
                    changes[backend] = present
        held.difference_update(removed)
        held.update(added)
        if held:
            self._sets[key] = held
        else:
            self._sets.pop(key, None)

    def collect(self) -> tuple[BackendSetDelta, ...]:
        """What changed since the last call."""
        deltas = []
        for key, changes in self._changes.items():
            added = tuple(backend for backend, present in changes.items() if present)
            removed = tuple(backend for backend, present in changes.items() if not present)
            if added or removed:
                deltas.append(BackendSetDelta(key, added, removed))
        self._changes.clear()
        return tuple(deltas)


class PortBackends:
    """One Service port in one family."""

    __slots__ = ("choice", "cluster_key", "demand_bits", "entries", "local_key", "present", "shared")

    def __init__(self, demand: PortDemand) -> None:
        name, family = demand.service_port, demand.family
        self.cluster_key = BackendSetKey(name, family, Scope.CLUSTER)
        self.local_key = BackendSetKey(name, family, Scope.LOCAL)
        self.demand_bits = _demand_bits(demand)
        self.entries: dict[Backend, Offer | SharedOffer] = {}
        self.present: dict[int, int] = {}
        self.shared: set[Backend] | None = None
        """Backends with several offers, None while there are none."""
        self.choice: Choice = UNCHOSEN

    @property
    def uses_local(self) -> bool:
        """Whether some frontend's policy is Local."""
        return bool(self.demand_bits & _USES_LOCAL)

    @property
    def starved(self) -> tuple[bool, bool]:
        """Whether internalTrafficPolicy, and externalTrafficPolicy, leaves no endpoint here while some exist."""
        if self.choice.has_local or not self.choice.has_any:
            return False, False
        return bool(self.demand_bits & _INTERNAL_LOCAL), bool(self.demand_bits & _EXTERNAL_LOCAL)

    def ready_here(self) -> Iterator[str]:
        """The address of each ready backend on this node."""
        return (backend.ip for backend, offer in self.entries.items() if ready_here(offer.traits))

    def load(self, offered: Iterable[Offered], trigger: Triggers, sets: BackendSets) -> None:
        """Forget every offer and take these. What stays in a set is not touched."""
        self.entries, self.present, self.shared = {}, {}, None
        entries, present = self.entries, self.present
        for backend, offer in offered:
            if backend in entries:
                self._add(backend, offer, trigger)
            else:
                entries[backend] = offer
        for entry in entries.values():
            traits = entry.traits
            present[traits] = present.get(traits, 0) + 1
        present.pop(ABSENT, None)
        self.choice = self._choose()
        sets.visited += len(entries)
        self._replace(self.cluster_key, self.choice.cluster, sets)
        self._replace(self.local_key, self.choice.local, sets)

    def amend(
        self, withdrawn: Iterable[Offered], offered: Iterable[Offered], trigger: Triggers, sets: BackendSets
    ) -> list[Turn]:
        """Take offers out and in, and return every backend whose traits changed.

        `trigger` is already that of the new slices: backends with several offers are decided anew.
        """
        before: dict[Backend, int] = {}
        for backend in self.shared or ():
            before[backend] = self.entries[backend].traits
        for backend, offer in withdrawn:
            before.setdefault(backend, self.entries[backend].traits)
            self._remove(backend, offer, trigger)
        for backend, offer in offered:
            before.setdefault(backend, self._traits(backend))
            self._add(backend, offer, trigger)
        for backend in self.shared or ():
            entry = self.entries[backend]
            if isinstance(entry, SharedOffer):
                self.entries[backend] = share(entry.offers, trigger)
        sets.visited += len(before)
        turns = [(backend, old, new) for backend, old in before.items() if old != (new := self._traits(backend))]
        for _, old, new in turns:
            self._count(old, -1)
            self._count(new, 1)
        self._settle(turns, sets)
        return turns

    def demand(self, demand: PortDemand, sets: BackendSets) -> None:
        """The Service uses its sets in another way."""
        self.demand_bits = _demand_bits(demand)
        self._settle((), sets)

    def clear(self, sets: BackendSets) -> None:
        """The port is no more."""
        for key in (self.cluster_key, self.local_key):
            sets.change(key, (), tuple(sets.get(key)))

    def _choose(self) -> Choice:
        return choose(self.present, bool(self.demand_bits & _USES_CLUSTER), bool(self.demand_bits & _USES_LOCAL))

    def _settle(self, turns: Sequence[Turn], sets: BackendSets) -> None:
        """Bring choice and sets up to date: by single backends, or whole where the selector is another one."""
        old, new = self.choice, self._choose()
        self.choice = new
        for key, before, after in (
            (self.cluster_key, old.cluster, new.cluster),
            (self.local_key, old.local, new.local),
        ):
            if before != after:
                sets.visited += len(self.entries)
                self._replace(key, after, sets)
            elif turns and after != NOTHING:
                mask, value = after
                came = [b for b, was, now in turns if was & mask != value and now & mask == value]
                went = [b for b, was, now in turns if was & mask == value and now & mask != value]
                sets.change(key, came, went)

    def _replace(self, key: BackendSetKey, selector: Selector, sets: BackendSets) -> None:
        mask, value = selector
        wanted = [] if selector == NOTHING else [b for b, e in self.entries.items() if e.traits & mask == value]
        held = sets.get(key)
        if held:
            sets.change(key, [b for b in wanted if b not in held], sorted(held - set(wanted)))
        else:
            sets.change(key, wanted, ())

    def _traits(self, backend: Backend) -> int:
        entry = self.entries.get(backend)
        return ABSENT if entry is None else entry.traits

    def _count(self, traits: int, step: int) -> None:
        if traits == ABSENT:
            return
        count = self.present.get(traits, 0) + step
        if count:
            self.present[traits] = count
        else:
            del self.present[traits]

    def _add(self, backend: Backend, offer: Offer, trigger: Triggers) -> None:
        entry = self.entries.get(backend)
        if entry is None:
            self.entries[backend] = offer
            return
        offers = entry.offers if isinstance(entry, SharedOffer) else (entry,)
        self.entries[backend] = share((*offers, offer), trigger)
        self.shared = self.shared or set()
        self.shared.add(backend)

    def _remove(self, backend: Backend, offer: Offer, trigger: Triggers) -> None:
        entry = self.entries[backend]
        if not isinstance(entry, SharedOffer):
            del self.entries[backend]
            return
        rest = list(entry.offers)
        rest.remove(offer)
        if len(rest) > 1:
            self.entries[backend] = share(tuple(rest), trigger)
            return
        self.entries[backend] = rest[0]
        if self.shared is not None:
            self.shared.discard(backend)
            self.shared = self.shared or None


def ready_here(traits: int) -> bool:
    """Whether traits are those of a ready endpoint on this node."""
    return traits & _READY_HERE == _READY_HERE


_USES_CLUSTER = 1
_USES_LOCAL = 2
_INTERNAL_LOCAL = 4
_EXTERNAL_LOCAL = 8


def _demand_bits(demand: PortDemand) -> int:
    return (
        (_USES_CLUSTER if demand.uses_cluster else 0)
        | (_USES_LOCAL if demand.uses_local else 0)
        | (_INTERNAL_LOCAL if demand.internal_local else 0)
        | (_EXTERNAL_LOCAL if demand.external_local else 0)
    )
