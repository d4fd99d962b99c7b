# SPDX-License-Identifier: Apache-2.0
"""A resolver that answers as the acceptance cases say, and misbehaves in every way that they name, on real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

RECORDS = """\
www.example.com. 300 IN A 192.0.2.53
www.example.com. 300 IN AAAA 2001:db8::53
ttl0.example.com. 0 IN A 192.0.2.54
alias.example.com. 300 IN CNAME Www.example.com.
9.9.9.10.in-addr.arpa. 300 IN PTR host9.example.com.
tc.example.com. 300 IN A 192.0.2.55
slow.example.com. 300 IN A 192.0.2.56
twice.example.com. 300 IN A 192.0.2.57
_sip._tcp.example.com. 300 IN SRV 0 1 5060 www.example.com.
short.example.com. 300 IN A 192.0.2.58
plain.example.com. 300 IN A 192.0.2.59
poison.example.com. 300 IN A 192.0.2.60
"""
FRESH = dns.name.from_text("fresh.example.com.")
"""Every name below it has an address: for who wants one that nobody has asked for."""
SOA = "{zone} {ttl} IN SOA ns.example.com. hostmaster.example.com. 1 7200 900 1209600 {minimum}"
BIG = [f"192.0.2.{low}" for low in range(1, 201)]


@dataclass(frozen=True)
class Asked:
    """A query that came."""

    name: str
    """As it was spelled, without the final dot."""
    qtype: str
    tcp: bool
    client: tuple[str, int]
    ident: int
    edns: bool
    options: int
    """How many EDNS options it had."""


class Upstream:
    """One resolver. What it is asked for decides what it does; `silent`, `rcode` and `delay` hold for everything."""

    def __init__(self) -> None:
        self.address = ""
        self.asked: list[Asked] = []
        self.silent = False
        self.delay = 0.0
        self.rcode: dns.rcode.Rcode | None = None
        self.minimum = 60
        self.forward_to: Callable[[bytes], object] | None = None
        """Gets every query: whoever it is sent to."""
        self._records: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset] = {}
        for line in RECORDS.splitlines():
            owner, ttl, _, rrtype, *rdata = line.split()
            rrset = dns.rrset.from_text(owner, int(ttl), "IN", rrtype, " ".join(rdata))
            self._records[rrset.name, rrset.rdtype] = rrset
        big = dns.rrset.from_text("big.example.com.", 300, "IN", "A", *BIG)
        self._records[big.name, big.rdtype] = big

    def count(self, name: str, qtype: str | None = None) -> int:
        """How often a name was asked for."""
        return sum(each.name.lower() == name and qtype in {None, each.qtype} for each in self.asked)

    def note(self, octets: bytes, client: tuple[str, int], *, tcp: bool) -> None:
        """Take a query down."""
        query = dns.message.from_wire(octets)
        name, qtype = query.question[0].name.to_text(omit_final_dot=True), query.question[0].rdtype
        self.asked.append(
            Asked(name, dns.rdatatype.to_text(qtype), tcp, client, query.id, query.edns >= 0, len(query.options))
        )
        if self.forward_to is not None:
            self.forward_to(octets)

    def replies(self, octets: bytes, *, tcp: bool) -> list[bytes]:
        """What comes back for a query, in order."""
        query = dns.message.from_wire(octets)
        name = query.question[0].name.to_text(omit_final_dot=True)
        label = name.lower().partition(".")[0]
        if self.silent or label == "drop":
            return []
        response = self._response(query, label)
        if label == "tc" and not tcp:
            response.answer.clear()
            response.flags |= dns.flags.TC
        wire = response.to_wire(max_size=65535 if tcp else max(query.payload, 512), prefer_truncation=True)
        match label:
            case "wrongid":
                return [bytes([wire[0] ^ 1]) + wire[1:]]
            case "garbage":
                return [wire[:2] + b"\x81\x80" + b"\xff" * 20]
            case "short" if not tcp:
                return [wire[:-4]]
            case "twice":
                return [wire, wire]
            case "query":
                return [octets]
            case _:
                return [wire]

    def _response(self, query: dns.message.Message, label: str) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= query.flags & dns.flags.CD  # RFC 4035 §3.2.2
        question = query.question[0]
        name, qtype = question.name, question.rdtype
        if label == "wrongq":
            response.question = [dns.rrset.RRset(dns.name.from_text("other.example.com."), question.rdclass, qtype)]
        if label == "othercase":
            response.question = [dns.rrset.RRset(dns.name.from_text(str(name).upper()), question.rdclass, qtype)]
        if label == "fail" or self.rcode is not None:
            response.set_rcode(dns.rcode.SERVFAIL if self.rcode is None else self.rcode)
            return response
        if label == "plain" and query.edns >= 0:
            bare = dns.message.make_response(dns.message.make_query(name, qtype, use_edns=False, id=query.id))
            bare.set_rcode(dns.rcode.FORMERR)
            return bare
        if label == "referral":
            response.authority.append(dns.rrset.from_text("com.", 300, "IN", "NS", "a.gtld.example."))
            return response
        response.answer, name = self._answer(name, qtype)
        if label == "poison":
            response.answer.append(dns.rrset.from_text("bank.example.net.", 300, "IN", "A", "192.0.2.66"))
            response.additional.append(dns.rrset.from_text("bank.example.net.", 300, "IN", "A", "192.0.2.66"))
        exists = name.is_subdomain(FRESH) or any(owner == name for owner, _ in self._records)
        if not exists:
            response.set_rcode(dns.rcode.NXDOMAIN)
        if not any(qtype in {rrset.rdtype, dns.rdatatype.ANY} for rrset in response.answer) and label != "nosoa":
            zone = dns.name.from_text("example.com.") if name.is_subdomain(dns.name.from_text("example.com.")) else "."
            response.authority.append(
                dns.rrset.from_text(
                    zone, 900, "IN", "SOA", SOA.format(zone="", ttl="", minimum=self.minimum).split("SOA ")[1]
                )
            )
        return response

    def _answer(
        self, name: dns.name.Name, qtype: dns.rdatatype.RdataType
    ) -> tuple[list[dns.rrset.RRset], dns.name.Name]:
        """What there is of a type, after the CNAMEs that lead to it, and the last name of these."""
        answer: list[dns.rrset.RRset] = []
        if name.is_subdomain(FRESH) and qtype == dns.rdatatype.A:
            answer.append(dns.rrset.from_text(name, 300, "IN", "A", "192.0.2.61"))
        for _ in range(3):
            if (rrset := self._records.get((name, qtype))) is not None:
                answer.append(rrset)
                break
            alias = self._records.get((name, dns.rdatatype.CNAME))
            if alias is None:
                break
            answer.append(alias)
            name = alias[0].target
        return answer, name

    async def wait(self, octets: bytes) -> None:
        """Be as slow as wanted."""
        slow = b"\x04slow\x07example" in octets.lower()
        if self.delay or slow:
            await asyncio.sleep(self.delay or 0.6)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, upstream: Upstream, tasks: asyncio.TaskGroup) -> None:
        self._upstream = upstream
        self._tasks = tasks
        self.elsewhere: Any = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._tasks.create_task(self._answer(data, addr), name="answer")

    async def _answer(self, data: bytes, addr: Any) -> None:
        self._upstream.note(data, addr[:2], tcp=False)
        await self._upstream.wait(data)
        sender = self.elsewhere if b"\x09otherport\x07" in data else self._transport
        for reply in () if sender.is_closing() else self._upstream.replies(data, tcp=False):
            sender.sendto(reply, addr)


@asynccontextmanager
async def upstream(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Upstream]:
    """A resolver that runs."""
    made = Upstream()
    loop = asyncio.get_running_loop()
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections[task] = writer
        try:
            while True:
                octets = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                made.note(octets, writer.get_extra_info("peername")[:2], tcp=True)
                await made.wait(octets)
                for reply in made.replies(octets, tcp=True):
                    writer.write(len(reply).to_bytes(2, "big") + reply)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            del connections[task]
            writer.close()

    async with asyncio.TaskGroup() as tasks:
        server = await asyncio.start_server(serve, host, port)
        port = server.sockets[0].getsockname()[1]
        transport, protocol = await loop.create_datagram_endpoint(lambda: _Udp(made, tasks), (host, port))
        other, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, (host, 0))
        protocol.elsewhere = other
        made.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            yield made
        finally:
            transport.close()
            other.close()
            server.close()
            for writer in connections.values():
                writer.close()
            if connections:
                await asyncio.wait(list(connections))
