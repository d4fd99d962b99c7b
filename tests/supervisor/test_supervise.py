# SPDX-License-Identifier: Apache-2.0
"""A real supervisor with real processes: what it starts, what it leaves, and in which order it stops."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event

import msgspec
import pytest

from svcproxy.process.privileges import Privileges
from svcproxy.process.supervision import LaunchPlan, RolePlan, RoleState, RoleStatus, read_status

PATIENCE = 20.0
"""Seconds after which a test gives up."""

PLAIN = "echo up $0 $$; exec sleep 1000"
POLITE = """trap 'kill $!; echo term $0; exit 0' TERM; sleep 1000 & echo up $0 $$; wait"""
SLOW = """trap 'echo term $0' TERM; trap 'kill $!; echo end $0; exit 0' USR1; sleep 1000 & echo up $0 $$
while :; do wait; done"""
STUBBORN = """trap '' TERM; echo up $0 $$; exec sleep 1000"""
HANGS_UP = """import os, signal
signal.signal(signal.SIGHUP, lambda *_: print("hup asks", flush=True))
print("up asks", os.getpid(), flush=True)
while True:
    signal.pause()
"""
WITH_HELPER = """sleep 1000 & echo up $0 $!; exit 1"""


KEEPS = """import os, signal, socket
from svcproxy.process.descriptor_store import DescriptorStore
store = DescriptorStore.inherited()
found = store.contents()
tcp = socket.socket(fileno=found["tcp"]) if found else socket.create_server(("127.0.0.1", 0))
store.put({"tcp": tcp.fileno()})
print("up keeps", os.getpid(), tcp.getsockname()[1], flush=True)
signal.pause()
"""


def role(name: str, script: str, *, group: str = "", privileges: Privileges | None = None) -> RolePlan:
    return RolePlan(name, ("/bin/sh", "-c", script, name), group=group, privileges=privileges or Privileges())


class Running:
    """A supervisor, the lines that its roles write, and its status file."""

    def __init__(self, process: subprocess.Popen[str], status_file: Path) -> None:
        self.process = process
        self.status_file = status_file

    def line(self) -> list[str]:
        """The next line that a role has written, in words; nothing when all have ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def up(self, count: int) -> dict[str, int]:
        """Pids of the next `count` roles that say that they are up, by name."""
        return {name: int(pid) for _, name, pid in (self.line() for _ in range(count))}

    def status(self, condition: Callable[[dict[str, RoleStatus]], bool]) -> dict[str, RoleStatus]:
        """The status of roles by name, once it meets the condition."""
        for _ in range(int(PATIENCE / 0.005)):
            roles = {status.name: status for status in read_status(self.status_file)}
            with suppress(KeyError):  # not written yet
                if condition(roles):
                    return roles
            Event().wait(0.005)
        raise AssertionError(f"never came to be: {roles}")

    def stop(self) -> int:
        """Tell it to stop, and return its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


Supervise = Callable[..., Running]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Start a supervisor of the given roles."""
    status_file = tmp_path / "run" / "supervisor.json"
    status_file.parent.mkdir()
    with ExitStack() as stack:

        def start(*roles: RolePlan, stop_timeout: float = PATIENCE, backoff: float = 0.01) -> Running:
            plan = LaunchPlan(
                roles,
                str(status_file),
                stop_timeout=stop_timeout,
                backoff_initial=backoff,
                backoff_max=max(backoff, 0.05),
                healthy_after=PATIENCE,
            )
            (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
            process = subprocess.Popen(
                [sys.executable, "-m", "svcproxy.supervisor.supervise", tmp_path / "plan.json"],
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Running(process, status_file)

        yield start


def gone(pid: int) -> bool:
    """Wait for a process that is not ours to end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)


def test_status_says_what_runs_and_nothing_is_left_after_stop(supervise: Supervise) -> None:
    running = supervise(role("a", PLAIN), role("b", PLAIN))
    pids = running.up(2)
    roles = running.status(lambda roles: len(roles) == 2 and all(status.pid for status in roles.values()))
    assert {name: status.pid for name, status in roles.items()} == pids
    assert {status.state for status in roles.values()} == {RoleState.RUNNING}
    assert running.stop() == 0
    assert all(gone(pid) for pid in pids.values())
    assert list(running.status_file.parent.iterdir()) == []


def test_what_a_killed_role_has_stored_is_there_for_the_next_process(supervise: Supervise) -> None:
    argv = (sys.executable, "-c", KEEPS)
    running = supervise(RolePlan("keeps", argv, keeps_sockets=True), RolePlan("b", ("/bin/sh", "-c", PLAIN, "b")))
    lines = sorted(running.line() for _ in range(2))
    _, _, pid, port = lines[1]
    os.kill(int(pid), signal.SIGKILL)
    _, _, next_pid, next_port = running.line()
    assert (next_pid != pid, next_port) == (True, port)
    assert running.stop() == 0


def test_a_killed_supervisor_leaves_no_orphan(supervise: Supervise) -> None:
    running = supervise(role("a", PLAIN), role("stubborn", STUBBORN))
    pids = running.up(2)
    running.status(lambda roles: len(roles) == 2)
    running.process.kill()
    running.process.wait()
    assert all(gone(pid) for pid in pids.values())
    assert running.status_file.exists()
    assert read_status(running.status_file) == ()  # nobody believes the dead


def test_a_killed_role_is_started_again_and_the_others_are_left_alone(supervise: Supervise) -> None:
    running = supervise(role("a", PLAIN), role("b", PLAIN))
    pids = running.up(2)
    os.kill(pids["a"], signal.SIGKILL)
    again = running.up(1)
    roles = running.status(lambda roles: roles["a"].restarts == 1 and roles["a"].pid is not None)
    assert (roles["a"].pid, roles["b"].pid) == (again["a"], pids["b"])
    assert roles["a"].detail == "killed by SIGKILL"
    assert roles["b"].restarts == 0
    assert running.stop() == 0


def test_a_crash_loop_is_visible(supervise: Supervise) -> None:
    running = supervise(role("a", "echo up $0 $$; exit 3"), role("b", PLAIN))
    roles = running.status(lambda roles: "a" in roles and roles["a"].crash_loop)
    assert roles["a"].detail == "exit code 3"
    assert roles["a"].restarts >= 2
    assert not roles["b"].crash_loop
    assert running.stop() == 0


def test_roles_stop_in_reverse_order_and_a_group_together(supervise: Supervise) -> None:
    roles = role("agent", POLITE), role("dns-0", SLOW, group="dns"), role("dns-1", SLOW, group="dns")
    running = supervise(*roles)
    pids = running.up(3)
    running.process.terminate()
    assert sorted([running.line(), running.line()]) == [["term", "dns-0"], ["term", "dns-1"]]
    status = running.status(lambda roles: roles["dns-1"].state is RoleState.STOPPING)
    assert status["agent"].state is RoleState.RUNNING
    for name in ("dns-1", "dns-0"):
        os.kill(pids[name], signal.SIGUSR1)
        assert running.line() == ["end", name]
    assert running.line() == ["term", "agent"]
    assert running.process.wait(PATIENCE) == 0


def test_who_does_not_end_is_killed(supervise: Supervise) -> None:
    running = supervise(role("a", STUBBORN), stop_timeout=0.02)
    pid = running.up(1)["a"]
    assert running.stop() == 0
    assert gone(pid)


def test_told_twice_it_kills(supervise: Supervise) -> None:
    running = supervise(role("polite", POLITE), role("stubborn", STUBBORN))
    running.up(2)
    running.process.terminate()
    running.status(lambda roles: roles["stubborn"].state is RoleState.STOPPING)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(PATIENCE) == 0
    assert running.line() == []


@pytest.mark.parametrize(
    ("failing", "code"),
    [
        pytest.param(role("a", "exit 2"), 2, id="the role cannot use its configuration"),
        pytest.param(RolePlan("a", ("/nonexistent",)), 1, id="no such program"),
        pytest.param(role("a", PLAIN, privileges=Privileges(capabilities=("NONSENSE",))), 1, id="no such capability"),
    ],
)
def test_what_cannot_run_ends_everything(supervise: Supervise, failing: RolePlan, code: int) -> None:
    running = supervise(role("other", PLAIN), failing)
    assert running.process.wait(PATIENCE) == code
    assert running.process.stdout is not None
    running.process.stdout.read()  # it ends when nobody is left to write
    assert list(running.status_file.parent.iterdir()) == []


def test_a_role_that_wants_a_restart_gets_it_at_once(supervise: Supervise, tmp_path: Path) -> None:
    script = f"echo up $0 $$; test -e {tmp_path}/again && exec sleep 1000; touch {tmp_path}/again; exit 75"
    running = supervise(role("a", script), backoff=1000)
    first, second = running.up(1), running.up(1)
    assert first != second
    assert running.stop() == 0


def test_sighup_reaches_those_who_ask_for_it(supervise: Supervise) -> None:
    running = supervise(RolePlan("asks", (sys.executable, "-c", HANGS_UP)), role("other", PLAIN))
    pids = running.up(2)
    running.status(lambda roles: len(roles) == 2)
    running.process.send_signal(signal.SIGHUP)
    assert running.line() == ["hup", "asks"]
    assert running.status(bool)["other"].pid == pids["other"]
    assert running.stop() == 0


def test_what_a_role_leaves_behind_ends_with_it(supervise: Supervise) -> None:
    running = supervise(role("a", WITH_HELPER), backoff=1000)
    assert gone(running.up(1)["a"])
    assert running.stop() == 0


def test_roles_get_their_environment_and_nothing_else(supervise: Supervise) -> None:
    script = 'echo env $SVCPROXY_WORKER $(ls /proc/self/fd | tr "\\n" " ") $(readlink /proc/self/fd/0); exec sleep 1000'
    plan = RolePlan("a", ("/bin/sh", "-c", script), {"SVCPROXY_WORKER": "7"})
    running = supervise(plan)
    assert running.line() == ["env", "7", "0", "1", "2", "3", "/dev/null"]  # 3: the directory that ls reads
    assert running.stop() == 0


@pytest.mark.netns
def test_roles_have_privileges_of_their_own_and_still_die_with_the_supervisor(supervise: Supervise) -> None:
    script = "echo id $(id -u) $(id -g) $(id -G) $(grep CapEff /proc/self/status); " + PLAIN
    least = Privileges(uid=65534, gid=65533, capabilities=("NET_BIND_SERVICE",))
    running = supervise(role("a", script, privileges=least))
    assert running.line() == ["id", "65534", "65533", "65533", "CapEff:", f"{1 << 10:016x}"]
    pid = running.up(1)["a"]
    running.process.kill()
    assert gone(pid)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param([], "usage:", id="no plan"),
        pytest.param(["/nonexistent"], "No such file", id="no such plan"),
        pytest.param(["/dev/null"], "truncated", id="an empty plan"),
        pytest.param(["/proc/self/status"], "malformed", id="not a plan"),
    ],
)
def test_bad_plans(arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "svcproxy.supervisor.supervise", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert complaint in finished.stderr
    assert "Traceback" not in finished.stderr


def test_it_loads_little() -> None:
    heavy = "{'argparse', 'asyncio', 'yaml', 'svcproxy.options', 'subprocess', 'shutil'}"
    script = f"import sys, svcproxy.supervisor.supervise; print({heavy} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "set()\n"
