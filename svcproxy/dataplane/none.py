# SPDX-License-Identifier: Apache-2.0
"""The data plane of mode `none`: takes everything in, balances nothing, refuses nothing.

It keeps the table, so that status and the feed can be asked the same questions in every mode.
"""

from collections.abc import Mapping

from svcproxy.dataplane.contract import APPLIED, Outcome
from svcproxy.dataplane.tracking import TrackedTable
from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.table import FrontendDelta, FrontendTable, diff


class NoDataplane:
    """See `svcproxy.dataplane.contract.Dataplane`."""

    name = "none"

    def __init__(self) -> None:
        self._tracked = TrackedTable()

    async def apply(self, delta: FrontendDelta) -> Mapping[FrontendKey, Outcome]:
        """Everything is applied: nothing was to be done."""
        return dict.fromkeys(self._tracked.apply(delta).frontends, APPLIED)

    async def resync(self, desired: FrontendTable) -> FrontendDelta:
        """The difference to what `apply` was told so far."""
        repairs = diff(self._tracked.table, desired)
        self._tracked.apply(repairs)
        return repairs

    @property
    def refused(self) -> Mapping[FrontendKey, str]:
        """Nothing, ever."""
        return {}

    async def drain(self, timeout: float) -> None:
        """There is nothing to wait for."""

    async def close(self) -> None:
        """There is nothing to release."""
