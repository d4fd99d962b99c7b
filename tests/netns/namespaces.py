# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of a test, entered by its thread: a socket stays in the one where it was made."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A new network namespace, which goes when it is closed and nothing is in it any more."""

    def __init__(self) -> None:
        """Raises OSError without privileges."""
        with _returning():
            _check(_libc.unshare(_CLONE_NEWNET))
            self.fd = _current()
            Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")  # addresses serve at once
            self.ip("link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The block runs in it, with the processes and sockets it starts."""
        with inside(self.fd):
            yield

    def run(self, *words: str, text: str = "") -> str:
        """What a command prints that runs in it."""
        with self.entered():
            return subprocess.run(words, input=text, text=True, check=True, stdout=subprocess.PIPE).stdout

    def ip(self, *words: str) -> None:
        """Run `ip`."""
        self.run("ip", *words)

    def forward(self) -> None:
        """Make a router of it."""
        with self.entered():
            for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                Path("/proc/sys/net", name).write_text("1")

    def connect(self, other: "Namespace", name: str, number: int) -> None:
        """Join `name` here to `eth0` there: 10.1.NUMBER.1 and .2 to .4, and fd01:NUMBER::1 and ::2 to ::4."""
        self.ip(
            "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{other.fd}"
        )
        self.ip("addr", "add", f"10.1.{number}.1/24", "dev", name)
        self.ip("addr", "add", f"fd01:{number}::1/64", "dev", name, "nodad")
        self.ip("link", "set", name, "up")
        for host in (2, 3, 4):
            other.ip("addr", "add", f"10.1.{number}.{host}/24", "dev", "eth0")
            other.ip("addr", "add", f"fd01:{number}::{host}/64", "dev", "eth0", "nodad")
        other.ip("link", "set", "eth0", "up")
        other.ip("route", "add", "default", "via", f"10.1.{number}.1")
        other.ip("route", "add", "default", "via", f"fd01:{number}::1")


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """The block runs in the network namespace of a descriptor, with the processes and sockets it starts."""
    with _returning():
        _check(_libc.setns(fd, _CLONE_NEWNET))
        yield


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@contextmanager
def _returning() -> Iterator[None]:
    home = _current()
    try:
        yield
    finally:
        _check(_libc.setns(home, _CLONE_NEWNET))
        os.close(home)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "network namespace")
