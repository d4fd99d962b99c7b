# SPDX-License-Identifier: Apache-2.0
"""The table of a node, derived from the whole store at once by the plainest means; the builder must keep up with it."""

from itertools import groupby

from svcproxy.frontends.builder import PolicyKind
from svcproxy.frontends.claims import Claimant, Conflict, claimant
from svcproxy.frontends.demand import Demand, demand_of
from svcproxy.frontends.keys import BackendSetKey, Frontend, FrontendKey, HealthCheck, Refusal, Scope, TrafficPolicy
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.offers import candidates
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.selection import Selection, deduplicate, select
from svcproxy.frontends.table import FrontendTable
from svcproxy.model import NamespacedName, Service, Store
from svcproxy.model.meta import Family

Gauge = dict[tuple[Family, PolicyKind], int]


def from_scratch(
    store: Store, node: NodeView, options: FrontendOptions
) -> tuple[FrontendTable, dict[FrontendKey, Conflict], Gauge]:
    """The table, the conflicts over its frontends, and the gauge of ports without local endpoints."""
    table = FrontendTable(node_port_addresses=options.selected(node))
    gauge: Gauge = {(family, kind): 0 for family in Family for kind in PolicyKind}
    claims: list[tuple[Claimant, Frontend]] = []
    for service in store.services.values():
        demand = demand_of(service, options, node)
        here: set[str] = set()
        for port in demand.ports:
            found = list(_candidates(store, service.key, BackendSetKey(port.service_port, port.family, Scope.CLUSTER)))
            selection = select(found, node, uses_cluster=port.uses_cluster, uses_local=port.uses_local)
            for scope, backends in zip(Scope, selection[:2], strict=True):
                if backends:
                    table.backends[BackendSetKey(port.service_port, port.family, scope)] = set(backends)
            here |= {c.backend.ip for c in deduplicate(found, node).values() if c.ready and c.node_name == node.name}
            claims += [(claimant(f, service), _refusing(f, selection)) for f in port.frontends]
            if selection.has_any and not selection.local:
                gauge[port.family, PolicyKind.INTERNAL] += port.internal_local
                gauge[port.family, PolicyKind.EXTERNAL] += port.external_local
        _add_check(table, service, demand, here)
    return table, _arbitrate(table, claims), gauge


def _candidates(store: Store, service: NamespacedName, key: BackendSetKey):  # type: ignore[no-untyped-def]
    for piece in store.slices_of(service).values():
        yield from candidates(piece, key.service_port, key.family)


def _refusing(frontend: Frontend, selection: Selection) -> Frontend:
    if frontend.policy is TrafficPolicy.CLUSTER or not selection.has_any:
        return frontend
    return Frontend(
        frontend.key,
        frontend.service_port,
        frontend.kind,
        frontend.policy,
        when_local_empty=Refusal.DROP,
        affinity_timeout=frontend.affinity_timeout,
        source_ranges=frontend.source_ranges,
    )


def _add_check(table: FrontendTable, service: Service, demand: Demand, here: set[str]) -> None:
    if demand.health_port:
        table.health_checks[service.key] = HealthCheck(service.key, demand.health_port, len(here))


def _arbitrate(table: FrontendTable, claims: list[tuple[Claimant, Frontend]]) -> dict[FrontendKey, Conflict]:
    conflicts = {}
    ordered = sorted(claims, key=lambda claim: (str(claim[1].key), claim[0]))
    for _, group in groupby(ordered, key=lambda claim: str(claim[1].key)):
        ranked = [frontend for _, frontend in group]
        table.frontends[ranked[0].key] = ranked[0]
        if len(ranked) > 1:
            ports = [frontend.service_port for frontend in ranked]
            conflicts[ranked[0].key] = Conflict(ranked[0].key, ports[0], tuple(ports[1:]))
    return conflicts
