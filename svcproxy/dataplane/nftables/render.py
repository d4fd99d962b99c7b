# SPDX-License-Identifier: Apache-2.0
"""From frontend deltas to operations on the tables of `layout`. Pure.

Invariants, at any instant between two operations of a phase order, for a frontend that is there before and after:
whatever verdict a look-up finds, every slot that its chain may draw is in `ep`, and holds a backend of the old or the
new set. This is why slots grow before verdicts flip, and shrink after.

A change of one backend costs the frontends of its Service port; the size of set and table does not matter.
"""

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from svcproxy.dataplane.nftables.affinity import TIMEOUTS_MAX, Affinity, BackendIds
from svcproxy.dataplane.nftables.layout import AFFINE_SIZE_BITS, PORT_IDS, SLOT_BASE, firewall, split
from svcproxy.dataplane.nftables.operations import (
    DROP,
    SETS_OF,
    AddElement,
    BackendChain,
    DeleteElement,
    EnsureChain,
    FixedChain,
    Goto,
    Key,
    Operation,
    Phases,
    ReplaceElement,
    SetName,
    Verdict,
    form_of,
    prefix_of,
)
from svcproxy.dataplane.nftables.plans import Plan, Pool
from svcproxy.dataplane.nftables.slots import SlotChange, Slots
from svcproxy.dataplane.tracking import TrackedTable
from svcproxy.frontends.addresses import network
from svcproxy.frontends.decision import SourceKind, decide, scope_for
from svcproxy.frontends.keys import (
    Address,
    Backend,
    BackendSetKey,
    Frontend,
    FrontendKey,
    FrontendKind,
    Refusal,
    Scope,
    ServicePortName,
    TrafficPolicy,
)
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import Family, family_of

BACKENDS_WITH_AFFINITY_MAX = 1 << AFFINE_SIZE_BITS
"""Backends of a Service port with affinity, both sets together."""

MERGED_MEMO = 4096
"""Lists of source ranges remembered as merged."""

_SCOPES = tuple(Scope)
_REJECT = Goto(FixedChain.REJECT)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a delta comes to."""

    phases: Phases
    stale_ids: tuple[int, ...]
    """Ids of backends that went: after shrink, elements of `aff` with such data may go, so that clients stick again."""
    affected: tuple[FrontendKey, ...]
    """Frontends that the delta names, or whose backends or addresses it changes."""


class Renderer:
    """The kernel's tables as asked for so far, and the operations that follow from a delta. One owner.

    What it returns has to be done, in order; if it was not, the kernel is brought back by comparison with `elements`.
    """

    def __init__(
        self,
        hairpin_cidrs: Iterable[str] = (),
        chains: Iterable[tuple[Family, BackendChain]] = (),
        ids: Mapping[tuple[ServicePortName, Family], BackendIds] | None = None,
    ) -> None:
        """`hairpin_cidrs`: where pods of this node have addresses; none given, every backend may be one.

        `chains`: those that are in the kernel; `ids`: what Service ports with affinity had, see `adoption`.
        """
        self._may_be_here = _within(hairpin_cidrs)
        self._tracked = TrackedTable()
        self._slots: dict[BackendSetKey, Slots] = {}
        self._plans: dict[FrontendKey, Plan] = {}
        self._affinity = Affinity(ids or {})
        self._chains = set(chains)
        self._cluster_ips: dict[str, int] = {}
        self._backend_ips: dict[str, int] = {}
        self.compromised: dict[FrontendKey, str] = {}
        """Frontends with another affinity than asked for, and why. Read-only for others."""

    @property
    def table(self) -> FrontendTable:
        """What was asked for. Read-only."""
        return self._tracked.table

    def marks(self, family: Family) -> Iterator[int]:
        """The ids, as marks, of backends that clients may remember. O(backends with affinity)."""
        return self._affinity.marks(family)

    def render(self, delta: FrontendDelta) -> Rendered:
        """Take a delta in. Taking it in twice is taking it in once: the second time nothing is left to do."""
        script = _Script(self._chains)
        old_addresses = self.table.node_port_addresses
        named = {frontend.key for frontend in delta.frontends}.union(delta.removed)
        changes = {
            change.key: self._slots.setdefault(change.key, Slots()).change(change.added, change.removed)
            for change in delta.backends
        }
        resized = {
            (key.service_port, key.family) for key, change in changes.items() if change.size != change.size_before
        }
        everyone = self._tracked.apply(delta).frontends
        let_go: list[Plan] = []
        cluster_ips: dict[str, int] = {}
        for key in everyone:
            old = self._plans.get(key)
            if old is not None and key not in named and (_port_of(old), key.family) not in resized:
                self._render_changed(script, old, changes)
                continue
            self.compromised.pop(key, None)
            new = self._plan(key, old)
            self._render_frontend(script, key, old, new, changes)
            if old is not None:
                cluster_ips[old.cluster_ip] = cluster_ips.get(old.cluster_ip, 0) - 1
                if _affine(old) and (new is None or not _affine(new) or _port_of(old) != _port_of(new)):
                    let_go.append(old)
            if new is not None:
                cluster_ips[new.cluster_ip] = cluster_ips.get(new.cluster_ip, 0) + 1
        self._render_shared(script, old_addresses, cluster_ips, changes)
        stale = self._release(changes, let_go)
        for set_key in changes:
            if not self._slots[set_key]:
                del self._slots[set_key]
        self._affinity.forget_unused()
        return Rendered(script.phases(), stale, everyone)

    def elements(self) -> Iterator[AddElement]:
        """Every element that the agent keeps, to compare the kernel with. O(table): for resyncs."""
        for family in Family:
            for ip in self.table.node_port_addresses:
                if family_of(ip) is family:
                    yield AddElement(family, SetName.NODE_IPS, (ip,))
        for ip in self._cluster_ips:
            yield AddElement(family_of(ip), SetName.CLUSTER_IPS, (ip,))
        for ip in self._backend_ips:
            yield AddElement(family_of(ip), SetName.HAIRPIN, (ip, ip))
        for key in self._plans:
            yield from self.elements_of(key)

    def elements_of(self, key: FrontendKey) -> Iterator[AddElement]:
        """Those of them that begin with the frontend; none if it is not there."""
        plan = self._plans.get(key)
        if plan is None:
            return
        for pool in plan.pools:
            yield from self._pool_elements(key, pool, enumerate(self._slots.get(pool.backends, ())))
        script = _Script(set())
        _render_plan(script, key, None, plan)
        for phase in script.phases().in_order():
            yield from (operation for operation in phase if isinstance(operation, AddElement))

    def chains(self) -> Iterator[EnsureChain]:
        """Every backend chain that a verdict led to so far."""
        return (EnsureChain(*each) for each in sorted(self._chains, key=lambda each: (each[0], each[1].name)))

    # What frontends share

    def _render_shared(
        self,
        script: "_Script",
        old_addresses: frozenset[str],
        cluster_ips: Mapping[str, int],
        changes: Mapping[BackendSetKey, SlotChange],
    ) -> None:
        addresses = self.table.node_port_addresses
        if addresses != old_addresses:
            for ip in sorted(addresses - old_addresses):
                script.grow.append(AddElement(family_of(ip), SetName.NODE_IPS, (ip,)))
            for ip in sorted(old_addresses - addresses):
                script.shrink.append(DeleteElement(family_of(ip), SetName.NODE_IPS, (ip,)))
        for ip, by in cluster_ips.items():
            if ip and by:
                script.count(self._cluster_ips, ip, by, SetName.CLUSTER_IPS, (ip,))
        backend_ips: dict[str, int] = {}
        for change in changes.values():
            for backend in change.added:
                backend_ips[backend.ip] = backend_ips.get(backend.ip, 0) + 1
            for backend in change.removed:
                backend_ips[backend.ip] = backend_ips.get(backend.ip, 0) - 1
        for ip, by in backend_ips.items():
            if by and self._may_be_here(ip):
                script.count(self._backend_ips, ip, by, SetName.HAIRPIN, (ip, ip))

    def _release(self, changes: Mapping[BackendSetKey, SlotChange], let_go: Iterable[Plan]) -> tuple[int, ...]:
        """Give back the ids of backends that are in neither set any more, then those of whole Service ports."""
        stale = []
        for key, change in changes.items():
            ids = self._affinity.find(key)
            if ids is None:
                continue
            other = self._slots.get(BackendSetKey(key.service_port, key.family, Scope(1 - key.scope)), ())
            here = self._slots[key]
            for backend in change.removed:
                if backend not in other and backend not in here and (mark := ids.release(backend)) is not None:
                    stale.append(mark)
        for plan in let_go:
            self._affinity.let_go(_port_of(plan), plan.key.family)
        return tuple(sorted(stale))

    # One frontend

    def _plan(self, key: FrontendKey, old: Plan | None) -> Plan | None:
        """What the kernel shall hold for a frontend; None if it is gone."""
        frontend = self.table.frontends.get(key)
        if frontend is None:
            return None
        timeout = self._affinity_timeout(frontend, old)
        sets = SETS_OF[form_of(key)]
        near_scope, far_scope = scope_for(frontend, SourceKind.POD), scope_for(frontend, SourceKind.OTHER)
        scopes = (near_scope,) if near_scope is far_scope else _SCOPES
        near = self._verdict(frontend, SourceKind.POD, timeout)
        far = near if len(scopes) == 1 else self._verdict(frontend, SourceKind.OTHER, timeout)
        if near == far:
            verdicts = [(sets.verdict, near)]
        else:
            verdicts = [(sets.verdict, Goto(split(form_of(key)))), (sets.near, near), (sets.far, far)]
        if frontend.source_ranges is not None:
            verdicts = [(sets.verdict, Goto(firewall(form_of(key)))), (sets.admitted, verdicts[0][1]), *verdicts[1:]]
        masquerade = None
        if frontend.kind.external:
            masquerade = sets.masq if frontend.policy is TrafficPolicy.CLUSTER else sets.masq_node
        return Plan(
            key,
            tuple(verdicts),
            tuple(Pool(frontend.backend_set(scope), timeout is not None) for scope in scopes),
            _merged(frontend.source_ranges, key.family) if frontend.source_ranges else (),
            masquerade,
            key.ip if isinstance(key, Address) and frontend.kind is FrontendKind.CLUSTER_IP else "",
        )

    def _affinity_timeout(self, frontend: Frontend, old: Plan | None) -> int | None:
        """The affinity time-out that is served; from here on the Service port's ids are held."""
        wanted = frontend.affinity_timeout
        if wanted is None:
            return None
        size = sum(len(self._slots.get(frontend.backend_set(scope), ())) for scope in _SCOPES)
        if size > BACKENDS_WITH_AFFINITY_MAX:
            self.compromised[frontend.key] = f"no affinity: {size} backends, of {BACKENDS_WITH_AFFINITY_MAX} possible"
            return None
        held = old is not None and _affine(old) and _port_of(old) == frontend.service_port
        if not held and not self._affinity.hold(frontend.service_port, frontend.family):
            self.compromised[frontend.key] = f"no affinity: {PORT_IDS} other Service ports have it"
            return None
        timeout = self._affinity.timeout(wanted)
        if timeout != wanted:
            self.compromised[frontend.key] = f"affinity for {timeout} s: there are {TIMEOUTS_MAX} other time-outs"
        return timeout

    def _verdict(self, frontend: Frontend, source: SourceKind, timeout: int | None) -> Verdict:
        outcome = decide(self.table, frontend, source)
        if isinstance(outcome, Refusal):
            return _REJECT if outcome is Refusal.REJECT else DROP
        return Goto(BackendChain(form_of(frontend.key), outcome.scope, len(self._slots[outcome]), timeout))

    def _render_frontend(
        self,
        script: "_Script",
        key: FrontendKey,
        old: Plan | None,
        new: Plan | None,
        changes: Mapping[BackendSetKey, SlotChange],
    ) -> None:
        old_pools = {pool.backends.scope: pool for pool in old.pools} if old is not None else {}
        new_pools = {pool.backends.scope: pool for pool in new.pools} if new is not None else {}
        for scope in _SCOPES:
            self._render_pool(script, key, old_pools.get(scope), new_pools.get(scope), changes)
        if old != new:
            _render_plan(script, key, old, new)
        if new is not None:
            self._plans[key] = new
        else:
            self._plans.pop(key, None)

    def _render_changed(self, script: "_Script", plan: Plan, changes: Mapping[BackendSetKey, SlotChange]) -> None:
        """A frontend of which nothing changes but backends."""
        for pool in plan.pools:
            self._render_pool(script, plan.key, pool, pool, changes)

    def _render_pool(
        self,
        script: "_Script",
        key: FrontendKey,
        old: Pool | None,
        new: Pool | None,
        changes: Mapping[BackendSetKey, SlotChange],
    ) -> None:
        before: Iterable[tuple[int, Backend]] = ()
        after: Iterable[tuple[int, Backend]] = ()
        if old is not None and old == new:
            change = changes.get(old.backends)
            if change is None:
                return
            before = [(slot, was) for slot, (was, _) in change.slots.items() if was is not None]
            after = [(slot, now) for slot, (_, now) in change.slots.items() if now is not None]
        else:
            if old is not None:
                before = self._slots_before(old.backends, changes)
            if new is not None:
                after = enumerate(self._slots.get(new.backends, ()))
        held = self._pool_elements(key, old, before) if old is not None else []
        wanted = self._pool_elements(key, new, after) if new is not None else []
        script.turn(held, wanted)

    def _slots_before(
        self, key: BackendSetKey, changes: Mapping[BackendSetKey, SlotChange]
    ) -> Iterator[tuple[int, Backend]]:
        slots = self._slots.get(key)
        if slots is None:
            return
        change = changes.get(key)
        moved = change.slots if change is not None else {}
        for slot in range(change.size_before if change is not None else len(slots)):
            was = moved[slot][0] if slot in moved else slots[slot]
            assert was is not None
            yield slot, was

    def _pool_elements(self, key: FrontendKey, pool: Pool, slots: Iterable[tuple[int, Backend]]) -> list[AddElement]:
        """The elements of some slots of a pool; an id comes before the slots that pick it."""
        family, sets, prefix = key.family, SETS_OF[form_of(key)], prefix_of(key)
        ep, base = sets.ep, SLOT_BASE[pool.backends.scope]
        if not pool.affinity:
            return [
                AddElement(family, ep, (*prefix, base + slot), (backend.ip, backend.port)) for slot, backend in slots
            ]
        elements = []
        ids = self._affinity.ids(pool.backends)
        for slot, backend in slots:
            mark = ids.of(backend)
            elements.append(AddElement(family, ep, (*prefix, mark | base), (backend.ip, backend.port)))
            elements.append(AddElement(family, sets.pick, (*prefix, base + slot), (mark,)))
        return elements


class _Script:
    """Operations in the making."""

    def __init__(self, chains: set[tuple[Family, BackendChain]]) -> None:
        """`chains`: those that exist; added to."""
        self._known = chains
        self._chains: list[Operation] = []
        self.grow: list[Operation] = []
        self.flip: list[Operation] = []
        self.shrink: list[Operation] = []

    def ensure(self, family: Family, verdict: Verdict) -> None:
        """See to it that the chain is there."""
        if isinstance(verdict, Goto) and isinstance(verdict.chain, BackendChain):
            chain = family, verdict.chain
            if chain not in self._known:
                self._known.add(chain)
                self._chains.append(EnsureChain(*chain))

    def turn(self, held: Sequence[AddElement], wanted: Sequence[AddElement]) -> None:
        """Elements that nothing misses: new and changed ones grow, surplus ones shrink, in opposite orders."""
        if not held:
            self.grow += wanted
            return
        surplus = {(each.set, each.key): each.data for each in held}
        for each in wanted:
            place = each.set, each.key
            if place not in surplus:
                self.grow.append(each)
            elif surplus.pop(place) != each.data:
                self.grow.append(ReplaceElement(each.family, each.set, each.key, each.data))
        family = held[0].family
        self.shrink += [DeleteElement(family, *place) for place in reversed(surplus)]

    def count(self, counts: dict[str, int], ip: str, by: int, name: SetName, key: Key) -> None:
        """Count an address that several share; its element comes with the first and goes with the last."""
        before = counts.get(ip, 0)
        counts[ip] = before + by
        if not before:
            self.grow.append(AddElement(family_of(ip), name, key))
        elif not counts[ip]:
            del counts[ip]
            self.shrink.append(DeleteElement(family_of(ip), name, key))

    def phases(self) -> Phases:
        """What was collected."""
        return Phases((*self._chains, *self.grow), tuple(self.flip), tuple(self.shrink))


def _render_plan(script: _Script, key: FrontendKey, old: Plan | None, new: Plan | None) -> None:
    """What does not depend on single backends. Detours are built before, and taken down after, the verdict flips."""
    family, sets, prefix = key.family, SETS_OF[form_of(key)], prefix_of(key)
    held = dict(old.verdicts) if old is not None else {}
    wanted = dict(new.verdicts) if new is not None else {}
    for name, verdict in reversed(wanted.items()):
        script.ensure(family, verdict)
        if name not in held:
            phase = script.flip if name is sets.verdict else script.grow
            phase.append(AddElement(family, name, prefix, verdict))
        elif held[name] != verdict:
            script.flip.append(ReplaceElement(family, name, prefix, verdict))
    for name in held:
        if name not in wanted:
            (script.flip if name is sets.verdict else script.shrink).append(DeleteElement(family, name, prefix))
    _render_sources(script, key, old, new)
    was = old.masquerade if old is not None else None
    now = new.masquerade if new is not None else None
    if was is not now:
        if now is not None:
            script.grow.append(AddElement(family, now, prefix))
        if was is not None:
            script.shrink.append(DeleteElement(family, was, prefix))


def _render_sources(script: _Script, key: FrontendKey, old: Plan | None, new: Plan | None) -> None:
    """Source ranges. Those of a frontend that has some all along change at once, as its ranges must never overlap."""
    held = old.sources if old is not None else ()
    wanted = new.sources if new is not None else ()
    if held == wanted:
        return
    family, sets, prefix = key.family, SETS_OF[form_of(key)], prefix_of(key)
    went = [DeleteElement(family, sets.src_ok, (*prefix, cidr)) for cidr in held if cidr not in wanted]
    came = [AddElement(family, sets.src_ok, (*prefix, cidr)) for cidr in wanted if cidr not in held]
    (script.flip if wanted else script.shrink).extend(went)
    (script.flip if held else script.grow).extend(came)


def _affine(plan: Plan) -> bool:
    return plan.pools[0].affinity


def _port_of(plan: Plan) -> ServicePortName:
    return plan.pools[0].backends.service_port


def _within(cidrs: Iterable[str]) -> Callable[[str], bool]:
    """Whether a canonical address is in one of the CIDRs; always, if there are none. Much faster than `contains`."""
    networks = [parsed for cidr in cidrs if (parsed := network(cidr)) is not None]
    if not networks:
        return lambda _: True
    masked = {
        family: [(int(each.netmask), int(each.network_address)) for each in networks if each.version == family]
        for family in Family
    }

    def within(ip: str) -> bool:
        family = family_of(ip)
        if family is Family.IPV4:
            a, b, c, d = ip.split(".")
            number = int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)
        else:
            number = int(ipaddress.IPv6Address(ip))
        return any(number & mask == base for mask, base in masked[family])

    return within


@lru_cache(maxsize=MERGED_MEMO)
def _merged(cidrs: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """The same addresses as CIDRs that neither overlap nor touch; what is no CIDR of the family holds none."""
    if family is Family.IPV4:
        fours = (parsed for cidr in cidrs if isinstance(parsed := network(cidr), ipaddress.IPv4Network))
        return tuple(str(merged) for merged in ipaddress.collapse_addresses(fours))
    sixes = (parsed for cidr in cidrs if isinstance(parsed := network(cidr), ipaddress.IPv6Network))
    return tuple(str(merged) for merged in ipaddress.collapse_addresses(sixes))
