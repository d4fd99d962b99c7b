# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster on this machine: a control plane and nodes with kubelet and containerd, each in namespaces.

Everything dies with the process that holds it, also when that is killed; what a killed one has left behind (cgroups and
a folder) is removed by the next `sweep`.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane
from tests.cluster import cgroups, images, node
from tests.cluster.network import Network
from tests.cluster.plan import CLUSTER_DNS, CLUSTER_DOMAIN, CONTROL_PLANE, GATEWAY, NodePlan

CHECKOUT = Path(__file__).parents[2]
NODE_PROGRAMS = (
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "ptp",
    "loopback",
    "host-local",
    "portmap",
)
CLUSTERS = binaries.cache_folder() / "cluster"
TIMEOUT = 180.0
"""Seconds for what takes about 10 on an idle machine."""


class ClusterError(Exception):
    """The cluster did not come to what was waited for; the message says what, and where the logs are."""


@dataclass
class Cluster:
    """A running cluster without an implementation of Services. Use as a context manager, with a name of its own."""

    name: str
    size: int = 3
    cluster_dns: Sequence[str] = (CLUSTER_DNS,)

    def __post_init__(self) -> None:
        self.folder = CLUSTERS / self.name
        self.plans = [NodePlan(number) for number in range(1, self.size + 1)]
        self._stack = ExitStack()
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._stack.enter_context(held(self.name))
        self._stack.callback(_remove, self.name)
        _remove(self.name)
        self.folder.mkdir(parents=True)
        programs = self.folder / "bin"
        programs.mkdir()
        for program in NODE_PROGRAMS:
            (programs / program).symlink_to(binaries.find(program))
        archives = [str(path) for path in images.build(self.folder)]
        self.network = Network(self.plans)
        self._stack.callback(self.network.close)
        with self.network.control_plane.entered():
            tokens = {plan.token: (f"system:node:{plan.name}", "system:nodes") for plan in self.plans}
            flags = ("--kubelet-preferred-address-types=InternalIP",)
            plane = ControlPlane(host=CONTROL_PLANE[0], tokens=tokens, flags=flags, parent=self.folder)
            self.plane = self._stack.enter_context(plane)
            self.plane.start_controllers()
        for plan in self.plans:
            self.call("POST", "/api/v1/nodes", _node_object(plan))
            self._start_node(plan, str(programs), archives)
        eventually(self._nodes_ready, f"every node is Ready; logs are in {self.folder}/node*")

    def _start_node(self, plan: NodePlan, programs: str, archives: Sequence[str]) -> None:
        spec = node.NodeSpec(
            name=plan.name,
            folder=str(self.folder / plan.name),
            programs=programs,
            cgroup=cgroups.create(self.name, plan.name),
            addresses=plan.addresses,
            pod_cidrs=plan.pod_cidrs,
            kubeconfig=str(self.plane.kubeconfig(plan.token)),
            images=archives,
            cluster_dns=self.cluster_dns,
            cluster_domain=CLUSTER_DOMAIN,
            upstream=GATEWAY[0],
        )
        path = node.write_spec(spec)
        namespaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        command = ["setpriv", "--pdeathsig", "KILL", *namespaces, sys.executable, "-m", "tests.cluster.node", str(path)]
        with self.network.nodes[plan.name].entered(), (path.parent / "node.log").open("wb") as log:
            self._nodes[plan.name] = subprocess.Popen(
                command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _nodes_ready(self) -> bool:
        for name, process in self._nodes.items():
            if process.poll() is not None:
                raise ClusterError(f"{name} ended: {(self.folder / name / 'node.log').read_text()}")
        nodes = self.call("GET", "/api/v1/nodes")["items"]
        return len(nodes) == len(self.plans) and all(_condition(each, "Ready") for each in nodes)

    def stop(self) -> None:
        """End everything and remove it."""
        for process in self._nodes.values():
            process.kill()
            process.wait()
        self._nodes.clear()
        self._stack.close()

    def process_one(self, name: str) -> int:
        """The pid of a node's process 1, for nsenter."""
        parent = self._nodes[name].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request to the API server, as admin."""
        with self.network.control_plane.entered():
            return self.plane.call(method, path, body)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints, as admin. Raises `CalledProcessError`."""
        with self.network.control_plane.entered():
            return self.plane.kubectl(*arguments, stdin=None if stdin is None else stdin.encode())

    def popen_kubectl(self, *arguments: str) -> subprocess.Popen[str]:
        """A kubectl that goes on, with pipes."""
        command = [str(binaries.find("kubectl")), f"--kubeconfig={self.plane.kubeconfig()}", *arguments]
        with self.network.control_plane.entered():
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run_on(self, name: str, *command: str) -> str:
        """What a command prints that runs on a node as its host's processes do."""
        target = ["nsenter", f"--target={self.process_one(name)}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        return subprocess.run([*target, *command], text=True, check=True, stdout=subprocess.PIPE).stdout


def eventually(holds: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
    """Return once it holds. Raises `ClusterError`."""
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            raise ClusterError(f"never happened: {what}")
        time.sleep(0.2)


def sweep() -> list[str]:
    """Remove what clusters have left that nobody holds any more; their names."""
    swept = []
    for name in sorted(
        cgroups.existing() | {path.stem for path in CLUSTERS.glob("*") if path.is_dir() or path.suffix == ".lock"}
    ):
        with suppress(BlockingIOError), held(name):
            _remove(name)
            (CLUSTERS / f"{name}.lock").unlink()
            swept.append(name)
    return swept


def _remove(name: str) -> None:
    cgroups.remove(name)
    shutil.rmtree(CLUSTERS / name, ignore_errors=True)


@contextmanager
def held(name: str) -> Iterator[TextIO]:
    """The lock of a cluster's name. Raises `BlockingIOError` if a live process has it."""
    CLUSTERS.mkdir(parents=True, exist_ok=True)
    lock_file = CLUSTERS / f"{name}.lock"
    with lock_file.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not lock_file.exists() or not lock_file.samefile(f"/proc/self/fd/{lock.fileno()}"):
            raise BlockingIOError(f"{lock_file} has just been removed: once more")
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        yield lock


def holder(name: str) -> int | None:
    """The pid of the process that holds a cluster, or is starting it or ending it; None if nobody does."""
    with suppress(FileNotFoundError), (CLUSTERS / f"{name}.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read())
    return None


def _node_object(plan: NodePlan) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": plan.name, "labels": {"kubernetes.io/hostname": plan.name}},
        "spec": {"podCIDR": plan.pod_cidrs[0], "podCIDRs": list(plan.pod_cidrs)},
    }


def _condition(item: Any, kind: str) -> bool:
    conditions = {each["type"]: each["status"] for each in item.get("status", {}).get("conditions", [])}
    return conditions.get(kind) == "True"


def state(cluster: Cluster) -> dict[str, Any]:
    """What others need to reach into a cluster that this process holds."""
    network = cluster.network
    namespaces = {"control-plane": network.control_plane.fd, "outside": network.outside.fd, "bridge": network.bridge.fd}
    return {
        "kubeconfig": str(cluster.plane.kubeconfig()),
        "network_namespaces": {name: f"/proc/{os.getpid()}/fd/{fd}" for name, fd in namespaces.items()},
        "nodes": {plan.name: cluster.process_one(plan.name) for plan in cluster.plans},
    }


def write_state(cluster: Cluster) -> Path:
    """Write `state` beside the cluster's other files, in one step."""
    path = cluster.folder / "state.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(state(cluster), indent=2))
    return unfinished.rename(path)
