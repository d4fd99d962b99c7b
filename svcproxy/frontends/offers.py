# SPDX-License-Identifier: Apache-2.0
"""Reading EndpointSlices (discovery/v1): what each says about the backends of a Service port. Pure.

An *offer* is one entry of one slice for one backend, reduced to what selection needs. Offers of a slice that have the
same traits are one object, so that an endpoint costs no more than its backend and a place in a dictionary.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from svcproxy.frontends.addresses import canonical_of
from svcproxy.frontends.keys import Backend, ServicePortName
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.selection import (
    FOR_THIS_NODE,
    FOR_THIS_ZONE,
    LOCAL,
    NODE_HINTED,
    NOT_TERMINATING,
    PRECEDENCE_SHIFT,
    READY,
    SERVING,
    ZONE_HINTED,
    Candidate,
)
from svcproxy.model.meta import Family, Protocol
from svcproxy.model.slice import AddressType, Endpoint, EndpointSlice, HintTarget

PROBLEMS_MAX = 8
"""Messages kept of one slice; the last one then says how many more there are."""

_FAMILIES = {AddressType.IPV4: Family.IPV4, AddressType.IPV6: Family.IPV6}
_NO_HINTS: tuple[HintTarget, ...] = ()


class Offer(msgspec.Struct, frozen=True, gc=False):
    """What one entry of a slice says about a backend."""

    traits: int
    slice: str
    """Name of the slice."""


class SharedOffer(msgspec.Struct, frozen=True, gc=False):
    """What several entries, of one slice or of several, say about one backend."""

    traits: int
    """Those in force."""
    offers: tuple[Offer, ...]
    """At least two."""


def share(offers: tuple[Offer, ...], trigger: Callable[[str], str]) -> SharedOffer:
    """Decide between entries for one backend. `trigger` gives the `trigger_key` of a slice by its name.

    A pod that dies and a pod that lives may have the same address: the living one wins, then the ready one, then the
    local one, then the newer slice. Entries still equal are equivalent; their traits decide, never their order.
    """
    best = max(offers, key=lambda offer: (offer.traits >> PRECEDENCE_SHIFT, trigger(offer.slice), offer.traits))
    return SharedOffer(best.traits, offers)


def family_of_slice(piece: EndpointSlice) -> Family | None:
    """The family of its addresses; None for FQDN, which is never used."""
    return _FAMILIES.get(piece.address_type)


def trigger_key(piece: EndpointSlice) -> str:
    """When the change happened that led to the slice: greater is later, empty if unknown."""
    annotations = piece.metadata.annotations
    # UTC with a fraction of any length: without the Z, "…:00" sorts before "…:00.5".
    return (annotations.trigger_time or "").removesuffix("Z") if annotations is not None else ""


def port_numbers(piece: EndpointSlice, name: ServicePortName) -> list[int]:
    """The target ports that the slice has for a Service port; entries without a name or number do not count."""
    return [
        port.port
        for port in piece.ports or ()
        if port.port and port.name == name.port and (port.protocol or Protocol.TCP) is name.protocol
    ]


def traits_of(endpoint: Endpoint, node: NodeView) -> int:
    """The traits of an endpoint as `node` sees them."""
    conditions = endpoint.conditions
    traits = 0 if conditions.terminating is True else NOT_TERMINATING
    if conditions.ready is not False:
        traits |= READY
    if conditions.serving is not False:
        traits |= SERVING
    if endpoint.node_name == node.name:
        traits |= LOCAL
    hints = endpoint.hints
    if hints is not None:
        if hints.for_nodes:
            traits |= NODE_HINTED
            if any(target.name == node.name for target in hints.for_nodes):
                traits |= FOR_THIS_NODE
        if hints.for_zones:
            traits |= ZONE_HINTED
            if any(target.name == node.zone for target in hints.for_zones):
                traits |= FOR_THIS_ZONE
    return traits


def offers(
    endpoints: Sequence[Endpoint], numbers: Sequence[int], slice_name: str, family: Family, node: NodeView
) -> list[tuple[Backend, Offer]]:
    """What these endpoints of a slice offer on its target ports `numbers`. Malformed addresses are left out."""
    made: dict[int, Offer] = {}
    found = []
    for endpoint in endpoints:
        ip = canonical_of(endpoint.addresses[0], family) if endpoint.addresses else None
        if ip is None:
            continue
        traits = traits_of(endpoint, node)
        offer = made.get(traits)
        if offer is None:
            offer = made[traits] = Offer(traits, slice_name)
        for number in numbers:
            found.append((Backend(ip, number), offer))
    return found


def changed_part(old: Sequence[Endpoint], new: Sequence[Endpoint]) -> tuple[Sequence[Endpoint], Sequence[Endpoint]]:
    """Both without what they begin and end with in common."""
    start, shortest = 0, min(len(old), len(new))
    while start < shortest and old[start] == new[start]:
        start += 1
    end = 0
    while end < shortest - start and old[-1 - end] == new[-1 - end]:
        end += 1
    return old[start : len(old) - end], new[start : len(new) - end]


def sound(old: EndpointSlice, new: EndpointSlice) -> bool:
    """Whether nothing is wrong with what `new` has and `old` had not."""
    family = family_of_slice(new)
    if old.ports != new.ports or old.address_type is not new.address_type or family is None:
        return not problems_of(new)
    _, came = changed_part(old.endpoints or (), new.endpoints or ())
    return all(e.addresses and canonical_of(e.addresses[0], family) is not None for e in came)


def problems_of(piece: EndpointSlice) -> tuple[str, ...]:
    """What of the slice had to be left out, for people."""
    family = family_of_slice(piece)
    if family is None:
        return ()
    place = f"EndpointSlice {piece.metadata.name}"
    problems = [f"{place}: ports[{i}] has no number" for i, port in enumerate(piece.ports or ()) if not port.port]
    for i, endpoint in enumerate(piece.endpoints or ()):
        if not endpoint.addresses:
            problems.append(f"{place}: endpoints[{i}] has no address")
        elif canonical_of(endpoint.addresses[0], family) is None:
            problems.append(f"{place}: endpoints[{i}]: not an {family.label} address: {endpoint.addresses[0]!r}")
    if len(problems) > PROBLEMS_MAX:
        problems[PROBLEMS_MAX:] = [f"{place}: {len(problems) - PROBLEMS_MAX} more problems"]
    return tuple(problems)


def candidates(piece: EndpointSlice, name: ServicePortName, family: Family) -> Iterator[Candidate]:
    """The endpoints of a slice for a Service port, everything that selection may ask about them spelled out."""
    if family_of_slice(piece) is not family:
        return
    trigger = trigger_key(piece)
    for endpoint in piece.endpoints or ():
        ip = canonical_of(endpoint.addresses[0], family) if endpoint.addresses else None
        if ip is None:
            continue
        for number in port_numbers(piece, name):
            yield Candidate(
                Backend(ip, number),
                ready=endpoint.conditions.is_ready,
                serving=endpoint.conditions.is_serving,
                terminating=endpoint.conditions.is_terminating,
                node_name=endpoint.node_name,
                for_nodes=frozenset(
                    t.name for t in (endpoint.hints.for_nodes if endpoint.hints else None) or _NO_HINTS
                ),
                for_zones=frozenset(
                    t.name for t in (endpoint.hints.for_zones if endpoint.hints else None) or _NO_HINTS
                ),
                slice=piece.metadata.name,
                trigger=trigger,
            )
