# SPDX-License-Identifier: Apache-2.0
"""Removes svcproxy's own tables, of whatever version, and says who keeps them if somebody does."""

import errno
from collections.abc import Iterator
from typing import Final, NamedTuple

from svcproxy.dataplane.nftables import layout, messages, notrack, probes
from svcproxy.dataplane.nftables.answers import TableState
from svcproxy.dataplane.nftables.owner import owner_of
from svcproxy.dataplane.nftables.takeover import Fate, Outcome
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.model.meta import Family


class Intercepted(NamedTuple):
    """What an interception has left: its table in one family, and the addresses that stood for it."""

    state: TableState
    addresses: tuple[str, ...]


_KEYWORDS: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}


def remove_own(kernel: Kernel) -> Iterator[Outcome]:
    """Remove svcproxy's tables, and those of probes that were killed, from the namespace of the socket.

    A table that a live process owns stays, and the outcome names the process. Once more is harmless. Raises
    `DataplaneLost`.
    """
    for family, keyword in _KEYWORDS.items():
        for each in kernel.tables(family):
            # A probe that has an owner is at work, and its table goes with it.
            if each.table.name == layout.TABLE or (each.table.name.startswith(probes.TABLE_PREFIX) and not each.owner):
                yield from _remove(kernel, each, f"nftables table {keyword} {each.table.name}")


def intercepted(kernel: Kernel) -> tuple[Intercepted, ...]:
    """The tables of `notrack` that there are, and what they are about. Raises `DataplaneLost`."""
    found = []
    for family in _KEYWORDS:
        for each in kernel.tables(family):
            if each.table.name == notrack.TABLE:
                stored = kernel.elements(each.table, notrack.REPLIES) or ()
                addresses = sorted({notrack.address_of(one.element.key) for one in stored})
                found.append(Intercepted(each, tuple(addresses)))
    return tuple(found)


def remove_intercepted(kernel: Kernel, found: Intercepted) -> Iterator[Outcome]:
    """Remove one of these tables. Once more is harmless. Raises `DataplaneLost`."""
    table = found.state.table
    yield from _remove(kernel, found.state, f"nftables table {_KEYWORDS[table.family]} {table.name}")


def _remove(kernel: Kernel, state: TableState, what: str) -> Iterator[Outcome]:
    outcome = kernel.commit([messages.delete_table(state.table)])
    if isinstance(outcome, Committed):
        yield Outcome(Fate.REMOVED, what)
        return
    failure = outcome.failures[0]
    if failure.errno == errno.EPERM and state.owner:
        yield Outcome(Fate.FAILED, what, f"it belongs to {owner_of(state.owner)}; stop that first")
    elif failure.errno != errno.ENOENT:
        yield Outcome(Fate.FAILED, what, str(failure))
