# SPDX-License-Identifier: Apache-2.0
"""The contract between a source of objects (API servers, manifest files) and whoever follows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from svcproxy.model.changes import Changes


@dataclass(frozen=True, slots=True)
class InvalidObject:
    """An object that was left out; its last good version, if any, stays in force."""

    kind: str
    """`Service`, `EndpointSlice`, …; empty if even that could not be read."""
    name: str
    """`namespace/name`, empty if it could not be read."""
    reason: str
    """For people; names the field, and the file and line where there is one."""


@dataclass(frozen=True, slots=True)
class KindStatus:
    """How well one kind is followed."""

    kind: str
    synced: bool
    """Whether a complete list of the kind has been delivered since start."""
    server: str
    """URL of the API server in use, or path of the manifests."""
    last_contact: float | None
    """Monotonic seconds of the last octet received, None before the first."""
    resource_version: str
    error: str
    """Why the kind is not being followed right now; empty while it is."""
    optional: bool = False
    """Whether everything works without the kind, so that nobody waits for it."""


class ObjectSink(Protocol):
    """Receives what a source finds out. Called on the event loop; never blocks, never raises."""

    def changed(self, changes: Changes[Any], read_at: float) -> None:
        """Objects came, changed or went. `read_at`: monotonic seconds when the bytes that say so had been read."""

    def synced(self, kind: type) -> None:
        """The first complete list of `kind` has been delivered."""

    def invalid(self, report: InvalidObject) -> None:
        """An object was left out."""


class Source(Protocol):
    """Follows objects for ever. Nothing is ever removed because the source is unreachable or behind."""

    async def run(self, sink: ObjectSink) -> None:
        """Follow until cancelled. Retries every failure with bounded back-off."""

    def status(self) -> Sequence[KindStatus]:
        """One entry per kind followed."""
        ...
