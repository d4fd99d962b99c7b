# SPDX-License-Identifier: Apache-2.0
"""`svcproxy resolve`: a real DNS query to the node's own DNS, over UDP and, when the answer is cut, over TCP.

And why it is answered as it is."""

import argparse
import secrets
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dnslib
import msgspec

from svcproxy import api, syntax
from svcproxy.client.connection import ClientError
from svcproxy.client.console import Table, console
from svcproxy.client.explanation import Node, find_node, service_named, show_explanation, show_service
from svcproxy.errors import ConfigError, Problem

TIMEOUT = 2.0
"""Seconds for one server to answer over one transport."""
CLUSTER_DOMAIN = "cluster.local"
"""The domain if neither the command line nor an instance names one."""
PAYLOAD_OCTETS = 1232
"""EDNS payload size that never needs fragments (DNS flag day 2020)."""


class Record(api.Answer, frozen=True, rename="camel"):
    """A record of the answer."""

    name: str
    ttl: int
    type: str
    data: str


class Resolved(api.Answer, frozen=True, rename="camel"):
    """What the last name that was asked came to."""

    name: str
    type: str
    rcode: str
    server: str
    transport: str
    records: tuple[Record, ...]
    explanation: api.Explanation | None = None
    """What a DNS worker of this node would answer, and why; null if another server was named, or none can be asked."""
    service: api.ServiceDetail | None = None
    """The Service that the name is about, as the agent knows it."""
    notes: tuple[str, ...] = ()
    """What could not be asked, and why."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


def run(arguments: argparse.Namespace) -> int:
    """Ask, print the records. 1 if there are none."""
    qtype = query_type(arguments.type)
    node = None if arguments.server else find_node(arguments)
    servers, domain = _servers(arguments, node)
    answer: Resolved | None = None
    for name in candidates(arguments.name, arguments.namespace or "default", domain):
        explanation = node.explain(name, qtype) if node is not None else None  # first: the query fills the cache
        try:
            found = _ask_any(servers, name, qtype)
        except ClientError:
            if node is not None:
                _print(_about(Resolved(name, qtype, "", "", "", (), explanation), node, domain), arguments.output)
            raise
        found = msgspec.structs.replace(found, explanation=explanation)
        if answer is None or _worth(found) > _worth(answer):
            answer = found
        if found.records:
            break
    assert answer is not None, "there is always a candidate"
    _print(_about(answer, node, domain) if node is not None else answer, arguments.output)
    if not answer.records:
        outcome = "exists, without such records" if answer.rcode == "NOERROR" else answer.rcode
        sys.stderr.write(f"{answer.name} {answer.type}: {outcome} (from {answer.server} over {answer.transport})\n")
    return 0 if answer.records else 1


def _about(answer: Resolved, node: Node, domain: str) -> Resolved:
    """The same with the Service that it is about."""
    known = answer.explanation.service if answer.explanation is not None else None
    key = known or service_named(answer.name, domain)
    service = node.service(key) if key else None
    return msgspec.structs.replace(answer, service=service, notes=tuple(node.notes))


def _print(answer: Resolved, output: str) -> None:
    out = console()
    if output == "json":
        out.json(answer)
        return
    if answer.records:
        rows = [(each.name, str(each.ttl), each.type, each.data) for each in answer.records]
        out.table(Table(("NAME", "TTL", "TYPE", "DATA"), rows))
    explanation = answer.explanation
    if explanation is not None:
        if answer.records:
            out.line()
        given = answer.rcode or "no answer"
        out.line(f"{answer.name} {answer.type}: {given}, by {explanation.worker} at revision {explanation.revision}")
        show_explanation(explanation, out)
        if answer.rcode and explanation.rcode not in {"", answer.rcode}:
            out.line(f"     THE ANSWER DIFFERS: that would be {explanation.rcode}")
    if answer.service is not None:
        show_service(answer.service, out)
    for note in answer.notes:
        sys.stderr.write(f"{note}\n")


def _worth(answer: Resolved) -> int:
    """Which of several answers tells most: records, then a name that exists, then the first that was asked."""
    return 2 if answer.records else int(answer.rcode == "NOERROR")


def candidates(name: str, namespace: str, domain: str) -> Iterator[str]:
    """The names to ask, in order, as a Pod of `namespace` would; one with a final dot stands for itself alone."""
    if name.endswith("."):
        yield name
        return
    for search in (f"{namespace}.svc.{domain}", f"svc.{domain}", domain):
        if name != search and not name.endswith(f".{domain}"):
            yield f"{name}.{search}."
    yield f"{name}."


def _servers(arguments: argparse.Namespace, node: Node | None) -> tuple[Sequence[Server], str]:
    """Whom to ask, and the cluster's domain: as the command line says, else as the node's instances do."""
    if node is None:
        return [parse_server(text) for text in arguments.server], arguments.cluster_domain or CLUSTER_DOMAIN
    servers = [_reachable(parse_server(text)) for text in node.listen]
    if not servers:
        raise ClientError("the instance listens for DNS nowhere; name a server with --server")
    return servers, arguments.cluster_domain or node.domain or CLUSTER_DOMAIN


def parse_server(text: str) -> Server:
    """`ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`. Raises `ConfigError`."""
    try:
        host, port = syntax.split_address(syntax.resolver_address(text))
    except ValueError as exc:
        raise ConfigError([Problem(str(exc), path="--server")]) from None
    return Server(host, port)


def _reachable(server: Server) -> Server:
    """The unspecified address stands for every local one: ask the loopback."""
    return Server({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.ip, server.ip), server.port)  # noqa: S104  # compared


def _ask_any(servers: Sequence[Server], name: str, qtype: str) -> Resolved:
    """The first answer of any server. Raises `ClientError` when none answers."""
    failures = []
    for server in servers:
        try:
            return _ask(server, name, qtype)
        except (OSError, dnslib.DNSError) as exc:
            failures.append(f"{server}: {str(exc) or type(exc).__name__}")
    raise ClientError(f"no DNS answer for {name}: {'; '.join(failures)}")


def _ask(server: Server, name: str, qtype: str) -> Resolved:
    try:
        query = dnslib.DNSRecord(
            dnslib.DNSHeader(id=secrets.randbelow(65536), rd=1),
            q=dnslib.DNSQuestion(name, getattr(dnslib.QTYPE, qtype)),
            ar=[dnslib.EDNS0(udp_len=PAYLOAD_OCTETS)],
        )
        octets = query.pack()
    except (dnslib.DNSError, ValueError) as exc:
        raise ClientError(f"{name!r} cannot be asked for: {exc}") from exc
    transport, answer = "udp", _over_udp(server, query.header.id, octets)
    if answer.header.tc:
        transport, answer = "tcp", _over_tcp(server, octets)
    records = tuple(Record(str(each.rname), each.ttl, dnslib.QTYPE[each.rtype], str(each.rdata)) for each in answer.rr)
    return Resolved(name, qtype, dnslib.RCODE[answer.header.rcode], str(server), transport, records)


def _over_udp(server: Server, query_id: int, octets: bytes) -> Any:
    """The answer with our ID from the server that was asked; strangers' datagrams are dropped by the kernel."""
    with socket.socket(_family(server), socket.SOCK_DGRAM) as channel:
        channel.connect((server.ip, server.port))
        channel.send(octets)
        deadline = time.monotonic() + TIMEOUT
        while (left := deadline - time.monotonic()) > 0:
            channel.settimeout(left)
            answer = dnslib.DNSRecord.parse(channel.recv(65535))
            if answer.header.id == query_id and answer.header.qr:
                return answer
    raise TimeoutError(f"no answer within {TIMEOUT:g} s")


def _over_tcp(server: Server, octets: bytes) -> Any:
    with socket.create_connection((server.ip, server.port), TIMEOUT) as channel, channel.makefile("rb") as stream:
        channel.sendall(struct.pack("!H", len(octets)) + octets)
        prefix = stream.read(2)
        body = stream.read(int.from_bytes(prefix)) if len(prefix) == len(b"\0\0") else b""
        if len(prefix) + len(body) != int.from_bytes(prefix) + 2:
            raise ConnectionError("the server closed the connection inside the answer")
        return dnslib.DNSRecord.parse(body)


def _family(server: Server) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server.ip else socket.AF_INET


def query_type(text: str) -> str:
    """A record type by its name. Raises `ConfigError`."""
    name = text.upper()
    if name not in dnslib.QTYPE.reverse:
        raise ConfigError([Problem(f"{text!r} is not a record type", path="TYPE")])
    return name
