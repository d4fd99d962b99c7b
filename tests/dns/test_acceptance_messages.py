# SPDX-License-Identifier: Apache-2.0
"""The acceptance cases of messages: octets to a socket of a worker, octets back. Names are in `test_acceptance`."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest

from svcproxy.config import DnsConfig
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.worker import DnsWorker
from tests.dns.test_worker import fill
from tests.dns.world import SHOP

ID = 0x1234
WEB, BIG = (
    b"".join(bytes([len(label)]) + label.encode() for label in f"{name}{SHOP}".split(".")) for name in ("web", "big")
)
A, SRV, CHAOS = b"\0\1\0\1", b"\0\x21\0\1", b"\0\1\0\3"
UDP, TCP = False, True


def message(body: bytes = WEB + A, flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0)) -> bytes:
    """Header and what follows."""
    return struct.pack(">6H", ID, flags, *counts) + body


def with_opt(payload: int, ttl: int = 0, options: bytes = b"", body: bytes = WEB + A) -> bytes:
    """A query with EDNS; `ttl` holds version and DO."""
    opt = struct.pack(">BHHIH", 0, 41, payload, ttl, len(options)) + options
    return message(body + opt, counts=(1, 0, 0, 1))


@dataclass(frozen=True)
class Seen:
    """What a client sees of a response."""

    rcode: str
    flags: str = "QR AA RD"
    answers: int | None = 1
    """Records; None: one at least."""
    opt: tuple[int, int, bool, int] | None = None
    """Version, payload, DO, number of options."""
    octets_max: int = 512
    header_only: bool = False


def refused(rcode: str, flags: str = "QR RD") -> Seen:
    """A header alone."""
    return Seen(rcode, flags, answers=0, octets_max=12, header_only=True)


def seen(octets: bytes, expected: Seen) -> Seen:
    """A response, with what `expected` leaves open filled in."""
    found = dns.message.from_wire(octets)
    assert found.id == ID
    answers = sum(map(len, found.answer))
    opt = None
    if found.edns >= 0:
        opt = (found.edns, found.payload, bool(found.ednsflags & dns.flags.DO), len(found.options))
    return Seen(
        dns.rcode.to_text(found.rcode()),
        dns.flags.to_text(dns.flags.Flag(found.flags & ~0x780F)),
        None if expected.answers is None and answers else answers,
        opt,
        max(expected.octets_max, len(octets)),
        len(octets) == 12,
    )


class Served:
    """A worker on real sockets, and a client of it."""

    def __init__(self, host: str, port: int) -> None:
        self.address = host, port

    async def exchange(self, octets: bytes, tcp: bool) -> bytes:
        return (await self.over_tcp(octets))[0] if tcp else await self.over_udp(octets)

    async def over_udp(self, *messages: bytes) -> bytes:
        """The first response to these datagrams."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(self.address)
            async with asyncio.timeout(10):
                for each in messages:
                    await loop.sock_sendall(client, each)
                return await loop.sock_recv(client, 65535)

    async def over_tcp(self, *messages: bytes, size: int = 65535) -> list[bytes]:
        """The responses to these messages, written `size` octets at a time."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        octets = b"".join(len(each).to_bytes(2, "big") + each for each in messages)
        async with asyncio.timeout(10):
            for start in range(0, len(octets), size):
                writer.write(octets[start : start + size])
                await writer.drain()
            found = [await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")) for _ in messages]
        writer.close()
        return found


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    worker = DnsWorker(DnsConfig(listen=("127.0.0.1:0",), resolv_conf=None))
    fill(worker)
    await worker.start(bind_listeners(["127.0.0.1:0"]))
    try:
        yield Served(*worker.sockets()[0].getsockname()[:2])
    finally:
        worker.close()


COOKIE = struct.pack(">HH", dns.edns.OptionType.COOKIE, 8) + b"12345678"
NSID = struct.pack(">HH", dns.edns.OptionType.NSID, 0)
BADVERS = Seen("BADVERS", "QR RD", 0, (0, 1232, False, 0))
CUT = "QR AA TC RD"


@pytest.mark.parametrize(
    ("octets", "tcp", "expected"),
    [
        pytest.param(message(), UDP, Seen("NOERROR"), id="M1: no OPT, no OPT"),
        pytest.param(with_opt(1232), UDP, Seen("NOERROR", opt=(0, 1232, False, 0)), id="M2: payload 1232"),
        pytest.param(with_opt(4096, 0x8000), UDP, Seen("NOERROR", opt=(0, 4096, True, 0)), id="M2: 4096 and DO"),
        pytest.param(with_opt(100), UDP, Seen("NOERROR", opt=(0, 100, False, 0)), id="M2: payload 100"),
        pytest.param(with_opt(1232, 0x10000), UDP, BADVERS, id="M3: version 1"),
        pytest.param(message(flags=0), UDP, Seen("NOERROR", "QR AA"), id="M4: RD clear"),
        pytest.param(message(flags=0x0130), UDP, Seen("NOERROR", "QR AA RD CD"), id="M4: CD and AD"),
        pytest.param(message(flags=0x0780), UDP, Seen("NOERROR"), id="M4: TC, RA and AA"),
        pytest.param(message(flags=0x0900), UDP, refused("NOTIMP"), id="M5: opcode 1"),
        pytest.param(message(flags=0x1100), UDP, refused("NOTIMP"), id="M5: opcode 2"),
        pytest.param(message(flags=0x2900), UDP, refused("NOTIMP"), id="M5: opcode 5"),
        pytest.param(message(flags=0x3100), UDP, refused("NOTIMP"), id="M5: opcode 6"),
        pytest.param(message(counts=(0, 0, 0, 0)), UDP, refused("FORMERR"), id="M6: no question"),
        pytest.param(message(2 * (WEB + A), counts=(2, 0, 0, 0)), UDP, refused("FORMERR"), id="M6: two questions"),
        pytest.param(message(counts=(1, 2, 0, 0)), UDP, refused("FORMERR"), id="M6: two answers"),
        pytest.param(message(counts=(1, 0, 0, 3)), UDP, refused("FORMERR"), id="M6: three additional records"),
        pytest.param(message()[:20], UDP, refused("FORMERR"), id="M8: cut after 20 octets"),
        pytest.param(message(b"\xc0\x0c" + A), UDP, refused("FORMERR"), id="M8: a name that points at itself"),
        pytest.param(message(WEB + A + bytes(3)), UDP, Seen("NOERROR"), id="M9: three octets after the question"),
        pytest.param(message(BIG + A), UDP, Seen("NOERROR", CUT, None), id="M10: 512 octets"),
        pytest.param(
            with_opt(1232, body=BIG + A),
            UDP,
            Seen("NOERROR", CUT, None, (0, 1232, False, 0), 1232),
            id="M11: payload 1232",
        ),
        pytest.param(
            with_opt(4096, body=BIG + A),
            UDP,
            Seen("NOERROR", answers=200, opt=(0, 4096, False, 0), octets_max=4096),
            id="M11: payload 4096",
        ),
        pytest.param(message(BIG + A), TCP, Seen("NOERROR", answers=200, octets_max=65535), id="M11: TCP"),
        pytest.param(
            with_opt(4096, body=BIG + SRV),
            UDP,
            Seen("NOERROR", CUT, None, (0, 4096, False, 0), 4096),
            id="M12: payload 4096",
        ),
        pytest.param(message(BIG + SRV), TCP, Seen("NOERROR", answers=200, octets_max=65535), id="M12: TCP"),
        pytest.param(message(WEB + CHAOS), UDP, Seen("REFUSED", "QR RD", 0), id="B8: class CH"),
        pytest.param(message(WEB + A[:3] + b"\4"), UDP, Seen("REFUSED", "QR RD", 0), id="B8: class HS"),
        pytest.param(message(flags=0x2100), UDP, refused("NOTIMP"), id="B9: NOTIFY"),
        pytest.param(
            with_opt(1232, options=COOKIE + NSID),
            UDP,
            Seen("NOERROR", opt=(0, 1232, False, 0)),
            id="B19: cookie and NSID",
        ),
    ],
)
async def test_messages(octets: bytes, tcp: bool, expected: Seen) -> None:
    async with served() as client:
        assert seen(await client.exchange(octets, tcp), expected) == expected


@pytest.mark.parametrize(
    "octets",
    [pytest.param(message()[:5], id="M7: five octets"), pytest.param(message(flags=0x8100), id="M7: a response")],
)
async def test_no_reply(octets: bytes) -> None:
    """What comes is the reply to the query behind it."""
    async with served() as client:
        assert seen(await client.over_udp(octets, message(WEB + SRV)), Seen("NOERROR", answers=3)).answers == 3


async def test_m13_queries_in_one_segment_are_all_answered() -> None:
    queries = [struct.pack(">H", ident) + message(name + A)[2:] for ident, name in enumerate([WEB, BIG, WEB, BIG])]
    async with served() as client:
        found = [dns.message.from_wire(each) for each in await client.over_tcp(*queries)]
    assert sorted((each.id, sum(map(len, each.answer))) for each in found) == [(0, 1), (1, 200), (2, 1), (3, 200)]


async def test_m14_a_query_octet_by_octet_is_answered() -> None:
    async with served() as client:
        (found,) = await client.over_tcp(message(), size=1)
    assert seen(found, Seen("NOERROR")) == Seen("NOERROR")
