# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: permissions, long paths, stale ones, peers."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from svcproxy.process.sockets import PATH_OCTETS_MAX, Peer, connect_unix, listen_unix, peer_of


def long_path(below: Path) -> Path:
    directory = below / ("d" * 120)
    directory.mkdir()
    path = directory / "feed.sock"
    assert len(os.fsencode(path)) > PATH_OCTETS_MAX
    return path


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=lambda kind: kind.name)
@pytest.mark.parametrize("long", [False, True], ids=["short path", "longer than sockaddr_un"])
def test_what_one_sends_the_other_receives(tmp_path: Path, long: bool, kind: socket.SocketKind) -> None:
    path = long_path(tmp_path) if long else tmp_path / "s"
    with closing(listen_unix(path, kind=kind)) as listener, closing(connect_unix(path, kind)) as connection:
        accepted, _ = listener.accept()
        with accepted:
            connection.send(b"hello")
            assert accepted.recv(16) == b"hello"


@pytest.mark.parametrize("umask", [0o000, 0o077], indirect=True, ids=["open umask", "strict umask"])
@pytest.mark.parametrize("mode", [0o600, 0o660])
@pytest.mark.usefixtures("umask")
def test_permissions_are_exact(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    with closing(listen_unix(path, mode)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen_unix(path).close()
    with closing(listen_unix(path)), closing(connect_unix(path)) as connection:
        assert connection.getpeername() == str(path)


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        listen_unix(path)
    assert path.read_text() == "precious"


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(FileNotFoundError):
        connect_unix(path)
    listen_unix(path).close()
    with pytest.raises(ConnectionRefusedError):
        connect_unix(path)


def test_both_ends_know_who_the_other_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    me = Peer(os.getpid(), os.geteuid(), os.getegid())
    with closing(listen_unix(path)) as listener, closing(connect_unix(path)) as connection:
        accepted, _ = listener.accept()
        with accepted:
            assert (peer_of(connection), peer_of(accepted)) == (me, me)
        assert me.trusted


@pytest.mark.parametrize(
    ("uid", "trusted"),
    [
        pytest.param(0, True, id="root"),
        pytest.param(os.geteuid(), True, id="the same user"),
        pytest.param(os.geteuid() + 4711, False, id="somebody else"),
    ],
)
def test_who_is_trusted(uid: int, trusted: bool) -> None:
    assert Peer(1, uid, 0).trusted is trusted
