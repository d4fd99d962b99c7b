# SPDX-License-Identifier: Apache-2.0
"""A response put together record by record. Pure."""

from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.wire import (
    AA,
    HEADER_OCTETS,
    QUESTION_POINTER,
    TC,
    Query,
    Rcode,
    RRType,
    encode_name,
    encode_pointer,
    encode_record,
)


class Assembly:
    """A response that begins with aliases, cut at the record that does not fit."""

    def __init__(self, query: Query, limit: int) -> None:
        self._query = query
        self._opt = query.opt_record()
        self._position = HEADER_OCTETS + len(query.question)
        self._end = limit - len(self._opt)
        self._owner = QUESTION_POINTER
        self._records: list[bytes] = []
        self._answers = self._authorities = 0
        self._flags = AA

    def add_alias(self, target: str, ttl: int) -> None:
        """A CNAME from the name reached so far, which `target` then is."""
        record = encode_record(self._owner, RRType.CNAME, ttl, encode_name(target))
        self._owner = encode_pointer(self._position + len(record) - len(encode_name(target)))
        self._answers += self._add(record)

    def add_addresses(self, addresses: AddressSet) -> None:
        """The addresses of the name reached so far."""
        size = addresses.record_octets
        block = addresses.take(len(addresses))
        for start in range(0, len(block), size):
            if self._flags & TC:
                break
            self._answers += self._add(self._owner + block[start + len(QUESTION_POINTER) : start + size])

    def add_authority(self, record: bytes) -> None:
        """The SOA of a negative response."""
        self._authorities += self._add(record)

    def _add(self, record: bytes) -> int:
        """How many records were added: one, or none once something did not fit."""
        if self._flags & TC or self._position + len(record) > self._end:
            self._flags |= TC
            return 0
        self._records.append(record)
        self._position += len(record)
        return 1

    def response(self, rcode: Rcode) -> bytes:
        """The response after the ID."""
        flags = self._query.response_flags(rcode, self._flags)
        return self._query.front(flags, self._answers, self._authorities) + b"".join(self._records) + self._opt
