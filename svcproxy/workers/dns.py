# SPDX-License-Identifier: Apache-2.0
"""The DNS role put together: the agent's feed goes into a zone, queries are answered on sockets.

A worker process has a run directory of its own, `<run_dir>/dns-<number>`, with its instances, its lock and its sockets,
so that it neither depends on an agent being there nor goes when one goes. It answers the last state it knows while no
agent runs; before it has ever known one, what it cannot know is SERVFAIL.
"""

import asyncio
import errno
import gc
import hashlib
import logging
import os
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, socket
from typing import Any

import msgspec
import uvloop

from svcproxy import api, syntax
from svcproxy.admin.worker import WorkerAnswers, WorkerServer
from svcproxy.config import Config
from svcproxy.errors import ConfigError, Problem
from svcproxy.feed.client import FeedClient
from svcproxy.feed.codec import NAMES
from svcproxy.feed.subscriber import FeedState, Phase, Subscriber
from svcproxy.names.records import Record
from svcproxy.options import Launch
from svcproxy.process import logs
from svcproxy.process.descriptor_store import DescriptorStore
from svcproxy.process.instance import RunDirectory, worker_directory
from svcproxy.process.role import RESTART_WANTED, Life, Place, live
from svcproxy.process.succession import Succession
from svcproxy.process.supervision import WORKER_VARIABLE
from svcproxy.workers.dns_metrics import DnsMetrics, RoleStatistics
from svcproxy.workers.dns_query_log import QueryLogOutput
from svcproxy.workers.dns_status import DnsStatusApi, Surroundings
from svcproxy.workers.interception import InterceptionCollector, Prover, Standing
from svcproxy_dns.listeners import bind_listeners, receive_room
from svcproxy_dns.resolv_conf import ResolvConf
from svcproxy_dns.self_check import SelfCheck
from svcproxy_dns.worker import DnsWorker

log = logging.getLogger(__name__)

WARM_TIMEOUT = 10.0
"""Seconds to wait for the feed before serving all the same: SERVFAIL tells resolvers more than silence."""
RESUME_TIMEOUT = 4.0
"""The same where clients wait in sockets of an earlier process and no agent answers: resolvers give up after 5."""
RESTART_DRAIN_TIMEOUT = 1.0
"""Seconds for what has been asked to be answered before a restart; who asks meanwhile waits for the next process."""
BIND_PATIENCE = 5.0
"""Seconds to wait for an address that is in use."""
BIND_RETRY = 0.02
"""Seconds between two attempts at it."""
OWN_KEYS = frozenset({"dns", "log", "run_dir", "shutdown_timeout"})
"""Top-level keys that concern the role."""


class DnsTenant:
    """One turn as the node's DNS. See `svcproxy.process.succession.Tenant`."""

    def __init__(self, config: Config, worker: DnsWorker, group: asyncio.TaskGroup) -> None:
        self._config = config
        self._worker = worker
        self._group = group

    async def start(self, inherited: Mapping[str, socket]) -> None:
        """Answer on the predecessor's sockets where they are the configured ones, else on new ones."""
        sound = {name: each for name, each in inherited.items() if name == socket_name(each)}
        wanted = set(self._config.dns.sockets)
        complete = {address for address in wanted if {f"udp/{address}", f"tcp/{address}"} <= sound.keys()}
        sockets = []
        for name, each in inherited.items():
            if name in sound and name.partition("/")[2] in complete:
                sockets.append(each)
            else:
                each.close()
        if missing := wanted - complete:
            sockets += await self._bind(sorted(missing))
        await self._worker.start(sockets)
        log.info(
            "answering",
            extra={
                "listen": ", ".join(sorted(map(socket_name, sockets))),
                "inherited": 2 * len(complete),
                "receive_octets": min((receive_room(each) for each in sockets if each.type == SOCK_DGRAM), default=0),
            },
        )

    async def _bind(self, listen: list[str]) -> list[socket]:
        """Sockets on addresses; one that is in use is tried again for `BIND_PATIENCE`.

        The kernel lets go of a dead holder's lock before it has closed all of its sockets. Raises `OSError`.
        """
        deadline = asyncio.get_running_loop().time() + BIND_PATIENCE
        while True:
            try:
                dns = self._config.dns
                return bind_listeners(listen, shared=dns.workers > 1, absent=dns.intercept)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(BIND_RETRY)

    def sockets(self) -> Mapping[str, socket]:
        """By protocol and address."""
        return {socket_name(each): each for each in self._worker.sockets()}

    def keep(self) -> None:
        """They were never given up."""

    def release(self) -> None:
        """Leave the sockets to the successor; TCP clients may finish."""
        self._worker.release()
        self._group.create_task(self._worker.drain(self._config.shutdown_timeout), name="clients of an earlier turn")


def socket_name(each: socket) -> str:
    """`udp/127.0.0.1:53`, as it was configured; empty for what DNS is not served on."""
    if each.family not in {AF_INET, AF_INET6}:
        return ""
    address = syntax.join_address(*each.getsockname()[:2])
    return f"{'udp' if each.type == SOCK_DGRAM else 'tcp'}/{address}"


class DnsRole:
    """One worker process."""

    def __init__(self, life: Life, place: Place, number: int, store: DescriptorStore | None) -> None:
        """`number`: of this worker, from 0."""
        self._number = number
        config, run = life.config, place.run
        self._life = life
        self._store = store
        self._run = run
        self._instance = place.instance
        self._serves = False
        self._succeeded = False
        """Whether another instance has taken over from this one."""
        self._warm = asyncio.Event()
        self._worker = DnsWorker(config.dns)
        self._prover = Prover(config.dns, os.environ, self._standing, self._lasting_sockets)
        intercepted = InterceptionCollector(config.dns.intercept, lambda: self._prover.local)
        self._metrics = DnsMetrics(
            self._worker.statistics,
            lambda: self._feed.state.stale,
            config.dns,
            [intercepted],
            self._statistics,
        )
        self._query_log = QueryLogOutput(self._worker)
        self._self_check = SelfCheck(config.dns.cluster_domain, self._lasting_sockets)
        about = Surroundings(
            name=run.path.name,
            instance=place.instance.paths.name,
            config=lambda: self._life.config.dns,
            readiness=self._readyz,
            feed=lambda: self._feed.state,
            feed_error=lambda: self._feed.error,
            listen=lambda: [socket_name(each) for each in self._worker.sockets() if each.fileno() >= 0],
            config_errors=lambda: self._life.config_errors,
        )
        status = DnsStatusApi(self._worker, about)
        self._doors = WorkerServer(
            WorkerAnswers(self._livez, self._readyz, self._metrics.render, self._laggards, status.routes())
        )
        self._leaves = asyncio.Event()
        """Set when there is nobody left to answer for, or no time."""
        self._configs_refused = 0
        life.changed = self._config_changed
        life.hurried = self._leaves.set
        name = run.path.name
        subscriber: Subscriber[Record] = Subscriber(NAMES, self._worker.sink, name, os.getpid())
        self._feed = FeedClient(self._feed_path, subscriber, self._feed_changed)

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or a configuration that needs a restart; returns the exit code."""
        self._life.end_on_signals()
        self._query_log.use(self._life.config)
        path = self._instance.paths.admin_socket
        async with self._doors.serve_socket(path), asyncio.TaskGroup() as group:
            succession = Succession(self._run, self._instance, self._lock_changed, self._store)
            resumed = succession.resume()
            work: dict[str, Coroutine[Any, Any, None]] = {
                "feed": self._feed.run(),
                "config": self._life.follow_config(),
                "interception": self._prover.run(),
                "self-check": self._self_check.run(),
                "succession": succession.run(self._warm, lambda: DnsTenant(self._life.config, self._worker, group)),
            }
            work |= self._upstreams() | self._listener()
            tasks = [group.create_task(coroutine, name=name) for name, coroutine in work.items()]
            loop = asyncio.get_running_loop()
            patience = [loop.call_later(WARM_TIMEOUT, self._serve_unwarmed)]
            if resumed:
                patience.append(loop.call_later(RESUME_TIMEOUT, self._serve_alone))
            await self._life.ended()
            for timer in patience:
                timer.cancel()
            await self._lame_duck()
            self._serves = False
            await self._worker.drain(self._drain_timeout(succession))
            for task in tasks:
                task.cancel()
        self._query_log.close()
        self._worker.close()
        return self._life.exit_code

    def _lasting_sockets(self) -> list[socket]:
        """Those of addresses that are here all the time: what is sent to an intercepted one may go to somebody else."""
        intercepted = self._life.config.dns.intercept
        served = [each for each in self._worker.sockets() if each.fileno() >= 0]
        return [each for each in served if each.getsockname()[0] not in intercepted]

    async def _lame_duck(self) -> None:
        """Answer on, no longer ready, for those who have not heard of it yet; not if the role begins anew at once."""
        if not self._serves or self._life.exit_code:
            return
        seconds = self._life.config.dns.lameduck
        log.info("answering on", extra={"seconds": seconds})
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaves.wait()

    def _listener(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The TCP listener for health and metrics: each worker has its own port."""
        address = self._life.config.dns.metrics_address(self._number)
        return {"metrics listener": self._doors.serve_tcp(address)} if address is not None else {}

    def _drain_timeout(self, succession: Succession) -> float:
        """Seconds for clients to get what they have asked for, now that the process ends."""
        timeout = self._life.config.shutdown_timeout
        if self._store is not None and self._life.exit_code == RESTART_WANTED:
            return min(timeout, RESTART_DRAIN_TIMEOUT)
        succession.retire()
        return timeout

    # --- upstreams

    def _upstreams(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Use the upstreams configured; what there is to do to follow those of a file."""
        dns = self._life.config.dns
        if dns.upstreams or dns.resolv_conf is None:
            self._worker.use_upstreams(dns.upstreams or None)
            return {}
        followed = ResolvConf(dns.resolv_conf, self._worker.use_upstreams)
        self._worker.use_upstreams(())
        return {"resolv.conf": followed.follow()}

    # --- feed

    def _feed_path(self) -> Path:
        active = RunDirectory(Path(self._life.config.run_dir)).active()
        if active is None:
            raise FileNotFoundError(f"no agent in {self._life.config.run_dir}")
        return active.feed_socket

    def _feed_changed(self, state: FeedState) -> None:
        if state.complete and not self._warm.is_set():
            self._warm.set()
            gc.freeze()  # nothing of the zone is garbage, and to look for some costs 8 ms at 100,000 endpoints
            gc.enable()
        log.info("feed", extra={"phase": state.phase.value, "complete": state.complete, "stale": state.stale})

    def _serve_unwarmed(self) -> None:
        self._warm.set()
        gc.enable()

    def _serve_alone(self) -> None:
        if self._feed.state.phase in {Phase.OFFLINE, Phase.GREETING}:
            self._serve_unwarmed()

    def _lock_changed(self, held: bool) -> None:
        self._serves = held
        self._doors.want_tcp(held)
        if held:
            self._leaves.clear()
        else:
            self._leaves.set()
        self._succeeded = not held
        self._prover.standing_changed()
        log.info("this instance is the node's" if held else "another instance is the node's")

    def _standing(self) -> Standing:
        if self._serves:
            answers = self._feed.state.complete and not self._life.stopping.is_set()
            return Standing(answers=answers, stands_by=False)
        active = self._run.active()
        another = active is not None and active.name != self._instance.paths.name
        return Standing(answers=False, stands_by=self._succeeded or another)

    # --- probes

    def _livez(self) -> api.Readiness:
        return api.Readiness(ready=True, stale=False, waiting=not self._serves)

    def _readyz(self) -> api.Readiness:
        state = self._feed.state
        stopping = self._life.stopping.is_set()
        reasons = []
        if stopping:
            reasons.append("this instance is about to end")
        elif not self._serves:
            reasons.append("another instance serves, or nothing is known yet")
        if not state.complete:
            reasons.append(f"no complete set of names yet{f' ({self._feed.error})' if self._feed.error else ''}")
        elif state.stale:
            reasons.append("what is served may be out of date")
        if self._serves:
            reasons += self._prover.reasons()
        return api.Readiness(
            ready=self._serves and state.complete and not stopping,
            stale=state.complete and state.stale,
            waiting=not self._serves,
            reasons=tuple(reasons),
        )

    def _laggards(self) -> str:
        """What is not ready, in the words of CoreDNS' `/ready`."""
        if self._life.stopping.is_set():
            return "lameduck"
        return "" if self._readyz().ready else "kubernetes"

    # --- numbers

    def _statistics(self) -> RoleStatistics:
        return RoleStatistics(
            plugins=tuple(self._plugins()),
            checks=self._self_check.times,
            check_failures=self._self_check.failures,
            config_hash=hashlib.sha512(msgspec.json.encode(self._life.config)).hexdigest(),
            config_refused=self._configs_refused,
            query_log=self._query_log.statistics(),
        )

    def _plugins(self) -> Iterator[tuple[str, str]]:
        """CoreDNS' names of what is at work, by zone."""
        dns = self._life.config.dns
        for zone in dns.zones:
            if not syntax.is_reverse(zone):
                yield f"{zone}.", "kubernetes"
        for name, at_work in (
            ("cache", self._worker.forwards),
            ("forward", self._worker.forwards),
            ("health", dns.metrics_listen is not None),
            ("loadbalance", True),
            ("log", bool(dns.query_log.classes)),
            ("loop", self._worker.forwards),
            ("prometheus", dns.metrics_listen is not None),
            ("ready", dns.metrics_listen is not None),
            ("reload", self._life.follows),
        ):
            if at_work:
                yield ".", name

    def _config_changed(self) -> None:
        if self._life.config_errors:
            self._configs_refused += 1
        self._query_log.use(self._life.config)


def main(launch: Launch) -> int:
    """Run one worker process of the role; returns the exit code."""
    config = launch.load()
    logs.configure(config.log, "dns")
    number = os.environ.get(WORKER_VARIABLE, "0")
    if not number.isascii() or not number.isdigit():
        raise ConfigError([Problem(f"not a number: {number!r}", path=WORKER_VARIABLE)])
    store = DescriptorStore.inherited()
    gc.disable()  # until the first snapshot is in: a collection meanwhile costs 10 ms

    async def role(place: Place) -> int:
        return await DnsRole(Life("dns", launch, config, OWN_KEYS), place, int(number), store).run()

    return live(worker_directory(config.run_dir, "dns", int(number)).path, role, uvloop.new_event_loop)
