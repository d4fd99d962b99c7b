# SPDX-License-Identifier: Apache-2.0
"""Who holds a port: the kernel's lists of sockets (proc_net(5)), and the processes whose descriptors they are."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

LISTENING, UNCONNECTED = "0A", "07"
"""States of TCP and UDP sockets that take what anybody sends."""
LINE_OCTETS_MAX = 512
SOCKETS_MAX = 1_000_000
"""Lines of a list that are read."""
_INODE = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket that takes what anybody sends."""

    protocol: str
    """`tcp` or `udp`."""
    address: str
    """Canonical; `0.0.0.0` and `::` are every address."""
    port: int
    inode: int
    uid: int


@dataclass(frozen=True, slots=True)
class Process:
    """Who holds a socket."""

    pid: int
    name: str
    """The program's name, at most 15 characters."""
    command: str
    """Its command line."""

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def parse(text: str, protocol: str, *, ipv6: bool) -> Iterator[Socket]:
    """The sockets of a `/proc/net/{tcp,udp,tcp6,udp6}` that listen; what is no line of one is passed over."""
    wanted = LISTENING if protocol == "tcp" else UNCONNECTED
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != wanted:
            continue
        host, _, port = words[1].partition(":")
        try:
            yield Socket(protocol, _address(host, ipv6=ipv6), int(port, 16), int(words[9]), int(words[7]))
        except ValueError:
            continue


def _address(text: str, *, ipv6: bool) -> str:
    """The kernel prints words of 32 bits, each in the host's order."""
    octets = bytes.fromhex(text)
    words = [octets[at : at + 4][:: -1 if _LITTLE_ENDIAN else 1] for at in range(0, len(octets), 4)]
    packed = b"".join(words)
    if len(packed) != (16 if ipv6 else 4):
        raise ValueError(text)
    return str(IPv6Address(packed)) if ipv6 else str(IPv4Address(packed))


_LITTLE_ENDIAN = memoryview(b"\x01\x00").cast("H")[0] == 1


def listening() -> list[Socket]:
    """Everything that listens in the network namespace of the calling thread. Raises `OSError`."""
    found: list[Socket] = []
    for protocol in ("tcp", "udp"):
        for ipv6 in (False, True):
            path = Path("/proc/thread-self/net", f"{protocol}{'6' if ipv6 else ''}")
            if not path.exists():  # a kernel without IPv6
                continue
            with path.open(encoding="ascii") as file:
                found += parse(file.read(LINE_OCTETS_MAX * SOCKETS_MAX), protocol, ipv6=ipv6)
    return found


def clashes(sockets: Iterable[Socket], address: str, port: int, protocol: str) -> list[Socket]:
    """Those that keep somebody else from binding this. Sockets of svcproxy's serve one family each.

    A socket on `::` may take IPv4 as well, unless it says otherwise, which cannot be seen: it is counted.
    """
    ipv6 = ":" in address
    everywhere = {"0.0.0.0", "::"}  # noqa: S104  # looked for, not bound
    found: list[Socket] = []
    for each in sockets:
        if (each.protocol, each.port) != (protocol, port):
            continue
        same_family = (":" in each.address) == ipv6
        overlaps = same_family and (each.address == address or everywhere & {each.address, address})
        if overlaps or (not ipv6 and each.address == "::"):
            found.append(each)
    return found


def holders(inodes: Iterable[int]) -> Mapping[int, Process]:
    """The process of each socket, as far as it can be seen from here: not from another pid namespace."""
    wanted = frozenset(inodes)
    found: dict[int, Process] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        if len(found) == len(wanted):
            break
        try:
            for entry in (directory / "fd").iterdir():
                match = _INODE.fullmatch(str(entry.readlink()))
                if match is not None and int(match[1]) in wanted:
                    found[int(match[1])] = _process(directory)
        except OSError:  # it has ended, or is not ours to look at
            continue
    return found


def _process(directory: Path) -> Process:
    name = (directory / "comm").read_text(errors="replace").strip()
    command = (directory / "cmdline").read_bytes()[:4096].replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(int(directory.name), name, command)
