# SPDX-License-Identifier: Apache-2.0
"""The recording fake and the plane that does nothing keep the laws that the real ones keep."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from svcproxy.dataplane.contract import Dataplane
from svcproxy.dataplane.none import NoDataplane
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import Address
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import Protocol
from svcproxy.testing.dataplane_conformance import DataplaneLaws, cluster_ip, service_port
from svcproxy.testing.recording_dataplane import RecordingDataplane


class RecordingHarness:
    node_ips = ("192.0.2.11", "192.0.2.12")

    def __init__(self) -> None:
        self.plane = RecordingDataplane()

    def address(self, number: int, protocol: Protocol) -> Address:
        return Address(f"10.96.0.{number + 1}", protocol, 80)

    def obstruct(self, key: Address) -> None:
        self.plane.refuse(key, "told to")

    def clear(self, key: Address) -> None:
        self.plane.admit(key)

    def damage(self, key: Address) -> None:
        self.plane.lose(f"{key} is gone")


class TestRecordingDataplane(DataplaneLaws):
    without_traffic = "the recording fake has no sockets"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[RecordingHarness]:
        yield RecordingHarness()

    async def test_a_refused_change_leaves_the_frontend_as_it_was(self) -> None:
        harness = RecordingHarness()
        key = harness.address(0, Protocol.TCP)
        old, new = cluster_ip(key, service_port(0)), cluster_ip(key, service_port(1))
        await harness.plane.apply(FrontendDelta(frontends=(old,)))
        harness.obstruct(key)
        await harness.plane.apply(FrontendDelta(frontends=(new,)))
        assert harness.plane.in_force == {key: old}
        assert harness.plane.table.frontends == {key: new}

    async def test_a_lost_plane_takes_nothing_until_it_is_resynced(self) -> None:
        plane = RecordingDataplane()
        plane.lose("somebody flushed it")
        with pytest.raises(DataplaneLost, match="flushed"):
            await plane.apply(FrontendDelta())
        await plane.resync(FrontendTable())
        assert await plane.apply(FrontendDelta()) == {}

    async def test_calls_are_remembered(self) -> None:
        plane, delta, table = RecordingDataplane(), FrontendDelta(), FrontendTable()
        await plane.resync(table)
        await plane.apply(delta)
        await plane.drain(2.0)
        await plane.close()
        assert plane.calls == [table, delta]
        assert plane.drained == [2.0]
        assert plane.closed


async def test_no_data_plane_takes_everything_and_agrees() -> None:
    plane: Dataplane = NoDataplane()
    frontend = cluster_ip(Address("10.96.0.1", Protocol.SCTP, 80), service_port(0, Protocol.SCTP))
    table = FrontendTable()
    table.apply(FrontendDelta(frontends=(frontend,)))
    assert set(await plane.apply(FrontendDelta(frontends=(frontend,)))) == {frontend.key}
    assert not plane.refused
    assert not await plane.resync(table)
    assert (await plane.resync(FrontendTable())).removed == (frontend.key,)
    await plane.drain(0.0)
    await plane.close()


def test_a_suite_without_traffic_must_say_why() -> None:
    with pytest.raises(TypeError, match="without_traffic"):
        type("TestSilent", (DataplaneLaws,), {})
