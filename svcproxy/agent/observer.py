# SPDX-License-Identifier: Apache-2.0
"""What the agent tells of itself: metrics, latencies, Kubernetes Events and what status shows."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from svcproxy import api
from svcproxy.admin.health import Instant
from svcproxy.admin.metrics import AgentMetrics
from svcproxy.admin.state import AgentState
from svcproxy.agent.latency import DATAPLANE, FRONTENDS, ChangeLog
from svcproxy.agent.latency import Trigger as NameTrigger
from svcproxy.agent.pipeline import Trigger
from svcproxy.feed.publisher import Acknowledged
from svcproxy.frontends.claims import Conflict
from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.table import FrontendDelta
from svcproxy.kube.notes import Note
from svcproxy.kube.source import InvalidObject
from svcproxy.model import EndpointSlice, NamespacedName, Service
from svcproxy.model.meta import Family, family_of
from svcproxy.model.store import Touched

log = logging.getLogger(__name__)

API_VERSIONS = {
    "Service": "v1",
    "Node": "v1",
    "Namespace": "v1",
    "Pod": "v1",
    "ServiceCIDR": "networking.k8s.io/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
}

_TIMED_ONCE_SYNCED = frozenset({Service, EndpointSlice})


def now() -> Instant:
    """This moment on both clocks."""
    return Instant(time.monotonic(), time.time())


class AgentObserver:
    """The pipeline's `Observer`."""

    def __init__(self, state: AgentState, metrics: AgentMetrics, post_event: Callable[[Note], object] | None) -> None:
        """`post_event` has a Kubernetes Event created; None where there is no cluster."""
        self._state = state
        self._metrics = metrics
        self._post_event = post_event
        self._started = time.time()
        self.changes = ChangeLog(self._observe_stage, metrics.observe_dns_programming)
        self.kinds_synced: set[type] = set()
        self.on_programmed: Callable[[FrontendDelta], None] = lambda _: None
        """Told of every delta that the data plane has acknowledged."""
        self.on_derived: Callable[[Touched], None] = lambda _: None
        """Told what has changed of what is known."""

    # --- pipeline

    def derived(self, touched: Touched, delta: FrontendDelta, revision: int | None, read_at: float) -> int:
        """See `Observer`."""
        instant = now()
        self.on_derived(touched)
        if self._state.holds_node and delta:
            families = families_of(delta)
            self._metrics.observe_queued(families, instant, services=len(touched.services), slices=len(touched.slices))
            self._state.dataplane_health.queued(families, instant.monotonic)
        if len(self._state.invalid):
            self._forget_mended(touched)
        if not self.kinds_synced >= _TIMED_ONCE_SYNCED:
            return self.changes.untimed()
        triggers = tuple(self._name_triggers(touched, instant)) if revision is not None else ()
        return self.changes.derived(
            read_at, instant.monotonic, programs=bool(delta), revision=revision, triggers=triggers
        )

    def programmed(
        self, delta: FrontendDelta, change: int, triggers: list[Trigger], seconds: float, full: bool
    ) -> None:
        """See `Observer`."""
        instant = now()
        families = tuple(Family) if full else families_of(delta)
        self._metrics.observe_sync(families, seconds, instant, full=full)
        self._metrics.set_pending(0, 0)
        self._state.dataplane_health.programmed(tuple(Family) if full else families, instant)
        self._state.programmed = True
        self.changes.programmed(change, instant.monotonic)
        for trigger in triggers:
            if (at := _wall_clock(trigger.time)) is not None and at >= self._started:
                self._metrics.observe_network_programming(trigger.family, instant.wall - at)
        self.on_programmed(delta)

    def refused(self, key: FrontendKey, reason: str) -> None:
        """See `Observer`."""
        log.warning("frontend is not served", extra={"frontend": str(key), "cause": reason})

    def conflict(self, conflict: Conflict) -> None:
        """See `Observer`."""
        for loser in conflict.losers:
            log.warning(
                "address is claimed by another Service",
                extra={"frontend": str(conflict.key), "winner": str(conflict.winner), "loser": str(loser)},
            )
            message = f"{conflict.key} is served for {conflict.winner}, whose claim is older; {loser} goes without it"
            self.note("Service", loser.owner, "AddressConflict", message)

    def invalid(self, report: InvalidObject) -> None:
        """See `Observer`."""
        log.warning("object left out", extra={"kind": report.kind, "object": report.name, "cause": report.reason})
        self._metrics.observe_decode_failure(report.kind)
        self._state.invalid.report(report.kind, report.name, report.reason, time.monotonic())
        namespace, _, name = report.name.rpartition("/")
        if name:
            message = f"left out, the last good version stays in force: {report.reason}"
            self.note(report.kind, NamespacedName(namespace, name), "InvalidObject", message)

    def synced(self, kind: type) -> None:
        """See `Observer`."""
        self.kinds_synced.add(kind)
        log.info("synced", extra={"kind": kind.__name__})

    def lost(self, cause: str) -> None:
        """See `Observer`."""
        del cause  # the pipeline has logged it
        self._metrics.observe_dataplane_lost()

    def repaired(self, delta: FrontendDelta) -> None:
        """See `Observer`."""
        repairs = len(delta.frontends) + len(delta.removed) + len(delta.backends)
        self._metrics.observe_repairs(repairs)
        log.warning("data plane repaired", extra={"repairs": repairs})

    # --- others

    def acknowledged(self, ack: Acknowledged) -> None:
        """A worker has put revisions in force."""
        self.changes.acknowledged(ack.subscriber, ack.after, ack.revision, ack.at)

    def note(self, kind: str, key: NamespacedName, reason: str, message: str) -> None:
        """Tell the owner of an object by a Kubernetes Event, if this instance speaks for the node."""
        if self._post_event is None or not self._state.holds_node or kind not in API_VERSIONS:
            return
        held = self._state.store.services.get(key) if kind == Service.__name__ else None
        uid = held.metadata.uid if held is not None else ""
        self._post_event(Note(API_VERSIONS[kind], kind, key.namespace, key.name, uid, reason, message))

    def latencies(self) -> list[api.Latency]:
        """For status: by stage, in the order in which a change passes them."""
        return [
            api.Latency(stage, quantiles.count, quantiles.p50, quantiles.p99, quantiles.last)
            for stage, quantiles in self.changes.summaries().items()
        ]

    def _name_triggers(self, touched: Touched, instant: Instant) -> Iterator[NameTrigger]:
        """The new triggers of slices, as CoreDNS counts them: with its kinds, and of Services that are known alone."""
        for change in touched.slices:
            trigger = _trigger_of(change.new)
            if not trigger or trigger == _trigger_of(change.old):
                continue
            service = self._state.store.services.get(change.service)
            at = _wall_clock(trigger)
            if service is not None and at is not None and at >= self._started:
                kind = "headless_with_selector" if service.headless else "cluster_ip"
                yield kind, instant.monotonic - (instant.wall - at)

    def _forget_mended(self, touched: Touched) -> None:
        for _, service in touched.services:
            if service is not None:
                self._state.invalid.resolved("Service", str(service.key))
        for change in touched.slices:
            self._state.invalid.resolved("EndpointSlice", f"{change.service.namespace}/{change.name}")

    def _observe_stage(self, stage: str, seconds: float) -> None:
        if stage == FRONTENDS:
            self._metrics.observe_frontends(seconds)
        elif stage == DATAPLANE:
            self._metrics.observe_dataplane(seconds)
        else:
            self._metrics.observe_ack(stage.removeprefix("ack "), seconds)


def families_of(delta: FrontendDelta) -> tuple[Family, ...]:
    """The families that a delta touches."""
    touched: set[Family] = set()
    keys: Iterable[FrontendKey] = (*(frontend.key for frontend in delta.frontends), *delta.removed)
    touched.update(key.family for key in keys)
    touched.update(change.key.family for change in delta.backends)
    touched.update(family_of(ip) for ip in delta.node_port_addresses or ())
    return tuple(sorted(touched))


def _trigger_of(held: EndpointSlice | None) -> str:
    """When the change happened that led to a slice, empty if it does not say."""
    annotations = held.metadata.annotations if held is not None else None
    return (annotations.trigger_time if annotations is not None else None) or ""


def _wall_clock(text: str) -> float | None:
    """Unix seconds of an RFC 3339 time; None if it is none."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except ValueError:
        return None
