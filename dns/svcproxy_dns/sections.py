# SPDX-License-Identifier: Apache-2.0
"""Responses made of records in an order that stays, cut at the end to what the transport carries. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from svcproxy_dns.wire import (
    HEADER_OCTETS,
    OPT_OCTETS,
    TC,
    UDP_DEFAULT_OCTETS,
    RRType,
    encode_name,
    encode_pointer,
    encode_record,
    front,
)

END_OCTETS = 40
"""Memory of one number and its place in a tuple, on 64-bit CPython."""
AFTER_ID_OCTETS = HEADER_OCTETS - 2
FITS_OCTETS = UDP_DEFAULT_OCTETS - 2 - OPT_OCTETS
"""Octets after the ID of a response without OPT that every transport carries, with one too."""
_ONE_MORE = tuple((count + 1).to_bytes(2, "big") for count in range(255))


class Records:
    """A response that holds `answers`, `authorities` and `additionals`, whole records in this order."""

    __slots__ = ("_body", "_counts", "_ends", "_flags", "_question")

    def __init__(
        self,
        flags: int,
        question: bytes,
        answers: Sequence[bytes],
        authorities: Sequence[bytes] = (),
        additionals: Sequence[bytes] = (),
    ) -> None:
        records = (*answers, *authorities, *additionals)
        self._flags = flags
        self._question = question
        self._counts = len(answers), len(authorities), len(additionals)
        self._body = b"".join(records)
        self._ends = tuple(accumulate(map(len, records)))

    @property
    def octets(self) -> int:
        """See `svcproxy_dns.rendered.Answer`."""
        return len(self._question) + len(self._body) + END_OCTETS * len(self._ends)

    def render(self, limit: int, opt: bytes) -> bytes:
        """The response after the ID within `limit` octets, ID and OPT included. TC says that there is more."""
        room = limit - HEADER_OCTETS - len(self._question) - len(opt)
        answers, authorities, additionals = self._counts
        if len(self._body) <= room:
            return front(self._flags, self._question, answers, authorities, additionals + bool(opt)) + self._body + opt
        left = fit = bisect_right(self._ends, room)
        answers = min(left, answers)
        left -= answers
        authorities = min(left, authorities)
        left -= authorities
        body = self._body[: self._ends[fit - 1]] if fit else b""
        return front(self._flags | TC, self._question, answers, authorities, left + bool(opt)) + body + opt


def settled(
    flags: int, question: bytes, answers: Sequence[bytes], additionals: Sequence[bytes] = ()
) -> bytes | Records:
    """A response with these records; its octets after the ID, without OPT, if every transport carries them."""
    body = b"".join((*answers, *additionals))
    if AFTER_ID_OCTETS + len(question) + len(body) > FITS_OCTETS:
        return Records(flags, question, answers, (), additionals)
    return front(flags, question, len(answers), 0, len(additionals)) + body


def with_opt(response: bytes, opt: bytes) -> bytes:
    """A response after the ID, of at most `FITS_OCTETS`, with an OPT record added unless that is empty."""
    if not opt:
        return response
    return b"".join((response[:8], _ONE_MORE[response[9]], response[10:], opt))


def alias_records(question: bytes, targets: Sequence[str], ttl: int) -> tuple[list[bytes], int]:
    """The CNAMEs from the question's name along `targets`, at the beginning of a response, and the octet where the last
    of these names stands."""
    records: list[bytes] = []
    owner = HEADER_OCTETS
    position = HEADER_OCTETS + len(question)
    for target in targets:
        name = encode_name(target)
        records.append(encode_record(encode_pointer(owner), RRType.CNAME, ttl, name))
        position += len(records[-1])
        owner = position - len(name)
    return records, owner
