# SPDX-License-Identifier: Apache-2.0
"""The user-space data plane keeps the contract, and real clients meet what they should."""

from contextlib import AbstractAsyncContextManager

from svcproxy.testing.dataplane_traffic import DataplaneTraffic, TrafficHarness
from tests.dataplane.world import userspace


class TestUserspaceDataplane(DataplaneTraffic):
    drop_is_refusal = True

    def open(self) -> AbstractAsyncContextManager[TrafficHarness]:
        return userspace()
