# SPDX-License-Identifier: Apache-2.0
"""Unix sockets of an instance: bound with exact permissions, under paths of any length, peers known by the kernel.

`sockaddr_un` holds 107 octets and a NUL. A longer path is reached through `/proc/self/fd`, with an open descriptor of
its directory, which works for `bind` and `connect` alike.
"""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATH_OCTETS_MAX = 107
"""Longest path in `sockaddr_un` (unix(7)), the terminating NUL not counted."""

BACKLOG = 64
"""Connections that may wait to be accepted."""

_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket, as the kernel knows it (unix(7), SO_PEERCRED).

    For the side that connected it is whoever called `listen`. Ids that have no name in this user namespace are 65534.
    """

    pid: int
    """0 for a process of another pid namespace."""
    uid: int
    gid: int

    @property
    def trusted(self) -> bool:
        """Whether it is this user, or root."""
        return self.uid in (0, os.geteuid())


def peer_of(connection: socket.socket) -> Peer:
    """The other end of a connected Unix socket."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def listen_unix(path: Path, mode: int = 0o600, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking listening socket at `path`, with permissions `mode` from its first moment, whatever the umask.

    A socket that is there already is replaced: whoever calls this owns the directory. Anything else there raises
    `FileExistsError`.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.setblocking(False)
        os.fchmod(listener.fileno(), mode)  # the inode that bind() makes takes its mode from here, less the umask
        _make_room(path)
        with _address_of(path) as address:
            listener.bind(address)
        path.chmod(mode)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect_unix(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking socket connected to the listener at `path`.

    Raises what connect(2) does: `FileNotFoundError`, `ConnectionRefusedError` (nobody listens any more),
    `BlockingIOError` (its backlog is full), `PermissionError`.
    """
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        connection.setblocking(False)
        with _address_of(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_room(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is in the way: not a socket")
        path.unlink()


@contextlib.contextmanager
def _address_of(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= PATH_OCTETS_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
