# SPDX-License-Identifier: Apache-2.0
"""The worker's part in interception: it proves to its supervisor that it answers. A shell.

Twice a second it asks itself for the SOA of the zone, through the kernel, at each address that is to be intercepted; at
one of its other addresses as long as that one is not on the node. One that was on the node and gave no answer is not
proven in that second way for a while, or a path that is closed would be opened again and again.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from svcproxy.config import DNS_PORT, DnsConfig
from svcproxy.process.addresses import AddressFollower
from svcproxy.process.proof import PROOF_INTERVAL, Proof, encode, read_channel
from svcproxy_dns.self_check import answered, own_address, question
from svcproxy_dns.wire import HEADER_OCTETS, RRType

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""Queries sent for one proof, each from a port of its own, until one is answered: workers that share an address share
its clients by port, and one of them may hang."""
ATTEMPT_INTERVAL = 0.2
"""Seconds between two of them."""
DOUBT = 10.0
"""Seconds for which an address that gave no answer has to prove itself."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the worker is at."""

    answers: bool
    """It serves, and knows all names."""
    stands_by: bool
    """Another instance serves."""


class Prover:
    """Follows what of `dns.intercept` stands on the node, and proves what it can to a supervisor that wants to know."""

    def __init__(
        self,
        config: DnsConfig,
        environment: Mapping[str, str],
        standing: Callable[[], Standing],
        sockets: Callable[[], Sequence[socket.socket]],
    ) -> None:
        """`sockets`: those that the worker serves at other addresses."""
        self._configured = config.intercept
        self._descriptor: int | None = None
        self._wanted: tuple[str, ...] = ()
        if (channel := read_channel(environment)) is not None:
            self._descriptor, self._wanted = channel
        self._standing = standing
        self._sockets = sockets
        self._query = question(config.cluster_domain, RRType.SOA)
        self._doubted_until: dict[str, float] = {}
        self.local: frozenset[str] = frozenset()
        """The configured addresses that stand on the node."""

    async def run(self) -> None:
        """Follow and prove until cancelled."""
        if not self._configured and self._descriptor is None:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(AddressFollower().run(self._addresses_changed), name="intercepted addresses")
            if self._descriptor is not None:
                group.create_task(self._prove(), name="proof")

    def standing_changed(self) -> None:
        """Tell at once that another instance serves: this one may be stopped at any moment, and its supervisor would
        take away what is the other's."""
        standing = self._standing()
        if standing.stands_by:
            self._say(Proof(stands_by=True))

    def reasons(self) -> Iterator[str]:
        """What is not intercepted, for people."""
        for address in self._configured:
            if address not in self._wanted:
                yield f"{address} is not intercepted: the supervisor was started without it"
            elif address not in self.local:
                yield f"{address} is not intercepted: it is not on this node"

    def _addresses_changed(self, addresses: frozenset[str]) -> None:
        self.local = addresses & frozenset(self._configured)

    async def _prove(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._say(await self._proof())
            await asyncio.sleep(max(0.0, began + PROOF_INTERVAL - loop.time()))

    def _say(self, proof: Proof) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # the supervisor hangs and the pipe is full, or it is gone
                os.write(self._descriptor, encode(proof, self._wanted))

    async def _proof(self) -> Proof:
        standing = self._standing()
        if not standing.answers:
            return Proof(stands_by=standing.stands_by)
        asked = [address for address in self._wanted if address in self._configured]
        answered = await asyncio.gather(*map(self._answers_at, asked))
        if self._standing().stands_by:  # since then: the one that has taken over may have answered
            return Proof(stands_by=True)
        return Proof(frozenset(address for address, yes in zip(asked, answered, strict=True) if yes))

    async def _answers_at(self, address: str) -> bool:
        """Whether we are answered at an address or, while it is not on the node, at another."""
        now = asyncio.get_running_loop().time()
        local = address in self.local
        target = (address, DNS_PORT) if local else own_address(self._sockets())
        if target is None or (not local and now < self._doubted_until.get(address, now)):
            return False
        answered = await _is_answered(target, self._query, source=address if local else "")
        if local and not answered:
            self._doubted_until[address] = now + DOUBT
        return answered


class InterceptionCollector(Collector):
    """The metric."""

    def __init__(self, addresses: Sequence[str], local: Callable[[], frozenset[str]]) -> None:
        self._addresses = addresses
        self._local = local

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        text = "Whether an address of dns.intercept stands on this node."
        gauge = GaugeMetricFamily("svcproxy_dns_intercepting", text, labels=["address"])
        local = self._local()
        for address in self._addresses:
            gauge.add_metric([address], float(address in local))
        yield gauge


async def _is_answered(target: tuple[str, int], query: bytes, source: str) -> bool:
    """Whether the query is answered without an error, over UDP, within the time of all attempts."""
    yes = False
    waiting: set[asyncio.Task[bool]] = set()
    async with asyncio.TaskGroup() as group:
        for _ in range(ATTEMPTS):
            waiting.add(group.create_task(_attempt(target, query, source), name="proof"))
            done, waiting = await asyncio.wait(waiting, timeout=ATTEMPT_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            yes = any(task.result() for task in done)
            if yes:
                break
        for task in waiting:
            task.cancel()
    return yes


async def _attempt(target: tuple[str, int], query: bytes, source: str) -> bool:
    """Wait for an answer without an error; False if there can be none."""
    try:
        await answered(target, query, source, _is_without_error)
    except OSError:
        return False
    return True


def _is_without_error(reply: bytes) -> bool:
    return len(reply) >= HEADER_OCTETS and bool(reply[2] & 0x80) and not reply[3] & 0x0F
