# SPDX-License-Identifier: Apache-2.0
"""Lets addresses stand on the node while the workers of a role prove that they answer there. A shell.

Each turn renews, for `leases.VALID` seconds, the addresses proven since the last one. Nobody has to be alive for them
to go. No packet of anyone is looked at here: what comes in are octets of workers and the kernel's answers.

Told to stop, it gives new queries back to whoever else serves the addresses and lets these stand until the last worker
has ended, so that replies which are due still leave; then it removes everything. An instance that another one has
succeeded leaves everything to that one.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from svcproxy.config import DNS_PORT
from svcproxy.dataplane.nftables.untracked import NotrackTables
from svcproxy.errors import DataplaneLost, DecodeError
from svcproxy.process.leases import VALID, AddressLeases
from svcproxy.process.proof import channel
from svcproxy.supervisor.proofs import Provers

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two turns: an address outlives two that fail."""
LOOK_INTERVAL = 10.0
"""Seconds between two looks whether somebody else has an address."""
_OCTETS_MAX = 4096
"""Read of a worker's pipe in one turn; it writes two."""
_STANDS: Final = ""
_UNPROVEN: Final = "no worker answers there"


class Interception:
    """The addresses of one role. Failures are told once for each change of state, and end nothing."""

    def __init__(self, addresses: Sequence[str], now: float) -> None:
        self.due = now
        """When the next turn is."""
        self._addresses = addresses
        self._provers = Provers(addresses)
        self._pipes: dict[int, int] = {}
        """Our ends, by worker."""
        self._leases: AddressLeases | None = None
        self._tables: NotrackTables | None = None
        self._states = dict.fromkeys(addresses, _UNPROVEN)
        """Why each does not stand, or `_STANDS`."""
        self._untracked = ""
        """Why there are no tables."""
        self._renewed: dict[str, float] = {}
        self._foreign: Mapping[str, str] = {}
        self._look_at = now
        self._kept: frozenset[str] | None = None
        """What is to stand until the last worker has ended, once they are being stopped."""
        self._withdrawn = False

    # --- workers

    def open(self, worker: int) -> tuple[int, dict[str, str]]:
        """A pipe for a worker that is about to start: its end, which it inherits and the caller closes, and what to
        tell it. Raises OSError."""
        self._provers.started(worker)
        self._pipes[worker], writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        return writer, channel(writer, self._addresses)

    def ended(self, worker: int) -> None:
        """The worker's process has ended, or never began."""
        if (pipe := self._pipes.pop(worker, None)) is not None:
            with contextlib.suppress(BlockingIOError):
                self._provers.heard(worker, os.read(pipe, _OCTETS_MAX), self.due)
            os.close(pipe)
        self._provers.ended(worker)
        if self._kept is not None and not self._pipes:
            self._withdraw()

    # --- turns

    def turn(self, now: float) -> Sequence[int]:
        """Renew what is proven. Returns the workers that hang, for the caller to kill."""
        self.due = now + INTERVAL
        self._listen(now)
        proven = self._provers.take()
        wanted = proven if self._kept is None else self._kept
        if wanted:
            self._look(now, wanted)
        if wanted and self._kept is None:
            self._ensure_tables()
        for address in self._addresses:
            if address in wanted:
                self._renew(address, now)
            elif not self._stood(address, now):
                self._tell(address, _UNPROVEN)
        return self._provers.hung(now) if self._kept is None else ()

    def stop(self, now: float) -> None:
        """The workers are about to be stopped."""
        self._listen(now)
        if self._kept is not None:
            return
        self._kept = frozenset()
        if self._provers.succeeded:
            return
        self._kept = frozenset(address for address in self._addresses if self._stood(address, now))
        if self._kept and self._tables is not None and not self._untracked:
            self._attempt(self._tables.give_queries_back)

    def close(self) -> None:
        """The workers have ended, and so does this."""
        for worker in tuple(self._pipes):
            self.ended(worker)
        self._withdraw()
        for each in (self._leases, self._tables):
            if each is not None:
                each.close()

    # --- parts

    def _withdraw(self) -> None:
        """Remove what stands, unless another instance has it now."""
        self._kept = frozenset()
        if self._provers.succeeded or self._withdrawn:
            return
        self._withdrawn = True
        for address in self._renewed:
            if self._leases is not None:
                self._attempt(self._leases.end, address)
        if self._tables is not None:
            self._attempt(self._tables.remove)

    def _listen(self, now: float) -> None:
        for worker, pipe in self._pipes.items():
            with contextlib.suppress(BlockingIOError):
                self._provers.heard(worker, os.read(pipe, _OCTETS_MAX), now)

    def _look(self, now: float, wanted: frozenset[str]) -> None:
        """See whether somebody else has what is wanted: what stands for good must not be made to expire."""
        begins = any(not self._stood(address, now) and address not in self._foreign for address in wanted)
        if now < self._look_at and not begins:
            return
        self._look_at = now + LOOK_INTERVAL
        try:
            self._leases = self._leases or AddressLeases()
            self._foreign = self._leases.foreign()
        except (OSError, DecodeError) as exc:
            log.debug("addresses not listed", extra={"cause": str(exc)})

    def _ensure_tables(self) -> None:
        try:
            self._tables = self._tables or NotrackTables(self._addresses, DNS_PORT)
            self._tables.ensure()
            cause = ""
        except (OSError, DataplaneLost) as exc:
            cause = _reason(exc)
        if cause and cause != self._untracked:
            log.warning("intercepted queries are tracked, and rules for Services come first", extra={"cause": cause})
        elif self._untracked and not cause:
            log.info("intercepted queries are no longer tracked")
        self._untracked = cause

    def _renew(self, address: str, now: float) -> None:
        if (place := self._foreign.get(address)) is not None:
            self._tell(address, f"it stands on {place} already, and not for svcproxy")
            return
        try:
            self._leases = self._leases or AddressLeases()
            self._leases.renew(address)
        except (OSError, DecodeError) as exc:
            self._tell(address, _reason(exc))
        else:
            self._renewed[address] = now
            self._tell(address, _STANDS)

    def _stood(self, address: str, now: float) -> bool:
        """Whether it was renewed a moment ago."""
        return now - self._renewed.get(address, -VALID) < VALID

    def _tell(self, address: str, state: str) -> None:
        if self._states[address] == state:
            return
        self._states[address] = state
        if state == _STANDS:
            log.info("intercepting", extra={"address": address})
        else:
            log.warning("not intercepting", extra={"address": address, "cause": state})

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except (OSError, DecodeError, DataplaneLost) as exc:
            log.warning("not taken back", extra={"cause": _reason(exc), "address": ", ".join(arguments)})


def _reason(exc: Exception) -> str:
    if isinstance(exc, OSError):
        return "that needs CAP_NET_ADMIN" if exc.errno == errno.EPERM else exc.strerror or str(exc)
    return str(exc)
