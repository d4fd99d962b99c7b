# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Events that tell operators what they must know. Pure: bounds and bodies; `ApiSource` posts them.

An Event costs the API server a write, on every node at once when something is wrong with the whole cluster. So the same
note is not repeated within `REPEAT_AFTER`, a token bucket bounds the rest, and what exceeds it is dropped and counted.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

import msgspec

REPEAT_AFTER = 600.0
"""Seconds before the same note is posted again."""
REMEMBERED_MAX = 1024
"""Notes remembered as posted; the oldest makes room."""
BURST = 10.0
"""Notes that may be posted at once."""
REFILL = 0.1
"""Notes per second in the long run."""
MESSAGE_MAX = 1024
"""Characters of a message (core/v1 Event validation)."""


class NoteType(StrEnum):
    """`type` of an Event."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Note:
    """Something an operator must know about an object."""

    api_version: str
    """Of the object, such as `v1` or `discovery.k8s.io/v1`."""
    kind: str
    namespace: str
    """Empty for cluster-scoped objects."""
    name: str
    uid: str
    """Empty if unknown."""
    reason: str
    """One word in CamelCase."""
    message: str
    type: NoteType = NoteType.WARNING


class NoteLimiter:
    """Decides which notes are posted. `now`: monotonic seconds."""

    def __init__(self) -> None:
        self._posted: OrderedDict[Note, float] = OrderedDict()
        self._tokens = BURST
        self._filled_at: float | None = None

    def admit(self, note: Note, now: float) -> bool:
        """Whether to post `note`."""
        if self._filled_at is not None:
            self._tokens = min(self._tokens + (now - self._filled_at) * REFILL, BURST)
        self._filled_at = now
        posted_at = self._posted.get(note)
        if (posted_at is not None and now - posted_at < REPEAT_AFTER) or self._tokens < 1:
            return False
        self._tokens -= 1
        self._posted[note] = now
        self._posted.move_to_end(note)
        if len(self._posted) > REMEMBERED_MAX:
            self._posted.popitem(last=False)
        return True


def event_path(note: Note) -> str:
    """Where the Event is created; Events about cluster-scoped objects go to `default`, as those of other components."""
    return f"/api/v1/namespaces/{note.namespace or 'default'}/events"


def event_body(note: Note, node_name: str, timestamp: str, unique: int) -> bytes:
    """The Event as JSON. `timestamp`: RFC 3339; `unique` keeps the names of Events apart, as nanoseconds do."""
    suffix = hashlib.blake2b(f"{unique} {node_name} {note.reason}".encode(), digest_size=8).hexdigest()
    regarding = {"apiVersion": note.api_version, "kind": note.kind, "name": note.name}
    if note.namespace:
        regarding["namespace"] = note.namespace
    if note.uid:
        regarding["uid"] = note.uid
    return msgspec.json.encode(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{note.name[:200]}.{suffix}", "namespace": note.namespace or "default"},
            "involvedObject": regarding,
            "reason": note.reason,
            "message": note.message[:MESSAGE_MAX],
            "type": note.type,
            "count": 1,
            "firstTimestamp": timestamp,
            "lastTimestamp": timestamp,
            "source": {"component": "svcproxy", "host": node_name},
            "reportingComponent": "svcproxy",
            "reportingInstance": node_name,
        }
    )
