# SPDX-License-Identifier: Apache-2.0
"""The rules of iptables from before nftables: chains are read from the kernel, changes are left to its own programs.

The kernel gives a table as one block of entries (`linux/netfilter_ipv4/ip_tables.h`, `ip6_tables.h`). A user-defined
chain begins with an entry whose target is `ERROR` and whose target data is the chain's name.
"""

import contextlib
import ctypes
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from svcproxy.errors import DecodeError
from svcproxy.model.meta import Family

TABLE_OCTETS_MAX: Final = 1 << 30
"""Of a table that is read: a hundred times what a node of 10,000 Services has."""
ATTEMPTS: Final = 5
"""How often a table is asked for that changes while it is read."""
PROGRAM_TIMEOUT: Final = 60.0
"""Seconds for one run of iptables-legacy-save or -restore."""
LOCK_TIMEOUT: Final = 10
"""Seconds that iptables-legacy-restore waits for others to finish."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in one family's structures."""

    address_family: int
    level: int
    names: str
    command: str
    target_offset: int
    """In an entry; `next_offset` follows it. Both have 16 bits."""
    entry_octets: int


_LAYOUTS: Final = {
    Family.IPV4: _Layout(socket.AF_INET, socket.IPPROTO_IP, "ip_tables_names", "iptables-legacy", 88, 112),
    Family.IPV6: _Layout(socket.AF_INET6, socket.IPPROTO_IPV6, "ip6_tables_names", "ip6tables-legacy", 140, 168),
}
_GET_INFO, _GET_ENTRIES = 64, 65
"""IPT_SO_GET_*, IP6T_SO_GET_*."""
_INFO: Final = struct.Struct("=32sI5I5III")
"""ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size."""
_ENTRIES_HEAD: Final = struct.Struct("=32sI4x")
"""ipt_get_entries: name, size."""
_OFFSETS: Final = struct.Struct("=HH")
_TARGET_NAME: Final = slice(2, 31)
"""Of xt_entry_target: after its size."""
_ERROR_NAME: Final = slice(32, 62)
"""Of xt_error_target."""
_libc = ctypes.CDLL(None, use_errno=True)


def tables(family: Family) -> tuple[str, ...]:
    """The tables that are in use in the namespace of the calling thread; to ask for others would make them."""
    try:
        names = Path("/proc/thread-self/net", _LAYOUTS[family].names).read_text(encoding="ascii")
    except FileNotFoundError:
        return ()
    return tuple(sorted(names.split()))


def chains(family: Family, table: str) -> tuple[str, ...]:
    """The user-defined chains of a table. Raises OSError, PermissionError without CAP_NET_ADMIN, `DecodeError`."""
    layout = _LAYOUTS[family]
    with socket.socket(layout.address_family, socket.SOCK_DGRAM) as sock:
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(BlockingIOError):  # EAGAIN: it has another size than a moment ago
                return tuple(_chain_names(_entries(sock, layout, table), layout))
        return tuple(_chain_names(_entries(sock, layout, table), layout))


def command(family: Family) -> str:
    """The program for tables of this kind."""
    return _LAYOUTS[family].command


def installed(family: Family) -> bool:
    """Whether the programs are there that save and restore."""
    return all(shutil.which(f"{command(family)}-{what}") for what in ("save", "restore"))


def save(family: Family, table: str) -> str:
    """A table as text. Raises OSError, `subprocess.SubprocessError`."""
    return _run(f"{command(family)}-save", "-t", table)


def restore(family: Family, script: str) -> None:
    """Change a table. Raises OSError, `subprocess.SubprocessError`."""
    _run(f"{command(family)}-restore", "--noflush", f"--wait={LOCK_TIMEOUT}", text=script)


def _run(*words: str, text: str = "") -> str:
    return subprocess.run(  # noqa: S603  # names are constants
        words, input=text, text=True, check=True, capture_output=True, timeout=PROGRAM_TIMEOUT
    ).stdout


def _entries(sock: socket.socket, layout: _Layout, table: str) -> bytes:
    """A table as the kernel has it."""
    name = table.encode()
    (*_, size) = _INFO.unpack(_get(sock, layout.level, _GET_INFO, name.ljust(_INFO.size, b"\0")))
    if size > TABLE_OCTETS_MAX:
        raise DecodeError(f"{layout.command}: table {table} has {size} octets, {TABLE_OCTETS_MAX} are read at most")
    asked = _ENTRIES_HEAD.pack(name, size) + bytes(size)
    return _get(sock, layout.level, _GET_ENTRIES, asked)[_ENTRIES_HEAD.size :]


def _get(sock: socket.socket, level: int, option: int, asked: bytes) -> bytes:
    """getsockopt(2) whose question is in the buffer of its answer, which Python's own cannot ask."""
    buffer = ctypes.create_string_buffer(asked, len(asked))
    length = ctypes.c_uint32(len(asked))
    if _libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw


def _chain_names(entries: bytes, layout: _Layout) -> Iterator[str]:
    start = 0
    while start < len(entries):
        if len(entries) - start < layout.entry_octets:
            raise DecodeError(f"{layout.command}: an entry is cut short")
        to_target, to_next = _OFFSETS.unpack_from(entries, start + layout.target_offset)
        if not layout.entry_octets <= to_target < to_next <= len(entries) - start:
            raise DecodeError(f"{layout.command}: an entry of {to_next} octets, its target at {to_target}")
        target = entries[start + to_target : start + to_next]
        if _string(target[_TARGET_NAME]) == "ERROR" and (name := _string(target[_ERROR_NAME])) != "ERROR":
            yield name
        start += to_next


def _string(octets: bytes) -> str:
    return octets.partition(b"\0")[0].decode(errors="replace")
