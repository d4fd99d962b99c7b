# SPDX-License-Identifier: Apache-2.0
"""The DNS worker put together: records go into `sink`, queries are answered on the sockets. A shell."""

import ipaddress
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from svcproxy.config import DnsConfig
from svcproxy.names.records import EndpointRecord, NamespaceRecord, PodRecord, Record, RecordSink, ServiceRecord
from svcproxy_dns.admission import Refusal, TcpLimits
from svcproxy_dns.answers import Answers
from svcproxy_dns.cache import Cache, CacheLimits
from svcproxy_dns.contents import Schema
from svcproxy_dns.domains import Domains
from svcproxy_dns.explain import Explainer
from svcproxy_dns.forward_statistics import ForwardStatistics, ReplyTimes
from svcproxy_dns.forwarder import SOCKETS_PER_QUESTION, Forwarder
from svcproxy_dns.forwarding import Timing
from svcproxy_dns.listeners import parse_listen
from svcproxy_dns.panics import Panics
from svcproxy_dns.query_log import QueryLog
from svcproxy_dns.rendered import Rendered, Tally
from svcproxy_dns.resolver import Bounds, Resolver
from svcproxy_dns.server import DnsServer
from svcproxy_dns.traffic import Counts, Traffic
from svcproxy_dns.upstreams import UPSTREAMS_MAX, Upstreams
from svcproxy_dns.zone import Zone

_DEFAULT_LIMITS = TcpLimits()


@dataclass(frozen=True, slots=True)
class DnsStatistics:
    """Counters since start, and gauges, of one worker."""

    synced: bool
    """Whether a complete snapshot has been taken in."""
    serial: int
    namespaces: int
    services: int
    endpoints: int
    pods: int
    responses: dict[tuple[str, str], Tally]
    """By (type, rcode): how many over UDP IPv4, UDP IPv6, TCP IPv4, TCP IPv6. A message that could not be read has the
    empty type; types that are seldom asked are `other`."""
    rendered: int
    """Queries that no kept answer served."""
    dropped: int
    """Messages without a reply: not a query, or too short."""
    unsent: int
    """Responses over UDP that the kernel refused."""
    kept: int
    """Answers kept."""
    kept_octets: int
    """Estimate of the memory that they take."""
    connections: int
    connections_refused: dict[Refusal, int]
    connections_displaced: int
    connections_expired: int
    receive_drops: int
    """Queries over UDP for which there was no room, since the sockets were bound."""
    traffic: Traffic
    panics: int
    """Queries that could not be answered for a fault of the worker's own, and got SERVFAIL."""
    forward: ForwardStatistics | None
    """What concerns other names; None if they are refused."""


class DatedZone(RecordSink):
    """Hands records on to the zone, and dates its serial: the Unix time of the last change, and greater each time."""

    def __init__(self, zone: Zone, answers: Answers, clock: Callable[[], float]) -> None:
        self._zone = zone
        self._answers = answers
        self._clock = clock

    def begin_snapshot(self) -> None:
        """See `RecordSink`."""
        self._zone.begin_snapshot()

    def change(self, added: Sequence[Record], removed: Sequence[Record]) -> None:
        """See `RecordSink`."""
        revision = self._zone.revision
        self._zone.change(added, removed)
        self._date(revision)

    def sweep(self, batch: int) -> Iterator[int]:
        """See `RecordSink`."""
        revision = self._zone.revision
        for removed in self._zone.sweep(batch):
            self._date(revision)
            revision = self._zone.revision
            yield removed
            revision = self._zone.revision

    def _date(self, revision: int) -> None:
        if self._zone.revision != revision:
            self._answers.soa.serial = max(self._answers.soa.serial + 1, int(self._clock()))


class DnsWorker:
    """Answers DNS from records. The records stay; sockets may come and go with this process's turns to serve."""

    def __init__(
        self,
        config: DnsConfig,
        *,
        limits: TcpLimits = _DEFAULT_LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._zone = Zone(
            Schema(
                pods=config.pods,
                endpoint_pod_names=config.endpoint_pod_names,
                ignore_empty_service=config.ignore_empty_service,
                namespaces=frozenset(config.namespaces),
            ),
            ttl=config.ttl,
            rng=random.Random(),  # noqa: S311  # spreads load, guards nothing
            server_addresses=_reachable(config.sockets),
        )
        self._rendered = Rendered()
        self._stubs = config.stub_domains
        self._panics = Panics()
        self._forwarder = forwarder_of(config, self._panics)
        domains = Domains(config.zones)
        self.answers = Answers(self._zone, domains, self._rendered, int(clock()), self._forwarder)
        resolver = self._forwarder.resolver if self._forwarder is not None else None
        self.explainer = Explainer(self._zone, domains, self._rendered, resolver, config.stub_domains)
        resolved = self._forwarder.resolver.counts if self._forwarder is not None else Counts()
        self._traffic = Traffic(self.answers.counts, resolved)
        self.sink: RecordSink = DatedZone(self._zone, self.answers, clock)
        """Where the feed's records go."""
        self._limits = limits
        self._server = DnsServer(self.answers.respond, (), limits, self._traffic, self._panics)
        self._query_log: QueryLog | None = None

    @property
    def synced(self) -> bool:
        """Whether the worker knows all names; before, it answers SERVFAIL where it cannot know."""
        return self._zone.synced

    @property
    def forwards(self) -> bool:
        """Whether names outside the zone are resolved."""
        return self._forwarder is not None

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Answer on these sockets from now on, see `bind_listeners`; the worker owns them."""
        self._server = DnsServer(self.answers.respond, sockets, self._limits, self._traffic, self._panics)
        self._server.use_log(self._query_log)
        await self._server.start()
        if self._forwarder is not None:
            self._forwarder.find_loops()

    def use_query_log(self, log: QueryLog | None) -> None:
        """Tell the log of every response from now on; None: none."""
        self._query_log = log
        self._server.use_log(log)

    def pod_of(self, ip: str) -> tuple[str, str] | None:
        """Namespace and name of the Pod that has an address, if it is known by its name."""
        return self._zone.pod_of(ip)

    def use_upstreams(self, upstreams: Sequence[str] | None) -> None:
        """Ask these, ADDRESS:PORT, for names outside the zone and the stub domains from now on; None: refuse them.

        To be called on the loop that serves; until then such names are SERVFAIL.
        """
        if self._forwarder is not None:
            self._forwarder.use(upstreams, self._stubs)

    def sockets(self) -> list[socket.socket]:
        """The sockets served, to be handed over."""
        return self._server.sockets()

    def release(self) -> None:
        """Take no more queries, leave the sockets open with what waits in them."""
        self._server.release()

    async def drain(self, timeout: float) -> None:
        """Release, let TCP clients finish for up to `timeout` seconds, and close what served until now."""
        server = self._server
        await server.drain(timeout)
        server.close()

    def close(self) -> None:
        """End every connection and close the sockets."""
        self._server.close()
        if self._forwarder is not None:
            self._forwarder.close()

    def statistics(self) -> DnsStatistics:
        """What has been counted."""
        return DnsStatistics(
            synced=self._zone.synced,
            serial=self.answers.soa.serial,
            namespaces=self._zone.count(NamespaceRecord),
            services=self._zone.count(ServiceRecord),
            endpoints=self._zone.count(EndpointRecord),
            pods=self._zone.count(PodRecord),
            responses={key: list(tally) for key, tally in self.answers.tallies.items()},
            rendered=self.answers.rendered,
            dropped=self.answers.dropped,
            unsent=self._server.unsent,
            kept=len(self._rendered.answers),
            kept_octets=self._rendered.octets,
            connections=self._server.connections,
            connections_refused=self._server.refused,
            connections_displaced=self._server.displaced,
            connections_expired=self._server.expired,
            receive_drops=self._server.receive_drops(),
            traffic=self._traffic,
            panics=self._panics.count,
            forward=self._forwarder.statistics() if self._forwarder is not None else None,
        )


def forwarder_of(config: DnsConfig, panics: Panics) -> Forwarder | None:
    """What resolves other names as configured; None if they are refused. It knows no upstreams yet."""
    if not config.upstreams and config.resolv_conf is None and not config.stub_domains:
        return None
    forward, cache = config.forward, config.cache
    rng = random.SystemRandom()
    reply_times = ReplyTimes()
    resolver = Resolver(
        Upstreams(forward.policy, rng, config.sockets),
        Cache(
            CacheLimits(
                ttl_min=cache.ttl_min,
                ttl_max=cache.ttl_max,
                denial_ttl_max=cache.denial_ttl_max,
                failure_ttl=cache.failure_ttl,
                stale_max=cache.stale_max,
                entries=cache.entries_max,
                octets=cache.octets_max,
            )
        ),
        rng,
        bounds=Bounds(forward.concurrent_max, forward.per_client_max),
        timing=Timing(forward.deadline),
        mixed_case=forward.mixed_case,
        observe=reply_times.observe,
    )
    sockets_max = SOCKETS_PER_QUESTION * (forward.concurrent_max + UPSTREAMS_MAX)
    return Forwarder(resolver, reply_times, sockets_max, panics=panics)


def _reachable(listen: Sequence[str]) -> list[str]:
    """The addresses that clients know the server by: neither loopback nor the wildcard."""
    addresses = [ipaddress.ip_address(parse_listen(text)[0]) for text in listen]
    return [str(address) for address in addresses if not address.is_loopback and not address.is_unspecified]
