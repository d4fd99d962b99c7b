# SPDX-License-Identifier: Apache-2.0
"""What a node has besides a kernel: directories and kernel parameters. A shell; changes nothing."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from svcproxy.config import Config
from svcproxy.preflight.checks import Check, Finding, Role, failure, ok, warning
from svcproxy.process import sysctls
from svcproxy_dns.listeners import UDP_RECEIVE_OCTETS

AGENT, DNS = frozenset({Role.AGENT}), frozenset({Role.DNS})
STATE_OCTETS = 256 << 20
"""Free space below which a warning is given: a snapshot of a large cluster is some tens of megabytes, kept twice."""
RUN_OCTETS = 1 << 20
SYS = Path("/proc/sys")
_EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104  # looked for, not bound


# --- directories


def run_directory(config: Config) -> Finding:
    """Where the processes of the node find each other."""
    return judge_directory(Path(config.run_dir), RUN_OCTETS, "run_dir")


def state_directory(config: Config) -> Finding:
    """What survives a restart."""
    return judge_directory(Path(config.state_dir), STATE_OCTETS, "state_dir")


def judge_directory(path: Path, octets: int, key: str) -> Finding:
    """Whether a directory can be used, or made, and has room."""
    at = path
    while not at.exists() and at != at.parent:
        at = at.parent
    missing = "" if at == path else f" is not there yet; {at}"
    mount = f"mount a writable directory of the node at {path} (deploy/base does), or change {key}"
    if not at.is_dir():
        return failure(f"{path}: {at} is no directory", mount)
    if not os.access(at, os.W_OK | os.X_OK):
        read_only = bool(os.statvfs(at).f_flag & os.ST_RDONLY)
        return failure(f"{path}{missing} cannot be written to{': it is read-only' if read_only else ''}", mount)
    status = at.stat()
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return failure(f"{at} is writable for everyone", f"chmod o-w {at}")
    if not missing and status.st_uid not in (0, os.geteuid()):
        return failure(f"{path} belongs to uid {status.st_uid}", f"give it to root, or to uid {os.geteuid()}")
    vfs = os.statvfs(at)
    free = vfs.f_bavail * vfs.f_frsize
    text = f"{path}{missing} is writable, {_mebibytes(free)} free"
    if free < octets:
        return warning(text, f"make room: {_mebibytes(octets)} should be free")
    return ok(text)


def _mebibytes(octets: int) -> str:
    return f"{octets >> 20} MiB"


# --- kernel parameters


def parameter(name: str) -> int | None:
    """A parameter as a number; None where there is none. In the network namespace of the calling thread."""
    try:
        return int((SYS / name).read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def forwarding(_: Config) -> Finding:
    """Whether the node passes packets on."""
    return judge_forwarding(parameter("net/ipv4/ip_forward"), parameter("net/ipv6/conf/all/forwarding"))


def judge_forwarding(ipv4: int | None, ipv6: int | None) -> Finding:
    """What the parameters mean: connections of pods are routed after their destination is rewritten."""
    off = [
        name
        for name, value in (("net.ipv4.ip_forward", ipv4), ("net.ipv6.conf.all.forwarding", ipv6))
        if value is not None and value == 0
    ]
    text = f"net.ipv4.ip_forward = {ipv4}, net.ipv6.conf.all.forwarding = {ipv6}"
    if "net.ipv4.ip_forward" in off and len(off) == (2 if ipv6 is not None else 1):
        return warning(
            text, "pods and clients outside reach no Service on another node: sysctl -w net.ipv4.ip_forward=1"
        )
    if off:
        return ok(f"{text}: {off[0]} is needed only where pods have addresses of that family")
    return ok(text)


def route_localnet(config: Config) -> Finding:
    """Whether NodePorts on 127.0.0.1 can work."""
    return judge_route_localnet(config.dataplane.node_port_addresses, parameter("net/ipv4/conf/all/route_localnet"))


def judge_route_localnet(addresses: Sequence[str], value: int | None) -> Finding:
    """`value`: of net.ipv4.conf.all.route_localnet."""
    text = f"net.ipv4.conf.all.route_localnet = {value}"
    if not any(each == "localhost" or each.startswith("127.") for each in addresses):
        return ok(f"{text}; dataplane.node_port_addresses has no address that needs it")
    if value:
        return ok(text)
    advice = (
        "NodePorts on 127.0.0.1 do not work without: sysctl -w net.ipv4.conf.all.route_localnet=1, with a firewall "
        "that keeps packets to 127.0.0.0/8 from outside away, or take localhost from dataplane.node_port_addresses"
    )
    return warning(text, advice)


def conntrack(config: Config) -> Finding:
    """Whether connection tracking can be sized as configured."""
    wanted = sysctls.wanted(config.dataplane.conntrack, os.cpu_count() or 1)
    found = {each.name: parameter(f"net/netfilter/{each.name}") for each in wanted}
    writable = {each.name: os.access(sysctls.location() / each.name, os.W_OK) for each in wanted}
    return judge_conntrack(wanted, found, writable)


def judge_conntrack(
    wanted: Iterable[sysctls.Wanted], found: Mapping[str, int | None], writable: Mapping[str, bool]
) -> Finding:
    """What is not as wanted, and cannot be made so."""
    listed = list(wanted)
    if listed and all(found[each.name] is None for each in listed):
        advice = "load the module nf_conntrack, or let the agent's first rule do so: then its parameters appear"
        return warning("net.netfilter.nf_conntrack_* are not there", advice)
    short = [
        f"{each.name} is {found[each.name]}, wanted is {'at least ' if each.at_least else ''}{each.value}"
        for each in listed
        if (value := found[each.name]) is not None
        and (value < each.value if each.at_least else value != each.value)
        and not writable[each.name]
    ]
    if short:
        settings = " ".join(
            f"net.netfilter.{each.name}={each.value}" for each in listed if any(each.name in line for line in short)
        )
        return warning(f"cannot be set from here: {'; '.join(short)}", f"set them on the node: sysctl -w {settings}")
    return ok(f"nf_conntrack_max = {found.get('nf_conntrack_max', 'not asked for')}")


def receive_buffer(_: Config) -> Finding:
    """Whether bursts of queries can wait."""
    return judge_receive_buffer(parameter("net/core/rmem_max"))


def judge_receive_buffer(value: int | None) -> Finding:
    """`value`: of net.core.rmem_max, None where it cannot be read: outside of the first network namespace."""
    if value is None:
        return ok("net.core.rmem_max cannot be read here: it is the host's")
    if value < UDP_RECEIVE_OCTETS:
        advice = f"queries in a burst are lost sooner than need be: sysctl -w net.core.rmem_max={UDP_RECEIVE_OCTETS}"
        return warning(f"net.core.rmem_max = {value}", advice)
    return ok(f"net.core.rmem_max = {value}")


CHECKS = (
    Check("run-directory", run_directory),
    Check("state-directory", state_directory, AGENT),
    Check("forwarding", forwarding, AGENT),
    Check("route-localnet", route_localnet, AGENT),
    Check("conntrack", conntrack, AGENT),
    Check("receive-buffer", receive_buffer, DNS),
)
