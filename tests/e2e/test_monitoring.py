# SPDX-License-Identifier: Apache-2.0
"""`deploy/monitoring` beside a real Prometheus: what rules and dashboard name is there, under the labels they use."""

import asyncio
import datetime as dt
import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from svcproxy.testing.control_plane import ControlPlane, Process
from tests.dns.upstream import upstream
from tests.e2e.differential.worlds import node
from tests.e2e.harness import SERVICES, SLICES, endpoint_slice, eventually, service
from tests.netns.namespaces import Namespace

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
METRIC = re.compile(r"(?<![:\w])(?:svcproxy|coredns|kubeproxy|process)_[a-z_]+")
PROMETHEUS, NODE = "127.0.0.1:19090", "n1"
PORTS = {"svcproxy-agent": 10249, "svcproxy-dns": 9153}


def expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return asked


def recorded() -> set[str]:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    return {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", "rules.yaml")


def test_the_rules_fire_when_they_should() -> None:
    promtool("test", "rules", "rules_test.yaml")


def test_every_alert_says_what_is_wrong_and_how_urgent_it_is() -> None:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "ticket"}, alert["alert"]
        assert set(alert["annotations"]) == {"summary", "description"}, alert["alert"]


def test_what_the_dashboard_and_alerts_record_is_recorded() -> None:
    named = {name for text in expressions() for name in re.findall(r"\bnode:[a-z_:0-9]+", text)}
    assert named
    assert named <= recorded()


def scrape_config(directory: Path) -> Path:
    """The project's scrape configuration for targets that are known: Debian's Prometheus cannot ask Kubernetes."""
    config = yaml.safe_load((MONITORING / "scrape.yaml").read_text())
    for job in config["scrape_configs"]:
        container = job["job_name"].removeprefix("svcproxy-")
        del job["kubernetes_sd_configs"]
        job["scrape_interval"] = "1s"
        found = {"container_name": container, "host_ip": "127.0.0.1", "node_name": NODE}
        labels = {f"__meta_kubernetes_pod_{name}": value for name, value in found.items()}
        job["static_configs"] = [{"targets": [f"pod-{container}"], "labels": labels}]
    config["rule_files"] = [str(MONITORING / "rules.yaml")]
    config["global"] = {"evaluation_interval": "1s"}
    path = directory / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Site:
    """A namespace with an API server, svcproxy and Prometheus."""

    def __init__(self, namespace: Namespace, plane: ControlPlane) -> None:
        self.namespace = namespace
        self.plane = plane

    def query(self, path: str, **parameters: str) -> Any:
        """What Prometheus says; nothing while it does not."""
        url = f"http://{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return json.load(response)["data"]
        except OSError:
            return []

    def up(self) -> set[str]:
        """The jobs that are scraped."""
        found = self.query("query", query="up == 1")
        return {each["metric"]["job"] for each in found["result"]} if found else set()

    def names(self) -> set[str]:
        """Every metric that there is."""
        return set(self.query("label/__name__/values"))


def svcproxy_config(directory: Path, resolver: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "dataplane": {"mode": "nftables"},
                "admin": {"health_listen": None, "metrics_listen": f"127.0.0.1:{PORTS['svcproxy-agent']}"},
                "dns": {
                    "listen": ["127.0.0.1:53"],
                    "metrics_listen": f"127.0.0.1:{PORTS['svcproxy-dns']}",
                    "upstreams": [resolver],
                },
            }
        )
    )
    return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        stack.enter_context(namespace.entered())
        namespace.run("nft", "add", "table", "ip", "kube-proxy")  # as one that has gone leaves behind
        plane = stack.enter_context(ControlPlane())
        plane.call("POST", "/api/v1/nodes", node(NODE))
        prometheus = Process(
            "prometheus",
            [
                "prometheus",
                f"--config.file={scrape_config(tmp_path)}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address={PROMETHEUS}",
            ],
            tmp_path / "prometheus.log",
        )
        prometheus.start()
        stack.callback(prometheus.kill)
        yield Site(namespace, plane)


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@pytest.mark.netns
async def test_every_metric_of_rules_and_dashboard_is_there(site: Site, tmp_path: Path) -> None:
    asked = {name for text in expressions() for name in METRIC.findall(text)}
    async with upstream() as resolver:
        command = [sys.executable, "-m", "svcproxy", "run", "--node-name", NODE]
        command += ["--kubeconfig", str(site.plane.kubeconfig())]
        command += ["--config", str(svcproxy_config(tmp_path, resolver.address))]
        command += ["--run-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state")]
        svcproxy = Process("svcproxy", command, tmp_path / "svcproxy.log")
        svcproxy.start()
        try:
            await eventually(lambda: site.up() == set(PORTS), "both jobs are scraped")
            for name in ("www.example.com", "kubernetes.default.svc.cluster.local"):
                await asyncio.to_thread(site.namespace.run, "dig", "+time=2", "@127.0.0.1", name)
            created = service("web")
            site.plane.call("POST", SERVICES, created)
            changed = endpoint_slice("web-1", "web", ["10.1.0.1"])
            changed["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": now()}
            site.plane.call("POST", SLICES, changed)
            await eventually(lambda: asked <= site.names(), f"there are {sorted(asked)}")
        except AssertionError:
            pytest.fail(f"missing: {sorted(asked - site.names())}, up: {site.up()}\n{svcproxy.tail()}")
        finally:
            svcproxy.kill()
        answered = [text for text in expressions() if "rate(" not in text and " > " not in text and "==" not in text]
        for text in answered:
            every = text.replace("$node", ".*")
            assert site.query("query", query=every)["result"] or "role_restarts" in text, text
