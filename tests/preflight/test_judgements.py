# SPDX-License-Identifier: Apache-2.0
"""What each check says to people, for every verdict that it has."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from svcproxy.api import Foreign, Probe
from svcproxy.config import AdminConfig, Config, DataplaneConfig, DataplaneMode, DetectLocalMode, DnsConfig
from svcproxy.dataplane.nftables.messages import TableFlag
from svcproxy.dataplane.nftables.probes import Probes
from svcproxy.model import Node
from svcproxy.model.meta import Family
from svcproxy.model.node import NodeAddress, NodeMeta, NodeSpec, NodeStatus
from svcproxy.preflight import cluster, host, kernel, ports, resolvers
from svcproxy.preflight.checks import Finding, Verdict
from svcproxy.preflight.rbac import Permission
from svcproxy.preflight.sockets import Process, Socket
from svcproxy.process.prctl import Capability
from svcproxy.process.sysctls import Wanted

OK, WARNING, FAILURE = Verdict
BESIDE = Config(dataplane=DataplaneConfig(beside_others=True))
BOTH = frozenset(Family)
NONE: frozenset[Family] = frozenset()


def probes(families: frozenset[Family], *lacking: str) -> Probes:
    there = Probe("netlink", True, "the socket", "")
    return Probes(
        (there, *(Probe(each, False, "EPERM", f"without {each}") for each in lacking)), TableFlag.NONE, families
    )


def node(*addresses: str, pod_cidrs: tuple[str, ...] = ()) -> Node:
    listed = tuple(NodeAddress("InternalIP", each) for each in addresses)
    return Node(NodeMeta(name="n1"), NodeSpec(pod_cidrs=pod_cidrs or None), NodeStatus(addresses=listed or None))


KUBE_PROXY = Foreign("kube-proxy", ("process 7 is called kube-proxy",), True, True)
CILIUM = Foreign("Cilium", ("interface cilium_host",), None, False)
LEFT = Foreign("kube-proxy", ("table ip kube-proxy",), False, True)
DNSMASQ = {9: Process(7, "dnsmasq", "/usr/sbin/dnsmasq -k")}
SVCPROXY = {9: Process(8, "svcproxy", "/usr/bin/python3 /usr/bin/svcproxy dns")}
HELD = {"10.0.0.1:53/udp": [Socket("udp", "10.0.0.1", 53, 9, 101)]}
SIZES = [Wanted("nf_conntrack_max", 100, at_least=True), Wanted("nf_conntrack_tcp_be_liberal", 1)]
NOW = 1_800_000_000.0
DATE = format_datetime(datetime.fromtimestamp(NOW, UTC), usegmt=True)
WATCH, CREATE = Permission("watch", "services", ""), Permission("create", "events", "", True, "no Events")


def own(*addresses: str) -> Callable[[str], bool]:
    return lambda each: each in addresses


@pytest.mark.parametrize(
    ("finding", "verdict", "found", "advice"),
    [
        pytest.param(kernel.judge_version("6.1.0-13"), OK, "Linux 6.1.0-13", "", id="kernel"),
        pytest.param(kernel.judge_version("5.4.0"), WARNING, "Linux 5.4.0", "older than 5.10", id="old kernel"),
        pytest.param(kernel.judge_version("odd"), WARNING, "Linux odd", "cannot be read", id="odd kernel"),
        pytest.param(
            kernel.judge_probes(probes(BOTH), DataplaneMode.AUTO), OK, "1 features, all there", "", id="nftables"
        ),
        pytest.param(
            kernel.judge_probes(probes(BOTH, "owner"), DataplaneMode.AUTO),
            WARNING,
            "lacking: owner (EPERM)",
            "without owner",
            id="nftables without a feature",
        ),
        pytest.param(
            kernel.judge_probes(probes(NONE, "nat-ipv4"), DataplaneMode.NFTABLES),
            FAILURE,
            "lacking: nat-ipv4 (EPERM)",
            "load the modules nf_tables",
            id="no nftables",
        ),
        pytest.param(
            kernel.judge_probes(probes(NONE, "nat-ipv4"), DataplaneMode.AUTO),
            WARNING,
            "lacking: nat-ipv4 (EPERM)",
            "balanced in user space",
            id="no nftables, auto",
        ),
        pytest.param(
            kernel.judge_probes(probes(NONE, "net-admin"), DataplaneMode.AUTO),
            FAILURE,
            "lacking: net-admin (EPERM)",
            "CAP_NET_ADMIN",
            id="no privilege",
        ),
        pytest.param(
            kernel.judge_capabilities({12}, [Capability.NET_ADMIN]), OK, "CAP_NET_ADMIN", "", id="capabilities"
        ),
        pytest.param(
            kernel.judge_capabilities({10}, [Capability.NET_ADMIN]),
            FAILURE,
            "CAP_NET_ADMIN is missing",
            "securityContext",
            id="capability missing",
        ),
        pytest.param(kernel.judge_uid_map("  0  0 4294967295\n"), OK, "none", "", id="no user namespace"),
        pytest.param(kernel.judge_uid_map("0 1000 1\n"), WARNING, "a user namespace", "hostUsers", id="user namespace"),
        pytest.param(kernel.judge_others([], Config()), OK, "nobody else", "", id="alone"),
        pytest.param(
            kernel.judge_others([KUBE_PROXY], Config()),
            WARNING,
            "at work: kube-proxy (process 7 is called kube-proxy)",
            "delete daemonset kube-proxy",
            id="beside a kube-proxy",
        ),
        pytest.param(
            kernel.judge_others([CILIUM], BESIDE), WARNING, "Cilium (interface cilium_host)", "not defined", id="beside"
        ),
        pytest.param(kernel.judge_others([LEFT], Config()), OK, "rules left behind: kube-proxy", "", id="leftovers"),
        pytest.param(host.judge_forwarding(1, 1), OK, "net.ipv4.ip_forward = 1", "", id="forwarding"),
        pytest.param(host.judge_forwarding(1, 0), OK, "only where pods have addresses", "", id="forwarding IPv4"),
        pytest.param(host.judge_forwarding(0, None), WARNING, "ip_forward = 0", "sysctl -w", id="no forwarding"),
        pytest.param(
            host.judge_route_localnet(("all",), 0), OK, "has no address that needs it", "", id="localnet not needed"
        ),
        pytest.param(host.judge_route_localnet(("localhost",), 1), OK, "route_localnet = 1", "", id="localnet"),
        pytest.param(
            host.judge_route_localnet(("127.0.0.0/8",), 0), WARNING, "route_localnet = 0", "sysctl -w", id="no localnet"
        ),
        pytest.param(
            host.judge_conntrack(SIZES, {"nf_conntrack_max": 200, "nf_conntrack_tcp_be_liberal": 1}, {}),
            OK,
            "nf_conntrack_max = 200",
            "",
            id="conntrack",
        ),
        pytest.param(
            host.judge_conntrack(
                SIZES,
                {"nf_conntrack_max": 50, "nf_conntrack_tcp_be_liberal": 0},
                {"nf_conntrack_max": False, "nf_conntrack_tcp_be_liberal": True},
            ),
            WARNING,
            "cannot be set from here: nf_conntrack_max is 50, wanted is at least 100",
            "sysctl -w net.netfilter.nf_conntrack_max=100",
            id="conntrack too small",
        ),
        pytest.param(
            host.judge_conntrack(SIZES, dict.fromkeys(["nf_conntrack_max", "nf_conntrack_tcp_be_liberal"]), {}),
            WARNING,
            "not there",
            "load the module nf_conntrack",
            id="no conntrack",
        ),
        pytest.param(host.judge_receive_buffer(4 << 20), OK, "rmem_max = 4194304", "", id="buffer"),
        pytest.param(host.judge_receive_buffer(212992), WARNING, "rmem_max = 212992", "=4194304", id="small buffer"),
        pytest.param(host.judge_receive_buffer(None), OK, "cannot be read here", "", id="buffer unknown"),
        pytest.param(
            ports.judge_addresses(["0.0.0.0", "127.0.0.7", "10.0.0.1", "10.96.0.10"], ["10.96.0.10"], ["10.0.0.1"]),
            OK,
            "10.0.0.1",
            "",
            id="addresses",
        ),
        pytest.param(
            ports.judge_addresses(["10.96.0.10"], [], ["10.0.0.1"]),
            FAILURE,
            "not on this node: 10.96.0.10",
            "dns.listen",
            id="address missing",
        ),
        pytest.param(
            ports.judge_ports(["10.0.0.1:53/udp"], {}, {}, needed=True), OK, "free: 10.0.0.1:53/udp", "", id="ports"
        ),
        pytest.param(
            ports.judge_ports(["10.0.0.1:53/udp"], HELD, DNSMASQ, needed=True),
            FAILURE,
            "10.0.0.1:53/udp taken by dnsmasq (pid 7)",
            "change dns.listen",
            id="port taken",
        ),
        pytest.param(
            ports.judge_ports(["10.0.0.1:53/udp"], HELD, DNSMASQ, needed=False),
            WARNING,
            "taken by dnsmasq",
            "tries again",
            id="health port taken",
        ),
        pytest.param(
            ports.judge_ports(["10.0.0.1:53/udp"], HELD, {}, needed=True),
            FAILURE,
            "a process of uid 101 that cannot be seen from here",
            "stop it",
            id="port taken by somebody unseen",
        ),
        pytest.param(
            ports.judge_ports(["10.0.0.1:53/udp"], HELD, SVCPROXY, needed=True),
            OK,
            "held by svcproxy itself, which hands them over: svcproxy (pid 8)",
            "",
            id="port taken by ourselves",
        ),
        pytest.param(ports.judge_dns_capabilities([], [], []), OK, "none needed", "", id="no privileged port"),
        pytest.param(
            ports.judge_dns_capabilities([12], [Capability.NET_BIND_SERVICE], ["10.0.0.1:53"]),
            FAILURE,
            "CAP_NET_BIND_SERVICE is missing, to listen on 10.0.0.1:53",
            "container dns",
            id="privileged port",
        ),
        pytest.param(
            ports.judge_dns_capabilities([10], [Capability.NET_BIND_SERVICE, Capability.NET_ADMIN], ["10.0.0.1:53"]),
            FAILURE,
            "CAP_NET_ADMIN is missing, to put the addresses of dns.intercept on the node",
            "container dns",
            id="interception",
        ),
        pytest.param(
            resolvers.judge_resolvers(["192.0.2.1:53"], [], "f", own()), OK, "f: 192.0.2.1:53", "", id="resolvers"
        ),
        pytest.param(
            resolvers.judge_resolvers(["127.0.0.53:53"], [], "f", own()),
            WARNING,
            "127.0.0.53:53",
            "/run/systemd/resolve/resolv.conf",
            id="a stub resolver",
        ),
        pytest.param(
            resolvers.judge_resolvers(["10.96.0.10:53", "192.0.2.1:53"], [], "f", own("10.96.0.10:53")),
            WARNING,
            "10.96.0.10:53, 192.0.2.1:53",
            "10.96.0.10:53 is svcproxy itself",
            id="one is ourselves",
        ),
        pytest.param(
            resolvers.judge_resolvers(["10.96.0.10:53"], [], "f", own("10.96.0.10:53")),
            FAILURE,
            "10.96.0.10:53",
            "leads back to svcproxy",
            id="all are ourselves",
        ),
        pytest.param(
            resolvers.judge_resolvers(["192.0.2.1:53"], ["line 3: no address"], "f", own()),
            WARNING,
            "192.0.2.1:53",
            "line 3: no address",
            id="a line that is none",
        ),
        pytest.param(
            cluster.judge_server("https://a", "me", {}, through_service=False),
            OK,
            "https://a answers to me",
            "",
            id="API",
        ),
        pytest.param(
            cluster.judge_server("https://a", "", {}, through_service=True),
            WARNING,
            "https://a answers",
            "kube.api_servers",
            id="API through a Service",
        ),
        pytest.param(
            cluster.judge_server("https://a", "me", {"https://b": "https://b: timed out"}, through_service=False),
            WARNING,
            "https://a answers to me; not so https://b: timed out",
            "put it right",
            id="one API server of two",
        ),
        pytest.param(
            cluster.judge_server("https://a", "system:anonymous", {}, through_service=False),
            FAILURE,
            "the credentials are nobody's",
            "give a kubeconfig",
            id="anonymous",
        ),
        pytest.param(cluster.judge_permissions([]), OK, "every rule", "", id="rbac"),
        pytest.param(
            cluster.judge_permissions([WATCH, CREATE]),
            FAILURE,
            "not allowed: watch services, create events",
            "ClusterRole svcproxy",
            id="rule missing",
        ),
        pytest.param(
            cluster.judge_permissions([CREATE]),
            WARNING,
            "not allowed: create events",
            "without, no Events",
            id="optional rule missing",
        ),
        pytest.param(cluster.judge_clock(DATE, NOW, NOW + 0.1), OK, "together", "", id="clock"),
        pytest.param(cluster.judge_clock(DATE, NOW - 3, NOW + 3), OK, "together", "", id="clock of a slow server"),
        pytest.param(
            cluster.judge_clock(DATE, NOW + 21, NOW + 21),
            WARNING,
            "20 s ahead of the API server",
            "chrony",
            id="clock ahead",
        ),
        pytest.param(
            cluster.judge_clock(DATE, NOW - 600, NOW - 600),
            FAILURE,
            "600 s behind the API server",
            "certificates and tokens",
            id="clock far behind",
        ),
        pytest.param(cluster.judge_clock("", NOW, NOW), WARNING, "Date is ''", "compare", id="no date"),
        pytest.param(
            cluster.judge_node("n1", node("10.0.0.1", "fd00::1"), {"10.0.0.1"}),
            OK,
            "n1: 10.0.0.1, fd00::1",
            "",
            id="node",
        ),
        pytest.param(cluster.judge_node("n1", None, ()), FAILURE, "there is no Node n1", "node_name", id="no node"),
        pytest.param(
            cluster.judge_node("n1", node("10.0.0.2"), {"10.0.0.1"}),
            FAILURE,
            "none of which is an address here",
            "hostNetwork",
            id="another node",
        ),
        pytest.param(cluster.judge_node("n1", node(), ()), WARNING, "no addresses yet", "kubelet", id="new node"),
        pytest.param(
            cluster.judge_pod_cidrs(Config(), node(pod_cidrs=("10.1.0.0/24",))), OK, "10.1.0.0/24", "", id="podCIDRs"
        ),
        pytest.param(
            cluster.judge_pod_cidrs(Config(), node()),
            WARNING,
            "no podCIDRs",
            "dataplane.cluster_cidrs",
            id="no podCIDRs",
        ),
        pytest.param(
            cluster.judge_pod_cidrs(Config(dataplane=DataplaneConfig(cluster_cidrs=("10.0.0.0/8",))), node()),
            OK,
            f"pods are known by {DetectLocalMode.CLUSTER_CIDR}",
            "",
            id="podCIDRs not needed",
        ),
        pytest.param(
            cluster.judge_families(Config(), ["10.0.0.1", "fd00::1"]), OK, "IPv4 and IPv6", "", id="dual stack"
        ),
        pytest.param(
            cluster.judge_families(Config(), ["fd00::1"]),
            WARNING,
            "the node has IPv6 alone, but these are IPv4: admin.health_listen, dns.listen",
            "[::]:10256",
            id="IPv6 only",
        ),
        pytest.param(
            cluster.judge_families(
                Config(admin=AdminConfig(health_listen="[::]:10256"), dns=DnsConfig(listen=("[fd00::a]:53",))),
                ["fd00::1"],
            ),
            OK,
            "IPv6",
            "",
            id="IPv6 only, and ready for it",
        ),
        pytest.param(
            cluster.judge_endpoints(["https://10.0.0.1:6443"], "https://lb:6443"),
            OK,
            "https://10.0.0.1:6443 besides https://lb:6443",
            "",
            id="API servers",
        ),
        pytest.param(
            cluster.judge_endpoints([], "https://lb:6443"),
            WARNING,
            "no ready endpoints",
            "--advertise-address",
            id="none",
        ),
    ],
)
def test_what_is_said(finding: Finding, verdict: Verdict, found: str, advice: str) -> None:
    assert (finding.verdict, found in finding.found, advice in finding.advice) == (verdict, True, True), finding
    assert bool(finding.advice) is (verdict is not OK), "who is warned is told what to do"


def test_a_directory_that_can_be_used(tmp_path: Path) -> None:
    assert host.judge_directory(tmp_path, 1, "run_dir").verdict is OK
    below = host.judge_directory(tmp_path / "a" / "b", 1, "run_dir")
    assert below.verdict is OK
    assert f"{tmp_path / 'a' / 'b'} is not there yet; {tmp_path} is writable" in below.found
    assert not (tmp_path / "a").exists()


def test_a_directory_without_room(tmp_path: Path) -> None:
    found = host.judge_directory(tmp_path, 1 << 60, "state_dir")
    assert (found.verdict, found.advice.startswith("make room")) == (WARNING, True)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = host.judge_directory(tmp_path / "file" / "x", 1, "run_dir")
    assert (found.verdict, "is no directory" in found.found) == (FAILURE, True)


def test_a_directory_that_is_open_to_everyone(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert host.judge_directory(tmp_path, 1, "run_dir").advice == f"chmod o-w {tmp_path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    assert "belongs to uid 12345" in host.judge_directory(tmp_path, 1, "run_dir").found


@pytest.mark.parametrize(
    ("text", "verdict", "found"),
    [
        pytest.param("nameserver 192.0.2.1\n", OK, "192.0.2.1:53", id="good"),
        pytest.param("search x\n", FAILURE, "lists no nameserver", id="empty"),
        pytest.param("nameserver 127.0.0.1\n", FAILURE, "127.0.0.1:53", id="ourselves"),
    ],
)
def test_resolv_conf(tmp_path: Path, text: str, verdict: Verdict, found: str) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    said = resolvers.resolv_conf(Config(dns=DnsConfig(resolv_conf=str(path), listen=("127.0.0.1:53",))))
    assert (said.verdict, found in said.found) == (verdict, True), said


def test_resolv_conf_that_is_not_there() -> None:
    said = resolvers.resolv_conf(Config(dns=DnsConfig(resolv_conf="/nothing/here")))
    assert (said.verdict, said.found) == (FAILURE, "/nothing/here cannot be read: No such file or directory")
    assert resolvers.resolv_conf(Config(dns=DnsConfig(resolv_conf=None))).verdict is WARNING
    assert resolvers.resolv_conf(Config(dns=DnsConfig(resolv_conf=None, upstreams=("192.0.2.1:53",)))).verdict is OK
