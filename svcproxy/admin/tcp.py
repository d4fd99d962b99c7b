# SPDX-License-Identifier: Apache-2.0
"""TCP listeners, the same for every door."""

import socket


def listen_tcp(ip: str, port: int, backlog: int) -> socket.socket:
    """A non-blocking listening socket; `::` serves IPv6 alone. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((ip, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
