# SPDX-License-Identifier: Apache-2.0
"""Follows a resolv.conf. A shell.

A file that is mounted by itself into a container never changes there when it is renamed over outside: its directory
should be mounted.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from svcproxy.process.follow import FileFollower
from svcproxy_dns.upstreams import RESOLV_CONF_OCTETS_MAX, parse_resolv_conf

log = logging.getLogger(__name__)


class ResolvConf:
    """Tells `use` which upstreams a file lists. One that lists none, or cannot be read, changes nothing."""

    def __init__(self, path: str, use: Callable[[Sequence[str]], None]) -> None:
        self._path = path
        self._use = use
        self._upstreams: list[str] = []
        self._problems: list[str] | None = None

    def read(self) -> None:
        """Read the file now."""
        try:
            with Path(self._path).open("rb") as file:
                octets = file.read(RESOLV_CONF_OCTETS_MAX)
        except OSError as exc:
            upstreams: list[str] = []
            problems = [exc.strerror or str(exc)]
        else:
            upstreams, problems = parse_resolv_conf(octets.decode("utf-8", "replace"))
            if not upstreams:
                problems.append("no nameserver")
        if problems != self._problems:
            self._problems = problems
            for problem in problems:
                log.warning("resolv.conf", extra={"path": self._path, "cause": problem})
        if upstreams and upstreams != self._upstreams:
            self._upstreams = upstreams
            log.info("upstreams", extra={"path": self._path, "upstreams": ", ".join(upstreams)})
            self._use(upstreams)

    async def follow(self) -> None:
        """Read the file whenever it may have changed, until cancelled."""
        async with aclosing(FileFollower(self._path).changes()) as changes:
            async for _ in changes:
                self.read()
