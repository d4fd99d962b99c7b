# SPDX-License-Identifier: Apache-2.0
"""The few prctl(2) and capability calls that Python does not offer. Each raises `OSError` as the system call fails."""

import ctypes
import os
from collections.abc import Iterable
from enum import IntEnum

_LIBC = ctypes.CDLL(None, use_errno=True)


class Capability(IntEnum):
    """Capabilities that a role may keep (capabilities(7), `linux/capability.h`)."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_ADMIN = 21
    PERFMON = 38
    BPF = 39


_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CLONE_NEWNET = 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    """32 capabilities; a call takes two of them, the lower ones first."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def die_with_parent(signal_number: int) -> None:
    """Get this signal when the thread that started this process ends.

    Cleared by a change of ids or capabilities and by programs that gain privileges: ask for it last. A parent that
    is gone already sends nothing: look at `os.getppid()` afterwards.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def keep_capabilities_across_setuid() -> None:
    """Keep the permitted set when uid 0 is given up; the effective one goes all the same."""
    _prctl(_PR_SET_KEEPCAPS, 1)


def gain_no_privileges() -> None:
    """From now on no program gains privileges by its file's mode or capabilities. Inherited, cannot be undone."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def bounding_set() -> frozenset[int]:
    """Numbers of the capabilities that programs may still come to have."""
    found = set[int]()
    while (result := _LIBC.prctl(_PR_CAPBSET_READ, len(found), 0, 0, 0)) >= 0 and len(found) < 64:
        found.add(len(found) if result else -1 - len(found))
    return frozenset(number for number in found if number >= 0)


def drop_from_bounding_set(capability: int) -> None:
    """No program comes to have it any more. Needs CAP_SETPCAP."""
    _prctl(_PR_CAPBSET_DROP, capability)


def permitted_capabilities() -> frozenset[int]:
    """Numbers of the capabilities that this thread may use."""
    sets = (_Set * 2)()
    _check(_LIBC.capget(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets))
    mask = sets[0].permitted | sets[1].permitted << 32
    return frozenset(number for number in range(64) if mask >> number & 1)


def set_capabilities(capabilities: Iterable[int]) -> None:
    """Have exactly these, effective, permitted, inheritable and ambient: programs without special files keep them."""
    mask = sum(1 << number for number in set(capabilities))
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = (_Set * 2)(_Set(low, low, low), _Set(high, high, high))
    _check(_LIBC.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets))
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        if mask >> number & 1:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def private_network_namespace() -> None:
    """Put this thread, and no other, into a new network namespace, which goes with it. Needs CAP_SYS_ADMIN."""
    _check(_LIBC.unshare(_CLONE_NEWNET))


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(number) for number in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_LIBC.prctl(ctypes.c_int(option), *padded))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
