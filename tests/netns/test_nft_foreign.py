# SPDX-License-Identifier: Apache-2.0
"""Recognising other implementations of Services by what they leave, and whether a kube-proxy is alive."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svcproxy.dataplane.nftables.foreign import HEALTH_PORT, detect
from svcproxy.dataplane.nftables.traces import shows_kube_proxy
from svcproxy.dataplane.nftables.transaction import Kernel, Watch
from svcproxy.model.meta import Family
from tests.netns import kube_proxy_rules as rules
from tests.netns.kube_proxy_rules import LEGACY, NFT, PROGRAMS, Program, found, take_over
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

NFT_SERVICES = "table ip nat: chains KUBE-EXT-TCOU7JCQXEZGVUNU, KUBE-NODEPORTS, KUBE-PROXY-CANARY and 5 more"


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def test_nobody_is_found_where_nobody_is(node: Namespace) -> None:
    assert found(node) == {}
    assert node.run("nft", "list", "ruleset") == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_kubelet_and_strangers_are_not_reported(node: Namespace, program: Program) -> None:
    program.load(node, Family.IPV4, rules.KUBELET)
    program.load(node, Family.IPV4, rules.STRANGERS)
    program.load(node, Family.IPV4, "*nat\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\nCOMMIT\n")
    program.load(node, Family.IPV4, "*filter\n:KUBE-ROUTER-INPUT - [0:0]\n:KUBE-POD-FW-AAAA - [0:0]\nCOMMIT\n")
    assert found(node) == {}


def test_a_kube_proxy_is_found_in_every_mode(node: Namespace) -> None:
    node.run("nft", "-f", "-", text=rules.nft(Family.IPV6))
    NFT.load(node, Family.IPV4, rules.iptables(Family.IPV4))
    LEGACY.load(node, Family.IPV6, rules.iptables(Family.IPV6))
    evidence = found(node)
    assert list(evidence) == ["kube-proxy (nftables)", "kube-proxy (iptables-nft)", "kube-proxy (iptables-legacy)"]
    assert evidence["kube-proxy (nftables)"] == ("table ip6 kube-proxy",)
    assert [line.partition(":")[0] for line in evidence["kube-proxy (iptables-nft)"]] == [
        "table ip filter",
        "table ip mangle",
        "table ip nat",
    ]
    assert evidence["kube-proxy (iptables-nft)"][2] == NFT_SERVICES
    assert evidence["kube-proxy (iptables-legacy)"][1] == "iptables-legacy: table ip6 mangle: chains KUBE-PROXY-CANARY"


@pytest.mark.parametrize(
    ("interface", "implementation"),
    [
        pytest.param("kube-ipvs0", "kube-proxy (ipvs)", id="kube-proxy in ipvs mode"),
        pytest.param("kube-dummy-if", "kube-router", id="kube-router"),
        pytest.param("cilium_host", "Cilium", id="Cilium"),
        pytest.param("bpfin.cali", "Calico eBPF", id="Calico eBPF"),
    ],
)
def test_others_are_told_by_their_interfaces(node: Namespace, interface: str, implementation: str) -> None:
    node.ip("link", "add", interface, "type", "bridge")
    assert found(node) == {implementation: (f"interface {interface}",)}


def test_a_process_of_the_name_is_a_live_kube_proxy(node: Namespace, tmp_path: Path) -> None:
    """In this network namespace only: the one where the test runs has none."""
    with rules.live(node, tmp_path) as pid:
        with Kernel() as kernel:
            (foreign,) = detect(kernel)
        with Namespace() as other:
            assert found(other) == {}
    assert (foreign.implementation, foreign.alive, foreign.removable) == ("kube-proxy", True, False)
    assert foreign.evidence == (f"process {pid} is called kube-proxy",)


KUBE_PROXYS_HEALTH = b'{"lastUpdated":"2026-01-01T00:00:00Z","currentTime":"2026-01-01T00:00:01Z","nodeEligible":true}'


OWN_READINESS = b'{"ready":true,"stale":false,"waiting":false,"reasons":[]}'


@contextmanager
def answering(node: Namespace, answers: dict[str, bytes]) -> Iterator[None]:
    """An HTTP server on kube-proxy's health port: 200 with these bodies, else 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path, b"404 page not found")
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Silent."""

    with node.entered():
        server = http.server.ThreadingHTTPServer(("127.0.0.1", HEALTH_PORT), Handler)
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answers", "own_ports", "alive"),
    [
        pytest.param({"/healthz": KUBE_PROXYS_HEALTH}, (), True, id="kube-proxy"),
        pytest.param({"/healthz": KUBE_PROXYS_HEALTH}, (HEALTH_PORT,), None, id="this very process"),
        pytest.param({"/healthz": KUBE_PROXYS_HEALTH, "/readyz": OWN_READINESS}, (), None, id="another svcproxy"),
        pytest.param({"/healthz": b"ok"}, (), None, id="something else"),
        pytest.param({}, (), None, id="something that has no health"),
    ],
)
def test_who_answers_on_the_health_port(
    node: Namespace, answers: dict[str, bytes], own_ports: tuple[int, ...], alive: bool | None
) -> None:
    node.run("nft", "add table ip kube-proxy")
    with answering(node, answers), node.entered(), Kernel() as kernel:
        (foreign,) = detect(kernel, own_ports)
    assert foreign.alive is alive
    heard = f"127.0.0.1:{HEALTH_PORT} answers as kube-proxy does"
    assert foreign.evidence == (("table ip kube-proxy", heard) if alive else ("table ip kube-proxy",))


def test_a_kube_proxy_that_does_not_answer_is_dead(node: Namespace) -> None:
    node.run("nft", "add table ip kube-proxy")
    with node.entered(), Kernel() as kernel:
        (foreign,) = detect(kernel)
    assert (foreign.alive, foreign.removable) == (False, True)


def test_a_server_that_says_nothing_is_nobody_known(node: Namespace) -> None:
    node.run("nft", "add table ip kube-proxy")
    with node.entered(), socket.create_server(("127.0.0.1", HEALTH_PORT)), Kernel() as kernel:
        (foreign,) = detect(kernel)
    assert foreign.alive is None


def test_changes_that_a_kube_proxy_makes_are_told_from_others(node: Namespace) -> None:
    with node.entered(), Kernel() as kernel, Watch(kernel.port) as watch:
        watch.listen()

        def heard() -> bool:
            changes = list(watch.changes())
            return any(shows_kube_proxy(each.content) for each in changes)

        NFT.load(node, Family.IPV4, rules.KUBELET + rules.STRANGERS)
        assert not heard()
        NFT.load(node, Family.IPV4, rules.iptables(Family.IPV4))
        assert heard()
        node.run("nft", "-f", "-", text=rules.nft(Family.IPV6))
        assert heard()
        take_over(node)
        assert not heard()
