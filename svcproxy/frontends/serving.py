# SPDX-License-Identifier: Apache-2.0
"""Which backends of a Service port may keep the flows they have, and which have just lost that. Pure.

That is more than the backend sets: traffic policies, topology and termination decide where *new* flows go. A flow stays
where it is as long as the endpoint is serving, or ready, which publishNotReadyAddresses makes of every endpoint.
"""

from collections.abc import Iterator, Sequence, Set

from svcproxy.frontends.addresses import canonical_of
from svcproxy.frontends.keys import Backend, ServicePortName
from svcproxy.frontends.offers import changed_part, family_of_slice, port_numbers
from svcproxy.model.meta import Family, Protocol
from svcproxy.model.slice import Endpoint, EndpointSlice
from svcproxy.model.store import SliceChange, Store, Touched


def serving(store: Store, name: ServicePortName, family: Family) -> Set[Backend]:
    """The backends of a Service port that may keep their flows. An address that several entries have needs one of them.

    Costs the endpoints of the Service.
    """
    return {
        backend
        for piece in store.slices_of(name.owner).values()
        if family_of_slice(piece) is family
        for backend in _backends(piece.endpoints or (), port_numbers(piece, name), family)
    }


def stopped_serving(touched: Touched) -> Iterator[tuple[ServicePortName, Family]]:
    """The Service ports over UDP and SCTP that may have lost such a backend.

    No delta of frontends tells: an endpoint that terminates leaves the backend sets first and keeps its flows; when it
    goes, the sets stay as they are. Costs the endpoints that the slices do not have in common.
    """
    for change in touched.slices:
        if change.old is not None and (family := family_of_slice(change.old)) is not None:
            yield from ((name, family) for name in _connectionless_ports(change) if _lost(change, name, family))


def _connectionless_ports(change: SliceChange) -> set[ServicePortName]:
    assert change.old is not None
    return {
        ServicePortName(change.service.namespace, change.service.name, port.name or "", port.protocol)
        for port in change.old.ports or ()
        if port.protocol in (Protocol.UDP, Protocol.SCTP)
    }


def _lost(change: SliceChange, name: ServicePortName, family: Family) -> bool:
    old, new = change.old, change.new
    assert old is not None
    before = port_numbers(old, name)
    after = port_numbers(new, name) if new is not None and family_of_slice(new) is family else []
    was: Sequence[Endpoint] = old.endpoints or ()
    now: Sequence[Endpoint] = _endpoints(new)
    if before == after:
        was, now = changed_part(was, now)
    return not set(_backends(was, before, family)) <= set(_backends(now, after, family))


def _endpoints(piece: EndpointSlice | None) -> Sequence[Endpoint]:
    return (piece.endpoints or ()) if piece is not None else ()


def _backends(endpoints: Sequence[Endpoint], numbers: Sequence[int], family: Family) -> Iterator[Backend]:
    for endpoint in endpoints:
        conditions = endpoint.conditions
        if not (conditions.is_serving or conditions.is_ready) or not endpoint.addresses:
            continue
        ip = canonical_of(endpoint.addresses[0], family)
        if ip is not None:
            for number in numbers:
                yield Backend(ip, number)
