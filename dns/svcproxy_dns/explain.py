# SPDX-License-Identifier: Apache-2.0
"""What becomes of a question, step by step, for people. Pure; nothing is asked and nothing is counted.

The explanation reads what answers are made of when somebody wants it; answers themselves know nothing of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from svcproxy.model.meta import NamespacedName
from svcproxy_dns.addresses import reverse_address
from svcproxy_dns.answers import CHAIN_MAX
from svcproxy_dns.cache import Kind
from svcproxy_dns.domains import Domain, Domains
from svcproxy_dns.forwarding import Question
from svcproxy_dns.query_log import TYPES, spelled
from svcproxy_dns.reasons import subject
from svcproxy_dns.rendered import Rendered
from svcproxy_dns.resolver import Resolver
from svcproxy_dns.upstreams import Upstream
from svcproxy_dns.wire import CLASS_IN, Rcode, RRType, encode_name
from svcproxy_dns.zone import Name, Zone

_A_QUERY = b"\1\0\0\1\0\0\0\0\0\0"
"""What stands between ID and question of a query as stub resolvers send it."""
_TRANSFERS = frozenset({int(RRType.AXFR), int(RRType.IXFR)})
_META_TYPES = frozenset({0, int(RRType.OPT), *range(128, 255)})
_RCODES = {rcode.value: rcode.name for rcode in Rcode}


class Origin(StrEnum):
    """Where an answer comes from."""

    ZONE = "zone"
    CACHE = "cache"
    """Kept of an upstream's answer."""
    UPSTREAMS = "upstreams"
    REFUSED = "refused"


@dataclass(slots=True)
class Explained:
    """One question."""

    origin: Origin = Origin.ZONE
    rcode: str = ""
    """Empty if upstreams decide."""
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(stage, what is decided there)."""
    service: NamespacedName | None = None
    """The Service that the name is about."""
    upstreams: Sequence[Upstream] = ()
    """Whom to ask."""

    def say(self, stage: str, text: str) -> None:
        """Add a step."""
        self.steps.append((stage, text))

    def end(self, rcode: str, origin: Origin = Origin.ZONE) -> None:
        """This is the answer."""
        self.rcode, self.origin = rcode, origin


class Explainer:
    """Explains what a worker's parts would answer."""

    def __init__(
        self,
        zone: Zone,
        domains: Domains,
        rendered: Rendered,
        resolver: Resolver | None,
        stubs: Mapping[str, Sequence[str]],
    ) -> None:
        """`resolver`: None if other names are refused. `stubs`: its stub domains."""
        self._zone = zone
        self._domains = domains
        self._rendered = rendered
        self._resolver = resolver
        self._stubs = stubs

    def explain(self, name: str, qtype: int, now: float) -> Explained:
        """`name`: lower case, without the final dot; `now`: as the resolver's. Raises `ValueError` if it is no name."""
        labels = name.split(".") if name else []
        wire = encode_name(name) if name else b"\0"
        found = Explained()
        domain = self._domains.find(labels)
        if domain is not None and qtype in _TRANSFERS:
            found.say("type", "transfers are refused")
            found.end("REFUSED", Origin.REFUSED)
        elif domain is None:
            self._elsewhere(found, wire, qtype, now)
        elif domain.reverse:
            self._address(found, domain, labels, wire, qtype, now)
        else:
            self._name(found, domain, labels, wire, qtype, now)
        return found

    def _name(self, found: Explained, domain: Domain, labels: list[str], wire: bytes, qtype: int, now: float) -> None:
        seen: list[list[str]] = []
        while True:
            about = subject(self._zone, labels[: -domain.depth])
            found.say("name", f"{spelled(labels)} in the zone {spelled(domain.labels)}: {about.text}")
            found.service = about.service or found.service
            name = self._zone.lookup(labels[: -domain.depth])
            if not isinstance(name, Name):
                found.end("NXDOMAIN" if name is None else "SERVFAIL")
                return
            if name.alias is None or qtype in {RRType.SRV, RRType.CNAME}:
                break
            seen.append(labels)
            labels = name.alias.split(".")
            found.say("alias", f"CNAME to {spelled(labels)}")
            wire = encode_name(name.alias)
            following = self._domains.find(labels)
            if following is None and self._resolver is None:
                found.say("alias", "in no zone that is answered here: the CNAME alone")
                found.end("NOERROR")
                return
            if following is None:
                self._elsewhere(found, wire, qtype, now)
                return
            if following.reverse:
                found.end("NXDOMAIN" if self._zone.lookup_address(labels) is None else "NOERROR")
                return
            if labels in seen or len(seen) > CHAIN_MAX:
                found.say("alias", "the names lead nowhere")
                found.end("NOERROR")
                return
            domain = following
        self._held(found, name, qtype)
        kept = self._rendered.answers.get(_A_QUERY + wire + qtype.to_bytes(2, "big") + CLASS_IN.to_bytes(2, "big"))
        if not seen:
            ready = kept is not None and kept[2].revision == kept[3]
            found.say("answer", "kept from an earlier query" if ready else "made when it is asked for")

    def _held(self, found: Explained, name: Name, qtype: int) -> None:
        """What a name that exists has of a type."""
        held = {
            "A": len(name.ipv4 or ()),
            "AAAA": len(name.ipv6 or ()),
            "CNAME": int(name.alias is not None),
            "SRV": self._services(name) if name.alias is None else 0,
            "PTR": len(name.pointers),
            "TXT": int(name.text is not None),
            "SOA": int(name.apex),
            "NS": len(self._zone.name_servers()) if name.apex else 0,
        }
        asked = TYPES.get(qtype, f"TYPE{qtype}")
        if count := held.get(asked, 0):
            found.say("type", f"{count} {asked} record{'' if count == 1 else 's'}")
        else:
            others = ", ".join(f"{count} {rrtype}" for rrtype, count in held.items() if count)
            found.say("type", f"it exists without {asked} records, and has {others or 'no records at all'}")
        found.end("NOERROR")

    def _services(self, name: Name) -> int:
        service = name.service
        if service is None:
            return 0
        if name.endpoints is None and not service.follows_endpoints:
            return len(list(service.own_ports(name.port)[1]))
        return len(list(service.targets(name.port, name.endpoints).ports))

    def _address(
        self, found: Explained, domain: Domain, labels: list[str], wire: bytes, qtype: int, now: float
    ) -> None:
        zone, ip = self._zone, reverse_address(labels)
        found.say("zone", f"in the zone of addresses {spelled(domain.labels)}")
        if len(labels) == domain.depth:
            found.say("name", "the zone itself, with SOA and NS")
            self._held(found, Name(None, apex=True), qtype)
            return
        name = zone.lookup_address(labels)
        if isinstance(name, Name):
            services = [service.labels for service in zone.addresses.services(ip or "")]
            owners = services or [service.labels for service, _ in zone.addresses.endpoints(ip or "")]
            found.service = NamespacedName(owners[0][1], owners[0][0])
            what = "the ClusterIP" if services else "a ready endpoint"
            found.say("name", f"{ip} is {what} of {', '.join(f'{each[1]}/{each[0]}' for each in owners[:10])}")
            self._held(found, name, qtype)
        elif name is not None:
            found.say("name", f"who has {ip} is not known yet")
            found.end("SERVFAIL")
        else:
            found.say("name", f"no Service and no ready endpoint has {ip}" if ip else "this is no whole address")
            if self._resolver is None:
                found.end("NXDOMAIN")
            else:
                self._elsewhere(found, wire, qtype, now)

    # --- names outside the zone

    def _elsewhere(self, found: Explained, wire: bytes, qtype: int, now: float) -> None:
        resolver = self._resolver
        if resolver is None or resolver.upstreams.group(wire).refuses:
            found.say("zone", "in no zone that is answered here, and there are no upstreams by configuration")
            found.end("REFUSED", Origin.REFUSED)
            return
        if qtype in _META_TYPES:
            found.say("type", "no upstream is asked for such a type")
            found.end("REFUSED", Origin.REFUSED)
            return
        stub = self._stub(wire)
        found.say("zone", f"asked of the upstreams of {stub}" if stub else "asked of the upstreams")
        found.upstreams = resolver.upstreams.group(wire).upstreams
        entry = resolver.cache.find(Question(wire, qtype, CLASS_IN).key, now)
        if entry is not None and now < entry.expires:
            rcode = _RCODES.get(entry.body.rcode, str(entry.body.rcode))
            why = "upstreams have failed" if entry.kind is Kind.FAILURE else f"an upstream has said {rcode}"
            found.say("cache", f"{why}; kept for {entry.expires - now:.0f} s more")
            found.end(rcode, Origin.CACHE)
            return
        found.end("", Origin.UPSTREAMS)
        if entry is not None:
            found.say("cache", f"an answer has expired {now - entry.expires:.0f} s ago; it is given if upstreams fail")
            if now < entry.retry_at:
                found.say("cache", "upstreams have just failed, so it is given at once")
                found.end(_RCODES.get(entry.body.rcode, str(entry.body.rcode)), Origin.CACHE)
        elif all(each.looping for each in found.upstreams):
            found.say("upstreams", "all of them lead back here" if found.upstreams else "none is known")
            found.end("SERVFAIL", Origin.UPSTREAMS)

    def _stub(self, wire: bytes) -> str:
        """The longest stub domain that a name is in, empty if in none."""
        zones, at = {encode_name(zone): zone for zone in self._stubs}, 0
        while wire[at]:
            if (zone := zones.get(wire[at:])) is not None:
                return zone
            at += wire[at] + 1
        return ""
