# SPDX-License-Identifier: Apache-2.0
"""Reads a list of flows, of which there may be hundreds of thousands with a few translations. Performs no I/O.

What tells flows of one translation apart is who sends, and who gets the answers. So the octets of the two tuples, less
these four fields, are looked up, and decoded only when they are seen for the first time: 3 µs a flow, not 30.
"""

from collections.abc import Set
from dataclasses import dataclass

from svcproxy.dataplane.nftables.ctnetlink import NEW_FLOW, End, Filter, Flow, Translation, parse, refusal
from svcproxy.dataplane.nftables.netlink import ATTRIBUTE, HEADER, NESTED, NLM_F_DUMP_INTR, aligned
from svcproxy.errors import ConntrackError, DecodeError
from svcproxy.model.meta import Family

KINDS_KEPT = 65536
"""Octets of translations remembered; when there are more, all are forgotten."""

_PASSED_OVER, _LISTED, _PICKED = range(3)


class Listing:
    """The answer to `list_flows`.

    The list is no snapshot: a flow may be in it twice, and one that came meanwhile may be missing.
    """

    def __init__(self, wanted: Filter, sequence: int, picked: Set[Translation], room: int) -> None:
        """Flows with a translation that is `picked` are kept, as many as there is `room` for."""
        self.listed = 0
        """Flows that the filter admits."""
        self.translations: set[Translation] = set()
        """Theirs."""
        self.flows: list[Flow] = []
        """Those picked."""
        self.complete = False
        self._wanted = wanted
        self._sequence = sequence
        self._picked = picked
        self._room = room
        self._layout = _LAYOUTS[wanted.family]
        self._kinds: dict[bytes, int] = {}

    def take(self, datagram: bytes) -> None:
        """Take a datagram in. Raises `DecodeError`, and `ConntrackError` when the list fails."""
        size, kept = self._layout.size, self._layout.kept
        offset = 0
        while offset < len(datagram):
            if len(datagram) - offset < HEADER.size:
                raise DecodeError("netlink message cut short")
            length, number, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
            if not HEADER.size <= length <= len(datagram) - offset:
                raise DecodeError(f"netlink message of {length} octets, {len(datagram) - offset} are there")
            start, end = offset, offset + length
            offset += aligned(length)
            if sequence != self._sequence:
                continue  # an answer to something given up
            if flags & NLM_F_DUMP_INTR:
                raise ConntrackError("the list is not consistent")
            if number != NEW_FLOW:
                self._end(datagram[start:end])
                continue
            tuples = datagram[start + _TUPLES : min(start + _TUPLES + size, end)]
            key = b"".join([tuples[each] for each in kept])
            kind = self._kinds.get(key)
            if kind is None:
                kind = self._kind(datagram[start:end])
                if self._layout.is_of(tuples):
                    self._remember(key, kind)
            self.listed += kind != _PASSED_OVER
            if kind == _PICKED and len(self.flows) < self._room:
                self.flows += _flows(datagram[start:end])

    def _end(self, message: bytes) -> None:
        for answer in parse(message):
            if isinstance(answer.content, End):
                if answer.content.report.errno:
                    raise refusal(answer.content.report)
                self.complete = True

    def _kind(self, message: bytes) -> int:
        for flow in _flows(message):
            if self._wanted.admits(flow):
                self.translations.add(flow.translation)
                return _PICKED if flow.translation in self._picked else _LISTED
        return _PASSED_OVER

    def _remember(self, key: bytes, kind: int) -> None:
        if len(self._kinds) >= KINDS_KEPT:
            self._kinds.clear()
        self._kinds[key] = kind


def _flows(message: bytes) -> list[Flow]:
    return [answer.content for answer in parse(message) if isinstance(answer.content, Flow)]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the kernel writes the two tuples of a flow. What is written in another way is decoded each time."""

    size: int
    kept: tuple[slice, ...]
    """All but source and source port of the original tuple, destination and destination port of the reply."""
    headers: tuple[tuple[int, bytes], ...]
    """Where attributes begin, and with what: they are all in what is kept, so that they need to be seen once."""

    def is_of(self, tuples: bytes) -> bool:
        return len(tuples) == self.size and all(tuples[at : at + 4] == octets for at, octets in self.headers)


def _layout(octets: int, source_kind: int) -> _Layout:
    """For addresses of that many octets. Attributes as in `linux/netfilter/nfnetlink_conntrack.h`."""
    address, ports = 12, 28 + 2 * octets
    size = ports + 16
    headers = [
        (start + at, ATTRIBUTE.pack(ATTRIBUTE.size + length, kind))
        for start, tuple_kind in ((0, 1), (size, 2))
        for at, length, kind in (
            (0, size - 4, tuple_kind | NESTED),
            (4, 2 * (4 + octets), 1 | NESTED),
            (8, octets, source_kind),
            (12 + octets, octets, source_kind + 1),
            (16 + 2 * octets, 24, 2 | NESTED),
            (20 + 2 * octets, 1, 1),
            (ports, 2, 2),
            (ports + 8, 2, 3),
        )
    ]
    varying = (
        (address, octets),
        (ports + 4, 2),
        (size + address + octets + 4, octets),
        (size + ports + 12, 2),
    )
    begins = [0, *(at + length for at, length in varying)]
    ends = [*(at for at, _ in varying), 2 * size]
    return _Layout(2 * size, tuple(slice(*each) for each in zip(begins, ends, strict=True)), tuple(headers))


_TUPLES = HEADER.size + 4
"""Where the tuples begin: behind nlmsghdr and nfgenmsg."""
_LAYOUTS = {Family.IPV4: _layout(4, 1), Family.IPV6: _layout(16, 3)}
