# SPDX-License-Identifier: Apache-2.0
"""The answers of the status API, made from the agent's state. Pure; costs of one answer are bounded by its limits."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice

import msgspec

from svcproxy import api
from svcproxy.admin.health import Instant
from svcproxy.admin.state import AgentState
from svcproxy.frontends.claims import Conflict
from svcproxy.frontends.keys import Frontend, FrontendKey, Scope, TrafficPolicy
from svcproxy.frontends.trace import Trace
from svcproxy.model import Endpoint, EndpointPort, EndpointSlice, NamespacedName, Service
from svcproxy.model.meta import Protocol
from svcproxy.model.service import CLUSTER_IP_NONE, ServicePort

LISTED_MAX = 100
"""Entries of each list in a status, and backends of each frontend, that are spelt out."""
ENDPOINTS_SHOWN = 1000
"""Endpoints of each Service that are spelt out."""


def status(state: AgentState, now: Instant, counts: api.Counts) -> api.Status:
    """The whole status. `counts` is taken beforehand, in steps."""
    refused = state.refused()
    compromised = state.compromised()
    conflicts = state.conflicts()
    problems = state.problems()
    return api.Status(
        version=state.version,
        instance=state.instance,
        pid=state.pid,
        node=state.node_name,
        started=state.started.rfc3339(),
        uptime=now.monotonic - state.started.monotonic,
        readiness=state.readiness(now),
        sources=tuple(_sources(state, now)),
        counts=counts,
        dataplane=state.dataplane_name,
        probes=state.probes,
        settings=state.settings,
        others=state.others,
        refused=tuple(_refused(state, refused.items())),
        refused_count=len(refused),
        compromised=tuple(_refused(state, compromised.items())),
        compromised_count=len(compromised),
        conflicts=tuple(map(_conflict, islice(conflicts.values(), LISTED_MAX))),
        conflicts_count=len(conflicts),
        problems=tuple(
            api.ServiceProblem(str(service), messages) for service, messages in islice(problems.items(), LISTED_MAX)
        ),
        problems_count=len(problems),
        invalid=tuple(
            api.InvalidObject(each.kind, each.name, each.reason, now.monotonic - each.seen_at, each.count)
            for each in state.invalid.newest(LISTED_MAX)
        ),
        invalid_count=len(state.invalid),
        config_errors=state.config_errors,
        revision=state.revision(),
        workers=tuple(_workers(state, now)),
        roles=tuple(state.roles()),
        latencies=tuple(state.latencies()),
        listeners=tuple(state.listeners.values()),
    )


def _sources(state: AgentState, now: Instant) -> Iterator[api.Source]:
    for source in state.sources():
        age = None if source.last_contact is None else now.monotonic - source.last_contact
        yield api.Source(
            source.kind, source.synced, source.server, age, source.resource_version, source.error, source.optional
        )


def _refused(state: AgentState, refused: Iterable[tuple[FrontendKey, str]]) -> Iterator[api.RefusedFrontend]:
    for key, reason in islice(refused, LISTED_MAX):
        frontend = state.table.frontends.get(key)
        owner = str(frontend.service_port.owner) if frontend is not None else ""
        yield api.RefusedFrontend(str(key), owner, reason)


def _conflict(conflict: Conflict) -> api.AddressConflict:
    winner = "" if conflict.winner is None else str(conflict.winner.owner)
    return api.AddressConflict(str(conflict.key), winner, tuple(str(loser.owner) for loser in conflict.losers))


def _workers(state: AgentState, now: Instant) -> Iterator[api.Worker]:
    newest = state.revision()
    for each in state.subscribers():
        age = None if each.acknowledged_at is None else now.monotonic - each.acknowledged_at
        yield api.Worker(each.name, each.revision, max(0, newest - each.revision), age)


def service_summary(state: AgentState, service: Service, now: Instant) -> api.ServiceSummary:
    """One Service as a line of a list."""
    spec = service.spec
    ready = total = 0
    for slice_ in state.store.slices_of(service.key).values():
        endpoints = slice_.endpoints or ()
        total += len(endpoints)
        ready += sum(endpoint.conditions.is_ready for endpoint in endpoints)
    return api.ServiceSummary(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        type=spec.type.value,
        cluster_ips=_cluster_ips(service),
        external=tuple(_external(service)),
        ports=tuple(map(_service_port, spec.ports or ())),
        age=_age(service.metadata.creation_timestamp, now),
        ready=ready,
        endpoints=total,
    )


def _cluster_ips(service: Service) -> tuple[str, ...]:
    if service.headless:
        return (CLUSTER_IP_NONE,)
    one = (service.spec.cluster_ip,) if service.spec.cluster_ip else ()
    return service.spec.cluster_ips or one


def _external(service: Service) -> Iterator[str]:
    if service.spec.external_name:
        yield service.spec.external_name
    yield from service.spec.external_ips or ()
    if service.status is not None and service.status.load_balancer is not None:
        for ingress in service.status.load_balancer.ingress or ():
            if ingress.ip:
                yield ingress.ip


def _service_port(port: ServicePort) -> str:
    node_port = f":{port.node_port}" if port.node_port else ""
    return f"{port.port}{node_port}/{port.protocol}"


def _age(created: str | None, now: Instant) -> float | None:
    """Seconds since an RFC 3339 time; None without one or with one that does not read as such."""
    if created is None:
        return None
    try:
        return max(0.0, now.wall - datetime.fromisoformat(created).timestamp())
    except ValueError:
        return None


def endpoints_summary(state: AgentState, service: NamespacedName) -> api.EndpointsSummary:
    """The endpoints of one Service as a line of a list."""
    count = sum(len(slice_.endpoints or ()) for slice_ in state.store.slices_of(service).values())
    return api.EndpointsSummary(service.namespace, service.name, endpoint_details(state, service), count)


def endpoint_details(state: AgentState, service: NamespacedName) -> tuple[api.EndpointDetail, ...]:
    """The endpoints of a Service, by slice, at most `ENDPOINTS_SHOWN`."""
    details: list[api.EndpointDetail] = []
    for _, slice_ in sorted(state.store.slices_of(service).items()):
        ports = tuple(map(_endpoint_port, slice_.ports or ()))
        room = ENDPOINTS_SHOWN - len(details)
        details += (_endpoint(slice_, ports, endpoint) for endpoint in (slice_.endpoints or ())[:room])
    return tuple(details)


def _endpoint(slice_: EndpointSlice, ports: tuple[str, ...], endpoint: Endpoint) -> api.EndpointDetail:
    conditions, hints = endpoint.conditions, endpoint.hints
    return api.EndpointDetail(
        address=endpoint.addresses[0] if endpoint.addresses else "",
        ports=ports,
        ready=conditions.is_ready,
        serving=conditions.is_serving,
        terminating=conditions.is_terminating,
        node=endpoint.node_name or "",
        zones=tuple(target.name for target in (hints.for_zones or ())) if hints is not None else (),
        pod=endpoint.target_ref.name if endpoint.target_ref is not None else "",
        slice=slice_.metadata.name,
    )


def _endpoint_port(port: EndpointPort) -> str:
    name = f"{port.name}:" if port.name else ""
    number = "*" if port.port is None else port.port
    return f"{name}{number}/{port.protocol or Protocol.TCP}"


def frontend_detail(state: AgentState, frontend: Frontend) -> api.FrontendDetail:
    """One frontend with the backends that new connections go to."""
    local = frontend.policy is TrafficPolicy.LOCAL
    backends = state.table.backends_of(frontend, Scope.LOCAL if local else Scope.CLUSTER)
    shown = sorted(backends)[:LISTED_MAX]
    return api.FrontendDetail(
        frontend=str(frontend.key),
        kind=frontend.kind.value,
        service=str(frontend.service_port.owner),
        port=frontend.service_port.port,
        policy=frontend.policy.value,
        backends=tuple(map(str, shown)),
        backends_count=len(backends),
        when_empty=frontend.when_local_empty.value if local else "reject",
        affinity_timeout=frontend.affinity_timeout,
        source_ranges=frontend.source_ranges,
        refused=state.refused().get(frontend.key, ""),
    )


def trace(traced: Trace) -> api.Trace:
    """A trace as the API spells it."""
    return msgspec.convert(traced, api.Trace, from_attributes=True)
