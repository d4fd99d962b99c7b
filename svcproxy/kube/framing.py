# SPDX-License-Identifier: Apache-2.0
"""Lines out of a stream of octets, with a bound. Pure.

A watch sends one JSON document per line. However the stream is fragmented, the lines are the same.
"""

from dataclasses import dataclass

PREFIX_OCTETS = 4096
"""Kept of a line that is too large, to tell which object it was about."""


@dataclass(frozen=True, slots=True)
class Oversized:
    """A line over the limit, read to its end and thrown away."""

    prefix: bytes
    """How it began, at most `PREFIX_OCTETS`."""
    octets: int
    """Its length without the terminator."""


class LineReader:
    """Cuts a stream into lines of at most `limit` octets, terminator not counted. Empty lines are left out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending = bytearray()
        self._searched = 0
        """Octets of `_pending` known to hold no terminator."""
        self._dropped = 0
        """Octets of the current line thrown away after its prefix."""

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """The lines that `data` completes."""
        self._pending += data
        lines: list[bytes | Oversized] = []
        start = 0
        while (end := self._pending.find(b"\n", max(start, self._searched))) >= 0:
            if (line := self._line(start, end)) is not None:
                lines.append(line)
            start = end + 1
        if start:
            del self._pending[:start]
        if len(self._pending) > self._limit or self._dropped:
            kept = min(len(self._pending), PREFIX_OCTETS)
            self._dropped += len(self._pending) - kept
            del self._pending[kept:]
        self._searched = len(self._pending)
        return lines

    def _line(self, start: int, end: int) -> bytes | Oversized | None:
        octets = end - start + self._dropped
        self._dropped = 0
        if octets > self._limit:
            return Oversized(bytes(self._pending[start : min(end, start + PREFIX_OCTETS)]), octets)
        line = bytes(self._pending[start:end]).strip()
        return line or None

    @property
    def pending_octets(self) -> int:
        """Octets of a line that has no end yet. Not 0 when the stream ends: it was cut in the middle of a line."""
        return len(self._pending) + self._dropped
