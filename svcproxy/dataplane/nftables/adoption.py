# SPDX-License-Identifier: Apache-2.0
"""Taking over what the kernel holds: at start, and whenever it may hold something else than was asked for. Pure.

What stands right stays as it is: slots keep their backends, and affinity its ids, wherever the new table allows.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from svcproxy.dataplane.nftables.affinity import BackendIds
from svcproxy.dataplane.nftables.layout import (
    BACKEND_IDS,
    LOCAL_BIT,
    PORT_MASK,
    PORT_SHIFT,
    SETS,
    TAG_BIT,
    Surroundings,
    surrounding_elements,
)
from svcproxy.dataplane.nftables.operations import (
    FORM_OF,
    SETS_OF,
    AddElement,
    BackendChain,
    Data,
    DeleteElement,
    EnsureChain,
    Form,
    Key,
    Operation,
    Phases,
    ReplaceElement,
    SetName,
    form_of,
    is_foreign,
    prefix_of,
)
from svcproxy.dataplane.nftables.render import Renderer
from svcproxy.frontends.keys import Backend, BackendSetKey, Scope, ServicePortName
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable
from svcproxy.model.meta import Family

Place = tuple[Family, SetName, Key]
"""Where an element is."""
Contents = Mapping[Place, Data]
"""Elements read from the kernel, or wanted there."""

KEPT_BY_RULES = frozenset(name for name, spec in SETS.items() if spec.dynamic_size is not None)
"""Sets that rules fill; not compared."""

_ENTRIES = frozenset(sets.verdict for sets in SETS_OF.values())


Held = tuple[Family, Form, Key, Scope]
"""A frontend's backend set, as the kernel has it."""


def adopt(
    table: FrontendTable,
    held: Contents,
    chains: Iterable[tuple[Family, BackendChain]],
    surroundings: Surroundings,
    hairpin_cidrs: Iterable[str] = (),
) -> tuple[Renderer, Phases]:
    """A renderer that has `table`, and what turns a kernel that holds `held` and `chains` into it.

    The kernel has the sets, and the rules for `surroundings`. While the phases are done, no look-up misses that did not
    miss before. O(table).
    """
    known = frozenset(chains)
    found = _Found(held)
    orders = {
        key: _in_places(standing, table.backends.get(key, frozenset()))
        for key, standing in found.slots_of(table).items()
    }
    renderer = Renderer(hairpin_cidrs, known, found.ids_of(table))
    rendered = renderer.render(
        FrontendDelta(
            frontends=tuple(table.frontends.values()),
            backends=tuple(
                BackendSetDelta(key, added=orders.get(key) or tuple(sorted(backends)))
                for key, backends in table.backends.items()
            ),
            node_port_addresses=table.node_port_addresses,
            health_checks=tuple(table.health_checks.values()),
        )
    )
    around, wholly = surrounding_elements(surroundings), rendered.phases
    if not held:
        return renderer, Phases(wholly.grow, (*around, *wholly.flip), wholly.shrink)
    missing = [each for each in wholly.grow if isinstance(each, EnsureChain)]
    wanted = {
        (each.family, each.set, each.key): each.data
        for some in (around, wholly.grow, wholly.flip)
        for each in some
        if isinstance(each, AddElement)
    }
    phases = compare(held, wanted)
    return renderer, Phases((*missing, *phases.grow), phases.flip, phases.shrink)


def compare(held: Contents, wanted: Contents) -> Phases:
    """What turns one content into the other. Chains that `wanted` leads to have to be there.

    Comparing parts is fine, as long as they are whole frontends.
    """
    grow: list[Operation] = []
    flip: list[tuple[int, AddElement | ReplaceElement | DeleteElement]] = []
    shrink: list[Operation] = []
    came = [place for place, data in wanted.items() if place not in held or held[place] != data]
    went = [place for place in held if place not in wanted]
    for place in sorted(came, key=_rank):
        name, data = place[1], wanted[place]
        if place not in held:
            if name in _ENTRIES or SETS[name].interval:
                flip.append((2, AddElement(*place, data)))
            else:
                grow.append(AddElement(*place, data))
        elif held[place] != data:
            if SETS[name].verdicts:
                flip.append((1, ReplaceElement(*place, data)))
            else:
                grow.append(ReplaceElement(*place, data))
    for place in sorted(went, key=_rank, reverse=True):
        name = place[1]
        if name in KEPT_BY_RULES:
            continue
        if name in _ENTRIES or SETS[name].interval:
            flip.append((0, DeleteElement(*place)))
        else:
            shrink.append(DeleteElement(*place))
    # Frontend by frontend; of each, ranges that go before those that come: they must not overlap.
    flip.sort(key=lambda each: (each[1].family, FORM_OF.get(each[1].set, ""), _frontend_part(each[1]), each[0]))
    return Phases(tuple(grow), tuple(operation for _, operation in flip), tuple(shrink))


_RANKS = {name: rank for rank, name in enumerate(SetName)}


def _rank(place: Place) -> tuple[Family, int, Key]:
    """Backends come before the slots that pick them: `SetName` has them in that order."""
    family, name, key = place
    return family, _RANKS[name], key


def _frontend_part(operation: AddElement | ReplaceElement | DeleteElement) -> Key:
    form = FORM_OF.get(operation.set)
    return operation.key[: len(SETS[SETS_OF[form].verdict].key)] if form is not None else ()


@dataclass(slots=True)
class _Standing:
    """One backend set of one frontend."""

    slots: dict[int, Backend] = field(default_factory=dict)
    ids: dict[int, Backend] = field(default_factory=dict)
    picks: dict[int, int] = field(default_factory=dict)

    def by_slot(self) -> dict[int, Backend]:
        """What stands in each slot, directly or by id."""
        return {**self.slots, **{slot: self.ids[mark] for slot, mark in self.picks.items() if mark in self.ids}}


class _Found:
    """Slots and ids as the kernel has them, whatever is wrong with them."""

    def __init__(self, held: Contents) -> None:
        self._standing: defaultdict[Held, _Standing] = defaultdict(_Standing)
        for (family, name, key), data in held.items():
            form = FORM_OF.get(name)
            if form is None or is_foreign(key) or not isinstance(data, tuple):
                continue
            if name not in (SETS_OF[form].ep, SETS_OF[form].pick):
                continue
            mark = int(key[-1])
            standing = self._standing[family, form, key[:-1], Scope.LOCAL if mark & LOCAL_BIT else Scope.CLUSTER]
            mark &= ~LOCAL_BIT
            if name is SETS_OF[form].pick:
                standing.picks[mark] = int(data[0])
            else:
                (standing.ids if mark & TAG_BIT else standing.slots)[mark] = Backend(str(data[0]), int(data[1]))

    def slots_of(self, table: FrontendTable) -> dict[BackendSetKey, Mapping[int, Backend]]:
        """Of each set, what the frontend with the most slots has."""
        best: dict[BackendSetKey, Mapping[int, Backend]] = {}
        for frontend in table.frontends.values() if self._standing else ():
            for scope in Scope:
                standing = self._standing.get((frontend.family, form_of(frontend.key), prefix_of(frontend.key), scope))
                key = frontend.backend_set(scope)
                if standing is not None and len(by_slot := standing.by_slot()) > len(best.get(key, ())):
                    best[key] = by_slot
        return best

    def ids_of(self, table: FrontendTable) -> dict[tuple[ServicePortName, Family], BackendIds]:
        """The ids of Service ports that want affinity. Of ids in contradiction, the first found counts."""
        ids: dict[tuple[ServicePortName, Family], tuple[int, dict[Backend, int]]] = {}
        owners: dict[tuple[Family, int], ServicePortName] = {}
        for frontend in table.frontends.values():
            if frontend.affinity_timeout is None:
                continue
            port = frontend.service_port, frontend.family
            for scope in Scope:
                standing = self._standing.get((frontend.family, form_of(frontend.key), prefix_of(frontend.key), scope))
                backends = table.backends_of(frontend, scope)
                for mark, backend in standing.ids.items() if standing is not None else ():
                    number = (mark & PORT_MASK & ~TAG_BIT) >> PORT_SHIFT
                    owner = owners.setdefault((frontend.family, number), frontend.service_port)
                    if backend not in backends or owner != frontend.service_port:
                        continue
                    taken, known = ids.setdefault(port, (number, {}))
                    if taken == number and backend not in known and mark % BACKEND_IDS not in known.values():
                        known[backend] = mark % BACKEND_IDS
        return {port: BackendIds(number, known) for port, (number, known) in ids.items()}


def _in_places(standing: Mapping[int, Backend], backends: Set[Backend]) -> tuple[Backend, ...]:
    """The backends in slot order: those that stand in a slot they may keep stay, the others fill the rest."""
    kept = {slot: backend for slot, backend in standing.items() if slot < len(backends) and backend in backends}
    unique = {backend: slot for slot, backend in kept.items()}
    places = {slot: backend for backend, slot in unique.items()}
    rest = iter(sorted(backends - unique.keys()))
    return tuple(places[slot] if slot in places else next(rest) for slot in range(len(backends)))
