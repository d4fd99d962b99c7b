# SPDX-License-Identifier: Apache-2.0
"""The agent as health, metrics and the status API see it: one object that the agent fills and they only read.

Big things (the store, the frontend table) are references, never copies: readers walk them in small steps on the same
event loop. What belongs to sibling packages comes in through small callables, so that nothing here knows them.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from svcproxy import __version__
from svcproxy.admin.health import (
    DataplaneHealth,
    Instant,
    KindFreshness,
    Progress,
    node_eligible,
    readiness,
)
from svcproxy.api import Foreign, KernelView, Latency, Listener, Probe, Readiness, Role, Setting, Trace
from svcproxy.config import Config
from svcproxy.frontends.builder import PolicyKind
from svcproxy.frontends.claims import Conflict
from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.table import FrontendTable
from svcproxy.model import NamespacedName, Store
from svcproxy.model.meta import Family
from svcproxy.model.meta import Protocol as Transport

INVALID_KEPT = 256
"""Invalid objects remembered; the longest unseen one makes room."""

Clock = Callable[[], Instant]
"""Reads both clocks."""


class SourceStatus(Protocol):
    """How well a source follows one kind."""

    @property
    def kind(self) -> str:
        """`Service`, `EndpointSlice`, …"""
        ...

    @property
    def synced(self) -> bool:
        """Whether a complete list has been delivered since start."""
        ...

    @property
    def server(self) -> str:
        """URL of the API server in use, or path of the manifests."""
        ...

    @property
    def last_contact(self) -> float | None:
        """Monotonic seconds of the last octet received, None before the first."""
        ...

    @property
    def resource_version(self) -> str:
        """The version that is known."""
        ...

    @property
    def error(self) -> str:
        """Why the kind is not being followed right now; empty while it is."""
        ...

    @property
    def optional(self) -> bool:
        """Whether everything works without the kind."""
        ...


@dataclass(frozen=True, slots=True)
class ConntrackState:
    """The kernel's connection tracking, and the removal of stale flows from it."""

    entries: int
    maximum: int
    insert_failed: int
    """Since boot, as the next two: packets whose connection lost a race for its tuple."""
    dropped: int
    """Packets for which there was no room."""
    early_dropped: int
    """Connections that made room."""
    passes: int
    """Examinations of flows, since the start, as the rest."""
    pass_seconds: float
    failures: int
    deleted: Mapping[Family, int]


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A worker that follows the feed."""

    name: str
    revision: int
    """The newest that it has acknowledged."""
    acknowledged_at: float | None
    """Monotonic seconds; None before its first acknowledgement."""


@dataclass(frozen=True, slots=True)
class SeenInvalid:
    """An object that was left out, and how often."""

    kind: str
    name: str
    reason: str
    seen_at: float
    count: int


class InvalidObjects:
    """The objects that are left out, the newest last. Bounded; `count` is the number of all reports."""

    def __init__(self, kept: int = INVALID_KEPT) -> None:
        self._kept = kept
        self._seen: dict[tuple[str, str], SeenInvalid] = {}
        self.count = 0

    def report(self, kind: str, name: str, reason: str, now: float) -> None:
        """An object was left out. `now`: monotonic seconds."""
        self.count += 1
        earlier = self._seen.pop((kind, name), None)
        if earlier is None and len(self._seen) >= self._kept:
            del self._seen[next(iter(self._seen))]
        self._seen[kind, name] = SeenInvalid(kind, name, reason, now, 1 + (earlier.count if earlier else 0))

    def resolved(self, kind: str, name: str) -> None:
        """The object is good again, or gone."""
        self._seen.pop((kind, name), None)

    def newest(self, limit: int) -> list[SeenInvalid]:
        """The newest first."""
        return list(self._seen.values())[: -limit - 1 : -1]

    def __len__(self) -> int:
        return len(self._seen)


def _nothing() -> tuple[()]:
    return ()


def _no_mapping() -> Mapping[Any, Any]:
    return {}


def _no_ruleset() -> Callable[[], str]:
    return str


def _revision_zero() -> int:
    return 0


@dataclass(slots=True, kw_only=True)
class AgentState:
    """Everything that health, metrics and status are made of. The agent alone writes it."""

    config: Config
    clock: Clock
    started: Instant
    instance: str
    """Name of the instance's run directory."""
    node_name: str
    store: Store
    table: FrontendTable
    version: str = __version__
    pid: int = field(default_factory=os.getpid)
    dataplane_health: DataplaneHealth = field(default_factory=DataplaneHealth)
    invalid: InvalidObjects = field(default_factory=InvalidObjects)
    node: NodeView | None = None
    """None until the node's own addresses are known."""

    holds_node: bool = False
    blocked: str = ""
    """Why this instance cannot serve though it is its turn; empty if nothing is in its way."""
    programmed: bool = False
    """Everything known has been put in force completely at least once."""
    snapshot: bool = False
    """A saved snapshot is being served; false again once the lists have replaced it."""
    silence_timeout: float = float("inf")
    """Seconds without a sign of life after which a source counts as out of date; files have none to give."""
    node_required: bool = False
    """The source knows Nodes: once synced, a missing Node object means that the node is going away."""

    sources: Callable[[], Sequence[SourceStatus]] = _nothing
    dataplane_name: str = "none"
    refused: Callable[[], Mapping[FrontendKey, str]] = _no_mapping
    compromised: Callable[[], Mapping[FrontendKey, str]] = _no_mapping
    """Frontends in force otherwise than asked for, and how."""
    connections: Callable[[], Awaitable[Mapping[FrontendKey, int]]] | None = None
    """New connections by frontend; None where nobody counts them."""
    conntrack: Callable[[], Awaitable[ConntrackState | None]] | None = None
    """How connection tracking does; None without a data plane in the kernel."""
    probes: tuple[Probe, ...] = ()
    settings: tuple[Setting, ...] = ()
    others: tuple[Foreign, ...] = ()
    inspect: Callable[[str, Transport, int, Trace], Awaitable[KernelView | None]] | None = None
    """What the kernel holds for a traced connection to a canonical address; None without a data plane there."""
    programming: Callable[[], Mapping[str, int]] = _no_mapping
    """What programming the kernel took, by the names of `svcproxy.admin.metrics.PROGRAMMING`; none elsewhere."""
    conflicts: Callable[[], Mapping[FrontendKey, Conflict]] = _no_mapping
    """As the frontend builder has them; so the next."""
    problems: Callable[[], Mapping[NamespacedName, tuple[str, ...]]] = _no_mapping
    no_local_endpoints: Callable[[], Mapping[tuple[Family, PolicyKind], int]] = _no_mapping
    pod_cidrs: Callable[[], Sequence[str]] = _nothing
    """Sources that are pods, as the data plane takes them."""
    ruleset: Callable[[], Callable[[], str]] = _no_ruleset
    """Takes a copy of what the nftables script is made of; what it returns makes the script of it, in any thread."""
    revision: Callable[[], int] = _revision_zero
    """The feed's newest."""
    subscribers: Callable[[], Sequence[Subscriber]] = _nothing
    latencies: Callable[[], Sequence[Latency]] = _nothing
    """Summaries by stage, in the order in which a change passes them."""
    roles: Callable[[], Sequence[Role]] = _nothing
    """What the supervisor says of its processes; none where there is no supervisor."""
    config_errors: tuple[str, ...] = ()
    """Why the newest configuration is not in force."""
    listeners: dict[str, Listener] = field(default_factory=dict)
    """The HTTP listeners, by name; written by those who run them."""

    def readiness(self, now: Instant) -> Readiness:
        """Whether this instance serves, and whether fresh data."""
        kinds = [
            KindFreshness(
                source.kind,
                source.synced,
                None if source.last_contact is None else now.monotonic - source.last_contact,
                source.error,
            )
            for source in self.sources()
            if not source.optional
        ]
        return readiness(
            Progress(self.holds_node, self.programmed, self.snapshot, kinds, self.silence_timeout, self.blocked)
        )

    def node_eligible(self) -> bool:
        """Whether load balancers should use this node."""
        node = self.store.nodes.get(NamespacedName("", self.node_name))
        required = self.node_required and any(each.kind == "Node" and each.synced for each in self.sources())
        return node_eligible(node, required=required)
