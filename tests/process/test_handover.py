# SPDX-License-Identifier: Apache-2.0
"""Sockets pass from one process to the next: all of them, with what is queued, and without leaks when it fails."""

import array
import asyncio
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from svcproxy.errors import HandoverError
from svcproxy.process.descriptors import DESCRIPTORS_MAX
from svcproxy.process.handover import HandoverServer, take
from svcproxy.process.sockets import connect_unix, listen_unix

OLD_PROCESS = """
import asyncio, socket, sys
from pathlib import Path
from svcproxy.process.handover import HandoverServer

READS = 50

async def main():
    loop = asyncio.get_running_loop()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.bind(("127.0.0.1", 0))
    print(udp.getsockname()[1], flush=True)
    read = []
    def on_readable():
        read.append(udp.recv(100))
        if len(read) == READS:
            loop.remove_reader(udp)
            print("busy", flush=True)
    loop.add_reader(udp, on_readable)
    await HandoverServer(Path(sys.argv[1]), lambda: {"udp": udp}, udp.close).run()
    print(len(set(read)), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "handover.sock"


def open_descriptors() -> dict[int, str]:
    """What each open descriptor refers to, but for the one that reads the list."""
    found: dict[int, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found


@contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Let this process open no more than `count` further descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = open_descriptors()
    free = [number for number in range(soft) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def exists(path: Path) -> bool:
    return path.exists()


@pytest.fixture
def old_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Reads fifty datagrams, and then no more, though more come in."""
    with subprocess.Popen([sys.executable, "-c", OLD_PROCESS, str(path)], stdout=subprocess.PIPE, text=True) as old:
        yield old
        old.kill()


@pytest.fixture
def sockets() -> Iterator[Callable[[int], dict[str, socket.socket]]]:
    with ExitStack() as stack:

        def make(count: int) -> dict[str, socket.socket]:
            made = {f"udp-{number}": socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for number in range(count)}
            for one in made.values():
                stack.enter_context(one)
                one.bind(("127.0.0.1", 0))
            return made

        yield make


@asynccontextmanager
async def serving(server: HandoverServer, path: Path) -> AsyncIterator[asyncio.Task[None]]:
    """Run the old side in a task, from before the path exists until the block ends."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(server.run(), name="handover")
        await asyncio.sleep(0)
        assert exists(path)
        yield task
        task.cancel()


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(0, id="none"),
        pytest.param(1, id="one"),
        pytest.param(DESCRIPTORS_MAX, id="a full packet"),
        pytest.param(300, id="more than one packet takes"),
    ],
)
async def test_all_sockets_pass(path: Path, sockets: Callable[[int], dict[str, socket.socket]], count: int) -> None:
    old = sockets(count)
    addresses = {name: one.getsockname() for name, one in old.items()}
    taken = []

    def stop_reading() -> None:
        taken.append(True)
        for one in old.values():
            one.close()

    async with serving(HandoverServer(path, lambda: old, stop_reading, lambda: {"revision": "7"}), path) as server:
        with await take(path) as takeover:
            assert not taken
            await takeover.serving()
            assert taken == [True]
        await server
        assert not exists(path)
        assert {name: one.getsockname() for name, one in takeover.sockets.items()} == addresses
        assert takeover.metadata == {"revision": "7"}
        for one in takeover.sockets.values():
            assert not os.get_inheritable(one.fileno())
            one.close()


async def test_no_queued_datagram_is_lost_between_processes(path: Path, old_process: subprocess.Popen[str]) -> None:
    """Closing one of two sockets of a reuse-port group loses what is queued in it. Here nothing is: 200 of 200."""
    assert old_process.stdout is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", int(old_process.stdout.readline())))
        for number in range(100):
            client.send(b"%d" % number)
        assert old_process.stdout.readline() == "busy\n"
        with await take(path) as takeover:
            await takeover.serving()
        for number in range(100, 200):
            client.send(b"%d" % number)
        read_by_old = int(old_process.stdout.readline())
        with takeover.sockets["udp"] as udp:
            read = {udp.recv(100) for _ in range(200 - read_by_old)}
        assert read == {b"%d" % number for number in range(read_by_old, 200)}


async def test_a_listener_passes_with_the_connections_that_wait_in_it(path: Path) -> None:
    old = socket.create_server(("127.0.0.1", 0))
    old.setblocking(False)
    with socket.create_connection(old.getsockname()) as client:
        client.send(b"hello")
        async with serving(HandoverServer(path, lambda: {"tcp": old}, old.close), path):
            with await take(path) as takeover:
                await takeover.serving()
        listener = takeover.sockets["tcp"]
        assert listener.gettimeout() == 0
        with listener, listener.accept()[0] as connection:
            assert connection.recv(10) == b"hello"


async def test_a_successor_that_gives_up_changes_nothing(
    path: Path, sockets: Callable[[int], dict[str, socket.socket]]
) -> None:
    old = sockets(2)
    taken: list[bool] = []
    async with serving(HandoverServer(path, lambda: old, lambda: taken.append(True)), path) as server:
        with no_descriptor_leaks():
            for _ in range(3):
                with await take(path) as takeover:
                    assert len(takeover.sockets) == 2
                assert not takeover.sockets
            await turns()
        assert not taken
        assert not server.done()
        with await take(path) as takeover:  # and the next one may still have them
            await takeover.serving()
        assert taken == [True]
        for one in takeover.sockets.values():
            one.close()


async def test_a_socket_closed_in_the_meantime_is_left_out(
    path: Path, sockets: Callable[[int], dict[str, socket.socket]]
) -> None:
    old = sockets(3)
    old["udp-1"].close()
    async with serving(HandoverServer(path, lambda: old, lambda: None), path):
        with await take(path) as takeover:
            assert sorted(takeover.sockets) == ["udp-0", "udp-2"]


async def test_an_old_side_that_does_not_confirm(path: Path) -> None:
    async def old(listener: socket.socket) -> None:
        with await accept(listener) as connection:
            connection.send(b'{"names": [], "last": true}')
            await readable(connection)

    with listen_unix(path, kind=socket.SOCK_SEQPACKET) as listener:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(old(listener), name="old")
            with await take(path) as takeover, pytest.raises(HandoverError, match=r"left|not confirmed"):
                await takeover.serving()


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        pytest.param((b"{", 0), "not understood", id="not JSON"),
        pytest.param((b'{"names": 1, "last": true}', 0), "not understood", id="another shape"),
        pytest.param((b'{"names": ["a"], "last": true}', 0), "0 descriptors for 1 names", id="too few descriptors"),
        pytest.param((b'{"names": [], "last": true}', 2), "2 descriptors for 0 names", id="too many descriptors"),
        pytest.param((b'{"names": ["a", "a"], "last": true}', 2), "two sockets are named a", id="one name twice"),
        pytest.param((b'{"names": ["a"], "last": false}', 1), r"left|Broken pipe", id="ends in the middle"),
        pytest.param((b"", 0), "left", id="ends at once"),
        pytest.param((b'{"names": ["' + b"a" * 140000 + b'"], "last": true}', 1), "cut short", id="too large"),
    ],
)
async def test_an_old_side_that_breaks_the_protocol(path: Path, packet: tuple[bytes, int], complaint: str) -> None:
    async def old(listener: socket.socket) -> None:
        with await accept(listener) as connection, socket.socket() as passed:
            data, count = packet
            rights = array.array("i", [passed.fileno()] * count)
            connection.sendmsg(
                [data] if data else [], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if count else []
            )

    with no_descriptor_leaks(), listen_unix(path, kind=socket.SOCK_SEQPACKET) as listener:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(old(listener), name="old")
            with pytest.raises(HandoverError, match=complaint):
                await take(path)


async def test_what_is_not_a_socket_is_refused(path: Path) -> None:
    with no_descriptor_leaks(), tempfile.TemporaryFile() as file:
        async with serving(HandoverServer(path, lambda: {"file": file}, lambda: None), path):
            with pytest.raises(HandoverError, match="non-socket"):
                await take(path)


async def test_out_of_descriptors(path: Path, sockets: Callable[[int], dict[str, socket.socket]]) -> None:
    old = sockets(50)
    async with serving(HandoverServer(path, lambda: old, lambda: None), path):
        with no_descriptor_leaks():
            with free_descriptors(20), pytest.raises(HandoverError, match="out of descriptors"):
                await take(path)
            await turns()


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"{", id="not JSON"),
        pytest.param(b'{"say": "give"}', id="an unknown word"),
        pytest.param(b'{"say": "serving"}', id="out of turn"),
        pytest.param(b'{"say": "take", "version": 2}', id="another version"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_a_successor_that_breaks_the_protocol(path: Path, packet: bytes) -> None:
    asked: list[bool] = []

    def old_sockets() -> dict[str, socket.socket]:
        asked.append(True)
        return {}

    async with serving(HandoverServer(path, old_sockets, lambda: None), path) as server:
        with connect_unix(path, socket.SOCK_SEQPACKET) as connection:
            if packet:
                connection.send(packet)
                await readable(connection)
                assert connection.recv(10) == b""
        await turns()
        assert not asked
        assert not server.done()


async def test_nobody_hands_over(path: Path) -> None:
    with pytest.raises(HandoverError, match=r"no sockets from .*: No such file"):
        await take(path)
    listen_unix(path, kind=socket.SOCK_SEQPACKET).close()
    with pytest.raises(HandoverError, match="Connection refused"):
        await take(path)


async def test_silence_is_bounded(path: Path) -> None:
    with (
        no_descriptor_leaks(),
        listen_unix(path, kind=socket.SOCK_SEQPACKET),
        pytest.raises(HandoverError, match="said nothing"),
    ):
        await take(path, timeout=0.01)


@pytest.mark.netns
async def test_sockets_are_not_taken_from_another_user(path: Path) -> None:
    with listen_unix(path, kind=socket.SOCK_SEQPACKET) as listener:
        os.seteuid(65534)
        listener.listen()  # the kernel takes the credentials of this call
        os.seteuid(0)
        with pytest.raises(HandoverError, match="the other side is uid 65534"):
            await take(path)


@pytest.mark.netns
async def test_sockets_are_not_given_to_another_user() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory) / "handover.sock"
        async with serving(HandoverServer(path, dict, lambda: None), path):
            for opened in (path.parent, path):
                opened.chmod(0o777)  # as if the permissions had failed
            os.seteuid(65534)
            connection = connect_unix(path, socket.SOCK_SEQPACKET)
            os.seteuid(0)
            with connection:
                connection.send(b'{"say": "take"}')
                await readable(connection)
                with pytest.raises(ConnectionResetError):
                    connection.recv(10)


async def accept(listener: socket.socket) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    await readable(connection)
    connection.recv(100)
    return connection


async def turns() -> None:
    """Let the loop turn until everything that can happen by itself has."""
    for _ in range(20):
        await asyncio.sleep(0)


async def readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(connection, event.set)
    await event.wait()
    loop.remove_reader(connection)
