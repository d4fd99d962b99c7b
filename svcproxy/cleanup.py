# SPDX-License-Identifier: Apache-2.0
"""`svcproxy cleanup`: removes from a node what svcproxy, or a kube-proxy before it, has left there."""

import argparse
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svcproxy.client.console import console
from svcproxy.dataplane.nftables.foreign import detect
from svcproxy.dataplane.nftables.removal import intercepted, remove_intercepted, remove_own
from svcproxy.dataplane.nftables.takeover import Fate, Outcome, remove_kube_proxy
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.errors import DecodeError, LockedError, StateError
from svcproxy.process import sysctls
from svcproxy.process.instance import RunDirectory
from svcproxy.process.leases import AddressLeases
from svcproxy.process.lock import NodeLock
from svcproxy.process.prctl import Capability, permitted_capabilities

_INSTANCE = "cleanup"
"""What the node lock says its holder is."""


def run(arguments: argparse.Namespace) -> int:
    """Remove everything, as far as it can be; returns the exit code. Raises `SvcproxyError`."""
    fates: set[Fate] = set()
    directories = Path(arguments.run_dir), Path(arguments.state_dir)
    for outcome in _steps(*directories, kube_proxy=arguments.kube_proxy, force=arguments.force):
        fates.add(outcome.fate)
        match outcome.fate:
            case Fate.REMOVED:
                console().line(f"removed {outcome}")
            case Fate.KEPT:
                sys.stderr.write(f"svcproxy: kept {outcome}\n")
            case Fate.FAILED:
                sys.stderr.write(f"svcproxy: not removed: {outcome}\n")
    if not fates:
        console().line("nothing to remove")
    return 1 if Fate.FAILED in fates else 0


def _steps(run_dir: Path, state_dir: Path, *, kube_proxy: bool, force: bool) -> Iterator[Outcome]:
    """Everything there is to do, in order."""
    run_directory = RunDirectory(run_dir)
    yield from _dead_instances(run_directory)
    with _alone(run_directory, force=force) as alone:
        yield from _rules(run_directory, kube_proxy=kube_proxy, force=force)
        if alone:
            yield from _settings(state_dir / sysctls.FILE_NAME)


def _dead_instances(run_directory: RunDirectory) -> Iterator[Outcome]:
    """What dead instances left: the node's own, and those of worker processes."""
    for each in (run_directory, *_workers(run_directory)):
        try:
            for name in each.remove_dead():
                yield Outcome(Fate.REMOVED, f"directory of the dead instance {name} in {each.path}")
        except OSError as exc:
            yield Outcome(Fate.FAILED, f"directories of dead instances in {each.path}", exc.strerror or str(exc))


def _workers(run_directory: RunDirectory) -> list[RunDirectory]:
    """The directories of worker processes."""
    return [RunDirectory(path) for path in sorted(run_directory.path.glob("*-*"))]


@contextmanager
def _alone(run_directory: RunDirectory, *, force: bool) -> Iterator[bool]:
    """Whether no agent runs, and none becomes the node's meanwhile. If not, raises `LockedError` unless `force`."""
    lock = NodeLock(run_directory.node_lock, _INSTANCE)
    obstacle = _obstacle(run_directory, lock)
    if obstacle and not force:
        raise LockedError(f"{obstacle}; use --force to go on all the same")
    try:
        yield not obstacle
    finally:
        lock.release()


def _obstacle(run_directory: RunDirectory, lock: NodeLock) -> str:
    """Why this is not the moment; empty if it is, and the lock is held where there is one to hold."""
    try:
        live = [paths.name for paths in run_directory.instances()]
        if live:
            return f"instance {', '.join(live)} runs under {run_directory.path}: stop it first"
        if run_directory.path.is_dir() and not lock.try_acquire():
            return f"{lock.holder() or 'somebody'} holds {run_directory.node_lock}: stop it first"
    except OSError as exc:
        return f"cannot see whether an agent runs under {run_directory.path}: {exc.strerror}"
    return ""


def _rules(run_directory: RunDirectory, *, kube_proxy: bool, force: bool) -> Iterator[Outcome]:
    """What is in the kernel."""
    if Capability.NET_ADMIN not in permitted_capabilities():
        yield Outcome(Fate.FAILED, "rules of nftables", "that needs CAP_NET_ADMIN")
        return
    try:
        kernel = Kernel()
    except OSError as exc:
        if exc.errno != errno.EPROTONOSUPPORT:  # a kernel without nf_tables has no rules of ours
            yield Outcome(Fate.FAILED, "nftables", exc.strerror or str(exc))
        return
    with kernel:
        yield from remove_own(kernel)
        yield from _interception(kernel, run_directory, force=force)
        if kube_proxy:
            found = detect(kernel)
            alive = [line for each in found if each.alive for line in each.evidence[-1:]]
            if alive and not force:
                yield Outcome(Fate.FAILED, "rules of kube-proxy", f"it is alive ({alive[0]}): stop it first")
            else:
                yield from remove_kube_proxy(kernel, found)


def _interception(kernel: Kernel, run_directory: RunDirectory, *, force: bool) -> Iterator[Outcome]:
    """Addresses of the DNS role that stand on the node, and the tables that tell which they are."""
    alive = [paths.name for each in _workers(run_directory) for paths in each.instances()]
    for found in intercepted(kernel):
        if alive and not force:
            what = f"interception of {', '.join(found.addresses)}"
            yield Outcome(Fate.FAILED, what, f"the DNS worker {alive[0]} runs: stop it first")
            continue
        yield from map(_end_lease, found.addresses)
        yield from remove_intercepted(kernel, found)


def _end_lease(address: str) -> Outcome:
    what = f"address {address} of lo"
    try:
        with AddressLeases() as leases:
            if address in leases.foreign():
                return Outcome(Fate.KEPT, what, "it is there for good, and not for svcproxy")
            return Outcome(Fate.REMOVED, what if leases.end(address) else f"{what}, which had expired")
    except (OSError, DecodeError) as exc:
        return Outcome(Fate.FAILED, what, str(exc))


def _settings(record: Path) -> Iterator[Outcome]:
    """The kernel parameters that svcproxy has set."""
    try:
        found = sysctls.restore(record)
    except StateError as exc:
        yield Outcome(Fate.FAILED, "settings of kernel parameters", str(exc))
        return
    for each in found:
        what = f"setting of net.netfilter.{each.name}"
        if each.error:
            yield Outcome(Fate.FAILED, what, each.error)
        elif each.after != each.wanted:
            yield Outcome(Fate.KEPT, what, f"somebody else has made {each.after} of it since")
        else:
            yield Outcome(Fate.REMOVED, what, f"it is {each.after} again")
