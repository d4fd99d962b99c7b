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
from svcproxy.process import prctl
from svcproxy.process.instance import RunDirectory, worker_directory
from svcproxy.process.prctl import Capability
from svcproxy.process.privileges import Privileges
from svcproxy.process.supervision import WORKER_VARIABLE, InterceptionPlan, LaunchPlan, RolePlan

_DNS = "dns"
"""Group of the workers."""
_WORKER_CAPABILITIES = (Capability.NET_BIND_SERVICE,)
"""All that a worker keeps where its supervisor has more for the sake of interception."""
_GRACE = 5.0
"""Seconds that a role has beyond `dns.lameduck` and `shutdown_timeout` before it is killed."""


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
    privileges = Privileges()
    if config.dns.intercept:
        held = prctl.permitted_capabilities()
        privileges = Privileges(capabilities=tuple(each.name for each in _WORKER_CAPABILITIES if each in held))
    return tuple(
        RolePlan(f"dns-{number}", argv, {WORKER_VARIABLE: str(number)}, privileges, group=_DNS, keeps_sockets=True)
        for number in range(config.dns.workers)
    )


def _plan(config: Config, roles: tuple[RolePlan, ...], status_file: Path) -> LaunchPlan:
    dns = any(role.group == _DNS for role in roles)
    return LaunchPlan(
        roles=roles,
        status_file=str(status_file.absolute()),
        stop_timeout=config.dns.lameduck + config.shutdown_timeout + _GRACE,
        log=config.log,
        interception=InterceptionPlan(config.dns.intercept, _DNS) if config.dns.intercept and dns else None,
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
