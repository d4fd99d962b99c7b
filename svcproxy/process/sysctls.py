# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters of connection tracking that svcproxy sets for the node, and takes back when it is cleaned up.

A parameter that cannot be read or written is reported and stops nothing: timeouts belong to a network namespace, but
`nf_conntrack_max` and the number of buckets can only be set in the first one. Sizes are raised, never lowered.

What was changed is in a file before it is changed: for each parameter what it was, and what svcproxy has made of it.
Who sets another value later is not overruled by `restore`.
"""

import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from svcproxy.config import ConntrackConfig
from svcproxy.errors import StateError

ROOT: Final = Path("/proc/sys/net/netfilter")
"""Where the parameters are, those of the network namespace of the thread that looks."""
HOST_ROOT: Final = Path("/host/proc/sys/net/netfilter")
"""Where they are for a container whose /proc/sys is read-only, if the host's are mounted there."""
FILE_NAME: Final = "sysctls.json"
"""In the state directory."""
FILE_OCTETS_MAX: Final = 64 << 10
"""A larger file is not ours."""
CONNECTIONS_PER_BUCKET: Final = 4
"""As many as kube-proxy wants at most, on average, when the table is full."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value that a parameter is to have."""

    name: str
    """In `location()`."""
    value: int
    at_least: bool = False
    """A larger value stays."""


@dataclass(frozen=True, slots=True)
class Sysctl:
    """What became of one parameter."""

    name: str
    wanted: int
    before: int | None
    """None where it could not be read."""
    after: int | None
    error: str = ""
    """Why it is not as wanted; empty if it is."""


class _Change(msgspec.Struct, frozen=True):
    before: int
    after: int


_Changes = dict[str, _Change]
_DECODER = msgspec.json.Decoder(_Changes)
_PREFIX = "nf_conntrack_"


def wanted(config: ConntrackConfig, cpus: int) -> tuple[Wanted, ...]:
    """What a node with so many CPUs is to have."""
    sizes: tuple[Wanted, ...] = ()
    if config.max_per_core:
        maximum = max(config.max_per_core * cpus, config.min)
        sizes = (
            Wanted("nf_conntrack_max", maximum, at_least=True),
            Wanted("nf_conntrack_buckets", maximum // CONNECTIONS_PER_BUCKET, at_least=True),
        )
    values = (
        Wanted("nf_conntrack_tcp_timeout_established", config.tcp_timeout_established),
        Wanted("nf_conntrack_tcp_timeout_close_wait", config.tcp_timeout_close_wait),
        Wanted("nf_conntrack_tcp_be_liberal", int(config.tcp_be_liberal)),
        Wanted("nf_conntrack_udp_timeout", config.udp_timeout),
        Wanted("nf_conntrack_udp_timeout_stream", config.udp_timeout_stream),
    )
    return (*sizes, *(each for each in values if each.value))


def location() -> Path:
    """Where the parameters can be written."""
    return HOST_ROOT if HOST_ROOT.parent.exists() else ROOT


def apply(values: Iterable[Wanted], record: Path, root: Path | None = None) -> tuple[Sysctl, ...]:
    """Give the parameters these values, and note in the file `record` what they were. Never raises `OSError`.

    A parameter is left as it is when its change cannot be noted: nobody could take it back. A record that cannot be
    read is begun anew.
    """
    try:
        changes = _recorded(record)
    except StateError as exc:
        log.warning("kernel parameters changed earlier cannot be taken back", extra={"cause": str(exc)})
        changes = {}
    root = root or location()
    found = tuple(_set(each, changes, record, root) for each in values)
    for each in found:
        if each.error:
            log.warning("cannot set a kernel parameter", extra={"sysctl": each.name, "cause": each.error})
    return found


def restore(record: Path, root: Path | None = None) -> tuple[Sysctl, ...]:
    """Take back what `apply` has changed, and forget it; nothing to take back is fine.

    What somebody else has changed since stays. What cannot be taken back remains in the file. Raises `StateError` when
    the file cannot be read or written.
    """
    changes = _recorded(record)
    root = root or location()
    restored = tuple(_take_back(name, change, root) for name, change in changes.items())
    left = {each.name: changes[each.name] for each in restored if each.error}
    try:
        if left:
            _note(record, left)
        else:
            record.unlink(missing_ok=True)
    except OSError as exc:
        raise StateError(_text(exc, record)) from exc
    return restored


def _set(each: Wanted, changes: _Changes, record: Path, root: Path) -> Sysctl:
    path = root / each.name
    before = None
    try:
        before = _read(path)
        if before == each.value or (each.at_least and before > each.value):
            return Sysctl(each.name, each.value, before, before)
        ours = changes.get(each.name)
        original = ours.before if ours is not None and ours.after == before else before
        with path.open("w") as parameter:  # first, for it may be read-only
            changes[each.name] = _Change(original, each.value)
            _note(record, changes)
            parameter.write(str(each.value))
        after = _read(path)
        if after != each.value:  # the number of buckets is rounded
            changes[each.name] = _Change(original, after)
            _note(record, changes)
    except OSError as exc:
        return Sysctl(each.name, each.value, before, before, _text(exc, path))
    return Sysctl(each.name, each.value, before, after)


def _take_back(name: str, change: _Change, root: Path) -> Sysctl:
    path = root / name
    now = None
    try:
        now = _read(path)
        if now == change.after:
            path.write_text(str(change.before))
        return Sysctl(name, change.before, now, _read(path))
    except OSError as exc:
        return Sysctl(name, change.before, now, now, _text(exc, path))


def _read(path: Path) -> int:
    """Raises OSError, EINVAL for what is not a number."""
    text = path.read_text().strip()
    if not text.isdecimal():
        raise OSError(errno.EINVAL, f"not a number: {text[:40]!r}", str(path))
    return int(text)


def _recorded(record: Path) -> _Changes:
    """What has been changed; nothing if there is no file. Raises `StateError`."""
    try:
        with record.open("rb") as file:
            octets = file.read(FILE_OCTETS_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise StateError(_text(exc, record)) from exc
    if len(octets) > FILE_OCTETS_MAX:
        raise StateError(f"{record}: more than {FILE_OCTETS_MAX} octets")
    try:
        changes = _DECODER.decode(octets)
    except msgspec.MsgspecError as exc:
        raise StateError(f"{record}: {exc}") from exc
    for name in changes:
        if not name.startswith(_PREFIX) or not name.isidentifier():
            raise StateError(f"{record}: no parameter of connection tracking: {name[:40]!r}")
    return changes


def _note(record: Path, changes: _Changes) -> None:
    """Replace the file. Raises OSError; it is then what it was."""
    temporary = record.with_name(f".{record.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(msgspec.json.encode(changes))
        temporary.replace(record)
    finally:
        temporary.unlink(missing_ok=True)


def _text(exc: OSError, path: Path) -> str:
    return f"{exc.filename or path}: {exc.strerror}"
