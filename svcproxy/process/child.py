# SPDX-License-Identifier: Apache-2.0
"""How a role's process begins: with its own privileges and process group, and with its life tied to its parent's.

Between fork and exec runs ordinary Python, which is sound because the parent has a single thread. The kernel kills the
child when its parent dies, in whatever way: SIGKILL, because a child that is stuck or drains for ever would be an
orphan too. Roles are made to be killed at any time; what must outlive them is in the kernel or on disk.
"""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NoReturn

from svcproxy.errors import SvcproxyError
from svcproxy.process.prctl import die_with_parent
from svcproxy.process.privileges import Privileges, drop

_COMPLAINT_OCTETS_MAX = 4096
_EXIT_NOT_STARTED = 127
_FIRST_DESCRIPTOR = 3
_DESCRIPTORS_MAX = 1 << 30


class LaunchError(SvcproxyError):
    """A program did not start. Reaction: as if it had started and failed."""


def launch(
    argv: Sequence[str], environment: Mapping[str, str], privileges: Privileges, inherited: Sequence[int] = ()
) -> int:
    """Start a program and return its pid, which is also its process group.

    It gets standard output and error of this process, /dev/null as input, `inherited` under the same numbers and no
    other descriptor. No signal is blocked; SIGHUP is ignored until the program asks for it, so that a supervisor may
    forward it to everyone.
    Raises `LaunchError` with the reason if it did not get as far as its own code. Only for processes with one thread.
    """
    reader, writer = os.pipe()  # both closed on exec: the end of the stream says that exec succeeded
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as exc:
        os.close(reader)
        os.close(writer)
        raise LaunchError(f"fork: {exc.strerror}") from exc
    if pid == 0:
        _begin(argv, environment, privileges, inherited, parent, writer)
    os.close(writer)
    with open(reader, "rb") as stream:  # noqa: PTH123  # a descriptor
        complaint = stream.read(_COMPLAINT_OCTETS_MAX)
    if complaint:
        os.waitpid(pid, 0)
        raise LaunchError(complaint.decode(errors="replace"))
    return pid


def _begin(
    argv: Sequence[str],
    environment: Mapping[str, str],
    privileges: Privileges,
    inherited: Sequence[int],
    parent: int,
    complaints: int,
) -> NoReturn:
    try:
        os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the supervisor alone, which stops the roles in order
        kept = sorted((*inherited, complaints))
        for first, last in pairwise((_FIRST_DESCRIPTOR - 1, *kept, _DESCRIPTORS_MAX)):
            os.closerange(first + 1, last)
        for descriptor in inherited:
            os.set_inheritable(descriptor, True)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        drop(privileges)
        die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_EXIT_NOT_STARTED)
        os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606  # argv is the launch plan's
    except BaseException as exc:  # noqa: BLE001  # whatever it is, the parent tells
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        with contextlib.suppress(OSError):
            os.write(complaints, f"{argv[0]}: {reason or type(exc).__name__}".encode(errors="replace"))
    finally:
        os._exit(_EXIT_NOT_STARTED)
