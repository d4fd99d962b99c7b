# SPDX-License-Identifier: Apache-2.0
"""The address records of one name and type, ready to be copied into responses, in an order that changes. Pure."""

import random
from collections.abc import Iterable

from svcproxy_dns.addresses import pack_ip
from svcproxy_dns.wire import QUESTION_POINTER, RRType, encode_record

SHUFFLED_MAX = 64
"""Sets up to this size are shuffled anew after each round; larger ones are rotated only, at a tenth of the cost."""


class AddressSet:
    """A or AAAA records owned by the name of the question.

    `take` hands them out rotated by one more each time, so that in a round each address comes first once; a new round
    has a new order. A change costs one record, the next `take` after it one copy of the set.
    """

    __slots__ = ("_again", "_next", "_records", "_ring", "_rng", "record_octets", "rrtype", "ttl")

    def __init__(self, rrtype: RRType, ttl: int, rng: random.Random, ips: Iterable[str] = ()) -> None:
        self.rrtype = rrtype
        self.ttl = ttl
        self.record_octets = len(QUESTION_POINTER) + 10 + (4 if rrtype is RRType.A else 16)
        self._rng = rng
        self._records: dict[str, bytes] = {}
        self._again: dict[str, int] = {}
        """How many times more than once an address was added: endpoints that differ in hostname or ports share it."""
        self._ring = b""
        """The records in the order of this round, twice; empty: to be made."""
        self._next = 0
        for ip in ips:
            self.add(ip)

    def __len__(self) -> int:
        return len(self._records)

    def __bool__(self) -> bool:  # mypyc does not ask `__len__`
        return bool(self._records)

    def add(self, ip: str) -> None:
        """Take a canonical address of the set's family in."""
        if ip in self._records:
            self._again[ip] = self._again.get(ip, 0) + 1
            return
        self._records[ip] = encode_record(QUESTION_POINTER, self.rrtype, self.ttl, pack_ip(ip))
        self._ring = b""

    def discard(self, ip: str) -> None:
        """Take back one `add` of an address that was added."""
        if again := self._again.pop(ip, 0):
            if again > 1:
                self._again[ip] = again - 1
            return
        del self._records[ip]
        self._ring = b""

    def owned_by(self, owner: bytes) -> list[bytes]:
        """The records with another owner, each once."""
        return [owner + record[len(QUESTION_POINTER) :] for record in self._records.values()]

    def after_owner(self, ip: str) -> bytes | None:
        """The record of an address without its owner; None if it is not held."""
        record = self._records.get(ip)
        return record[len(QUESTION_POINTER) :] if record is not None else None

    def take(self, count: int) -> bytes:
        """The next `count` records of the ring, at most all. The set must not be empty."""
        if len(self._records) == 1:
            return next(iter(self._records.values()))
        if not self._ring or self._next >= len(self._records):
            self._new_round()
        start = self._next * self.record_octets
        self._next += 1
        return self._ring[start : start + count * self.record_octets]

    def _new_round(self) -> None:
        records = list(self._records.values())
        if len(records) <= SHUFFLED_MAX:
            self._rng.shuffle(records)
            self._ring = b"".join(records) * 2
            self._next = 0
        elif self._ring:
            self._next = 0
        else:
            self._ring = b"".join(records) * 2
            self._next = self._rng.randrange(len(records))
