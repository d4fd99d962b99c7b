# SPDX-License-Identifier: Apache-2.0
"""The frames of the feed, as structs; their octets are `svcproxy.feed.codec`'s business.

They have a module of their own because that one may be compiled: mypyc drops the keywords of a struct's class
statement.
"""

import msgspec


class Hello(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="hello"):
    """Worker, first frame: what it wants and what it has."""

    version: int
    topic: str
    epoch: str
    """Epoch of the position held, empty if it cannot be resumed from."""
    revision: int
    holding: bool
    """Whether a whole set is held, be it resumable or not."""
    name: str
    pid: int


class Ack(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="ack"):
    """Worker: every revision up to this one is in force."""

    revision: int


class Pong(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="pong"):
    """Worker: the answer to a Ping."""


class Welcome(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="welcome"):
    """Agent, first frame."""

    epoch: str
    revision: int
    """What the agent has published."""
    resumed: bool
    """Whether deltas follow from the worker's revision on; else a snapshot follows, at once or when there is one."""


class SnapshotBegin(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="begin"):
    """Agent: a whole set follows, in chunks, with deltas from `revision + 1` on between them."""

    revision: int


class SnapshotChunk(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="chunk"):
    """Agent: some records of the snapshot."""

    records: msgspec.Raw


class SnapshotEnd(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="end"):
    """Agent: the snapshot is complete; with the deltas so far it is the set at `revision`. The rest is to be swept."""

    revision: int


class Delta(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="delta"):
    """Agent: the change that leads to `revision`, or a part of it."""

    revision: int
    more: bool
    """Further parts of the same revision follow; it is reached with the last one. Additions come before removals."""
    added: msgspec.Raw
    removed: msgspec.Raw


class SourceState(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="source"):
    """Agent: how good the published set is, once everything published before has been sent."""

    synced: bool = False
    """Complete lists have come from the source in this agent's life."""
    stale: bool = False
    """The set may be behind: the source is out of reach, or, before `synced`, the set was restored from disk."""
    since: float = 0.0
    """Wall-clock seconds since when it may be behind; 0 while it is not."""

    @property
    def servable(self) -> bool:
        """Whether there is a complete set at all."""
        return self.synced or self.stale


class Ping(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="ping"):
    """Agent: a sign of life that asks for one."""


ClientFrame = Hello | Ack | Pong
AgentFrame = Welcome | SnapshotBegin | SnapshotChunk | SnapshotEnd | Delta | SourceState | Ping
