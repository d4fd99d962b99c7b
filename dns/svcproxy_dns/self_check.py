# SPDX-License-Identifier: Apache-2.0
"""Whether DNS answers here, and how fast: a query to the own socket once a second, as any client sends it. A shell.

The way leads through the kernel and the worker's own loop, so an overloaded worker shows in how long it takes. Of
several workers that share an address, any one answers.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence

from svcproxy_dns.forward_statistics import Histogram
from svcproxy_dns.wire import CLASS_IN, RRType, encode_name

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two checks."""
TIMEOUT = 3.0
"""Seconds for an answer; CoreDNS' value."""
BUCKETS = tuple(0.00025 * 10**power for power in range(5))
"""Seconds, as CoreDNS has them: 0.25 ms to 2.5 s."""
_REPLY_OCTETS = 512


def question(name: str, rrtype: RRType) -> bytes:
    """A query without its ID."""
    return b"\0\0\0\1\0\0\0\0\0\0" + encode_name(name) + rrtype.to_bytes(2, "big") + CLASS_IN.to_bytes(2, "big")


async def answered(
    address: tuple[str, int], query: bytes, source: str = "", accept: Callable[[bytes], bool] = bool
) -> None:
    """Return when the server at `address` has answered `query`, see `question`, over UDP, in a way to `accept`.

    `source`: the address to ask from, if it matters. Raises `OSError`.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as client:
        if source:
            client.bind((source, 0))
        client.connect(address)
        ident = secrets.token_bytes(2)
        await loop.sock_sendall(client, ident + query)
        while not ((reply := await loop.sock_recv(client, _REPLY_OCTETS)).startswith(ident) and accept(reply)):
            pass


class SelfCheck:
    """Asks for the SOA of `zone` while there are sockets to ask."""

    def __init__(self, zone: str, sockets: Callable[[], Sequence[socket.socket]]) -> None:
        """`sockets`: those that the worker serves."""
        self._query = question(zone, RRType.SOA)
        self._sockets = sockets
        self.times = Histogram(BUCKETS)
        """How long every check took."""
        self.failures = 0

    async def run(self) -> None:
        """Check until cancelled."""
        failing = False
        while True:
            await asyncio.sleep(INTERVAL)
            address = own_address(self._sockets())
            if address is None:
                continue
            loop = asyncio.get_running_loop()
            began = loop.time()
            error = ""
            try:
                async with asyncio.timeout(TIMEOUT):
                    await answered(address, self._query)
            except OSError as exc:
                error = str(exc) or type(exc).__name__
                self.failures += 1
            self.times.observe(loop.time() - began)
            if error and not failing:
                log.warning("DNS does not answer here", extra={"address": address[0], "cause": error})
            failing = bool(error)


def own_address(sockets: Sequence[socket.socket]) -> tuple[str, int] | None:
    """Where the first UDP socket can be asked from here; None without one."""
    for each in sockets:
        if each.type == socket.SOCK_DGRAM and each.fileno() >= 0:
            host, port = each.getsockname()[:2]
            return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104  # compared
    return None
