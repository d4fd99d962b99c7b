# SPDX-License-Identifier: Apache-2.0
"""The sockets that DNS is served on: bound here, or handed over by the instance before."""

import ipaddress
import socket
import struct
from collections.abc import Collection, Sequence

from svcproxy_dns.rendered import TCP

UDP_RECEIVE_OCTETS = 4 << 20
"""Asked of the kernel for queries that wait. Without CAP_NET_ADMIN it gives what `net.core.rmem_max` allows."""
TCP_BACKLOG = 512
"""Connections that wait to be accepted."""
PORT_ATTEMPTS = 16
"""Ports tried for port 0 until one is free for both UDP and TCP."""
_IP_PKTINFO = 8
"""`IP_PKTINFO` of Linux, which the socket module of Python 3.11 lacks, as it does the following."""
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("9I")
_MEMINFO_DROPS = 8
"""What `SO_MEMINFO` gives (Linux 4.12), and where in it datagrams are that found no room."""


def parse_listen(text: str) -> tuple[str, int]:
    """(address, port) of `ADDRESS:PORT` or `[ADDRESS]:PORT`. Raises `ValueError`."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    bracketed = host.startswith("[") and host.endswith("]")
    address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    if bracketed != (address.version == 6):
        raise ValueError(f"{text!r}: brackets are for IPv6")
    return str(address), int(port)


def bind_listeners(listen: Sequence[str], *, shared: bool = False, absent: Collection[str] = ()) -> list[socket.socket]:
    """A UDP and a TCP socket on every address. `shared`: several worker processes have them (SO_REUSEPORT); otherwise
    a second server on an address is an error. `absent`: IP addresses that may come and go (IP_FREEBIND).

    Port 0 takes a port that is free for both. Raises `OSError`, whose text names the address, with nothing left open,
    and `ValueError` for what is no address.
    """
    sockets: list[socket.socket] = []
    try:
        for text in listen:
            address, port = parse_listen(text)
            sockets.extend(_bind_pair(address, port, shared=shared, absent=address in absent))
    except OSError as exc:
        for opened in sockets:
            opened.close()
        raise OSError(exc.errno, f"cannot listen on {text}: {exc.strerror}") from exc
    return sockets


def _bind_pair(address: str, port: int, *, shared: bool, absent: bool) -> tuple[socket.socket, socket.socket]:
    for attempt in range(PORT_ATTEMPTS):
        udp = _bind(address, port, socket.SOCK_DGRAM, shared=shared, absent=absent)
        try:
            return udp, _bind(address, udp.getsockname()[1], socket.SOCK_STREAM, shared=shared, absent=absent)
        except OSError:
            udp.close()
            if port or attempt == PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _bind(address: str, port: int, kind: socket.SocketKind, *, shared: bool, absent: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if absent and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        elif absent:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_DGRAM:
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, UDP_RECEIVE_OCTETS)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_RECEIVE_OCTETS)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(TCP_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def transport_of(sock: socket.socket) -> int:
    """The number of the transport that a socket carries, see `svcproxy_dns.rendered.TCP`."""
    return (TCP if sock.type == socket.SOCK_STREAM else 0) | (1 if sock.family == socket.AF_INET6 else 0)


def receive_room(sock: socket.socket) -> int:
    """Octets that a socket has for what waits to be read. The kernel's own records take half of them or more."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def receive_drops(sock: socket.socket) -> int:
    """Datagrams that a socket has had no room for. 0 where the kernel does not tell, and once it is closed."""
    try:
        memory = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return 0
    return int(_MEMINFO.unpack(memory)[_MEMINFO_DROPS]) if len(memory) == _MEMINFO.size else 0


def is_wildcard(sock: socket.socket) -> bool:
    """Whether a socket is bound to every address, so that each reply must say which it comes from."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_unspecified


def report_destination(sock: socket.socket) -> None:
    """Make the kernel tell with each datagram the address that it was sent to (ip(7), ipv6(7))."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
