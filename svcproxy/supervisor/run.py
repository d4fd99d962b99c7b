# SPDX-License-Identifier: Apache-2.0
"""From the command line of `svcproxy run` to a launch plan, and on to the supervisor, which knows nothing else.

Each role gets the command line of `run` with its own verb, so that it reads and follows the configuration itself.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from svcproxy.config import Config
from svcproxy.options import Launch
from svcproxy.process.instance import RunDirectory, worker_directory
from svcproxy.process.supervision import WORKER_VARIABLE, LaunchPlan, RolePlan

_GRACE = 5.0
"""Seconds that a role has beyond `shutdown_timeout` before it is killed."""


def launch_plan(config: Config, arguments: list[str]) -> LaunchPlan:
    """The plan for a configuration; `arguments` are those of `run`."""
    agent = RolePlan("agent", (*_python(), "svcproxy", "agent", *arguments))
    workers = dns_roles(config, arguments) if config.dns.enabled else ()
    return _plan(config, (agent, *workers), RunDirectory(Path(config.run_dir)).supervisor_status)


def dns_plan(config: Config, arguments: list[str]) -> LaunchPlan:
    """The plan of `svcproxy dns`; `arguments` are those of `dns`."""
    return _plan(config, dns_roles(config, arguments), worker_directory(config.run_dir, "dns", 0).supervisor_status)


def dns_roles(config: Config, arguments: list[str]) -> tuple[RolePlan, ...]:
    """A process for each of `dns.workers`."""
    argv = (*_python(), "svcproxy", "dns", *arguments)
    return tuple(
        RolePlan(f"dns-{number}", argv, {WORKER_VARIABLE: str(number)}, group="dns", keeps_sockets=True)
        for number in range(config.dns.workers)
    )


def _plan(config: Config, roles: tuple[RolePlan, ...], status_file: Path) -> LaunchPlan:
    return LaunchPlan(
        roles=roles,
        status_file=str(status_file.absolute()),
        stop_timeout=config.shutdown_timeout + _GRACE,
        log=config.log,
    )


def exec_supervisor(plan: LaunchPlan) -> NoReturn:
    """Replace this process by the supervisor of `plan`: what has been loaded to read the configuration goes with it."""
    descriptor = os.memfd_create("launch-plan", 0)
    with open(descriptor, "wb", closefd=False) as file:  # a descriptor
        file.write(msgspec.json.encode(plan))
    command = [*_python(), "svcproxy.supervisor.supervise", f"/proc/self/fd/{descriptor}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606  # the plan is ours


def main(launch: Launch) -> NoReturn:
    """Become the supervisor of every role that the configuration asks for."""
    config = launch.load()
    RunDirectory(Path(config.run_dir)).prepare()
    exec_supervisor(launch_plan(config, sys.argv[sys.argv.index("run") + 1 :]))


def dns(launch: Launch) -> int:
    """Be one DNS worker, or become the supervisor of all, even of one: it keeps the sockets while a worker restarts."""
    config = launch.load()
    if WORKER_VARIABLE not in os.environ:
        worker_directory(config.run_dir, "dns", 0).prepare()
        exec_supervisor(dns_plan(config, sys.argv[sys.argv.index("dns") + 1 :]))
    # Loaded here, for a supervisor needs none of it.
    worker = importlib.import_module("svcproxy.workers.dns")
    return int(worker.main(launch))


def _python() -> tuple[str, ...]:
    """An interpreter that imports from the working directory only if this one does: it may be anybody's."""
    safe_path = () if str(Path.cwd()) in sys.path else ("-P",)
    return (sys.executable, *safe_path, "-m")
