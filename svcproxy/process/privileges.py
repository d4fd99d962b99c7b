# SPDX-License-Identifier: Apache-2.0
"""What a process may do: given up before the program of a role begins, never regained."""

import os
from collections.abc import Set

import msgspec

from svcproxy.errors import PrivilegeError
from svcproxy.process import prctl
from svcproxy.process.prctl import Capability


class Privileges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As whom a role runs."""

    uid: int | None = None
    """None: as whoever starts it."""
    gid: int | None = None
    """Its only group. None: the groups of whoever starts it, or with a `uid`, the group of that number."""
    capabilities: tuple[str, ...] | None = None
    """Those it has, such as `NET_BIND_SERVICE`, and can have at most. None: what the uid brings with it."""


def parse_capabilities(names: tuple[str, ...]) -> frozenset[Capability]:
    """Capabilities by name, with or without `CAP_`. Raises `PrivilegeError` for a name that is not one of ours."""
    try:
        return frozenset(Capability[name.upper().removeprefix("CAP_")] for name in names)
    except KeyError as exc:
        known = ", ".join(capability.name for capability in Capability)
        raise PrivilegeError(f"no such capability: {exc.args[0]} (there are {known})") from exc


def drop(privileges: Privileges) -> None:
    """Become what `privileges` says, for good: programs started from here gain nothing (PR_SET_NO_NEW_PRIVS).

    Raises `PrivilegeError` when that needs more than this process has; what has been given up by then stays so.
    Changes this thread only: call it while there is no other.
    """
    keep = None if privileges.capabilities is None else parse_capabilities(privileges.capabilities)
    uid, gid = privileges.uid, privileges.gid
    try:
        if keep is not None:
            _check_held(keep)
            _narrow_bounding_set(keep)
            prctl.keep_capabilities_across_setuid()
        _become(uid, uid if gid is None else gid)
        if keep is not None:
            prctl.set_capabilities(keep)
        prctl.gain_no_privileges()
    except OSError as exc:
        raise PrivilegeError(f"cannot become uid {uid}, gid {gid} with {privileges.capabilities}: {exc}") from exc


def _check_held(keep: Set[Capability]) -> None:
    missing = keep - prctl.permitted_capabilities()
    if missing:
        names = ", ".join(sorted(Capability(number).name for number in missing))
        raise PrivilegeError(f"cannot keep capabilities that are not there: {names}")


def _narrow_bounding_set(keep: Set[Capability]) -> None:
    """Take all others from the bounding set, where CAP_SETPCAP allows it: containers seldom have that.

    Elsewhere it stays as it is. With no_new_privs not even root's programs get more from it than they are given
    (Linux `cap_bprm_creds_from_file`).
    """
    for number in sorted(prctl.bounding_set() - keep):
        try:
            prctl.drop_from_bounding_set(number)
        except PermissionError:
            return


def _become(uid: int | None, gid: int | None) -> None:
    if gid is not None and (os.getresgid() != (gid, gid, gid) or os.getgroups() not in ([], [gid])):
        os.setgroups([])
        os.setresgid(gid, gid, gid)
    if uid is not None and os.getresuid() != (uid, uid, uid):
        os.setresuid(uid, uid, uid)
