# SPDX-License-Identifier: Apache-2.0
"""svcproxy installed as its users do it: `kubectl apply -k` of a kustomization on top of one of `deploy/overlays`."""

import os
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.cluster import CHECKOUT, Cluster, eventually

DEPLOY = CHECKOUT / "deploy"
NODE_LOCAL_DNS = "169.254.20.10"
DAEMONSET = "/apis/apps/v1/namespaces/kube-system/daemonsets/svcproxy"


def configuration(cluster: Cluster) -> dict[str, Any]:
    """The configuration of `deploy/base` with what a cluster without other implementations must be told."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "base" / "config.yaml").read_text())
    config["kube"] = {"api_servers": [cluster.plane.url]}
    config["dns"]["listen"] = [f"{NODE_LOCAL_DNS}:53"]
    return config


def write_kustomization(cluster: Cluster, overlay: str, config: dict[str, Any]) -> Path:
    """The user's own kustomization, in a folder of the cluster's."""
    folder = cluster.folder / "svcproxy"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    kustomization = {
        "resources": [os.path.relpath(DEPLOY / "overlays" / overlay, folder)],
        "configMapGenerator": [
            {
                "name": "svcproxy",
                "namespace": "kube-system",
                "behavior": "replace",
                "files": ["config.yaml"],
                "options": {"disableNameSuffixHash": True},
            }
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def install(cluster: Cluster, overlay: str = "both") -> None:
    """Install it and return when it is ready on every node."""
    for plan in cluster.plans:
        cluster.run_on(plan.name, "ip", "address", "add", f"{NODE_LOCAL_DNS}/32", "dev", "lo")
    cluster.kubectl("apply", "-k", str(write_kustomization(cluster, overlay, configuration(cluster))))
    eventually(lambda: rolled_out(cluster), f"svcproxy is ready on every node; pods: {pods(cluster)}")


def rolled_out(cluster: Cluster) -> bool:
    """Whether every node runs the DaemonSet's present template, and all are ready."""
    daemonset = cluster.call("GET", DAEMONSET)
    status = daemonset["status"]
    return bool(
        status.get("observedGeneration") == daemonset["metadata"]["generation"]
        and status.get("updatedNumberScheduled") == status.get("numberAvailable") == len(cluster.plans)
    )


def pods(cluster: Cluster) -> str:
    """The pods of the DaemonSet, as kubectl shows them."""
    selector = "app.kubernetes.io/component=node-agent"
    return cluster.kubectl("get", "pods", "--namespace=kube-system", f"--selector={selector}", "--output=wide")
