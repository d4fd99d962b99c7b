# SPDX-License-Identifier: Apache-2.0
"""The node's own addresses, followed through rtnetlink as they come and go. Needs no privileges.

What counts is what one can bind to: addresses of all interfaces and both families, loopback included, IPv6 ones once
duplicate address detection has let them through. Of 127.0.0.0/8, where everything is local, only what is configured
appears. Whether an interface is up makes no difference.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from svcproxy.errors import DecodeError
from svcproxy.process.backoff import Backoff
from svcproxy.process.readiness import readable
from svcproxy.process.rtnetlink import (
    Acknowledgement,
    AddressChange,
    DumpEnd,
    Failure,
    Group,
    Message,
    get_addresses,
    parse,
)

log = logging.getLogger(__name__)

BACKOFF_INITIAL = 0.05
BACKOFF_MAX = 10.0
DATAGRAM_OCTETS_MAX = 64 << 10
"""The kernel writes lists in datagrams of at most 32 KiB."""
READS_MAX = 32
"""Datagrams read in one turn of the loop."""


class AddressTable:
    """What the messages say that the addresses are. Performs no I/O.

    A list replaces everything, together with the changes that arrive while it does: the kernel puts both into one
    queue, in order. Until it is complete, what was known before stays in force.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, str], bool] = {}
        self._listed: dict[tuple[int, int, str], bool] | None = None
        self.complete = False
        """Whether there has been a complete list."""

    @property
    def listing(self) -> bool:
        """Whether a list has been asked for and is not complete yet."""
        return self._listed is not None

    @property
    def addresses(self) -> frozenset[str]:
        """Usable addresses, canonical."""
        return frozenset(address for (_, _, address), usable in self._known.items() if usable)

    def begin(self) -> None:
        """A list has been asked for; its messages are the next."""
        self._listed = {}

    def take(self, message: Message) -> None:
        """Take a message in. Raises `OSError` when the list failed or does not hold together: ask again."""
        match message:
            case AddressChange():
                key = (message.interface, message.prefix_length, message.address)
                for table in (self._known, self._listed):
                    if table is None:
                        continue
                    if message.added:
                        table[key] = message.usable
                    else:
                        table.pop(key, None)
            case DumpEnd(consistent=False):
                raise InterruptedError("addresses changed while the kernel listed them")
            case DumpEnd():
                if self._listed is not None:
                    self._known, self._listed = self._listed, None
                    self.complete = True
            case Acknowledgement():
                pass
            case Failure():
                raise OSError(message.errno, os.strerror(message.errno))


class AddressFollower:
    """Keeps somebody informed of the node's addresses."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff(BACKOFF_INITIAL, BACKOFF_MAX)
        self.addresses: frozenset[str] | None = None
        """As last reported; None before the first complete list."""
        self.error = ""
        """Why they are not being followed right now; empty while they are."""

    async def run(self, on_change: Callable[[frozenset[str]], None]) -> None:
        """Follow until cancelled. `on_change` gets the whole set, first when it is known, then when it differs.

        Every failure (a lost message above all: ENOBUFS, netlink(7)) is answered with a new list, after a bounded
        wait; meanwhile the last set stays in force.
        """
        table = AddressTable()
        while True:
            try:
                await self._follow(table, on_change)
            except (OSError, DecodeError) as exc:
                self.error = str(exc)
                log.warning("local addresses have to be listed again", extra={"cause": self.error})
            await asyncio.sleep(self._backoff.next())

    async def _follow(self, table: AddressTable, on_change: Callable[[frozenset[str]], None]) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.setblocking(False)
            netlink.bind((0, Group.IPV4_ADDRESS | Group.IPV6_ADDRESS))  # before the list, so that nothing falls between
            table.begin()
            netlink.send(get_addresses(sequence=1))
            while True:
                await readable(netlink)
                _read(netlink, table)
                if table.complete:
                    self._report(table.addresses, on_change)
                if not table.listing:
                    self._backoff.reset()
                    self.error = ""

    def _report(self, addresses: frozenset[str], on_change: Callable[[frozenset[str]], None]) -> None:
        if addresses != self.addresses:
            self.addresses = addresses
            on_change(addresses)


def _read(netlink: socket.socket, table: AddressTable) -> None:
    """Take in what is there, up to a bound: many changes at once make one report."""
    for _ in range(READS_MAX):
        try:
            datagram, _, flags, (sender, _) = netlink.recvmsg(DATAGRAM_OCTETS_MAX)
        except BlockingIOError:
            return
        if flags & socket.MSG_TRUNC:
            raise DecodeError("netlink datagram larger than the buffer")
        if sender != 0:  # not the kernel
            continue
        for message in parse(datagram):
            table.take(message)
