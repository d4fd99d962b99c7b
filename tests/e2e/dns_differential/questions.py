# SPDX-License-Identifier: Apache-2.0
"""Questions at random about a random cluster: every form of name, right and wrong, and every way to ask. Pure."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.rdatatype

from svcproxy.model.meta import Family
from svcproxy.names.labels import address_label
from tests.e2e.dns_differential.cluster import (
    BIG,
    ENDPOINTS_MAX,
    HOSTNAMES,
    KNOWN_ADDRESS,
    NAMESPACES,
    PORT_NAMES,
    PROTOCOLS,
    SERVER,
    SERVICES,
    SYSTEM,
    ZONE,
    RandomNames,
    endpoint_address,
    endpoints_of,
)

FRESH: Final = "fresh.example.com"
"""Below it the upstream knows an address of every name."""
_TYPES: Final = (
    *("A",) * 9,
    *("AAAA",) * 6,
    *("SRV",) * 8,
    *(
        "CNAME",
        "CNAME",
        "TXT",
        "TXT",
        "SOA",
        "NS",
        "PTR",
        "MX",
        "HTTPS",
        "ANY",
        "CAA",
        "DS",
        "SVCB",
        "HINFO",
        "TYPE65280",
    ),
)
_OPTIONS: Final = {
    3: b"",
    8: b"\0\1\x18\0\xc0\0\2",
    10: b"\1" * 8,
    12: bytes(16),
    65001: b"experiment",
}
"""NSID, client subnet, cookie, padding, and one that nobody knows."""
_POD_LABELS: Final = (
    *("10-1-2-3", "10-1-2-300", "10-1-2", "10-1-2-3-4", "0-0-0-0", "010-1-2-3", "1-2-3-4-5-6-7-8", "a-b-c-d"),
    *("fd00--9", "fd00-0-0-0-0-0-0-9", "--ffff-10-0-0-1", "fd00--1--2", "fd00-244--1", "1--", "--1", "-", "x"),
)
_LIKELY_TYPES: Final = 0.6
"""Share of questions of a type that fits the form of the name."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how."""

    name: str
    """Escaped, with the final dot, in the spelling that is sent."""
    qtype: str
    qclass: str = "IN"
    flags: int = dns.flags.RD
    payload: int | None = None
    """Of EDNS; None: without."""
    dnssec: bool = False
    version: int = 0
    options: tuple[int, ...] = ()
    opcode: int = dns.opcode.QUERY
    tcp: bool = False

    def wire(self, ident: int) -> bytes:
        """The message."""
        rdtype, rdclass = dns.rdatatype.from_text(self.qtype), dns.rdataclass.from_text(self.qclass)
        query = dns.message.make_query(dns.name.from_text(self.name), rdtype, rdclass, id=ident, flags=self.flags)
        query.set_opcode(dns.opcode.Opcode(self.opcode))
        if self.payload is not None:
            query.use_edns(
                self.version,
                dns.flags.DO if self.dnssec else 0,
                payload=self.payload,
                options=[
                    dns.edns.GenericOption(dns.edns.OptionType.make(code), _OPTIONS[code]) for code in self.options
                ],
            )
        return query.to_wire()

    @property
    def labels(self) -> list[str]:
        """Lower case, without the root."""
        return [label.decode("latin-1").lower() for label in dns.name.from_text(self.name).labels[:-1]]

    @property
    def limit(self) -> int:
        """Octets that the response may have."""
        return 65535 if self.tcp else max(self.payload or 512, 512)


def sample(world: RandomNames, rng: Random, count: int) -> list[Question]:
    """So many questions."""
    asker = Asker(world, rng)
    return [asker.question() for _ in range(count)]


Form = Callable[[], tuple[str, str]]
"""A name without the final dot and a type that fits it."""


class Asker:
    """Makes questions."""

    def __init__(self, world: RandomNames, rng: Random) -> None:
        self._world = world
        self._rng = rng
        self._fresh = 0
        forms: list[tuple[int, Form]] = [
            (14, self._service),
            (12, self._endpoint),
            (12, self._port),
            (4, self._odd_port),
            (3, self._protocol),
            (3, self._below),
            (5, self._parent),
            (6, self._pod),
            (3, self._version_or_server),
            (2, self._wildcard),
            (8, self._address),
            (3, self._odd_address),
            (2, self._foreign),
            (2, self._alias),
            (2, self._strange_octets),
            (5, self._outside),
            (2, self._big),
        ]
        self._weights, self._forms = zip(*forms, strict=True)

    def question(self) -> Question:
        """One of any form."""
        rng = self._rng
        name, likely = rng.choices(self._forms, self._weights)[0]()
        question = Question(self._spelled(name) + ".", likely if rng.random() < _LIKELY_TYPES else rng.choice(_TYPES))
        changes: dict[str, object] = {"tcp": rng.random() < 0.15}
        if rng.random() < 0.02:
            changes |= {"qtype": rng.choice(["AXFR", "IXFR"]), "tcp": True}
        if rng.random() < 0.03:
            changes["qclass"] = rng.choice(["CH", "HS", "ANY", "CLASS7"])
        if rng.random() < 0.15:
            bits = (dns.flags.RD, dns.flags.CD, dns.flags.AD, dns.flags.TC, dns.flags.RA, dns.flags.AA)
            changes["flags"] = sum(bit for bit in bits if rng.random() < 0.4)
        if rng.random() < 0.02:
            changes["opcode"] = rng.choice([1, 2, 4, 5, 6])
        if rng.random() < 0.4:
            changes["payload"] = rng.choice([0, 100, 512, 1232, 1232, 1400, 4096])
            changes["dnssec"] = rng.random() < 0.2
            if rng.random() < 0.05:
                changes["version"] = rng.choice([1, 255])
            if rng.random() < 0.1:
                changes["options"] = rng.choice([(10,), (3,), (12,), (8,), (65001,), (10, 3)])
        return Question(**{**_fields(question), **changes})  # type: ignore[arg-type]

    def _spelled(self, name: str) -> str:
        rng = self._rng
        match rng.random():
            case x if x < 0.85:
                return name
            case x if x < 0.92:
                return name.upper()
            case _:
                return "".join(rng.choice([letter.upper(), letter.lower()]) for letter in name)

    # names

    def _key(self) -> tuple[str, str]:
        rng = self._rng
        if self._world.services and rng.random() < 0.85:
            return rng.choice(list(self._world.services))
        return rng.choice([*NAMESPACES, SYSTEM, "nowhere"]), rng.choice([*SERVICES, "nope"])

    def _name(self) -> str:
        namespace, name = self._key()
        return f"{name}.{namespace}.svc.{ZONE}"

    def _service(self) -> tuple[str, str]:
        return self._name(), self._rng.choice(["A", "AAAA", "SRV"])

    def _big(self) -> tuple[str, str]:
        rng = self._rng
        label = rng.choice(["", "", "_p._tcp."])
        return f"{label}{BIG}.{SYSTEM}.svc.{ZONE}", rng.choice(["A", "SRV"])

    def _endpoint(self) -> tuple[str, str]:
        rng = self._rng
        key = self._key()
        found = list(endpoints_of(self._world.slices_of(key)))
        if found and rng.random() < 0.8:
            endpoint, _ = rng.choice(found)
            label = endpoint.get("hostname")
            if label is None or rng.random() < 0.2:
                label = address_label(endpoint["addresses"][0])
            if "targetRef" in endpoint and rng.random() < 0.2:
                label = endpoint["targetRef"]["name"]
        else:
            number = rng.randint(1, ENDPOINTS_MAX)
            label = rng.choice([*HOSTNAMES, address_label(endpoint_address(number, rng.choice(list(Family))))])
        return f"{label}.{key[1]}.{key[0]}.svc.{ZONE}", rng.choice(["A", "AAAA", "SRV"])

    def _port(self) -> tuple[str, str]:
        rng = self._rng
        key = self._key()
        ports = list(self._world.services.get(key, {"spec": {}})["spec"].get("ports", ()))
        ports += [port for found in self._world.slices_of(key) for port in found["ports"]]
        if ports and rng.random() < 0.8:
            port = rng.choice(ports)
            name, protocol = port.get("name") or rng.choice(PORT_NAMES), port["protocol"]
        else:
            name, protocol = rng.choice(PORT_NAMES), rng.choice(PROTOCOLS)
        if rng.random() < 0.1:
            protocol = rng.choice([*PROTOCOLS, "ICMP"])
        return f"_{name}._{protocol.lower()}.{key[1]}.{key[0]}.svc.{ZONE}", rng.choice(["SRV", "SRV", "SRV", "A"])

    def _odd_port(self) -> tuple[str, str]:
        rng = self._rng
        name, _ = self._port()
        port, protocol, rest = name.split(".", 2)
        odd = [
            f"{port[1:]}.{protocol}.{rest}",
            f"{port}.{protocol[1:]}.{rest}",
            f"{port[1:]}.{protocol[1:]}.{rest}",
            f"_.{protocol}.{rest}",
            f"_{port}.{protocol}.{rest}",
            f"*.{protocol}.{rest}",
            f"{port}.*.{rest}",
            f"_any._any.{rest}",
            f"{protocol}.{port}.{rest}",
            f"{port}._.{rest}",
        ]
        return rng.choice(odd), "SRV"

    def _protocol(self) -> tuple[str, str]:
        label = self._rng.choice(["_tcp", "_udp", "_sctp", "_icmp", "tcp", "_"])
        return f"{label}.{self._name()}", "A"

    def _below(self) -> tuple[str, str]:
        rng = self._rng
        inner, qtype = rng.choice([self._port, self._endpoint, self._pod])()
        more = rng.choice(["x", "_http._tcp", "a.b", "a.b.c", "_tcp", "*"])
        return f"{more}.{inner}", qtype

    def _parent(self) -> tuple[str, str]:
        rng = self._rng
        namespace = rng.choice([*NAMESPACES, SYSTEM, "nowhere"])
        name = rng.choice([f"{namespace}.svc.", f"{namespace}.svc.", f"{namespace}.pod.", "svc.", "pod.", "", ""])
        return name + ZONE, rng.choice(["A", "AAAA", "SOA", "NS", "TXT"])

    def _pod(self) -> tuple[str, str]:
        rng = self._rng
        namespace = rng.choice([*self._world.namespaces, *self._world.namespaces, "nowhere"])
        label = rng.choice(_POD_LABELS)
        pods = [pod for pod in self._world.pods.values() if pod["status"].get("podIPs")]
        if pods and rng.random() < 0.5:
            pod = rng.choice(pods)
            ip = rng.choice(pod["status"]["podIPs"])["ip"]
            label = rng.choice([ip.replace(".", "-").replace(":", "-"), address_label(ip)])
            if rng.random() < 0.8:
                namespace = pod["metadata"]["namespace"]
        return f"{label}.{namespace}.pod.{ZONE}", rng.choice(["A", "AAAA"])

    def _version_or_server(self) -> tuple[str, str]:
        rng = self._rng
        name = rng.choice(
            ["dns-version", "dns-version", "ns.dns", "ns.dns", "dns", "x.dns-version", "x.dns", "x.ns.dns"]
        )
        return f"{name}.{ZONE}", rng.choice(["TXT", "A", "AAAA"])

    def _wildcard(self) -> tuple[str, str]:
        rng = self._rng
        namespace, name = self._key()
        odd = [f"*.{namespace}", f"{name}.*", "*.*", f"any.{namespace}", f"{name}.any", f"*.{name}.{namespace}"]
        return f"{rng.choice(odd)}.{rng.choice(['svc', 'svc', 'svc', 'pod', '*'])}.{ZONE}", rng.choice(["A", "SRV"])

    def _ip(self) -> str:
        rng = self._rng
        ips = [ip for service in self._world.services.values() for ip in service["spec"].get("clusterIPs", ())]
        ips = [ip for ip in ips if ip != "None"]
        if ips and rng.random() < 0.4:
            return str(rng.choice(ips))
        number = rng.randint(1, ENDPOINTS_MAX + 2)
        return rng.choice(
            [endpoint_address(number, Family.IPV4), endpoint_address(number, Family.IPV6), *SERVER.values()]
        )

    def _address(self) -> tuple[str, str]:
        return ipaddress.ip_address(self._ip()).reverse_pointer, "PTR"

    def _odd_address(self) -> tuple[str, str]:
        rng = self._rng
        name, _ = self._address()
        head, _, rest = name.partition(".")
        odd = [
            rest,
            f"x.{name}",
            f"0{name}",
            f"{head}.{head}.{rest}",
            f"{head}..{rest}".replace("..", "."),
            f"300.{rest}",
        ]
        odd += [
            f"{self._key()[1]}.in-addr.arpa",
            f"{ZONE}.in-addr.arpa",
            "in-addr.arpa",
            "ip6.arpa",
            KNOWN_ADDRESS,
        ]
        return rng.choice(odd), "PTR"

    def _foreign(self) -> tuple[str, str]:
        namespace, name = self._key()
        odd = [
            "foo",
            namespace,
            f"{name}.{namespace}",
            f"{name}.{namespace}.foo",
            f"{name}.{namespace}.svc.svc",
            "svc.svc",
        ]
        return f"{self._rng.choice(odd)}.{ZONE}", "A"

    def _alias(self) -> tuple[str, str]:
        aliases = [key for key, each in self._world.services.items() if each["spec"].get("type") == "ExternalName"]
        namespace, name = self._rng.choice(aliases) if aliases else self._key()
        return f"{name}.{namespace}.svc.{ZONE}", self._rng.choice(["A", "AAAA", "CNAME", "HTTPS"])

    def _strange_octets(self) -> tuple[str, str]:
        namespace, name = self._key()
        odd = [
            f"{name}\\.{namespace}.svc.{ZONE}",
            f"\\000.{name}.{namespace}.svc.{ZONE}",
            f"\\195\\164.{namespace}.svc.{ZONE}",
            f"{name}\\032.{namespace}.svc.{ZONE}",
            f"10\\.244\\.0\\.1.{name}.{namespace}.svc.{ZONE}",
            f"\\\\.{namespace}.svc.{ZONE}",
            f"{'x' * 63}.{namespace}.svc.{ZONE}",
        ]
        return self._rng.choice(odd), "A"

    def _outside(self) -> tuple[str, str]:
        rng = self._rng
        known = ["www", "alias", "nx", "ttl0", "tc", "fail", "big", "_sip._tcp"]
        if rng.random() < 0.5:
            self._fresh += 1
            return f"n{self._fresh}-{rng.randrange(1 << 20)}.{rng.choice([FRESH, FRESH, 'example.com'])}", "A"
        name = rng.choice([*(f"{label}.example.com" for label in known), ZONE.partition(".")[2], f"x{ZONE}"])
        return name, rng.choice(["A", "A", "AAAA", "SRV"])


def _fields(question: Question) -> dict[str, object]:
    return {name: getattr(question, name) for name in question.__slots__}
