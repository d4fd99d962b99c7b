# SPDX-License-Identifier: Apache-2.0
"""Interception beside a real kube-proxy: it comes before the rules for the DNS Service, whatever its endpoints are."""

import contextlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from svcproxy.model.meta import Family
from svcproxy.testing.control_plane import ControlPlane, Process
from tests.e2e.differential.worlds import API_ADDRESS, attach, bridge, kube_proxy, node
from tests.netns.interception import CLUSTER_IP, COREDNS, OURS, Site, ask, eventually, kill
from tests.netns.namespaces import Namespace
from tests.netns.routed import HOSTS, Routed

pytestmark = pytest.mark.netns

NAMESPACE = "/api/v1/namespaces/kube-system"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
RANGES = "10.96.0.0/16,fd96::/112"
PORTS = [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")]
SERVICE = {
    "metadata": {"name": "kube-dns"},
    "spec": {
        "clusterIP": CLUSTER_IP[Family.IPV4],
        "clusterIPs": list(CLUSTER_IP.values()),
        "ipFamilyPolicy": "RequireDualStack",
        "ports": PORTS,
    },
}
REFUSAL = {"nftables": "{} . udp . 53 .*goto reject-chain", "iptables": "-d {}/.*udp has no endpoints.*REJECT"}
"""What of kube-proxy's rules tells that it refuses what is for an address."""


def slice_of(family: Family) -> dict[str, Any]:
    return {
        "metadata": {"name": f"dns-{family}", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": family.label,
        "endpoints": [{"addresses": [HOSTS[family][0]], "conditions": {"ready": True}}],
        "ports": PORTS,
    }


class Beside(Site):
    """The site, with a kube-proxy on the node that follows an API server."""

    def __init__(self, directory: Path, routed: Routed, plane: ControlPlane, control: Namespace) -> None:
        super().__init__(directory, routed)
        self._plane = plane
        self._control = control

    def serve(self, *families: Family) -> None:
        """The DNS Service, with CoreDNS as endpoint in these families."""
        with self._control.entered():
            self._plane.call("POST", "/api/v1/nodes", node("n1"))
            self._plane.call("POST", f"{NAMESPACE}/services", SERVICE)
            for family in families:
                self._plane.call("POST", SLICES, slice_of(family))

    def proxy(self, mode: str) -> Process:
        process = Process("kube-proxy", kube_proxy(self.directory, self._plane, mode), self.directory / "proxy.log")
        with self.node.entered():
            process.start()
        return process

    def answers(self) -> set[str | None]:
        """What pods and processes of the node are told at the ClusterIPs."""
        places = (self.pod, self.node)
        asked = [(place, ip, tcp) for place in places for ip in CLUSTER_IP.values() for tcp in (False, True)]
        return {ask(place, ip, tcp=tcp) for place, ip, tcp in asked}

    def refused(self, mode: str) -> bool:
        """Whether kube-proxy has rules that refuse queries at both ClusterIPs."""
        programs = {"nftables": ["nft list ruleset"], "iptables": ["iptables-save", "ip6tables-save"]}
        rules = "".join(self.node.run(*program.split()) for program in programs[mode])
        return all(re.search(REFUSAL[mode].format(re.escape(ip)), rules) for ip in CLUSTER_IP.values())


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    with ExitStack() as stack:
        control, routed = stack.enter_context(Namespace()), stack.enter_context(Routed())
        bridge(control)
        attach(routed.node, control, 0)
        with control.entered():
            plane = stack.enter_context(ControlPlane(host=API_ADDRESS, flags=[f"--service-cluster-ip-range={RANGES}"]))
        yield stack.enter_context(Beside(tmp_path, routed, plane, control))


@contextlib.contextmanager
def proxied(beside: Beside, mode: str) -> Iterator[None]:
    process = beside.proxy(mode)
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_a_service_with_endpoints(beside: Beside, mode: str) -> None:
    beside.start_coredns()
    beside.serve(*Family)
    with proxied(beside, mode):
        eventually(lambda: beside.answers() == {COREDNS}, "kube-proxy leads to CoreDNS")
        supervisor = beside.start("run")
        eventually(lambda: beside.stands() and beside.answers() == {OURS}, "svcproxy answers")
        kill(supervisor)
        eventually(lambda: beside.answers() == {COREDNS}, "CoreDNS answers again")


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_a_service_without_endpoints(beside: Beside, mode: str) -> None:
    beside.serve()
    with proxied(beside, mode):
        eventually(lambda: beside.refused(mode), "kube-proxy refuses")
        assert beside.answers() == {None}
        beside.start("run")
        eventually(lambda: beside.stands() and beside.answers() == {OURS}, "svcproxy answers")
