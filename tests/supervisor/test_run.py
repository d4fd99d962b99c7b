# SPDX-License-Identifier: Apache-2.0
"""From the configuration to the launch plan."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from svcproxy.config import Config, DnsConfig, LogConfig
from svcproxy.process.prctl import Capability, permitted_capabilities
from svcproxy.process.privileges import Privileges
from svcproxy.process.supervision import InterceptionPlan
from svcproxy.supervisor.run import launch_plan

ARGUMENTS = ["--config", "x.yaml"]


@pytest.mark.parametrize(
    ("dns", "names", "groups"),
    [
        pytest.param(DnsConfig(), ["agent", "dns-0"], ["", "dns"], id="as it comes"),
        pytest.param(DnsConfig(workers=2), ["agent", "dns-0", "dns-1"], ["", "dns", "dns"], id="two workers"),
        pytest.param(DnsConfig(enabled=False), ["agent"], [""], id="no DNS"),
    ],
)
def test_roles(dns: DnsConfig, names: list[str], groups: list[str]) -> None:
    plan = launch_plan(Config(dns=dns), ARGUMENTS)
    assert [role.name for role in plan.roles] == names
    assert [role.group for role in plan.roles] == groups


def test_each_role_reads_the_configuration_itself(tmp_path: Path) -> None:
    log = LogConfig(level="debug")
    config = Config(run_dir=str(tmp_path), shutdown_timeout=7, dns=DnsConfig(lameduck=20), log=log)
    plan = launch_plan(config, ARGUMENTS)
    agent, worker = plan.roles
    assert agent.argv[0] == sys.executable
    assert agent.argv[-4:] == ("svcproxy", "agent", *ARGUMENTS)
    assert worker.argv[-4:] == ("svcproxy", "dns", *ARGUMENTS)
    assert worker.environment == {"SVCPROXY_WORKER": "0"}
    assert (plan.status_file, plan.log) == (str(tmp_path / "supervisor.json"), log)
    assert plan.stop_timeout > 27


def test_the_kubelet_waits_for_what_a_role_takes_to_end() -> None:
    config = Config()
    manifest = (Path(__file__).parents[2] / "deploy" / "base" / "daemonset.yaml").read_text()
    grace = re.search(r"terminationGracePeriodSeconds: (\d+)", manifest)
    assert grace is not None
    assert int(grace[1]) > config.dns.lameduck + config.shutdown_timeout


def test_with_interception_only_the_supervisor_keeps_its_capabilities() -> None:
    plan = launch_plan(Config(dns=DnsConfig(intercept=("10.96.0.10",), workers=2)), ARGUMENTS)
    assert plan.interception == InterceptionPlan(("10.96.0.10",), "dns")
    agent, *workers = plan.roles
    assert agent.privileges == Privileges()
    bind = {"NET_BIND_SERVICE"} if Capability.NET_BIND_SERVICE in permitted_capabilities() else set()
    assert [set(role.privileges.capabilities or ()) for role in workers] == [bind, bind]
    assert all(role.privileges.capabilities is not None for role in workers)


@pytest.mark.parametrize("dns", [DnsConfig(), DnsConfig(enabled=False, intercept=("10.96.0.10",))])
def test_without_workers_that_intercept_there_is_no_interception(dns: DnsConfig) -> None:
    plan = launch_plan(Config(dns=dns), ARGUMENTS)
    assert plan.interception is None
    assert {role.privileges for role in plan.roles} == {Privileges()}


def test_the_plan_survives_the_change_of_program(tmp_path: Path) -> None:
    """The program is replaced by the supervisor, which starts the role of the plan that it has been left."""
    script = (
        "from svcproxy.process.supervision import LaunchPlan, RolePlan\n"
        "from svcproxy.supervisor.run import exec_supervisor\n"
        "role = RolePlan('a', ('/bin/sh', '-c', 'echo ran; exit 2'))\n"
        f"exec_supervisor(LaunchPlan((role,), {str(tmp_path / 'supervisor.json')!r}, stop_timeout=1))\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (finished.stdout, finished.returncode) == ("ran\n", 2)


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "svcproxy.py").write_text("raise SystemExit('imported from the working directory')")
    script = "import sys; sys.path.remove(''); from svcproxy.supervisor.run import _python; print(_python()[1:-1])"
    finished = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert finished.stdout == "('-P',)\n"
