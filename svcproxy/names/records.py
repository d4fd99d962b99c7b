# SPDX-License-Identifier: Apache-2.0
"""The records that the agent publishes to DNS workers, and the contract of whoever receives them.

State is a set of frozen records. A change is a pair (added, removed) of records; a Service whose ports change is its
old record removed and its new record added in one change. So one endpoint costs one record, a snapshot is the set,
and `apply(a, diff(a, b)) == b` is set arithmetic.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol as Contract

import msgspec

from svcproxy.model.meta import NamespacedName, Protocol


class NamedPort(msgspec.Struct, frozen=True, gc=False, order=True, array_like=True):
    """A port of a Service or of an endpoint."""

    name: str
    """Empty for an unnamed port."""
    protocol: Protocol
    port: int
    """0 where an endpoint's slice says none: the port has a name, and nothing to tell."""


class NamespaceRecord(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="n"):
    """A namespace exists."""

    name: str


class ServiceRecord(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """A Service as DNS sees it. At most one record per (namespace, name) at rest."""

    namespace: str
    name: str
    cluster_ips: tuple[str, ...] = ()
    """Canonical; empty for headless and ExternalName Services."""
    ports: tuple[NamedPort, ...] = ()
    external_name: str | None = None
    """Set only for type ExternalName."""
    address_pending: bool = False
    """Neither headless nor ExternalName, and no address has been given out yet: the name exists without data."""

    @property
    def service(self) -> NamespacedName:
        """The Service's key."""
        return NamespacedName(self.namespace, self.name)

    @property
    def headless(self) -> bool:
        """Answers with its endpoints' addresses."""
        return not self.cluster_ips and self.external_name is None and not self.address_pending


class EndpointRecord(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="e"):
    """One ready address of a Service; several slices that say the same give one record."""

    namespace: str
    name: str
    """The Service's name."""
    ip: str
    """Canonical."""
    hostname: str = ""
    """The endpoint's hostname, empty when it has none: its DNS label is then made of its address."""
    pod: str = ""
    """The name of the Pod behind it, empty if unknown."""
    ports: tuple[NamedPort, ...] = ()

    @property
    def service(self) -> NamespacedName:
        """The Service's key."""
        return NamespacedName(self.namespace, self.name)


class PodRecord(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="p"):
    """An address of a Pod that runs; Pods of a namespace that say the same give one record."""

    namespace: str
    ip: str
    """Canonical."""


class NodePodRecord(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """An address of a Pod of this node that is no other's, with the Pod's name: who asks. No name is made of it."""

    namespace: str
    ip: str
    """Canonical."""
    name: str


Record = NamespaceRecord | ServiceRecord | EndpointRecord | PodRecord | NodePodRecord
"""Another kind of record is another `svcproxy.feed.codec.PROTOCOL_VERSION`."""


class RecordSink(Contract):
    """Receives records from a feed. Methods never block, and cost time in proportion to their arguments alone.

    Between `begin_snapshot` and the end of `sweep`, what was known before stays known: a snapshot adds first and
    removes at the end, so nothing is missing in between. While a snapshot is taken two `ServiceRecord`s of one Service
    may both be known; the one added last is in force.
    """

    def begin_snapshot(self) -> None:
        """A full snapshot follows: records not added from now on are swept at its end."""

    def change(self, added: Sequence[Record], removed: Sequence[Record]) -> None:
        """Take records in and out. Adding the known and removing the unknown are fine."""

    def sweep(self, batch: int) -> Iterator[int]:
        """Remove what the snapshot did not bring, at most `batch` records between two yields of the number removed."""
        ...
