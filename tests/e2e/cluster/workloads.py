# SPDX-License-Identifier: Apache-2.0
"""What runs in the cluster of the tests: `web` behind Services, one pod on each node; `client`, one on each node."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.images import WORKLOAD, WORKLOAD_IMAGES

PORT = 8080
DRAIN = 10
"""Seconds that `web` goes on serving after SIGTERM."""
LOAD_TIMEOUT = 30.0


class Workloads:
    """Made once; tests leave them as they found them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.clients: dict[str, str] = {}
        """The pod by its node."""

    def create(self) -> None:
        """Returns when all pods are ready and the Service has an address."""
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(_objects())})
        self.cluster.kubectl("apply", "--filename=-", stdin=manifest)
        for each in ("deployment/web", "daemonset/client"):
            self.cluster.kubectl("rollout", "status", each, "--timeout=120s")
        self.clients = {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in self.pods("client")}

    def pods(self, app: str) -> list[Any]:
        """Pods that are not on their way out."""
        items = self.cluster.call("GET", f"/api/v1/namespaces/default/pods?labelSelector=app%3D{app}")["items"]
        return [item for item in items if "deletionTimestamp" not in item["metadata"]]

    def service(self, name: str) -> Any:
        """The object."""
        return self.cluster.call("GET", f"/api/v1/namespaces/default/services/{name}")

    def on(self, node: str, *words: str) -> str:
        """What the workload program prints in the client pod of a node. Raises `CalledProcessError`."""
        return self.cluster.kubectl("exec", self.clients[node], "--", "workload", *words).strip()

    def outside(self, *words: str) -> str:
        """The same on the host beside the cluster."""
        return self.cluster.network.outside.run("python3", str(WORKLOAD), *words).strip()

    def served_by(self, node: str, host: str, port: int, count: int) -> set[str]:
        """The pods that answer so many connections."""
        answers = self.on(node, "ask", host, str(port), str(count))
        return {answer.split()[0] for answer in answers.splitlines()}

    @contextmanager
    def load(self, host: str, port: int) -> Iterator[Counter[str]]:
        """New connections from every node during the block; afterwards the counter has their outcomes, by class."""
        met = Counter[str]()
        running = [
            self.cluster.popen_kubectl("exec", "--stdin", pod, "--", "workload", "load", host, str(port))
            for pod in self.clients.values()
        ]
        try:
            for each in running:
                assert each.stdout is not None
                assert each.stdout.readline() == "going\n"
            yield met
        finally:
            results = [each.communicate(timeout=LOAD_TIMEOUT)[0] for each in running]
        for result in results:
            met.update(json.loads(result))


def _objects() -> Iterator[dict[str, Any]]:
    one_on_each_node = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
        "matchLabelKeys": ["pod-template-hash"],
    }
    server = {
        "name": "web",
        "image": WORKLOAD_IMAGES[0],
        "args": ["serve", str(PORT), str(DRAIN)],
        "ports": [{"name": "http", "containerPort": PORT}],
        # Patient: on a busy machine a pod that is slow is not one that is gone.
        "readinessProbe": {
            "httpGet": {"path": "/", "port": "http"},
            "periodSeconds": 1,
            "timeoutSeconds": 20,
            "failureThreshold": 10,
        },
    }
    yield _workload("Deployment", "web", server, {"topologySpreadConstraints": [one_on_each_node]}, replicas=3)
    client = {"name": "client", "image": WORKLOAD_IMAGES[0], "args": ["sleep"]}
    yield _workload("DaemonSet", "client", client, {"terminationGracePeriodSeconds": 0})
    tcp = {"name": "http", "port": 80, "targetPort": "http"}
    udp = {"name": "datagrams", "port": 81, "protocol": "UDP", "targetPort": PORT}
    yield _service("web", type="NodePort", ports=[tcp, udp])
    yield _service("headless", clusterIP="None", ports=[tcp])
    yield _service("local", type="NodePort", externalTrafficPolicy="Local", ports=[tcp])


def _workload(kind: str, app: str, container: dict[str, Any], pod: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = {"app": app}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], **pod}}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": app},
        "spec": {"selector": {"matchLabels": labels}, "template": template, **spec},
    }


def _service(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack", **spec},
    }
