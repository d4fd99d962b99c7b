# SPDX-License-Identifier: Apache-2.0
"""What a cluster leaves whose holder was killed is removed by the next one, and by nobody while it is held."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster import cgroups
from tests.cluster.cluster import CLUSTERS, holder, sweep
from tests.cluster.cluster import held as held_by_this_process

NAME = f"remains-{os.getpid()}"


@pytest.fixture
def left_behind() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a node's cgroup, as if whoever started it had been killed."""
    group = cgroups.create(NAME, "node1")
    (CLUSTERS / NAME / "node1").mkdir(parents=True)
    enter = f"from tests.cluster import cgroups; cgroups.enter({group!r}); print(flush=True); input()"
    with subprocess.Popen(["python3", "-c", enter], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_it_is_removed_with_its_processes(left_behind: subprocess.Popen[bytes]) -> None:
    assert NAME in cgroups.existing()
    assert NAME in sweep()
    assert left_behind.wait() == -9
    assert NAME not in cgroups.existing()
    assert not list(CLUSTERS.glob(f"{NAME}*"))


def test_it_stays_while_it_is_held(left_behind: subprocess.Popen[bytes]) -> None:
    with held_by_this_process(NAME):
        assert holder(NAME) == os.getpid()
        assert NAME not in sweep()
        assert left_behind.poll() is None
    assert NAME in sweep()
    assert holder(NAME) is None
