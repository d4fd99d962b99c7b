# SPDX-License-Identifier: Apache-2.0
"""The contract of a data plane. Its conformance suite is `svcproxy.testing.dataplane_conformance`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.table import FrontendDelta, FrontendTable


@dataclass(frozen=True, slots=True)
class Applied:
    """The frontend is entirely as asked."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The frontend is entirely as it was before, or absent if it was not there."""

    reason: str
    """For people: which address or object, and why."""


Outcome = Applied | Refused
APPLIED = Applied()


class Dataplane(Protocol):
    """Makes the node agree with a `FrontendTable`. One caller at a time.

    Each frontend is entirely old or entirely new; at no instant does a look-up of a frontend miss that existed before
    and after. One refused frontend never holds up another. A NodePort frontend is a whole on each of its addresses:
    refused, it may be in force on those that the reason does not name. Both calls are idempotent: after any failure
    or cancellation the caller may simply `resync`. Established connections survive changes of backends.
    """

    @property
    def name(self) -> str:
        """As in `--dataplane`: `userspace`, `nftables`, …"""
        ...

    async def apply(self, delta: FrontendDelta) -> Mapping[FrontendKey, Outcome]:
        """Take a delta in.

        Returns an outcome for every frontend that the delta names and for every frontend whose backends it changes;
        a removed frontend that is gone is `Applied`. Raises `DataplaneLost` when what is in force is unknown.
        """
        ...

    async def resync(self, desired: FrontendTable) -> FrontendDelta:
        """Compare what is in force with `desired`, repair, and return what was repaired: empty if nothing was.

        Frontends refused earlier are tried again; those still refused are in `refused` afterwards.
        Raises `DataplaneLost` when it could not be done.
        """
        ...

    @property
    def refused(self) -> Mapping[FrontendKey, str]:
        """Frontends of the table not in force, with the reason. Read-only."""
        ...

    async def drain(self, timeout: float) -> None:
        """Take no new connections and wait up to `timeout` seconds for established ones."""
        ...

    async def close(self) -> None:
        """Release what the process holds. State that lives in the kernel stays in force."""
        ...
