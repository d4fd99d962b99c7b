# SPDX-License-Identifier: Apache-2.0
"""Addresses that stand on the loopback interface for seconds at a time, in the namespace of whoever opens this.

They go by themselves: who puts them there need not be alive for that. What stands for good, or on another interface,
is somebody else's and left alone. Needs CAP_NET_ADMIN to change anything. A shell; it never waits, for the kernel
answers a request while it is sent.
"""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Self

from svcproxy.process.rtnetlink import (
    Acknowledgement,
    AddressChange,
    DumpEnd,
    Failure,
    Message,
    delete_address,
    get_addresses,
    parse,
    put_address,
)

VALID = 3
"""Seconds that an address stands after it was renewed; the kernel takes up to 0.3 s more."""
LIST_ATTEMPTS = 5
"""Lists asked for until one holds together."""
DATAGRAM_OCTETS_MAX = 64 << 10
"""The kernel writes lists in datagrams of at most 32 KiB."""
_HOST_PREFIX = {False: 32, True: 128}
"""By whether it is IPv6."""


class AddressLeases:
    """A socket to rtnetlink. Every call raises `OSError` as the kernel refuses, `DecodeError` if it makes no sense."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._netlink.setblocking(False)
            self._netlink.bind((0, 0))
            self._loopback = socket.if_nametoindex("lo")
        except BaseException:
            self._netlink.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. What stands, stands until it expires."""
        self._netlink.close()

    def renew(self, address: str) -> None:
        """Have it stand for the next `VALID` seconds."""
        self._sequence += 1
        self._carry_out(put_address(address, self._loopback, VALID, self._sequence))

    def end(self, address: str) -> bool:
        """Have it go at once, and return whether it was there."""
        self._sequence += 1
        try:
            self._carry_out(delete_address(address, self._loopback, self._sequence))
        except OSError as exc:
            if exc.errno == errno.EADDRNOTAVAIL:
                return False
            raise
        return True

    def foreign(self) -> Mapping[str, str]:
        """Addresses of the node that are no leases, and where they stand, for people."""
        for _ in range(LIST_ATTEMPTS):
            self._sequence += 1
            self._netlink.send(get_addresses(self._sequence))
            messages = list(self._answers())
            if DumpEnd(consistent=False) not in messages:
                changes = [each for each in messages if isinstance(each, AddressChange)]
                return {each.address: _place(each.interface) for each in changes if not self._is_lease(each)}
        raise InterruptedError(errno.EINTR, "addresses changed while the kernel listed them")

    def _is_lease(self, change: AddressChange) -> bool:
        of_one_host = change.prefix_length == _HOST_PREFIX[":" in change.address]
        return change.interface == self._loopback and change.expires and of_one_host

    def _carry_out(self, request: bytes) -> None:
        self._netlink.send(request)
        if Acknowledgement() not in self._answers():
            raise OSError(errno.EIO, "rtnetlink did not answer")

    def _answers(self) -> Iterator[Message]:
        """What waits in the socket; a refusal is raised once all of it has been read."""
        refusal = 0
        while True:
            try:
                datagram, _, flags, _ = self._netlink.recvmsg(DATAGRAM_OCTETS_MAX)
            except BlockingIOError:
                break
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, "netlink datagram larger than the buffer")
            for message in parse(datagram):
                if isinstance(message, Failure):
                    refusal = message.errno
                yield message
        if refusal:
            raise OSError(refusal, os.strerror(refusal))


def _place(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError:
        return f"interface {interface}"
