# SPDX-License-Identifier: Apache-2.0
"""Control planes: one that tests share and leave as they found it, and one for each test that breaks things."""

import os
import secrets
from collections.abc import Iterator

import pytest

from svcproxy.testing.control_plane import ControlPlane


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def shared_plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def two_servers() -> Iterator[ControlPlane]:
    with ControlPlane(servers=2) as plane:
        yield plane


@pytest.fixture
def seed() -> int:
    """What random tests begin from: `SVCPROXY_SEED`, to repeat a run, or another one each time."""
    return int(os.environ.get("SVCPROXY_SEED") or secrets.randbelow(1 << 32))
