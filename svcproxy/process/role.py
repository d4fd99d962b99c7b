# SPDX-License-Identifier: Apache-2.0
"""How the process of a role lives: in a directory of its instance, until told to end. Its configuration is followed
meanwhile."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from svcproxy.config import LIVE, Config, changed_keys
from svcproxy.errors import ConfigError
from svcproxy.options import Launch
from svcproxy.process import logs
from svcproxy.process.follow import ConfigFollower, FileFollower
from svcproxy.process.instance import Instance, RunDirectory
from svcproxy.process.limits import raise_file_limit

log = logging.getLogger(__name__)

RESTART_WANTED = 75
"""Exit code that asks whoever supervises for an immediate restart (EX_TEMPFAIL): the configuration changed."""
INSTANCE_VARIABLE = "SVCPROXY_INSTANCE"
"""Names the instance; in Kubernetes the Pod."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a role's process lives."""

    run: RunDirectory
    instance: Instance


class Life:
    """From start to stop. `config` is the configuration in force."""

    def __init__(self, name: str, launch: Launch, config: Config, sections: Collection[str] = ()) -> None:
        """`sections`: the top-level keys that concern the role; none given, all do."""
        self.config = config
        self.config_errors: tuple[str, ...] = ()
        """What is wrong with the configuration as it stands in its file; `config` stays in force."""
        self.exit_code = 0
        self.stopping = asyncio.Event()
        self._name = name
        self._launch = launch
        self._sections = sections
        self.changed: Callable[[], None] = lambda: None
        """Called when `config` or `config_errors` has changed."""
        self.hurried: Callable[[], None] = lambda: None
        """Called when a signal to stop comes again."""

    def end_on_signals(self) -> None:
        """SIGTERM and SIGINT set `stopping`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self.stopping.is_set():
            self.hurried()
        self.stopping.set()

    async def ended(self) -> None:
        """Return when the process shall stop."""
        await self.stopping.wait()
        log.info("stopping", extra={"exit_code": self.exit_code})

    @property
    def follows(self) -> bool:
        """Whether there is a file whose changes are followed."""
        return self._launch.config_file is not None

    async def follow_config(self) -> None:
        """Put live keys in force as the file changes, ask for a restart for others; what is bad changes nothing."""
        if self._launch.config_file is None:
            return
        follower = ConfigFollower(self._launch.load, self.config, self._changed, self._refused)
        await follower.run(FileFollower(self._launch.config_file))

    def _changed(self, old: Config, new: Config) -> None:
        self.config_errors = ()
        keys = [key for key in changed_keys(old, new) if not self._sections or key.split(".")[0] in self._sections]
        restart = [key for key in keys if key not in LIVE]
        if restart:
            log.info("configuration changed, restarting", extra={"keys": ", ".join(restart)})
            self.exit_code = RESTART_WANTED
            self.stopping.set()
            return
        self.config = new
        logs.configure(new.log, self._name)
        if keys:
            log.info("configuration changed", extra={"keys": ", ".join(keys)})
        self.changed()

    def _refused(self, error: ConfigError) -> None:
        self.config_errors = tuple(map(str, error.problems))
        for problem in error.problems:
            log.error("configuration refused, the last good one stays", extra={"cause": str(problem)})
        self.changed()


def live(
    directory: Path, role: Callable[[Place], Awaitable[int]], new_event_loop: Callable[[], asyncio.AbstractEventLoop]
) -> int:
    """Run a role in its directory; returns its exit code. Raises `ConfigError` or `LockedError` for the directory."""
    run = RunDirectory(directory)
    instance = run.open_instance(os.environ.get(INSTANCE_VARIABLE, ""))
    raise_file_limit()

    async def begin() -> int:
        return await role(Place(run, instance))

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(begin())
    finally:
        instance.close()
