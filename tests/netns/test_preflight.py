# SPDX-License-Identifier: Apache-2.0
"""`svcproxy preflight` on nodes of a real kernel: what it sees there, and that it leaves them as they were."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from svcproxy.cli import main
from tests.netns import kube_proxy_rules as rules
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

Checks = dict[str, dict[str, Any]]


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as namespace:
        namespace.ip("addr", "add", "10.96.0.10/32", "dev", "lo")
        namespace.forward()
        yield namespace


class Operator:
    """Runs the verb on a node."""

    def __init__(self, node: Namespace, directory: Path) -> None:
        self._node = node
        self._directory = directory
        self._config = directory / "config.yaml"
        (directory / "resolv.conf").write_text("nameserver 192.0.2.1\n")
        self.configure(dns={"listen": ["10.96.0.10:53"]})

    def configure(self, **sections: Any) -> None:
        """Another configuration; without a cluster, nftables all the same."""
        dns = {"resolv_conf": str(self._directory / "resolv.conf"), **sections.pop("dns", {})}
        tree = {
            "kube": {"manifests": str(self._directory)},
            "run_dir": str(self._directory / "run"),
            "state_dir": str(self._directory / "state"),
            "dns": dns,
            "dataplane": {"mode": "nftables", **sections.pop("dataplane", {})},
            **sections,
        }
        self._config.write_text(json.dumps(tree))

    def preflight(self, *flags: str, prefix: Sequence[str] = ()) -> tuple[int, Checks]:
        command = [*prefix, sys.executable, "-m", "svcproxy", "preflight", "-o", "json", "--config", str(self._config)]
        with self._node.entered():
            finished = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=60)
        assert finished.stderr == ""
        return finished.returncode, {each["name"]: each for each in json.loads(finished.stdout)["checks"]}


@pytest.fixture
def operator(node: Namespace, tmp_path: Path) -> Operator:
    return Operator(node, tmp_path)


def verdicts(checks: Checks) -> dict[str, str]:
    """Those that are not ok; what the machine has of memory and parameters is not the test's business."""
    ignored = {"receive-buffer", "conntrack", "kernel", "user-namespace"}
    return {name: each["verdict"] for name, each in checks.items() if each["verdict"] != "ok" and name not in ignored}


def test_a_good_node_is_good_and_stays_as_it_was(node: Namespace, operator: Operator, tmp_path: Path) -> None:
    def state() -> list[str]:
        files = sorted(str(each) for each in tmp_path.rglob("*"))
        parameters = node.run("sysctl", "-a", "-r", r"^net[.](ipv4|ipv6)[.](conf|ip_)")
        return [node.run("nft", "list", "ruleset"), node.run("ip", "addr"), parameters, *files]

    before = state()
    code, checks = operator.preflight()
    assert (code, verdicts(checks)) == (0, {})
    assert checks["nftables"]["found"].endswith("features, all there")
    assert state() == before


def test_without_privileges_both_roles_fail(operator: Operator) -> None:
    code, checks = operator.preflight(prefix=["setpriv", "--bounding-set", "-all"])
    assert code == 1
    found = verdicts(checks)
    assert {found["capabilities-agent"], found["capabilities-dns"], found["nftables"]} == {"failure"}
    assert "CAP_NET_ADMIN" in checks["capabilities-agent"]["found"]
    assert "to listen on 10.96.0.10:53" in checks["capabilities-dns"]["found"]


def test_privileges_of_another_user_namespace_are_none(operator: Operator) -> None:
    code, checks = operator.preflight("--role", "agent", prefix=["unshare", "--user", "--map-root-user"])
    assert code == 1
    assert checks["user-namespace"]["verdict"] == "warning"
    assert (checks["nftables"]["verdict"], "net-admin" in checks["nftables"]["found"]) == ("failure", True)


@pytest.mark.parametrize(
    ("options", "verdict", "found"),
    [
        pytest.param("ro", "failure", "cannot be written to: it is read-only", id="read-only"),
        pytest.param("size=1m", "warning", "is writable, 1 MiB free", id="small"),
    ],
)
def test_a_file_system_that_does_not_do(
    operator: Operator, tmp_path: Path, options: str, verdict: str, found: str
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    mount = f'mount -t tmpfs -o {options},mode=755 none {state} && exec "$@"'
    _, checks = operator.preflight("--role", "agent", prefix=["unshare", "--mount", "sh", "-c", mount, "sh"])
    assert (checks["state-directory"]["verdict"], found in checks["state-directory"]["found"]) == (verdict, True)


def test_with_the_privileges_of_deploy_base_it_looks_in_the_nodes_own_namespace(
    node: Namespace, operator: Operator
) -> None:
    """A new network namespace takes CAP_SYS_ADMIN, which a container has not got."""
    before = node.run("nft", "list", "ruleset")
    keep = "-all,+net_admin,+net_bind_service"
    code, checks = operator.preflight(prefix=["setpriv", "--bounding-set", keep, "--inh-caps", keep])
    assert (code, verdicts(checks)) == (0, {})
    assert node.run("nft", "list", "ruleset") == before


def test_a_live_kube_proxy_is_warned_of(node: Namespace, operator: Operator, tmp_path: Path) -> None:
    node.run("nft", "add table ip kube-proxy")
    with rules.live(node, tmp_path) as pid:
        code, checks = operator.preflight("--role", "agent")
    assert (code, verdicts(checks)) == (0, {"other-proxies": "warning"})
    assert f"process {pid} is called kube-proxy" in checks["other-proxies"]["found"]


def test_what_a_kube_proxy_has_left_is_no_matter(node: Namespace, operator: Operator) -> None:
    node.run("nft", "add table ip kube-proxy")
    code, checks = operator.preflight("--role", "agent")
    assert (code, verdicts(checks)) == (0, {})
    assert checks["other-proxies"]["found"].startswith("rules left behind: kube-proxy")


HOLD = """
import socket, sys
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("0.0.0.0", 53))
print(flush=True)
sys.stdin.read()
"""


def test_who_holds_the_port_is_named(node: Namespace, operator: Operator) -> None:
    with node.entered():
        holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        code, checks = operator.preflight("--role", "dns")
    finally:
        holder.communicate()
    assert (code, verdicts(checks)) == (1, {"dns-ports": "failure"})
    assert checks["dns-ports"]["found"].startswith("10.96.0.10:53/udp taken by python")
    assert f"(pid {holder.pid})" in checks["dns-ports"]["found"]


def test_a_health_port_that_is_taken_is_a_warning(node: Namespace, operator: Operator) -> None:
    with node.entered(), socket.create_server(("127.0.0.1", 10256)):
        code, checks = operator.preflight("--role", "agent")
    assert (code, verdicts(checks)) == (0, {"admin-ports": "warning"})


def test_an_address_that_is_not_there(operator: Operator) -> None:
    operator.configure(dns={"listen": ["10.96.0.11:53"]})
    code, checks = operator.preflight("--role", "dns")
    assert (code, verdicts(checks)) == (1, {"dns-addresses": "failure"})


def test_a_resolver_that_is_this_server(operator: Operator) -> None:
    operator.configure(dns={"listen": ["0.0.0.0:53"], "upstreams": ["10.96.0.10"]})
    code, checks = operator.preflight("--role", "dns")
    assert (code, verdicts(checks)) == (1, {"resolvers": "failure"})


def test_node_ports_on_localhost_need_a_parameter(node: Namespace, operator: Operator) -> None:
    operator.configure(dataplane={"node_port_addresses": ["localhost"]})
    assert verdicts(operator.preflight("--role", "agent")[1]) == {"route-localnet": "warning"}
    with node.entered():
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
    assert verdicts(operator.preflight("--role", "agent")[1]) == {}


OBJECTS = """
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.1.1.0/24]},
 status: {addresses: [{type: InternalIP, address: 10.1.1.1}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
 spec: {type: NodePort, clusterIP: 10.96.0.11, ports: [{name: http, port: 80, nodePort: 30080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: http, port: 8080}],
 metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}},
 endpoints: [{addresses: [10.1.1.2]}]}
"""


def test_the_parameter_is_what_node_ports_on_localhost_need(
    node: Namespace, operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the check says, and `svcproxy migrate`."""
    operator.configure(dataplane={"node_port_addresses": ["localhost"]})
    objects = tmp_path / "objects.yaml"
    objects.write_text(OBJECTS)
    with Namespace() as pod:
        node.connect(pod, "p0", 1)
        flags = ["--config", str(tmp_path / "config.yaml"), "--manifests", str(objects), "--node-name", "n1"]
        with node.entered():
            assert main(["render", *flags]) == 0
        node.run("nft", "-f", "-", text=capsys.readouterr().out)
        with pod.entered():
            server = socket.create_server(("10.1.1.2", 8080))
        with server, node.entered(), socket.socket() as client, socket.socket() as again:
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                client.connect(("127.0.0.1", 30080))
            Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
            again.settimeout(10)
            again.connect(("127.0.0.1", 30080))


def test_a_node_that_does_not_forward(node: Namespace, operator: Operator) -> None:
    with node.entered():
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", name).write_text("0")
    assert verdicts(operator.preflight("--role", "agent")[1]) == {"forwarding": "warning"}
