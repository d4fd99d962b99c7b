# SPDX-License-Identifier: Apache-2.0
"""The resolvers that other names are asked of: which, in what order, and in what health. Pure.

Health is learnt from the queries of clients: an upstream is *suspect* from the first one that it leaves unanswered, and
is then asked last. Now and then it gets a copy of a query that another one answers; its first reply ends the suspicion.
So a dead upstream costs one query a moment's wait, and no query is made up for its health.

Times are monotonic seconds.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from svcproxy.config import UpstreamPolicy
from svcproxy.syntax import interface_name, resolver_address
from svcproxy_dns.wire import encode_name

UPSTREAMS_MAX = 15
"""Upstreams of one group; further ones of a resolv.conf are left out."""
RESOLV_CONF_OCTETS_MAX = 64 << 10
PROBE_MIN, PROBE_MAX = 0.5, 10.0
"""Seconds between two copies that a suspect gets; doubled each time."""
PORT = 53


class Upstream:
    """One resolver."""

    def __init__(self, address: str) -> None:
        """`address`: ADDRESS:PORT, IPv6 in brackets, perhaps with a zone."""
        host, _, port = address.rpartition(":")
        self.address = address
        self.host, _, self.zone = host.removeprefix("[").removesuffix("]").partition("%")
        self.port = int(port)
        self.suspect = False
        """Whether it has left the last query unanswered."""
        self.looping = False
        """Whether what it is asked comes back to this server; it is not asked while so."""
        self.plain_until = 0.0
        """Until when it is asked without EDNS."""
        self.unanswered_total = 0
        self._probe_at = 0.0
        self._interval = PROBE_MIN

    def answered(self) -> None:
        """It has replied."""
        self.suspect = False

    def unanswered(self, now: float) -> None:
        """It has let a query wait too long, or cannot be reached."""
        self.unanswered_total += 1
        if not self.suspect:
            self.suspect = True
            self._interval = PROBE_MIN
            self._probe_at = now + self._interval

    def take_probe(self, now: float) -> bool:
        """Whether this suspect is due for a copy of a query; it is then not for a while."""
        if now < self._probe_at:
            return False
        self._interval = min(self._interval * 2, PROBE_MAX)
        self._probe_at = now + self._interval
        return True


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask, one after the other; `probe` gets a copy at once."""

    order: tuple[Upstream, ...]
    probe: Upstream | None = None


class Group:
    """Upstreams that know the same names."""

    def __init__(self, upstreams: Sequence[Upstream], policy: UpstreamPolicy, rng: random.Random) -> None:
        self.upstreams = upstreams
        self.refuses = False
        """Whether names of this group are nobody's business, for there is no upstream by intention."""
        self._policy = policy
        self._rng = rng
        self._turn = 0

    def plan(self, now: float) -> Plan:
        """The healthy ones by policy, then the suspects. Nobody, if all of them loop."""
        usable = [each for each in self.upstreams if not each.looping]
        if self._policy is UpstreamPolicy.RANDOM:
            self._rng.shuffle(usable)
        elif self._policy is UpstreamPolicy.ROUND_ROBIN and usable:
            self._turn = (self._turn + 1) % len(usable)
            usable = usable[self._turn :] + usable[: self._turn]
        healthy = [each for each in usable if not each.suspect]
        suspects = [each for each in usable if each.suspect]
        probe = next((each for each in suspects if each.take_probe(now)), None) if healthy else None
        return Plan((*healthy, *suspects), probe)

    @property
    def broken(self) -> bool:
        """Whether no upstream is healthy."""
        return all(each.suspect or each.looping for each in self.upstreams)


class Upstreams:
    """All groups: the default one, and one for each stub domain."""

    def __init__(self, policy: UpstreamPolicy, rng: random.Random, own: Iterable[str] = ()) -> None:
        """`own`: addresses of this server, ADDRESS:PORT; whoever would forward to them would forward to itself."""
        self._policy = policy
        self._rng = rng
        self._own = frozenset(own)
        self._by_address: dict[str, Upstream] = {}
        self._groups = {b"\0": Group((), policy, rng)}

    def replace(self, default: Sequence[str] | None, stubs: Mapping[str, Sequence[str]]) -> list[str]:
        """Use these from now on; returns those left out because they are this server. What is known of health stays.

        `default` and the values of `stubs` are ADDRESS:PORT; the keys of `stubs` are zones, lower case. Without
        `default` names in no stub domain are refused.
        """
        zones = {b"\0": default or ()} | {encode_name(zone): addresses for zone, addresses in stubs.items()}
        known, self._by_address = self._by_address, {}
        own: list[str] = []
        groups = {}
        for zone, addresses in zones.items():
            members = []
            for address in addresses:
                if address in self._own:
                    own.append(address)
                    continue
                upstream = self._by_address.get(address) or known.get(address) or Upstream(address)
                members.append(self._by_address.setdefault(address, upstream))
            groups[zone] = Group(members, self._policy, self._rng)
        groups[b"\0"].refuses = default is None
        self._groups = groups
        return own

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._by_address.values())

    def group(self, name: bytes) -> Group:
        """The upstreams for a name, lower case on the wire: those of the longest stub domain that it is in."""
        groups = self._groups
        if len(groups) > 1:
            at = 0
            while name[at]:
                if (found := groups.get(name[at:])) is not None:
                    return found
                at += name[at] + 1
        return groups[b"\0"]


def parse_resolv_conf(text: str) -> tuple[list[str], list[str]]:
    """(upstreams as ADDRESS:PORT, what is wrong) of a resolv.conf; only `nameserver` lines matter (resolv.conf(5))."""
    found: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0] != "nameserver":
            continue
        host, percent, zone = (words[1] if len(words) > 1 else "").partition("%")
        try:
            address = resolver_address(f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}")
            if percent:
                address = f"[{host}%{interface_name(zone)}]:{PORT}"
        except ValueError:
            problems.append(f"line {number}: no address: {line.strip()[:80]!r}")
            continue
        if address not in found:
            found.append(address)
    for address in found[UPSTREAMS_MAX:]:
        problems.append(f"more than {UPSTREAMS_MAX} nameservers, {address} is left out")
    return found[:UPSTREAMS_MAX], problems
