# SPDX-License-Identifier: Apache-2.0
"""`svcproxy migrate` from a real cluster, and the steps of docs/migrate.md one after the other."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane
from tests.cli.test_migrate import FILES
from tests.e2e.harness import NODE

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "migrate.md"
COREDNS = "/api/v1/namespaces/kube-system/configmaps/coredns"
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "coredns", "namespace": "kube-system"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
        "template": {
            "metadata": {"labels": {"k8s-app": "kube-dns"}},
            "spec": {"containers": [{"name": "coredns", "image": "registry.k8s.io/coredns/coredns:v1.14.7"}]},
        },
    },
}


@pytest.fixture
def cluster(plane: ControlPlane) -> ControlPlane:
    """A control plane with kube-proxy, CoreDNS and NodeLocal DNSCache, as kubeadm and its add-ons leave them."""
    for name in ("kube-proxy.yaml", "node-local-dns.yaml", "kube-dns.yaml"):
        plane.kubectl("apply", "-f", str(FILES / name))
    corefile = (FILES / "Corefile").read_text().replace("{$SECOND_RESOLVER}", "10.2.0.53")
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "coredns"},
        "data": {"Corefile": corefile},
    }
    plane.call("POST", COREDNS.rpartition("/")[0], config_map)
    plane.call("POST", "/apis/apps/v1/namespaces/kube-system/deployments", DEPLOYMENT)
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    plane.call("POST", "/api/v1/nodes", node)
    return plane


def svcproxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svcproxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_cluster_says_what_the_files_say(cluster: ControlPlane, tmp_path: Path) -> None:
    from_cluster = svcproxy("migrate", "--kubeconfig", str(cluster.kubeconfig()))
    assert (from_cluster.returncode, from_cluster.stderr) == (0, "")
    files = [f"--{name}={FILES / file}" for name, file in (
        ("kube-proxy", "kube-proxy.yaml"), ("corefile", "Corefile"),
        ("node-local-dns", "node-local-dns.yaml"), ("kube-dns", "kube-dns.yaml"),
    )]  # fmt: skip
    from_files = svcproxy("migrate", *files, "--env", "SECOND_RESOLVER=10.2.0.53")

    def settings(text: str) -> list[str]:
        return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]

    assert settings(from_cluster.stdout) == settings(from_files.stdout)
    assert "# ConfigMap kube-proxy in kube-system" not in from_cluster.stdout
    assert "kube-proxy: ConfigMap kube-proxy in kube-system" in from_cluster.stdout
    written = tmp_path / "config.yaml"
    written.write_text(from_cluster.stdout)
    assert svcproxy("check-config", "--config", str(written)).returncode == 0


def test_who_may_not_read_is_told_what_is_missing(cluster: ControlPlane) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}}
    cluster.call("POST", "/api/v1/namespaces/default/serviceaccounts", account)
    token = cluster.service_account_token("default", "nobody")
    finished = svcproxy("migrate", "--kubeconfig", str(cluster.kubeconfig(token)))
    assert (finished.returncode, finished.stdout) == (1, "")
    assert 'cannot get resource "configmaps"' in finished.stderr


def test_a_cluster_with_none_of_them(shared_plane: ControlPlane) -> None:
    finished = svcproxy("migrate", "--kubeconfig", str(shared_plane.kubeconfig()))
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "the cluster has none of kube-proxy, coredns, node-local-dns" in finished.stderr


def steps(text: str) -> Iterator[tuple[str, str]]:
    """(heading, commands) of each block of a document that is to be run."""
    heading = ""
    for match in re.finditer(r"^## ([^\n]+)$|^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        else:
            yield heading, match[2]


def test_the_steps_of_the_guide(cluster: ControlPlane, tmp_path: Path) -> None:
    """Each block runs in a shell that ends at the first failure; what nodes do is left to other tests."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(binaries.find("kubectl"))
    (programs / "svcproxy").write_text(f'#!/bin/sh\nexec {sys.executable} -m svcproxy "$@"\n')
    (programs / "svcproxy").chmod(0o755)
    checkout = tmp_path / "svcproxy"
    shutil.copytree(ROOT / "deploy", checkout / "deploy")
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "KUBECONFIG": str(cluster.kubeconfig()),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'dns'}",
    }
    said: dict[str, str] = {}
    for heading, commands in steps(GUIDE.read_text()):
        finished = subprocess.run(
            ["unshare", "--net", "sh", "-euc", commands] if "preflight" in commands else ["sh", "-euc", commands],
            cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert finished.returncode == 0, (heading, commands, finished.stdout, finished.stderr)
        said[heading] = said.get(heading, "") + finished.stdout
    assert list(said) == [
        "Keep what there is",
        "Make the configuration",
        "Look at the nodes",
        "Hand over Services",
        "Hand over names",
        "Go back",
    ]
    assert "svcproxy cannot do this" in said["Make the configuration"]
    assert re.search(r"^ok +configuration ", said["Look at the nodes"], re.MULTILINE)
    daemonsets = cluster.call("GET", "/apis/apps/v1/namespaces/kube-system/daemonsets")["items"]
    assert sorted(each["metadata"]["name"] for each in daemonsets) == ["kube-proxy", "node-local-dns"], "back again"
