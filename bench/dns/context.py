# SPDX-License-Identifier: Apache-2.0
"""What every scenario of the comparison has at hand."""

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.dns.objects import Cluster, control_plane
from svcproxy.testing.control_plane import ControlPlane


@dataclass
class Bench:
    """Options, scratch files, and a control plane for those who need it."""

    cluster: Cluster
    rounds: int
    seconds: float
    """Of one load."""
    server_core: int
    load_core: int
    directory: Path
    stack: ExitStack
    """What is to be ended with the benchmark."""
    _plane: ControlPlane | None = None
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def plane(self) -> ControlPlane:
        """The control plane that holds the cluster, the same for all scenarios."""
        if self._plane is None:
            self._plane = self.stack.enter_context(control_plane(self.cluster))
        return self._plane

    def scratch(self) -> Path:
        """A new folder."""
        path = self.directory / str(next(self._numbers))
        path.mkdir()
        return path

    def file(self, name: str, content: str | bytes) -> Path:
        """A file with that content, in place of the one with that name before."""
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
