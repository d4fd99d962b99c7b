# SPDX-License-Identifier: Apache-2.0
"""The agent role: start-up order, readiness, drain and stop, written once.

1. the instance's directory and admin socket, so that probes and status work from the first moment
2. the saved state, where it may be served
3. the source, the node's addresses, the feed: everything gets warm
4. when what is known is complete: the node lock, or the predecessor's place (svcproxy.process.succession)
5. the data plane, and the listeners that answer as the node
"""

import asyncio
import gc
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import socket

import uvloop

from svcproxy import api
from svcproxy.admin.health import Instant
from svcproxy.admin.health_checks import HealthChecks
from svcproxy.admin.metrics import AgentMetrics
from svcproxy.admin.server import AdminServer
from svcproxy.admin.state import AgentState, Subscriber
from svcproxy.agent.modes import ask_kernel, choose_mode
from svcproxy.agent.nftables_plane import open_nftables
from svcproxy.agent.node import frontend_options, node_view
from svcproxy.agent.observer import AgentObserver, now
from svcproxy.agent.pipeline import Pipeline
from svcproxy.agent.planes import Plane, open_plane
from svcproxy.agent.source import ClusterSource, cluster_source, known_objects, manifest_source, named_kinds
from svcproxy.agent.surroundings import SurroundingsBuilder
from svcproxy.agent.tenancy import AgentTenant, Parts
from svcproxy.config import DataplaneMode, PodNames
from svcproxy.dataplane.nftables.plane import Ground
from svcproxy.dataplane.nftables.probes import Probes
from svcproxy.dataplane.nftables.script import script
from svcproxy.errors import StateError
from svcproxy.feed.codec import NAMES
from svcproxy.feed.frames import SourceState
from svcproxy.feed.publisher import Publisher
from svcproxy.feed.server import FeedServer
from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.decision import SourceKind, source_kind
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.serving import serving
from svcproxy.kube.source import Source
from svcproxy.model import Changes, NamespacedName, Node, Store, Touched
from svcproxy.names.builder import NameBuilder
from svcproxy.names.records import Record
from svcproxy.names.steady import SteadyNames
from svcproxy.options import Launch
from svcproxy.process import logs
from svcproxy.process.addresses import AddressFollower
from svcproxy.process.instance import GROUP_SOCKET_MODE
from svcproxy.process.role import Life, Place, live
from svcproxy.process.sockets import Peer, listen_unix
from svcproxy.process.state import SnapshotWriter, StateSnapshot, read_state
from svcproxy.process.succession import Succession
from svcproxy.process.supervision import read_status

log = logging.getLogger(__name__)

STATE_FILE = "state"
PRELOAD_PER_TURN = 64
"""Objects of the saved state taken in between two turns of the loop."""
HOUSEKEEPING_INTERVAL = 1.0
"""Seconds between two looks at things that have no event of their own."""
GC_THRESHOLDS = (50_000, 20, 50)
"""The collector's; most objects of ours hold no cycles and are not tracked at all."""


class Agent:
    """One instance of the role."""

    def __init__(self, life: Life, place: Place, mode: DataplaneMode, probes: Probes | None) -> None:
        """`mode`: not `auto`; `probes`: what the kernel can do, None if nobody has asked it."""
        config = life.config
        self._mode = mode
        self._probes = probes
        self._life = life
        self._run = place.run
        self._instance = place.instance
        self._addresses: frozenset[str] = frozenset()
        self._tenant: AgentTenant | None = None
        self._lists_seen: dict[str, int] = {}
        self._snapshot: StateSnapshot | None = None

        self._store = Store()
        options = frontend_options(config.dataplane)
        for warning in options.warnings:
            log.warning("check the configuration", extra={"cause": warning})
        self._frontends = FrontendBuilder(self._store, NodeView(config.node_name), options)
        self._surroundings = SurroundingsBuilder(config.dataplane, config.node_name, self._store)
        self._names = NameBuilder(
            self._store,
            pod_names=config.dns.pods is PodNames.VERIFIED,
            node_pods=config.node_name if config.dns.query_log.pods else "",
        )
        self._named_kinds = named_kinds(config)
        self._state = self._make_state()
        self._metrics = AgentMetrics(self._state)
        self._cluster = self._make_cluster_source() if config.kube.manifests is None else None
        self._source: Source = self._cluster or manifest_source(config)
        post_event = self._cluster.post_event if self._cluster is not None else None
        self._observer = AgentObserver(self._state, self._metrics, post_event)
        self._publisher: Publisher[Record] = Publisher(
            NAMES, uuid.uuid4().hex, self._names.records, self._observer.acknowledged
        )
        names = SteadyNames(self._store, self._names)
        self._pipeline = Pipeline(self._store, self._frontends, names, self._publisher.publish, self._observer)
        self._admin = AdminServer(self._state, self._metrics)
        self._checks = HealthChecks(self._dataplane_healthy, self._report_health_check)
        self._observer.on_programmed = self._checks.change
        self._writer = SnapshotWriter(
            Path(config.state_dir) / STATE_FILE, self._take_snapshot, config.state.write_interval
        )
        self._observer.on_derived = self._derived
        self._fill_state()

    # --- life

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or a configuration that needs a restart; returns the exit code."""
        self._life.end_on_signals()
        async with self._admin.serve_socket(self._instance.paths.admin_socket):
            await self._preload()
            async with asyncio.TaskGroup() as group:
                tasks = self._start(group)
                await self._life.ended()
                self._state.holds_node = False
                if self._tenant is not None:
                    await self._tenant.stop()
                await self._parts.end_earlier()
                for task in tasks:
                    task.cancel()
            await self._writer.close()
        return self._life.exit_code

    def _start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        self._parts = parts = Parts(
            config=lambda: self._life.config,
            pipeline=self._pipeline,
            admin=self._admin,
            checks=self._checks,
            open_plane=self._open_plane,
            group=group,
            plane_chosen=self._plane_chosen,
        )

        def make_tenant() -> AgentTenant:
            self._tenant = AgentTenant(parts)
            return self._tenant

        listener = listen_unix(self._instance.paths.feed_socket, GROUP_SOCKET_MODE)
        feed = FeedServer(self._publisher, self._may_subscribe)
        succession = Succession(self._run, self._instance, self._lock_changed)
        work = {
            "take in": self._pipeline.take_in(),
            "source": self._source.run(self._pipeline),
            "addresses": AddressFollower().run(self._addresses_changed),
            "feed": feed.run(listener),
            "state": self._writer.run() if self._cluster is not None else _nothing(),
            "config": self._life.follow_config(),
            "housekeeping": self._keep_house(),
            "succession": succession.run(self._pipeline.complete, make_tenant),
        }
        return [group.create_task(coroutine, name=name) for name, coroutine in work.items()]

    async def _preload(self) -> None:
        """Take in the saved state, in steps."""
        if self._snapshot is None:
            return
        for kind, objects in known_objects(self._snapshot).items():
            for start in range(0, len(objects), PRELOAD_PER_TURN):
                self._pipeline.preload(Changes(kind, objects[start : start + PRELOAD_PER_TURN]))
                await asyncio.sleep(0)
        self._state.snapshot = True
        self._pipeline.preloaded()
        log.info("serving the saved state", extra={"age_seconds": round(time.time() - self._snapshot.written_at)})

    # --- parts

    def _make_cluster_source(self) -> ClusterSource:
        config = self._life.config
        try:
            self._snapshot = read_state(Path(config.state_dir) / STATE_FILE, time.time(), config.state.max_age)
        except StateError as exc:
            log.info("starting without saved state", extra={"cause": str(exc)})
        return cluster_source(config, config.node_name, self._snapshot)

    def _make_state(self) -> AgentState:
        return AgentState(
            config=self._life.config,
            clock=now,
            started=now(),
            instance=self._instance.paths.name,
            node_name=self._life.config.node_name,
            store=self._store,
            table=self._frontends.table,
        )

    def _fill_state(self) -> None:
        self._life.changed = self._config_changed
        state = self._state
        state.sources = self._source.status
        state.conflicts = lambda: self._frontends.conflicts
        state.problems = lambda: self._frontends.problems
        state.no_local_endpoints = lambda: self._frontends.no_local_endpoints
        state.pod_cidrs = self._pod_cidrs
        state.ruleset = self._ruleset
        state.revision = lambda: self._publisher.revision
        state.subscribers = self._subscribers
        state.latencies = self._observer.latencies
        state.roles = self._roles
        state.probes = self._probes.results if self._probes is not None else ()
        if self._cluster is not None:
            state.silence_timeout = self._life.config.kube.silence_timeout
            state.node_required = True

    # --- what happens

    def _lock_changed(self, held: bool) -> None:
        self._state.holds_node = held
        log.info("this instance is the node's" if held else "another instance is the node's")

    def _plane_chosen(self, plane: Plane) -> None:
        dataplane = plane.dataplane
        self._state.dataplane_name = dataplane.name
        self._state.refused = lambda: dataplane.refused
        plane.show(self._state)

    def _addresses_changed(self, addresses: frozenset[str]) -> None:
        self._addresses = addresses.difference(
            self._life.config.dns.intercept
        )  # they are the DNS role's while it answers
        self._view_changed()

    def _view_changed(self) -> None:
        view = node_view(self._life.config.node_name, self._own_node(), self._addresses)
        if view != self._state.node:
            self._state.node = view
            self._pipeline.node_changed(view)

    def _own_node(self) -> Node | None:
        return self._store.nodes.get(NamespacedName("", self._life.config.node_name))

    def _pod_cidrs(self) -> tuple[str, ...]:
        return self._surroundings.derived.pod_cidrs

    def _source_kind(self, ip: str) -> SourceKind:
        return source_kind(ip, self._state.node or NodeView(self._life.config.node_name), self._pod_cidrs())

    def _ground(self) -> Ground:
        assert self._probes is not None, "whoever chose nftables has asked the kernel"
        derived, families = self._surroundings.derived, tuple(sorted(self._probes.families))
        return Ground(families, self._probes.flags, derived.surroundings, derived.hairpin_cidrs)

    async def _open_plane(self, inherited: Mapping[str, socket]) -> Plane:
        config = self._life.config
        return await open_plane(
            self._mode,
            config,
            self._source_kind,
            inherited,
            lambda: open_nftables(config, self._ground, partial(serving, self._store), self._state),
        )

    def _derived(self, touched: Touched) -> None:
        self._writer.changed()
        if self._tenant is not None:
            self._tenant.touched(touched)
        if not self._surroundings.update(touched):
            return
        derived = self._surroundings.derived
        for warning in derived.warnings:
            log.warning("check node and cluster", extra={"cause": warning})
        if self._tenant is not None:
            self._tenant.surrounded(derived)

    def _ruleset(self) -> Callable[[], str]:
        derived = self._surroundings.derived
        return partial(script, self._frontends.table.copy(), derived.surroundings, derived.hairpin_cidrs)

    def _dataplane_healthy(self) -> bool:
        return self._state.dataplane_health.all_healthy(time.monotonic())

    def _report_health_check(self, service: NamespacedName, message: str) -> None:
        log.warning("health-check node port is not served", extra={"service": str(service), "cause": message})
        self._observer.note("Service", service, "FailedToStartServiceHealthcheck", message)

    # --- feed

    def _may_subscribe(self, peer: Peer) -> bool:
        """Who can open the socket is of this user, of root, or of the group that the socket is for."""
        return peer.trusted or peer.gid == os.getegid()

    def _subscribers(self) -> list[Subscriber]:
        return [Subscriber(each.name, each.revision, each.acknowledged_at) for each in self._publisher.subscribers()]

    def _source_state(self, instant: Instant) -> SourceState:
        synced = self._observer.kinds_synced >= self._named_kinds
        stale = self._state.readiness(instant).stale
        since = self._snapshot.written_at if stale and not synced and self._snapshot is not None else 0.0
        if stale and synced:
            known = [each.last_contact for each in self._source.status() if not each.optional]
            contacts = [each for each in known if each is not None]
            since = instant.wall_at(min(contacts, default=instant.monotonic))
        return SourceState(synced=synced, stale=stale, since=since)

    # --- state on disk

    def _take_snapshot(self) -> StateSnapshot | None:
        if self._cluster is None or not self._observer.kinds_synced >= self._named_kinds:
            return None
        return StateSnapshot.of(self._store, self._cluster.versions().items(), self._cluster.endpoints(), time.time())

    # --- housekeeping

    async def _keep_house(self) -> None:
        frozen = False
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL)
            instant = now()
            self._view_changed()
            if self._observer.kinds_synced >= self._named_kinds:
                self._state.snapshot = False
            self._publisher.source_changed(self._source_state(instant))
            self._count_relists()
            if not frozen and self._state.programmed:
                frozen = True
                _freeze()

    def _count_relists(self) -> None:
        if self._cluster is None:
            return
        for kind, stats in self._cluster.stats.items():
            for _ in range(stats.lists - self._lists_seen.get(kind, 1)):
                self._metrics.observe_relist(kind)
            self._lists_seen[kind] = max(stats.lists, 1)

    def _roles(self) -> list[api.Role]:
        return [
            api.Role(each.name, each.state.value, each.pid, each.restarts, each.crash_loop, each.detail)
            for each in read_status(self._run.supervisor_status)
        ]

    def _config_changed(self) -> None:
        self._state.config = self._life.config
        self._state.config_errors = self._life.config_errors


async def _nothing() -> None:
    """The task of a part that is not there."""


def _freeze() -> None:
    """Everything that is there is there to stay: take it out of the collector's sight."""
    gc.collect()
    gc.freeze()


def main(launch: Launch) -> int:
    """Run the role; returns the exit code."""
    config = launch.load()
    logs.configure(config.log, "agent")
    probes = ask_kernel(config)
    mode = choose_mode(config, probes)
    gc.set_threshold(*GC_THRESHOLDS)
    with suppress(OSError):  # the writer of the state says what is wrong, and tries again
        Path(config.state_dir).mkdir(0o700, parents=True, exist_ok=True)

    async def role(place: Place) -> int:
        return await Agent(Life("agent", launch, config), place, mode, probes).run()

    return live(Path(config.run_dir), role, uvloop.new_event_loop)
