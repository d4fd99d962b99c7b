# SPDX-License-Identifier: Apache-2.0
"""What the health endpoints answer. Pure; every time is an argument.

Three questions, kept apart:

- `/livez`: does the data plane keep up? Not: a change has been waiting for `PROGRAMMING_TIMEOUT` or longer.
- `/healthz`: should load balancers send traffic to this node? As `/livez`, and the Node is not going away.
- `/readyz`: does this instance serve? Not before everything has been programmed once, and never while another instance
  holds the node. Serving old data is serving: it is marked `stale` and stays ready, since a node that knows yesterday's
  endpoints does more good than one that is taken out.

`/livez` and `/healthz` answer as kube-proxy does (pkg/proxy/healthcheck/proxy_health.go, v1.34 and later): they are 200
between start and the first programming, and while the API server is away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from svcproxy.api import Readiness
from svcproxy.model import Node
from svcproxy.model.meta import Family

PROGRAMMING_TIMEOUT = 60.0
"""A change that waits this long makes the data plane stale: kube-proxy's 2 × syncPeriod at its default."""

DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"
"""The cluster autoscaler is about to remove the Node."""

_NEVER = "0001-01-01T00:00:00Z"
"""How Go, and so every consumer of the body, spells "no time"."""


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on both clocks: `monotonic` to measure with, `wall` (Unix seconds) to show."""

    monotonic: float
    wall: float

    def rfc3339(self) -> str:
        """The moment for people and JSON."""
        return rfc3339(self.wall)

    def wall_at(self, monotonic: float) -> float:
        """Unix seconds of another moment, whole ones: the clocks are read one after the other, so that finer ones would
        not be the same whenever they are asked for."""
        return float(round(self.wall - (self.monotonic - monotonic)))


def rfc3339(wall: float) -> str:
    """Unix seconds as RFC 3339 in UTC."""
    return datetime.fromtimestamp(wall, UTC).isoformat().replace("+00:00", "Z")


@dataclass(slots=True)
class DataplaneHealth:
    """Whether changes reach the data plane in time, for each family."""

    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)
    _queued: dict[Family, float] = field(default_factory=dict)
    _updated: dict[Family, Instant] = field(default_factory=dict)

    def queued(self, families: Sequence[Family], now: float) -> None:
        """A change of these families is waiting; the oldest one counts."""
        for family in families:
            self._queued.setdefault(family, now)

    def programmed(self, families: Sequence[Family], now: Instant) -> None:
        """Everything that waited for these families is in force."""
        for family in families:
            self._queued.pop(family, None)
            self._updated[family] = now

    def healthy(self, family: Family, now: float) -> bool:
        """Whether no change of the family has waited too long."""
        queued = self._queued.get(family)
        return queued is None or now - queued < PROGRAMMING_TIMEOUT

    def all_healthy(self, now: float) -> bool:
        """Whether that holds for every family."""
        return all(self.healthy(family, now) for family in self.families)

    def last_updated(self, family: Family | None = None) -> Instant | None:
        """When the family, or any, was last programmed."""
        updated = [self._updated[each] for each in ([family] if family else self.families) if each in self._updated]
        return max(updated, key=lambda instant: instant.monotonic, default=None)


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    """An HTTP status and a JSON body."""

    status: int
    body: Mapping[str, Any]


def livez(dataplane: DataplaneHealth, now: Instant) -> HealthAnswer:
    """The answer of `/livez`."""
    healthy = dataplane.all_healthy(now.monotonic)
    return HealthAnswer(200 if healthy else 503, _body(dataplane, now, answered_ok=healthy))


def healthz(dataplane: DataplaneHealth, now: Instant, *, eligible: bool) -> HealthAnswer:
    """The answer of `/healthz`. `healthy` in the body is the data plane's alone."""
    ok = dataplane.all_healthy(now.monotonic) and eligible
    return HealthAnswer(200 if ok else 503, {**_body(dataplane, now, answered_ok=ok), "nodeEligible": eligible})


def _body(dataplane: DataplaneHealth, now: Instant, *, answered_ok: bool) -> dict[str, Any]:
    """kube-proxy's body. An answer of 200 is as good as an update, so it shows the current time as the last one."""
    return {
        "lastUpdated": now.rfc3339() if answered_ok else _shown(dataplane.last_updated()),
        "currentTime": now.rfc3339(),
        "healthy": dataplane.all_healthy(now.monotonic),
        "status": {
            family.label: {
                "lastUpdated": _shown(dataplane.last_updated(family)),
                "healthy": dataplane.healthy(family, now.monotonic),
            }
            for family in dataplane.families
        },
    }


def _shown(instant: Instant | None) -> str:
    return _NEVER if instant is None else instant.rfc3339()


def node_eligible(node: Node | None, *, required: bool) -> bool:
    """Whether load balancers should use the node. `required`: its Node object has been listed, so absence tells."""
    if node is None:
        return not required
    taints = node.spec.taints or ()
    return node.metadata.deletion_timestamp is None and all(taint.key != DELETION_TAINT for taint in taints)


@dataclass(frozen=True, slots=True)
class KindFreshness:
    """How fresh one followed kind is."""

    kind: str
    synced: bool
    contact_age: float | None
    """Seconds since the source last said anything about it; None: never, or the source has no such notion."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """What readiness is decided on."""

    holds_node: bool
    programmed: bool
    """Everything known has been put in force completely at least once."""
    snapshot: bool
    """A saved snapshot is being served for kinds that are not synced."""
    kinds: Sequence[KindFreshness]
    silence_timeout: float
    """Seconds without a sign of life after which a kind counts as out of date."""
    blocked: str = ""
    """What is in the way of serving; empty if nothing is."""


def readiness(progress: Progress) -> Readiness:
    """The answer of `/readyz`; ready is 200."""
    missing = [kind.kind for kind in progress.kinds if not kind.synced]
    could_serve = progress.snapshot or not missing
    reasons = []
    if progress.blocked:
        reasons.append(progress.blocked)
    elif not progress.holds_node and could_serve:
        reasons.append("waiting for the node: another instance holds it")
    if missing:
        served = "; a saved snapshot is served" if progress.snapshot else ""
        reasons.append(f"not synced: {', '.join(missing)}{served}")
    if not progress.programmed:
        reasons.append("nothing has been programmed completely yet")
    silent = [
        f"{kind.kind}: no contact for {kind.contact_age:.0f} s" + (f" ({kind.error})" if kind.error else "")
        for kind in progress.kinds
        if kind.contact_age is not None and kind.contact_age > progress.silence_timeout
    ]
    reasons += silent
    return Readiness(
        ready=progress.holds_node and progress.programmed and could_serve,
        stale=bool(silent) or bool(missing and progress.snapshot),
        waiting=not progress.holds_node and not progress.blocked and could_serve,
        reasons=tuple(reasons),
    )
