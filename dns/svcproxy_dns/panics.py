# SPDX-License-Identifier: Apache-2.0
"""What clients get when answering them raises: SERVFAIL. The next query is answered as if nothing had been. A shell.

Nothing here is expected to raise; this is what keeps a fault from costing more than the one query that met it.
"""

import logging
import time

from svcproxy_dns.wire import Query, Rcode, front, header_only, parse_query

log = logging.getLogger(__name__)

LOG_INTERVAL = 10.0
"""Seconds between two tracebacks in the log: a client that knows how to cause one must not fill it."""


class Panics:
    """Of one worker."""

    def __init__(self) -> None:
        self.count = 0
        """Since start."""
        self._logged_at = float("-inf")

    def response(self, message: bytes) -> bytes | None:
        """To be called where an exception has been caught: what the client gets instead of the answer to `message`."""
        self.caught("a query could not be answered")
        return server_failure(message)

    def caught(self, what: str) -> None:
        """To be called where an exception has been caught. `what` it has cost."""
        self.count += 1
        if (now := time.monotonic()) - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            log.exception(what, extra={"panics": self.count})


def server_failure(message: bytes) -> bytes | None:
    """SERVFAIL for a message; None if it deserves no reply."""
    query = parse_query(message)
    if isinstance(query, Query):
        opt = query.opt_record()
        flags = query.response_flags(Rcode.SERVFAIL)
        return message[:2] + front(flags, query.question, 0, 0, 1 if opt else 0) + opt
    return header_only(message, query) if query is not None else None
