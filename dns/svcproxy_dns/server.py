# SPDX-License-Identifier: Apache-2.0
"""Serves DNS on a set of UDP and TCP sockets. A shell.

The sockets may come from the instance before and go to the next one: `release` leaves them open with all that waits in
them, and whoever has them goes on.
"""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress

from svcproxy_dns.admission import Refusal, TcpLimits
from svcproxy_dns.listeners import receive_drops
from svcproxy_dns.panics import Panics
from svcproxy_dns.query_log import QueryLog
from svcproxy_dns.tcp import TcpListener, TcpState
from svcproxy_dns.traffic import Traffic
from svcproxy_dns.udp import Respond, UdpListener

_DEFAULT_LIMITS = TcpLimits()
ACCEPT_TURNS = 3
"""Turns of the loop until a connection that the kernel has given us is known here: asyncio needs two, uvloop one."""


class DnsServer:
    """Owns the sockets from now on. Every method is for the loop that `start` ran on."""

    def __init__(
        self,
        respond: Respond,
        sockets: Sequence[socket.socket],
        limits: TcpLimits = _DEFAULT_LIMITS,
        traffic: Traffic | None = None,
        panics: Panics | None = None,
    ) -> None:
        """`traffic`, `panics`: where to count, if somebody wants to know."""
        traffic, panics = traffic or Traffic(), panics or Panics()
        self._tcp = TcpState(respond, limits, traffic, panics)
        self._udp_listeners = [
            UdpListener(sock, respond, traffic, panics) for sock in sockets if sock.type == socket.SOCK_DGRAM
        ]
        self._tcp_listeners = [TcpListener(sock, self._tcp) for sock in sockets if sock.type == socket.SOCK_STREAM]

    def use_log(self, log: QueryLog | None) -> None:
        """Tell the log of every response from now on; None: none."""
        self._tcp.log = log
        for listener in self._udp_listeners:
            listener.log = log

    def sockets(self) -> list[socket.socket]:
        """The sockets served, to be handed over."""
        listeners: list[UdpListener | TcpListener] = [*self._udp_listeners, *self._tcp_listeners]
        return [listener.socket for listener in listeners]

    async def start(self) -> None:
        """Answer from now on."""
        for udp in self._udp_listeners:
            udp.start()
        for tcp in self._tcp_listeners:
            await tcp.start()

    def release(self) -> None:
        """Take no more queries or connections. The sockets stay open; established connections live on."""
        for listener in self._udp_listeners:
            listener.stop()
        for tcp in self._tcp_listeners:
            tcp.stop()

    async def drain(self, timeout: float) -> None:
        """Release, close each connection once it is answered, and wait up to `timeout` seconds for that."""
        self.release()
        self._tcp.draining = True
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        for connection in list(self._tcp.connections):
            connection.close_when_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for listener in self._udp_listeners:
                    await listener.quiet.wait()
                if self._tcp.connections:
                    await self._tcp.empty.wait()

    def close(self) -> None:
        """Release, end every connection and close the sockets."""
        self.release()
        for connection in list(self._tcp.connections):
            connection.abort()
        for sock in self.sockets():
            sock.close()

    @property
    def unsent(self) -> int:
        """Responses over UDP that the kernel refused."""
        return sum(listener.unsent for listener in self._udp_listeners)

    @property
    def connections(self) -> int:
        """TCP connections established."""
        return len(self._tcp.connections)

    @property
    def refused(self) -> dict[Refusal, int]:
        """TCP connections closed because there were too many."""
        return dict(self._tcp.refused)

    @property
    def displaced(self) -> int:
        """TCP connections closed, because they were idle, for others."""
        return self._tcp.displaced

    @property
    def expired(self) -> int:
        """TCP connections closed because the client was too slow or idle."""
        return self._tcp.expired

    def receive_drops(self) -> int:
        """Datagrams for which there was no room, since the sockets were bound: whichever process had them then."""
        return sum(receive_drops(listener.socket) for listener in self._udp_listeners)
