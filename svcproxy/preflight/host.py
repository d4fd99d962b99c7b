# SPDX-License-Identifier: Apache-2.0
"""What a node has besides a kernel: directories, addresses, ports, parameters, resolvers. A shell; changes nothing."""

import os
import socket
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from svcproxy.config import Config
from svcproxy.preflight import sockets
from svcproxy.preflight.checks import Check, Finding, Role, failure, ok, warning
from svcproxy.preflight.sockets import Process, Socket
from svcproxy.process import sysctls
from svcproxy.process.addresses import DATAGRAM_OCTETS_MAX, AddressTable
from svcproxy.process.prctl import Capability, permitted_capabilities
from svcproxy.process.rtnetlink import get_addresses, parse
from svcproxy_dns.listeners import UDP_RECEIVE_OCTETS
from svcproxy_dns.upstreams import RESOLV_CONF_OCTETS_MAX, parse_resolv_conf

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


def _read(name: str) -> int | None:
    """A parameter as a number; None where there is none. In the network namespace of the calling thread."""
    try:
        return int((SYS / name).read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def forwarding(_: Config) -> Finding:
    """Whether the node passes packets on."""
    return judge_forwarding(_read("net/ipv4/ip_forward"), _read("net/ipv6/conf/all/forwarding"))


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
    return judge_route_localnet(config.dataplane.node_port_addresses, _read("net/ipv4/conf/all/route_localnet"))


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
    found = {each.name: _read(f"net/netfilter/{each.name}") for each in wanted}
    writable = {each.name: os.access(SYS / "net/netfilter" / each.name, os.W_OK) for each in wanted}
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
    return judge_receive_buffer(_read("net/core/rmem_max"))


def judge_receive_buffer(value: int | None) -> Finding:
    """`value`: of net.core.rmem_max, None where it cannot be read: outside of the first network namespace."""
    if value is None:
        return ok("net.core.rmem_max cannot be read here: it is the host's")
    if value < UDP_RECEIVE_OCTETS:
        advice = f"queries in a burst are lost sooner than need be: sysctl -w net.core.rmem_max={UDP_RECEIVE_OCTETS}"
        return warning(f"net.core.rmem_max = {value}", advice)
    return ok(f"net.core.rmem_max = {value}")


# --- addresses and ports


def own_addresses() -> frozenset[str]:
    """The addresses of this network namespace. Raises `OSError`, `DecodeError`."""
    table = AddressTable()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        table.begin()
        netlink.send(get_addresses(sequence=1))
        while not table.complete:
            for message in parse(netlink.recv(DATAGRAM_OCTETS_MAX)):
                table.take(message)
    return table.addresses


def split(listen: str) -> tuple[str, int]:
    """(address, port) of ADDRESS:PORT."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def dns_sockets(config: Config) -> tuple[str, ...]:
    """ADDRESS:PORT of everything that the DNS role binds."""
    listed: tuple[str, ...] = getattr(config.dns, "sockets", config.dns.listen)
    return listed


def intercepted(config: Config) -> tuple[str, ...]:
    """Addresses that the DNS role puts on the node by itself."""
    listed: tuple[str, ...] = getattr(config.dns, "intercept", ())
    return listed


def dns_addresses(config: Config) -> Finding:
    """Whether the DNS role finds its addresses on the node."""
    wanted = [split(each)[0] for each in dns_sockets(config)]
    return judge_addresses(wanted, intercepted(config), own_addresses())


def judge_addresses(wanted: Sequence[str], brought: Collection[str], own: Collection[str]) -> Finding:
    """`brought`: addresses that come with the role; `own`: those that are there."""
    missing = [
        each
        for each in dict.fromkeys(wanted)
        if each not in _EVERYWHERE and each not in brought and each not in own and not ip_address(each).is_loopback
    ]
    if missing:
        advice = "put the address on an interface of the node, or take it from dns.listen"
        return failure(f"not on this node: {', '.join(missing)}", advice)
    return ok(", ".join(dict.fromkeys(wanted)) or "none")


def dns_ports(config: Config) -> Finding:
    """Whether the ports of DNS are free."""
    if not config.dns.enabled:
        return ok("not needed: dns.enabled is false")
    wanted = [(listen, protocol) for listen in dns_sockets(config) for protocol in ("udp", "tcp")]
    return _ports(wanted, needed=True)


def dns_metrics_port(config: Config) -> Finding:
    """Whether the ports of the DNS workers' metrics are free: each worker has the next one."""
    listen: str | None = getattr(config.dns, "metrics_listen", None)
    if listen is None:
        return ok("none is listened on")
    host, _, port = listen.rpartition(":")
    ports = [int(port) + number for number in range(config.dns.workers)] if int(port) else []
    return _ports([(f"{host}:{each}", "tcp") for each in ports], needed=False)


def admin_ports(config: Config) -> Finding:
    """Whether the ports of health and metrics are free."""
    admin = config.admin
    wanted = [(each, "tcp") for each in (admin.health_listen, admin.metrics_listen) if each is not None]
    return _ports(wanted, needed=False)


def _ports(wanted: Sequence[tuple[str, str]], *, needed: bool) -> Finding:
    there = sockets.listening()
    taken: dict[str, list[Socket]] = {}
    for listen, protocol in wanted:
        address, port = split(listen)
        if port and (found := sockets.clashes(there, address, port, protocol)):
            taken[f"{listen}/{protocol}"] = found
    who = sockets.holders(each.inode for found in taken.values() for each in found)
    return judge_ports([f"{listen}/{protocol}" for listen, protocol in wanted], taken, who, needed=needed)


def judge_ports(
    wanted: Sequence[str], taken: Mapping[str, Sequence[Socket]], who: Mapping[int, Process], *, needed: bool
) -> Finding:
    """Whether ports are free. `needed`: whether the role does not start without; else it tries again."""
    others: dict[str, list[str]] = {}
    ours: dict[str, None] = {}
    for name, found in taken.items():
        for each in found:
            holder = who.get(each.inode)
            if holder is not None and "svcproxy" in holder.command:
                ours[str(holder)] = None
            else:
                text = (
                    str(holder) if holder is not None else f"a process of uid {each.uid} that cannot be seen from here"
                )
                others.setdefault(text, []).append(name)
    if others:
        found_text = "; ".join(f"{', '.join(dict.fromkeys(names))} taken by {who_}" for who_, names in others.items())
        if needed:
            advice = "stop it, have it listen elsewhere, or change dns.listen: the DNS role does not start"
            return failure(found_text, advice)
        advice = (
            "svcproxy tries again until it is free: a kube-proxy goes with the migration; stop others, or change admin"
        )
        return warning(found_text, advice)
    if ours:
        return ok(f"held by svcproxy itself, which hands them over: {', '.join(ours)}")
    return ok(f"free: {', '.join(wanted)}" if wanted else "none")


def dns_capabilities(config: Config) -> Finding:
    """Whether the DNS role may bind its ports, and put its addresses on the node."""
    first = _read("net/ipv4/ip_unprivileged_port_start")
    low = [each for each in dns_sockets(config) if 0 < split(each)[1] < (1024 if first is None else first)]
    needed = [Capability.NET_BIND_SERVICE] if low else []
    if intercepted(config):
        needed.append(Capability.NET_ADMIN)
    return judge_dns_capabilities(permitted_capabilities(), needed, low)


def judge_dns_capabilities(had: Collection[int], needed: Sequence[Capability], low: Sequence[str]) -> Finding:
    """`low`: listening addresses with a port that not everybody may bind."""
    missing = [f"CAP_{each.name}" for each in needed if each not in had]
    reasons = {
        "CAP_NET_BIND_SERVICE": f"to listen on {', '.join(low)}",
        "CAP_NET_ADMIN": "to put the addresses of dns.intercept on the node",
    }
    if missing:
        text = "; ".join(f"{each} is missing, {reasons[each]}" for each in missing)
        return failure(text, "add it to securityContext.capabilities of the container dns (deploy/base)")
    return ok(", ".join(f"CAP_{each.name}" for each in needed) or "none needed")


# --- resolvers


def resolv_conf(config: Config) -> Finding:
    """Whether there is somebody to forward to, who does not come back here."""
    if config.dns.upstreams:
        return judge_resolvers(config.dns.upstreams, (), "dns.upstreams", _own(config))
    path = config.dns.resolv_conf
    if path is None:
        return warning("dns.resolv_conf is null", "names outside the zones are refused; set dns.upstreams if not meant")
    advice = (
        f"mount the node's resolv.conf there (its directory, to follow changes), or set dns.upstreams; read: {path}"
    )
    try:
        with Path(path).open("rb") as file:
            octets = file.read(RESOLV_CONF_OCTETS_MAX)
    except OSError as exc:
        return failure(f"{path} cannot be read: {exc.strerror}", advice)
    upstreams, problems = parse_resolv_conf(octets.decode("utf-8", "replace"))
    if not upstreams:
        return failure(f"{path} lists no nameserver", advice)
    return judge_resolvers(upstreams, problems, path, _own(config))


def _own(config: Config) -> Callable[[str], bool]:
    """Whether ADDRESS:PORT is the DNS role itself."""
    listed = set(dns_sockets(config))
    everywhere = {split(each)[1] for each in listed if split(each)[0] in _EVERYWHERE}
    local = own_addresses() if everywhere else frozenset()

    def is_own(upstream: str) -> bool:
        host, port = split(upstream)
        return upstream in listed or (port in everywhere and (host in local or host.startswith("127.")))

    return is_own


def judge_resolvers(
    upstreams: Sequence[str], problems: Sequence[str], where: str, is_own: Callable[[str], bool]
) -> Finding:
    """Whether the upstreams that `where` lists are others than this server."""
    own = [each for each in upstreams if is_own(each)]
    others = [each for each in upstreams if each not in own]
    loopback = [
        each for each in others if split(each)[0].partition("%")[0].startswith("127.") or split(each)[0] == "::1"
    ]
    text = f"{where}: {', '.join(upstreams)}"
    if not others:
        advice = "it leads back to svcproxy itself: name resolvers outside the node in dns.upstreams"
        return failure(text, advice)
    if own:
        return warning(text, f"{', '.join(own)} is svcproxy itself and is left out")
    if loopback:
        advice = (
            f"{', '.join(loopback)} answers on this node alone, such as systemd-resolved: make sure that it does not "
            "forward to svcproxy, or name its own upstreams, which are in /run/systemd/resolve/resolv.conf"
        )
        return warning(text, advice)
    if problems:
        return warning(text, f"what cannot be used is left out: {'; '.join(problems)}")
    return ok(text)


CHECKS = (
    Check("run-directory", run_directory),
    Check("state-directory", state_directory, AGENT),
    Check("forwarding", forwarding, AGENT),
    Check("route-localnet", route_localnet, AGENT),
    Check("conntrack", conntrack, AGENT),
    Check("admin-ports", admin_ports, AGENT),
    Check("capabilities-dns", dns_capabilities, DNS),
    Check("dns-addresses", dns_addresses, DNS),
    Check("dns-ports", dns_ports, DNS),
    Check("dns-metrics-port", dns_metrics_port, DNS),
    Check("receive-buffer", receive_buffer, DNS),
    Check("resolvers", resolv_conf, DNS),
)
