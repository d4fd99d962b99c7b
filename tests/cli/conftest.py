# SPDX-License-Identifier: Apache-2.0
"""A run directory with one instance in it, served from another thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.process.instance import Instance, RunDirectory
from svcproxy.testing.admin import example_state, serving


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory without an instance."""
    return tmp_path / "run"


@pytest.fixture
def instance(run_dir: Path) -> Iterator[Instance]:
    """The instance of the run directory that answers as the node; nobody listens there."""
    opened = RunDirectory(run_dir).open_instance("7-100")
    opened.make_current()
    yield opened
    opened.close()


@pytest.fixture
def served(instance: Instance, run_dir: Path) -> Iterator[Path]:
    """The run directory of an instance that serves the example state."""
    with serving(example_state(), instance.paths.admin_socket):
        yield run_dir
