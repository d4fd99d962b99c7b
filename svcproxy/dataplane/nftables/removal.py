# SPDX-License-Identifier: Apache-2.0
"""Removes svcproxy's own tables, of whatever version, and says who keeps them if somebody does."""

import errno
from collections.abc import Iterator
from typing import Final

from svcproxy.dataplane.nftables import layout, messages, probes
from svcproxy.dataplane.nftables.answers import TableState
from svcproxy.dataplane.nftables.owner import owner_of
from svcproxy.dataplane.nftables.takeover import Fate, Outcome
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.model.meta import Family

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
