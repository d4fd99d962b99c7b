# SPDX-License-Identifier: Apache-2.0
"""The node lock between real processes."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from svcproxy.errors import LockedError
from svcproxy.process.lock import NodeLock

HOLD = """
import sys
from pathlib import Path
from svcproxy.process.lock import NodeLock
lock = NodeLock(Path(sys.argv[1]), "other")
lock.acquire()
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.lock"


@pytest.fixture
def hold(path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a process that holds the lock until its standard input ends."""
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            other = subprocess.Popen(
                [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(other)
            stack.callback(other.kill)
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            return other

        yield start


def test_a_free_lock_is_taken_and_left_without_a_trace(path: Path) -> None:
    lock = NodeLock(path, "a")
    seen = [lock.held, lock.try_acquire(), lock.held, lock.try_acquire()]
    lock.release()
    lock.release()
    assert [*seen, lock.held] == [False, True, True, True, False]
    assert not path.exists()


def test_who_is_refused_learns_who_holds_it(path: Path, hold: Callable[[], subprocess.Popen[str]]) -> None:
    before = time.time()
    other = hold()
    with pytest.raises(LockedError, match=f"held by instance other .pid {other.pid}.") as refusal:
        NodeLock(path, "a").acquire()
    assert (refusal.value.pid, refusal.value.instance) == (other.pid, "other")
    assert refusal.value.since is not None
    assert before <= refusal.value.since <= time.time()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda other: other.kill(), id="kill -9"),
        pytest.param(lambda other: other.stdin.close(), id="release"),
    ],
)
async def test_who_waits_gets_it_when_the_holder_ends(
    path: Path, hold: Callable[[], subprocess.Popen[str]], end: Callable[[subprocess.Popen[str]], None]
) -> None:
    other = hold()
    lock = NodeLock(path, "a")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(lock.wait(0.001), name="wait")
        await asyncio.sleep(0)
        assert not waiting.done()
        end(other)
    holder = lock.holder()
    assert holder is not None
    assert (holder.pid, holder.instance) == (os.getpid(), "a")
    lock.release()


async def test_a_cancelled_wait_holds_nothing(path: Path, hold: Callable[[], subprocess.Popen[str]]) -> None:
    other = hold()
    lock = NodeLock(path, "a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lock.wait(0.001), 0.005)
    other.kill()
    other.wait()
    third = NodeLock(path, "b")
    assert not lock.held
    assert third.try_acquire()
    third.release()


def test_a_file_unlinked_by_its_last_holder_does_not_count(path: Path) -> None:
    """Two who opened the same file, before and after it left the directory, are never both inside."""
    first, second, third = (NodeLock(path, name) for name in "abc")
    assert first.try_acquire()
    path.unlink()  # as `release` does just before it closes
    assert second.try_acquire()
    first.release()
    path.touch()
    assert third.try_acquire()
    third.release()
    second.release()


def test_a_note_that_is_not_one_names_nobody(path: Path, hold: Callable[[], subprocess.Popen[str]]) -> None:
    hold()
    path.write_bytes(b"\xff{")
    lock = NodeLock(path, "a")
    assert lock.holder() is None
    with pytest.raises(LockedError, match="has not given its name") as refusal:
        lock.acquire()
    assert refusal.value.pid is None
