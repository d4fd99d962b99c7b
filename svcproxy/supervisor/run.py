# SPDX-License-Identifier: Apache-2.0
"""From the command line of `svcproxy run` to a launch plan, and on to the supervisor, which knows nothing else.

Each role gets the command line of `run` with its own verb, so that it reads and follows the configuration itself.
"""

import os
import sys
from pathlib import Path

import msgspec

from svcproxy.config import Config
from svcproxy.options import Launch
from svcproxy.process.instance import RunDirectory
from svcproxy.process.supervision import LaunchPlan, RolePlan

_GRACE = 5.0
"""Seconds that a role has beyond `shutdown_timeout` before it is killed."""


def launch_plan(config: Config, arguments: list[str]) -> LaunchPlan:
    """The plan for a configuration; `arguments` are those of `run`."""
    program = (sys.executable, "-m", "svcproxy")
    roles = [RolePlan("agent", (*program, "agent", *arguments))]
    if config.dns.enabled:
        roles += [
            RolePlan(f"dns-{number}", (*program, "dns", *arguments), {"SVCPROXY_WORKER": str(number)})
            for number in range(config.dns.workers)
        ]
    return LaunchPlan(
        roles=tuple(roles),
        status_file=str(RunDirectory(Path(config.run_dir)).supervisor_status),
        stop_timeout=config.shutdown_timeout + _GRACE,
    )


def main(launch: Launch) -> int:
    """Become the supervisor of every role that the configuration asks for."""
    config = launch.load()
    RunDirectory(Path(config.run_dir)).prepare()
    plan = launch_plan(config, sys.argv[sys.argv.index("run") + 1 :])
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "svcproxy.supervisor.supervise", msgspec.json.encode(plan).decode()]
    os.execv(command[0], command)  # noqa: S606  # the plan is ours
