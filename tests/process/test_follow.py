# SPDX-License-Identifier: Apache-2.0
import asyncio
import logging
import os
import resource
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from svcproxy.config import Config, LogConfig
from svcproxy.errors import ConfigError, Problem
from svcproxy.options import load
from svcproxy.process.follow import ConfigFollower, FileFollower, look_ups

PATIENCE = 10.0
"""Seconds after which a notice that does not come fails the test."""


@asynccontextmanager
async def following(*paths: Path) -> AsyncIterator[AsyncGenerator[None, None]]:
    """The notices of a follower whose first one, that watching has begun, has been taken."""
    follower = FileFollower(*map(str, paths), quiet=0.01, poll_interval=0.01)
    async with aclosing(follower.changes()) as changes:
        await notice(changes)
        yield changes


async def notice(changes: AsyncGenerator[None, None]) -> None:
    async with asyncio.timeout(PATIENCE):
        await anext(changes)


async def until(changes: AsyncGenerator[None, None], condition: Callable[[], bool]) -> None:
    """Take notices until one comes while the condition holds."""
    while True:
        await notice(changes)
        if condition():
            return


def swap(volume: Path, generation: str, **files: str) -> None:
    """Publish files as the kubelet does: a new directory, and `..data` renamed over to point at it."""
    data = volume / f"..{generation}"
    data.mkdir(parents=True)
    for name, text in files.items():
        (data / name).write_text(text)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    (volume / "..data_tmp").symlink_to(data.name)
    (volume / "..data_tmp").rename(volume / "..data")


def write_in_place(path: Path) -> None:
    path.write_text("new")


def rename_over(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text("new")
    fresh.rename(path)


def remove_and_write(path: Path) -> None:
    path.unlink()
    path.write_text("new")


def replace_directory(path: Path) -> None:
    old = path.parent.with_name("old")
    path.parent.rename(old)
    path.parent.mkdir()
    path.write_text("new")


def recreate_directories(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.parent.rmdir()
    path.parent.mkdir(parents=True)
    path.write_text("new")


def link_elsewhere(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    target.mkdir()
    (target / "x").write_text("new")
    (path.parent / "link").symlink_to(target / "x")
    (path.parent / "link").rename(path)


CHANGES = [write_in_place, rename_over, remove_and_write, replace_directory, recreate_directories, link_elsewhere]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_is_followed_however_it_is_replaced(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("old")
    async with following(path) as changes:
        change(path)
        await until(changes, lambda: path.read_text() == "new")
        rename_over(path)  # what came in its place is watched as well
        await notice(changes)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_directory_is_followed_however_it_changes(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("old")
    async with following(path.parent) as changes:
        change(path)
        await until(changes, lambda: path.is_file() and path.read_text() == "new")
        (path.parent / "another.yaml").write_text("1")
        await notice(changes)


async def test_a_configmap_volume_swap_is_noticed_every_time(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    swap(volume, "1", config="one")
    async with following(volume / "config") as changes:
        for generation in ("2", "3"):
            swap(volume, generation, config=generation)
            await until(changes, lambda wanted=generation: (volume / "config").read_text() == wanted)  # type: ignore[misc]  # mypy cannot infer a lambda with defaults


async def test_a_link_to_another_place_is_followed_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "config.yaml"
    target.write_text("old")
    (tmp_path / "conf").symlink_to("real")
    async with following(tmp_path / "conf" / "config.yaml") as changes:
        rename_over(target)
        await until(changes, lambda: target.read_text() == "new")


async def test_a_path_that_does_not_exist_yet_is_awaited(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "config.yaml"
    async with following(path) as changes:
        path.parent.mkdir(parents=True)
        path.write_text("here")
        await until(changes, path.is_file)


async def test_a_burst_is_one_notice_and_neighbours_are_none(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    follower = FileFollower(str(path), quiet=0.02)
    async with aclosing(follower.changes()) as changes:
        await notice(changes)
        for number in range(100):
            path.write_text(str(number))
            (tmp_path / "neighbour").write_text(str(number))
        await notice(changes)
        (tmp_path / "neighbour").write_text("again")
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            further = tasks.create_task(notice(changes), name="further notice")
            done, _ = await asyncio.wait([further], timeout=0.1)
            assert not done
            path.write_text("last")


async def test_a_burst_without_end_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    follower = FileFollower(str(path), quiet=PATIENCE * 10, burst_max=0.02)
    async with aclosing(follower.changes()) as changes:
        await notice(changes)
        path.write_text("1")
        await notice(changes)


async def test_polling_where_the_kernel_refuses_to_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.yaml"
    follower = FileFollower(str(path), poll_interval=0.001)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with aclosing(follower.changes()) as changes:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with caplog.at_level(logging.WARNING):
                await notice(changes)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "max_user_instances" in follower.degraded
        assert [record.message for record in caplog.records] == ["files cannot be watched, polling them"]
        path.write_text("1")
        await notice(changes)
        if not follower.degraded:  # the kernel was asked again in the meantime
            path.write_text("2")
            await notice(changes)


async def test_watching_resumes_when_the_kernel_allows_it_again(tmp_path: Path) -> None:
    follower = FileFollower(str(tmp_path), poll_interval=0.0001)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with aclosing(follower.changes()) as changes:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await notice(changes)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert follower.degraded
        await notice(changes)
        assert follower.degraded == ""


@pytest.mark.parametrize(
    ("links", "path", "expected"),
    [
        pytest.param({}, "d/f", {"": {"d"}, "d": {"f"}}, id="a file"),
        pytest.param({}, "d", {"": {"d"}, "d": None}, id="a directory, with all its names"),
        pytest.param({}, "d/none/deeper", {"": {"d"}, "d": {"none"}}, id="as far as it leads"),
        pytest.param({}, "d/f/g", {"": {"d"}, "d": {"f"}}, id="through a file"),
        pytest.param({"l": "d/f"}, "l", {"": {"l", "d"}, "d": {"f"}}, id="a relative link"),
        pytest.param({"d/up": "../d/f"}, "d/up", {"": {"d"}, "d": {"up", "f"}}, id="a link upwards"),
        pytest.param({"a": "b", "b": "a"}, "a", {"": {"a", "b"}}, id="links in a circle"),
        pytest.param({"l": "d"}, "./l/../d//f", {"": {"l", "d"}, "d": {"f"}}, id="dots after a link are physical"),
    ],
)
def test_look_ups(links: dict[str, str], path: str, expected: dict[str, set[str] | None], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("")
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    root = os.path.realpath(tmp_path)
    found = look_ups(f"{root}/{path}")
    below = {directory[len(root) + 1 :]: names for directory, names in found.items() if directory.startswith(root)}
    assert below == expected
    assert found["/"] == {root.split("/")[1]}


class Told:
    """Records what a `ConfigFollower` tells."""

    def __init__(self) -> None:
        self.changes: list[tuple[Config, Config]] = []
        self.errors: list[tuple[Problem, ...]] = []

    def change(self, old: Config, new: Config) -> None:
        self.changes.append((old, new))

    def error(self, error: ConfigError) -> None:
        self.errors.append(error.problems)


def test_a_bad_configuration_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def reread() -> Config:
        return load(str(path), {"node_name": "n1"}, {})

    def write(text: str) -> None:
        path.write_text(text)
        follower.reload()

    path.write_text("log: {level: info}\n")
    told = Told()
    start = reread()
    follower = ConfigFollower(reread, start, told.change, told.error)

    follower.reload()
    write("# same\nlog: {level: info}\n")
    assert (told.changes, told.errors) == ([], [])

    write("log:\n  level: loud\nbogus: 1\n")
    assert [(p.line, p.path) for p in told.errors[0]] == [(2, "log.level"), (3, "bogus")]
    assert follower.current == start

    follower.reload()
    assert len(told.errors) == 1, "the same problems are told once"

    path.unlink()
    follower.reload()
    assert "cannot be read" in told.errors[1][0].message

    write("log: {level: debug}\n")
    (change,) = told.changes
    assert (change[0].log, change[1].log) == (LogConfig(), LogConfig(level="debug"))
    assert follower.current.log.level == "debug"

    write("bogus: 1\n")
    write("log: {level: debug}\n")
    write("bogus: 1\n")
    assert len(told.errors) == 4, "an error that comes back is told again"
    assert [old == new for old, new in told.changes] == [False, True], "so is that it went"


async def test_the_configuration_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("log: {level: info}\n")
    changed = asyncio.Event()
    follower = ConfigFollower(
        lambda: load(str(path), {"node_name": "n1"}, {}),
        load(str(path), {"node_name": "n1"}, {}),
        lambda _old, _new: changed.set(),
        lambda error: pytest.fail(str(error)),
    )
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(follower.run(FileFollower(str(path), quiet=0.01)), name="follow")
        fresh = tmp_path / "fresh"
        fresh.write_text("log: {level: error}\n")
        fresh.rename(path)
        await changed.wait()
        run.cancel()
    assert follower.current.log.level == "error"
