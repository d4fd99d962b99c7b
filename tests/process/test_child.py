# SPDX-License-Identifier: Apache-2.0
"""Programs as they are started: privileges dropped for good, failures told, descriptors and signals clean.

`launch` and `drop` are for processes with one thread, so each case runs in an interpreter of its own.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from svcproxy.errors import PrivilegeError
from svcproxy.process.prctl import Capability
from svcproxy.process.privileges import parse_capabilities

LAUNCH = """
import os, sys, signal, msgspec
from svcproxy.process.child import LaunchError, launch
from svcproxy.process.privileges import Privileges
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
privileges = msgspec.json.decode(sys.argv[1], type=Privileges)
if user := int(os.environ.get("BECOME", 0)):
    os.setresuid(user, user, user)
before = os.listdir("/proc/self/fd")
try:
    inherited = [int(number) for number in os.environ.get("INHERIT", "").split()]
    pid = launch(sys.argv[2:], {"PATH": os.environ["PATH"], "GREETING": "hello"}, privileges, inherited)
except LaunchError as exc:
    print("refused:", exc)
else:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("exit code", status)
assert os.listdir("/proc/self/fd") == before
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    sys.exit()
sys.exit("a child is left")
"""


def launch(privileges: str, *argv: str, user: int | None = None, inherited: Sequence[int] = ()) -> str:
    """What a program that is started with these privileges writes, and how it ended."""
    command = [sys.executable, "-c", LAUNCH, privileges, *argv]
    environment = os.environ | {"BECOME": str(user or 0), "INHERIT": " ".join(map(str, inherited))}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, pass_fds=inherited)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def shell(script: str, privileges: str = "{}") -> str:
    return launch(privileges, "sh", "-c", script)


def test_a_program_gets_its_arguments_and_environment() -> None:
    assert launch("{}", "sh", "-c", 'echo "$GREETING" "$1"', "sh", "a b") == "hello a b\nexit code 0"
    assert shell("exit 7") == "exit code 7"


def test_a_program_has_a_group_of_its_own_and_clean_signals() -> None:
    script = 'echo $(( $(cut -d" " -f5 /proc/$$/stat) == $$ )); grep -E "SigBlk|SigIgn" /proc/$$/status | cut -f2'
    hup = 1  # ignored until the program asks for it
    standard = (1 << 31) - 1  # 32 and 33 are the C library's own, and stay as whoever started this test left them
    leader, blocked, ignored, end = shell(script).splitlines()
    assert (leader, int(blocked, 16) & standard, int(ignored, 16) & standard, end) == ("1", 0, hup, "exit code 0")


def test_a_program_gets_the_descriptors_that_it_shall_have_and_no_others() -> None:
    script = "import os; print([n for n in range(3, 99) if os.path.exists(f'/proc/{os.getpid()}/fd/{n}')])"
    with ExitStack() as stack:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
        for descriptor in opened:
            stack.callback(os.close, descriptor)
        wanted = opened[1::2]
        assert launch("{}", sys.executable, "-c", script) == "[]\nexit code 0"
        assert launch("{}", sys.executable, "-c", script, inherited=wanted) == f"{wanted}\nexit code 0"


@pytest.mark.parametrize(
    ("privileges", "argv", "reason"),
    [
        pytest.param("{}", "/nonexistent", "/nonexistent: No such file or directory", id="no such program"),
        pytest.param("{}", "/etc/passwd", "/etc/passwd: Permission denied", id="not a program"),
        pytest.param('{"capabilities": ["FLY"]}', "true", "true: no such capability: FLY", id="unknown capability"),
    ],
)
def test_what_does_not_start_says_why(privileges: str, argv: str, reason: str) -> None:
    assert launch(privileges, argv).startswith(f"refused: {reason}")


def capabilities(*which: Capability) -> str:
    return f"{sum(1 << capability for capability in which):016x}"


SHOW = "id -u; id -g; id -G; grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status | cut -f2"
BIND = capabilities(Capability.NET_BIND_SERVICE)
NONE = capabilities()


@pytest.mark.netns
@pytest.mark.parametrize(
    ("privileges", "expected"),
    [
        pytest.param(
            '{"uid": 65534, "capabilities": ["NET_BIND_SERVICE"]}',
            ["65534", "65534", "65534", BIND, BIND, BIND, BIND, BIND, "1"],
            id="another user with one capability",
        ),
        pytest.param(
            '{"uid": 65534, "gid": 1000, "capabilities": []}',
            ["65534", "1000", "1000", NONE, NONE, NONE, NONE, NONE, "1"],
            id="another user with none",
        ),
        pytest.param(
            '{"capabilities": ["cap_net_bind_service"]}',
            ["0", "0", "0", BIND, BIND, BIND, BIND, BIND, "1"],
            id="root with one capability gets no others back",
        ),
    ],
)
def test_privileges(privileges: str, expected: list[str]) -> None:
    assert shell(SHOW, privileges).split() == [*expected, "exit", "code", "0"]


CONTAINER = """
import os, sys
from svcproxy.process import prctl
from svcproxy.process.prctl import Capability
from svcproxy.process.privileges import Privileges, drop
has = {Capability.NET_ADMIN, Capability.NET_BIND_SERVICE}
for number in prctl.bounding_set() - has:
    prctl.drop_from_bounding_set(number)
prctl.set_capabilities(has)
drop(Privileges(capabilities=("NET_BIND_SERVICE",)))
os.execvp("sh", ["sh", "-c", sys.argv[1]])
"""
"""Root as containers have it: with a few capabilities, CAP_SETPCAP not among them."""


@pytest.mark.netns
def test_root_of_a_container_gets_nothing_back_from_the_bounding_set() -> None:
    command = [sys.executable, "-c", CONTAINER, SHOW]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    bounding = capabilities(Capability.NET_ADMIN, Capability.NET_BIND_SERVICE)
    assert finished.stdout.split()[3:] == [BIND, BIND, BIND, bounding, BIND, "1"]


@pytest.mark.netns
def test_a_user_without_named_capabilities_has_none() -> None:
    shown = shell(SHOW, '{"uid": 65534}').split()
    assert shown[:3] == ["65534", "65534", "65534"]
    assert shown[4:6] == [NONE, NONE]


DROP = """
import socket
from svcproxy.process.privileges import Privileges, drop
drop(Privileges(uid=65534, capabilities=("NET_BIND_SERVICE",)))
socket.create_server(("127.0.0.1", 80)).close()
try:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
except PermissionError:
    print("as it should be")
"""


@pytest.mark.netns
def test_what_is_kept_works_and_the_rest_does_not() -> None:
    own_network = ("unshare", "-n", "--", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    finished = subprocess.run([*own_network, sys.executable, "-c", DROP], capture_output=True, text=True, check=True)
    assert finished.stdout == "as it should be\n"


@pytest.mark.netns
@pytest.mark.parametrize(
    ("privileges", "reason"),
    [
        pytest.param('{"uid": 1000}', "cannot become uid 1000", id="another user"),
        pytest.param('{"capabilities": ["NET_ADMIN", "BPF"]}', "that are not there: BPF, NET_ADMIN", id="capabilities"),
    ],
)
def test_who_is_not_root_cannot_give_what_it_has_not(privileges: str, reason: str) -> None:
    assert reason in launch(privileges, "true", user=65534)


@pytest.mark.netns
def test_who_is_not_root_may_name_itself() -> None:
    assert launch('{"uid": 65534, "gid": 0, "capabilities": []}', "id", "-u", user=65534) == "65534\nexit code 0"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param((), set(), id="none"),
        pytest.param(("NET_ADMIN",), {Capability.NET_ADMIN}, id="plain"),
        pytest.param(("CAP_BPF", "net_raw"), {Capability.BPF, Capability.NET_RAW}, id="prefixed, lower case"),
    ],
)
def test_names_of_capabilities(names: tuple[str, ...], expected: set[Capability]) -> None:
    assert set(parse_capabilities(names)) == expected


def test_names_that_are_not_capabilities() -> None:
    with pytest.raises(PrivilegeError, match="no such capability: FLY"):
        parse_capabilities(("FLY",))


def test_a_program_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    """`launch` asks after `prctl`: a parent that dies between fork and prctl would send no signal."""
    script = (
        "import os, signal\n"
        "from svcproxy.process.child import _begin\n"
        "from svcproxy.process.privileges import Privileges\n"
        "reader, writer = os.pipe()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        f"    _begin(['touch', {str(tmp_path / 'started')!r}], {{}}, Privileges(), (), os.getppid() + 1, writer)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "127\n"
    assert list(tmp_path.iterdir()) == []
