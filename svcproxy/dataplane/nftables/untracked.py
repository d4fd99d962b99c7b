# SPDX-License-Identifier: Apache-2.0
"""Keeps the tables of `notrack` in the kernel. A shell.

The tables have no owner, for the instances of a rolling update share them: whichever serves puts its own in place.
"""

from collections.abc import Sequence
from typing import Final

from svcproxy.dataplane.nftables import notrack
from svcproxy.dataplane.nftables.messages import Request
from svcproxy.dataplane.nftables.transaction import Kernel, Rejected
from svcproxy.errors import DataplaneLost
from svcproxy.model.meta import Family, family_of


class NotrackTables:
    """Tables for some addresses. Every call raises `DataplaneLost` when the kernel refuses, or its answer is lost."""

    def __init__(self, addresses: Sequence[str], port: int) -> None:
        """Opens a socket to the kernel and changes nothing yet. Raises OSError."""
        self._kernel: Final = Kernel()
        self._addresses = addresses
        self._port = port
        self._families = {family_of(address) for address in addresses}
        self._generation: int | None = None
        """Of the ruleset when the tables were in order."""

    def ensure(self) -> None:
        """Have the tables in place. Costs one question while nobody has changed anything in nftables."""
        generation = self._kernel.generation().number
        if generation == self._generation:
            return
        if not all(map(self._intact, Family)):
            self._commit(notrack.replace(self._addresses, self._port))
        self._generation = generation

    def give_queries_back(self) -> None:
        """Let new queries go elsewhere while replies still leave."""
        self._commit(notrack.give_queries_back(sorted(self._families)))

    def remove(self) -> None:
        """Remove the tables."""
        self._commit([request for family in Family for request in notrack.remove(family)])

    def close(self) -> None:
        """Close the socket. The tables stay."""
        self._kernel.close()

    def _intact(self, family: Family) -> bool:
        table = notrack.TABLES[family]
        queries = self._kernel.elements(table, notrack.QUERIES, complete=False)
        own = (each for each in self._addresses if family_of(each) is family)
        return notrack.intact(self._kernel.rules(table), queries, notrack.keys(own, self._port))

    def _commit(self, requests: Sequence[Request]) -> None:
        outcome = self._kernel.commit(requests)
        if isinstance(outcome, Rejected):
            raise DataplaneLost("; ".join(map(str, outcome.failures)))
