# SPDX-License-Identifier: Apache-2.0
"""Addresses that svcproxy listens on: on the node, free, and allowed to be bound. A shell; changes nothing."""

import socket
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address

from svcproxy.config import Config
from svcproxy.preflight import sockets
from svcproxy.preflight.checks import Check, Finding, Role, failure, ok, warning
from svcproxy.preflight.host import parameter
from svcproxy.preflight.sockets import Process, Socket
from svcproxy.process.addresses import DATAGRAM_OCTETS_MAX, AddressTable
from svcproxy.process.prctl import Capability, permitted_capabilities
from svcproxy.process.rtnetlink import get_addresses, parse
from svcproxy.syntax import split_address

AGENT, DNS = frozenset({Role.AGENT}), frozenset({Role.DNS})
EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104  # looked for, not bound


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


def dns_addresses(config: Config) -> Finding:
    """Whether the DNS role finds its addresses on the node."""
    wanted = [split_address(each)[0] for each in config.dns.sockets]
    return judge_addresses(wanted, config.dns.intercept, own_addresses())


def judge_addresses(wanted: Sequence[str], brought: Collection[str], own: Collection[str]) -> Finding:
    """`brought`: addresses that come with the role; `own`: those that are there."""
    missing = [
        each
        for each in dict.fromkeys(wanted)
        if each not in EVERYWHERE and each not in brought and each not in own and not ip_address(each).is_loopback
    ]
    if missing:
        advice = "put the address on an interface of the node, or take it from dns.listen"
        return failure(f"not on this node: {', '.join(missing)}", advice)
    return ok(", ".join(dict.fromkeys(wanted)) or "none")


def dns_ports(config: Config) -> Finding:
    """Whether the ports of DNS are free."""
    wanted = [(listen, protocol) for listen in config.dns.sockets for protocol in ("udp", "tcp")]
    return _ports(wanted, needed=True)


def dns_metrics_port(config: Config) -> Finding:
    """Whether the ports of the DNS workers' metrics are free: each worker has the next one."""
    if config.dns.metrics_listen is None:
        return ok("none is listened on")
    addresses = [config.dns.metrics_address(number) for number in range(config.dns.workers)]
    return _ports([(each, "tcp") for each in addresses if each is not None and split_address(each)[1]], needed=False)


def admin_ports(config: Config) -> Finding:
    """Whether the ports of health and metrics are free."""
    admin = config.admin
    wanted = [(each, "tcp") for each in (admin.health_listen, admin.metrics_listen) if each is not None]
    return _ports(wanted, needed=False)


def _ports(wanted: Sequence[tuple[str, str]], *, needed: bool) -> Finding:
    there = sockets.listening()
    taken: dict[str, list[Socket]] = {}
    for listen, protocol in wanted:
        address, port = split_address(listen)
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
    first = parameter("net/ipv4/ip_unprivileged_port_start")
    low = [each for each in config.dns.sockets if 0 < split_address(each)[1] < (1024 if first is None else first)]
    needed = [Capability.NET_BIND_SERVICE] if low else []
    if config.dns.intercept:
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


CHECKS = (
    Check("admin-ports", admin_ports, AGENT),
    Check("capabilities-dns", dns_capabilities, DNS),
    Check("dns-addresses", dns_addresses, DNS),
    Check("dns-ports", dns_ports, DNS),
    Check("dns-metrics-port", dns_metrics_port, DNS),
)
