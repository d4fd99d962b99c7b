# SPDX-License-Identifier: Apache-2.0
"""The run directory: instances come, are found, and go, also when they are killed."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svcproxy.errors import ConfigError, LockedError
from svcproxy.process.identity import identity
from svcproxy.process.instance import InstancePaths, RunDirectory
from svcproxy.process.sockets import listen_unix

OPEN = """
import sys
from pathlib import Path
from svcproxy.process.identity import identity
from svcproxy.process.instance import RunDirectory
instance = RunDirectory(Path(sys.argv[1])).open_instance("other")
instance.make_current()
instance.paths.feed_socket.touch()
print("open", flush=True)
sys.stdin.read()
instance.close()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def other(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """A process whose instance, `other`, is current."""
    command = [sys.executable, "-c", OPEN, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def left_in(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


def test_an_instance_leaves_nothing_behind(run: RunDirectory) -> None:
    instance = run.open_instance("a")
    instance.make_current()
    paths = instance.paths
    listeners = [
        listen_unix(path)
        for path in (
            paths.admin_socket,
            paths.feed_socket,
            paths.handover_socket,
        )
    ]
    assert run.active() == paths
    instance.close()
    instance.close()
    assert run.active() is None
    assert left_in(run.path) == {"instances"}
    for listener in listeners:
        listener.close()


def test_the_default_name_is_this_process(run: RunDirectory) -> None:
    instance = run.open_instance()
    assert instance.paths.name == identity()
    assert instance.paths.name.startswith(f"{os.getpid()}-")
    instance.close()


def test_current_moves_and_only_its_owner_removes_it(run: RunDirectory) -> None:
    old, new = run.open_instance("old"), run.open_instance("new")
    assert run.active() is None
    old.make_current()
    new.make_current()
    new.make_current()
    assert run.active() == new.paths
    assert run.instances() == [new.paths, old.paths]
    old.close()
    assert run.active() == new.paths
    new.close()
    assert run.active() is None


def test_a_live_instance_is_left_alone_and_its_name_refused(run: RunDirectory, other: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError, match="instance other is running already"):
        run.open_instance("other")
    mine = run.open_instance("mine")
    assert [paths.name for paths in run.instances()] == ["mine", "other"]
    assert run.active() == InstancePaths(run.path / "instances" / "other")
    mine.close()
    assert other.poll() is None


def test_what_a_killed_instance_leaves_is_removed(run: RunDirectory, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert run.active() is not None  # nobody has looked yet
    mine = run.open_instance("mine")
    assert run.active() is None
    assert left_in(run.path) == {"instances", "instances/mine"}
    mine.close()


def test_a_restarted_instance_gets_its_name_back(run: RunDirectory, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    again = run.open_instance("other")
    assert not again.paths.feed_socket.exists()
    again.close()


def test_a_cut_make_current_is_tidied_up(run: RunDirectory) -> None:
    run.prepare()
    (run.path / "instances" / ".gone.current").symlink_to("instances/gone")
    run.open_instance("a").close()
    assert left_in(run.path) == {"instances"}


def test_others_are_kept_out(run: RunDirectory) -> None:
    before = os.umask(0)
    instance = run.open_instance("a")
    os.umask(before)
    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (run.path, *run.path.rglob("*")) if path.is_dir()
    }
    assert modes == {"run": "0o750", "instances": "0o750", "a": "0o750"}
    instance.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../x", id="leaves the directory"),
        pytest.param(".hidden", id="begins with a dot"),
        pytest.param("a/b", id="slash"),
        pytest.param("a\n", id="newline"),
        pytest.param("x" * 64, id="too long"),
    ],
)
def test_names_that_are_refused(run: RunDirectory, name: str) -> None:
    with pytest.raises(ConfigError, match="not a name for an instance"):
        run.open_instance(name)


def make_open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def make_foreign(path: Path) -> None:
    path.mkdir()
    os.chown(path, 4711, 4711)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        pytest.param(Path.touch, "cannot be made: File exists", id="a file"),
        pytest.param(make_open_to_all, "writable for everyone", id="open to all"),
        pytest.param(make_foreign, "belongs to uid 4711", id="somebody else's", marks=pytest.mark.netns),
    ],
)
def test_directories_that_are_refused(run: RunDirectory, make: Callable[[Path], None], complaint: str) -> None:
    make(run.path)
    with pytest.raises(ConfigError, match=f"run_dir: .*{complaint}"):
        run.open_instance("a")


def test_a_missing_run_directory_has_no_instances(run: RunDirectory) -> None:
    assert run.active() is None
    assert run.instances() == []


def test_what_a_killed_instance_left_goes_and_what_a_live_one_has_stays(
    run: RunDirectory, other: subprocess.Popen[str]
) -> None:
    assert run.remove_dead() == ()
    other.kill()
    other.wait()
    (run.path / "instances" / ".other.current").symlink_to("instances/other")
    assert run.remove_dead() == ("other",)
    assert left_in(run.path) == {"instances"}
    assert run.remove_dead() == ()
