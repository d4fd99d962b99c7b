# SPDX-License-Identifier: Apache-2.0
"""A cluster with something in it, and one API server that serves it."""

from collections.abc import AsyncIterator

import pytest

from svcproxy.testing.fake_api import FakeApiServer, FakeCluster
from tests.kube.world import populate


@pytest.fixture
async def cluster() -> FakeCluster:
    cluster = FakeCluster()
    populate(cluster)
    return cluster


@pytest.fixture
async def server(cluster: FakeCluster) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(cluster) as server:
        yield server
