# SPDX-License-Identifier: Apache-2.0
"""What the relays count, for each frontend and in all. Pure."""

from collections.abc import Mapping

import msgspec

from svcproxy.frontends.keys import FrontendKey


class FrontendCounters(msgspec.Struct, gc=False):
    """Counts since the frontend appeared. "Flow" is a TCP connection or a UDP session."""

    flows: int = 0
    """Flows that got a backend, or tried to."""
    active: int = 0
    """Flows now."""
    not_admitted: int = 0
    """Connections and datagrams from outside the source ranges."""
    no_backend: int = 0
    """Connections and datagrams for which there was no usable backend."""
    over_limit: int = 0
    """Connections refused because `connections_max` was reached or descriptors ran out."""
    connect_failures: int = 0
    """Backends that did not take a connection, or answered a datagram with unreachable."""
    flows_failed: int = 0
    """Connections for which every backend tried failed."""
    datagrams_dropped: int = 0
    """Datagrams that the kernel would not take, in either direction."""
    octets_in: int = 0
    """From clients to backends."""
    octets_out: int = 0
    """From backends to clients."""


class CounterBook:
    """The counters of all frontends. Those of a removed frontend stay in the totals."""

    def __init__(self) -> None:
        self._live: dict[FrontendKey, FrontendCounters] = {}
        self._leaving: list[FrontendCounters] = []
        """Of removed frontends with flows that still live."""
        self._past = FrontendCounters()

    @property
    def by_frontend(self) -> Mapping[FrontendKey, FrontendCounters]:
        """Counters of the frontends there are."""
        return self._live

    def of(self, key: FrontendKey) -> FrontendCounters:
        """The counters to count on."""
        counters = self._live.get(key)
        if counters is None:
            counters = self._live[key] = FrontendCounters()
        return counters

    def retire(self, key: FrontendKey) -> None:
        """The frontend is gone; its flows may live on."""
        if (counters := self._live.pop(key, None)) is not None:
            self._leaving.append(counters)

    def totals(self) -> FrontendCounters:
        """The sum over all frontends, past ones included. O(frontends)."""
        ended = [counters for counters in self._leaving if not counters.active]
        self._leaving = [counters for counters in self._leaving if counters.active]
        for counters in ended:
            _add(self._past, counters)
        total = FrontendCounters()
        for counters in (self._past, *self._leaving, *self._live.values()):
            _add(total, counters)
        return total


def _add(total: FrontendCounters, counters: FrontendCounters) -> None:
    for name in FrontendCounters.__struct_fields__:
        setattr(total, name, getattr(total, name) + getattr(counters, name))
