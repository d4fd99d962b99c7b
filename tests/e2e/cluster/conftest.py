# SPDX-License-Identifier: Apache-2.0
"""One cluster for all tests, with svcproxy as the only implementation of Services and the only DNS, and pods in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, sweep
from tests.cluster.install import NODE_LOCAL_DNS, install
from tests.e2e.cluster.workloads import Workloads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    sweep()
    with Cluster(f"test-{os.getpid()}", cluster_dns=[NODE_LOCAL_DNS]) as running:
        install(running)
        yield running


@pytest.fixture(scope="session")
def workloads(cluster: Cluster) -> Workloads:
    created = Workloads(cluster)
    created.create()
    return created
