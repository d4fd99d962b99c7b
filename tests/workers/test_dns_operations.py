# SPDX-License-Identifier: Apache-2.0
"""The DNS role as operators meet it: how it ends, its doors, its query log. Real processes."""

import fcntl
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dnslib
import dnslib.server
import pytest

from svcproxy.cli import main
from svcproxy.client.connection import StatusClient, find_instance
from tests.workers.test_roles import QNAME, TIMEOUT, World, eventually, free_port

LAMEDUCK = 3600
"""Longer than any test: what ends, ends for another reason."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for child in made.children:
        child.kill()
        child.wait()


def fetch(port: int, path: str) -> tuple[int, str] | None:
    """Status and body; None where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return None
    finally:
        connection.close()


@pytest.fixture
def door(world: World) -> int:
    """The port of the worker's metrics listener."""
    port = free_port()
    world.tree["dns"] |= {"metrics_listen": f"127.0.0.1:{port}", "lameduck": LAMEDUCK}
    world.write_config()
    return port


def test_m30_after_sigterm_it_is_not_ready_and_answers_on_then_ends_with_0(world: World, door: int) -> None:
    """M30. CoreDNS closes the port of `/ready`; here it is the one of `/health` too and answers 503."""
    world.start("agent")
    worker = world.start("dns")
    eventually(lambda: fetch(door, "/ready") == (200, "OK"), "the worker is ready")
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: fetch(door, "/ready") == (503, "lameduck"), "it is no longer ready")
    assert world.ask("/readyz", "dns-0")["reasons"] == ["this instance is about to end"]
    assert fetch(door, "/health") == (200, "OK")
    assert world.ask("/livez", "dns-0")["ready"] is True
    assert world.resolves()
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(TIMEOUT) == 0
    assert not world.resolves()


def test_the_time_to_answer_on_runs_out(world: World, door: int) -> None:
    world.tree["dns"]["lameduck"] = 0.5
    world.write_config()
    world.start("agent")
    worker = world.start("dns")
    eventually(lambda: world.ready("dns-0"), "the worker is ready")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(TIMEOUT) == 0
    assert "answering on" in world.log("dns")


def test_whose_sockets_a_successor_has_taken_ends_at_once(world: World, door: int) -> None:
    world.start("agent")
    old = world.start("dns", "old")
    eventually(lambda: fetch(door, "/ready") == (200, "OK"), "the old worker serves")
    world.start("dns", "new")
    eventually(lambda: world.ready("dns-0", "new"), "the new worker serves")
    old.send_signal(signal.SIGTERM)
    assert old.wait(TIMEOUT) == 0
    assert world.resolves()
    eventually(lambda: fetch(door, "/ready") == (200, "OK"), "the new worker has the listener")


def test_a_successor_that_comes_during_the_lame_duck_ends_it(world: World, door: int) -> None:
    world.start("agent")
    old = world.start("dns", "old")
    eventually(lambda: world.ready("dns-0", "old"), "the old worker serves")
    old.send_signal(signal.SIGTERM)
    eventually(lambda: "answering on" in world.log("dnsold"), "the old worker is about to end")
    world.start("dns", "new")
    assert old.wait(TIMEOUT) == 0
    eventually(lambda: world.ready("dns-0", "new"), "the new worker serves")
    assert world.resolves()


class Everywhere(dnslib.server.BaseResolver):  # type: ignore[misc]  # dnslib has no types
    """Gives every name one address."""

    def resolve(self, request: Any, handler: Any) -> Any:
        reply = request.reply()
        reply.add_answer(dnslib.RR(request.q.qname, rdata=dnslib.A("192.0.2.53"), ttl=60))
        return reply


@pytest.fixture
def upstream() -> Iterator[str]:
    """ADDRESS:PORT of a resolver."""
    server = dnslib.server.DNSServer(Everywhere(), address="127.0.0.1", port=0, logger=dnslib.server.DNSLogger("-all"))
    server.start_thread()
    yield ":".join(map(str, server.server.server_address))
    server.stop()
    server.server.server_close()


def test_m26_without_names_it_is_alive_not_ready_and_says_so(world: World, door: int, upstream: str) -> None:
    """M26. Without an agent the worker serves after a while all the same."""
    world.tree["dns"] |= {"upstreams": [upstream], "lameduck": 0}
    world.write_config()
    world.start("dns")
    eventually(lambda: fetch(door, "/health") == (200, "OK"), "the worker is there")
    eventually(lambda: world.answer("www.example.com.") == ["192.0.2.53"], "names outside the zone are resolved")
    assert fetch(door, "/ready") == (503, "kubernetes")

    def ask(name: str, qtype: str) -> tuple[str, list[str], list[str]]:
        """Code, and types of the answer and of the authority section."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT)
            client.connect(("127.0.0.1", world.port))
            client.send(dnslib.DNSRecord.question(name, qtype).pack())
            found = dnslib.DNSRecord.parse(client.recv(512))
        types = [[dnslib.QTYPE[each.rtype] for each in section] for section in (found.rr, found.auth)]
        return dnslib.RCODE[found.header.rcode], types[0], types[1]

    assert ask(QNAME, "A") == ("SERVFAIL", [], ["SOA"])
    assert ask("svc.cluster.local.", "A") == ("NOERROR", [], ["SOA"])
    assert ask("cluster.local.", "SOA") == ("NOERROR", ["SOA"], [])
    world.start("agent")
    eventually(lambda: fetch(door, "/ready") == (200, "OK"), "the worker is ready")
    assert world.resolves()


def test_each_worker_has_a_metrics_port_of_its_own(world: World, door: int) -> None:
    world.tree["dns"] |= {"workers": 2, "lameduck": 0}
    world.write_config()
    world.start("run")
    for number in (0, 1):
        eventually(lambda: fetch(door + number, "/ready") == (200, "OK"), "the worker is ready")  # noqa: B023
        found = fetch(door + number, "/metrics")
        assert found is not None
        assert 'coredns_plugin_enabled{name="prometheus"' in found[1]


def test_the_worker_asks_itself(world: World, door: int) -> None:
    world.start("agent")
    world.start("dns")

    def checks() -> float:
        found = fetch(door, "/metrics")
        count = (
            re.search(r"^coredns_health_request_duration_seconds_count (\S+)", found[1], re.MULTILINE)
            if found
            else None
        )
        return float(count[1]) if count else 0

    eventually(lambda: checks() >= 2, "it has asked itself")
    found = fetch(door, "/metrics")
    assert found is not None
    assert "coredns_health_request_failures_total 0.0" in found[1]


def test_a_refused_configuration_is_counted_and_the_good_one_named(world: World, door: int) -> None:
    world.start("agent")
    world.start("dns")
    eventually(lambda: world.ready("dns-0"), "the worker is ready")

    def metric(pattern: str) -> str | None:
        found = fetch(door, "/metrics")
        match = re.search(pattern, found[1], re.MULTILINE) if found else None
        return match[1] if match else None

    version = r'^coredns_reload_version_info\{hash="sha512",value="(\w+)"\} 1.0'
    before = metric(version)
    assert before is not None
    world.write_config("dns: {ttl: 99999}\n")
    eventually(lambda: metric(r"^coredns_reload_failed_total (\S+)") == "1.0", "the refusal is counted")
    assert metric(version) == before
    world.tree["dns"]["lameduck"] = 1
    world.write_config()
    eventually(lambda: metric(version) not in {None, before}, "another configuration is in force")


SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-2
  namespace: shop
  labels: {{kubernetes.io/service-name: {service}}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: "{trigger}"}}
addressType: IPv4
endpoints: [{{addresses: [{address}]}}]
"""
HEADLESS = """
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None}
"""


def test_programming_is_measured_from_the_trigger_to_the_acknowledgement_of_the_worker(world: World) -> None:
    manifests = world.directory / "manifests"
    (manifests / "db.yaml").write_text(HEADLESS)
    world.start("agent")
    world.start("dns")
    eventually(lambda: world.ready() and world.ready("dns-0"), "both are ready")
    eventually(lambda: world.ask("/v1/status")["workers"][0]["lag"] == 0, "the worker has everything")

    def measured(kind: str, of: str = "count") -> float:
        text = StatusClient(find_instance(world.run_dir).admin_socket).get_text("/metrics")
        name = f'coredns_kubernetes_dns_programming_duration_seconds_{of}{{service_kind="{kind}"}} '
        return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))

    def put(service: str, address: str, trigger: datetime) -> None:
        text = SLICE.format(service=service, address=address, trigger=trigger.isoformat())
        (manifests / f"{service}-2.yaml").write_text(text)

    now = datetime.now(UTC)
    put("web", "127.97.0.9", now)
    eventually(lambda: measured("cluster_ip") == 1, "the change of the ClusterIP Service is measured")
    put("db", "127.97.0.8", now)
    eventually(lambda: measured("headless_with_selector") == 1, "the change of the headless Service is measured")
    assert world.answer("db.shop.svc.cluster.local.") == ["127.97.0.8"]
    assert 0 < measured("headless_with_selector", "sum") <= (datetime.now(UTC) - now).total_seconds()
    put("db", "127.97.0.7", now)
    put("web", "127.97.0.6", now - timedelta(days=1))
    eventually(lambda: world.answer("db.shop.svc.cluster.local.") == ["127.97.0.7"], "the same trigger again")
    eventually(lambda: world.answer("127-97-0-6.web.shop.svc.cluster.local.") != [], "a trigger before the start")
    eventually(lambda: world.ask("/v1/status")["workers"][0]["lag"] == 0, "both are acknowledged")
    assert (measured("cluster_ip"), measured("headless_with_selector")) == (1, 1)


def test_the_command_line_asks_both_roles(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.start("agent")
    world.start("dns")
    eventually(lambda: world.ready() and world.ready("dns-0"), "both are ready")
    assert main(["resolve", "web.shop", "--run-dir", str(world.run_dir)]) == 0
    printed = capsys.readouterr()
    assert "the Service shop/web, ClusterIP 127.96.0.20" in printed.out
    assert "Endpoints of shop/web" in printed.out
    assert printed.err == ""
    assert main(["status", "--run-dir", str(world.run_dir)]) == 0
    assert re.search(r"^dns-0 +ready +live ", capsys.readouterr().out, re.MULTILINE)


LINE = re.compile(
    r"^\[INFO\] 127\.0\.0\.1:\d+ - \d+ "
    rf'"A IN {re.escape(QNAME)} udp 44 false 512" NOERROR qr,aa,rd 60 0\.\d+s( shop/client)?$',
    re.MULTILINE,
)


def test_the_query_log_is_turned_on_and_off_without_a_restart(world: World) -> None:
    world.start("agent")
    worker = world.start("dns")
    eventually(world.resolves, "DNS answers")
    assert not LINE.search(world.log("dns"))
    world.tree["dns"]["query_log"] = {"classes": ["success"]}
    world.write_config()
    eventually(lambda: world.resolves() and LINE.search(world.log("dns")) is not None, "queries are logged")
    world.answer("none.shop.svc.cluster.local.")
    world.tree["dns"]["query_log"] = {}
    world.write_config()
    eventually(lambda: world.log("dns").count("configuration changed") == 2, "the log is off")
    lines = len(LINE.findall(world.log("dns")))
    assert world.resolves()
    assert len(LINE.findall(world.log("dns"))) == lines
    assert "none.shop" not in world.log("dns"), "no success"
    assert worker.poll() is None


def test_the_query_log_names_the_pods_of_the_node(world: World) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client", "namespace": "shop"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIPs": [{"ip": "127.0.0.1"}]},
    }
    elsewhere = pod | {"metadata": {"name": "other", "namespace": "shop"}, "spec": {"nodeName": "n2"}}
    for each in (pod, elsewhere):
        (world.directory / "manifests" / f"{each['metadata']['name']}.yaml").write_text(json.dumps(each))  # type: ignore[index]
    world.tree["dns"]["query_log"] = {"classes": ["all"], "pods": True}
    world.write_config()
    world.start("agent")
    world.start("dns")
    eventually(lambda: world.ready("dns-0") and world.resolves(), "DNS answers")
    eventually(lambda: world.log("dns").count(" shop/client\n") > 0, "the client is named")


def test_the_query_log_in_json(world: World) -> None:
    world.tree |= {"log": {"format": "json"}}
    world.tree["dns"]["query_log"] = {"classes": ["error", "denial"]}
    world.write_config()
    world.start("agent")
    world.start("dns")
    eventually(lambda: world.ready("dns-0"), "DNS answers")
    assert world.answer("none.shop.svc.cluster.local.") == []

    def logged() -> list[dict[str, object]]:
        lines = [json.loads(line) for line in world.log("dns").splitlines()]
        return [line for line in lines if line["msg"] == "query"]

    eventually(lambda: bool(logged()), "the query is logged")
    (entry,) = logged()
    assert entry["name"] == "none.shop.svc.cluster.local."
    assert (entry["rcode"], entry["type"], entry["role"]) == ("NXDOMAIN", "A", "dns")


def test_a_log_that_nobody_reads_holds_nothing_up(world: World) -> None:
    world.tree["dns"]["query_log"] = {"classes": ["all"], "lines_max": 100_000}
    world.write_config()
    world.start("agent")
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "svcproxy", "dns", "--config", str(world.config)]
    world.children.append(subprocess.Popen(command, stderr=writing))
    os.close(writing)
    try:
        eventually(lambda: world.ready("dns-0"), "DNS answers")
        pipe_octets = fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ)
        for _ in range(pipe_octets // 50):
            assert world.resolves()
    finally:
        os.close(reading)
