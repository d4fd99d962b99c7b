# SPDX-License-Identifier: Apache-2.0
"""A node from inside: process 1 of its pid namespace. Runs containerd and the kubelet, as systemd would on a real one.

    python -m tests.cluster.node SPEC.json        in new mount, UTS, IPC and pid namespaces, and the node's network

What would change the host is put out of the way: /var/lib, /var/log and /run are the node's own, and the kernel
parameters that a kubelet writes for the whole machine are plain files.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster import cgroups

MACHINE_WIDE = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""Kernel parameters with the values that the kubelet wants to see."""
RESTART_WAIT = 1.0
"""Seconds between the end of a program and its next start."""
CONTAINERD_TIMEOUT = 60.0
SANDBOX_IMAGE = "registry.k8s.io/pause:3.10.2"
SOCKET = "/run/containerd/containerd.sock"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a node is told."""

    name: str
    folder: str
    """Where it keeps everything."""
    programs: str
    """A folder with the programs, by their usual names."""
    cgroup: str
    addresses: Sequence[str]
    pod_cidrs: Sequence[str]
    kubeconfig: str
    images: Sequence[str]
    """Archives."""
    cluster_dns: Sequence[str]
    cluster_domain: str
    upstream: str
    """The node's own nameserver."""


def write_spec(spec: NodeSpec) -> Path:
    """Write it into the node's folder, which is made."""
    path = Path(spec.folder) / "spec.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(spec)))
    return path


class Node:
    """The programs of a node, started again when they end."""

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self._folder = Path(spec.folder)
        self._commands: dict[str, list[str]] = {}
        self._running: dict[int, str] = {}

    def run(self) -> None:
        """Never returns: whoever ends process 1 ends the node."""
        self._mount()
        self._keep("containerd", [self._program("containerd"), "--config", self._write_containerd_config()])
        self._import_images()
        kubelet = [self._program("kubelet"), "--config", self._write_kubelet_config()]
        kubelet += [f"--kubeconfig={self._spec.kubeconfig}", f"--node-ip={','.join(self._spec.addresses)}"]
        self._keep("kubelet", [*kubelet, f"--hostname-override={self._spec.name}", "-v=2"])
        while True:
            pid, _ = os.wait()
            if name := self._running.pop(pid, None):
                time.sleep(RESTART_WAIT)
                self._start(name)

    def _keep(self, name: str, command: list[str]) -> None:
        self._commands[name] = command
        self._start(name)

    def _start(self, name: str) -> None:
        environment = os.environ | {"PATH": f"{self._spec.programs}:{os.environ['PATH']}"}
        with (self._folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                self._commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self._running[child.pid] = name

    def _program(self, name: str) -> str:
        return str(Path(self._spec.programs) / name)

    def _mount(self) -> None:
        socket.sethostname(self._spec.name)
        _mount("--make-rprivate", "/")
        for own in ("lib", "log"):
            (self._folder / own).mkdir(exist_ok=True)
        _mount("--rbind", "/sys/fs/cgroup", str(self._made("cgroup")))
        _mount("-t", "sysfs", "sysfs", "/sys")  # of this network
        _mount("--rbind", str(self._folder / "cgroup"), "/sys/fs/cgroup")
        subprocess.run(["umount", "--lazy", str(self._folder / "cgroup")], check=True)
        for path, text in MACHINE_WIDE.items():
            file = self._folder / path.replace("/", "_")
            file.write_text(text)
            _mount("--bind", str(file), f"/proc/sys/{path}")
        for name, text in (
            ("resolv.conf", f"nameserver {self._spec.upstream}\n"),
            ("hosts", f"127.0.0.1 localhost\n{self._spec.addresses[0]} {self._spec.name}\n"),
        ):
            (self._folder / name).write_text(text)
            _mount("--bind", str(self._folder / name), f"/etc/{name}")
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        _mount("--bind", str(self._folder / "log"), "/var/log")
        _mount("--bind", str(self._folder / "lib"), "/var/lib")
        _mount("--make-rshared", "/")  # mount propagation of volumes

    def _made(self, name: str) -> Path:
        path = self._folder / name
        path.mkdir(exist_ok=True)
        return path

    def _write_containerd_config(self) -> str:
        network = {
            "cniVersion": "1.0.0",
            "name": "cluster",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": False,
                    "mtu": 1500,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": cidr}] for cidr in self._spec.pod_cidrs],
                        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (self._made("cni") / "10-cluster.conflist").write_text(json.dumps(network))
        path = self._folder / "containerd.toml"
        path.write_text(
            f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{SANDBOX_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{self._spec.programs}"]
    conf_dir = "{self._folder / "cni"}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
        )
        return str(path)

    def _import_images(self) -> None:
        ctr = [self._program("ctr"), "--address", SOCKET, "--namespace", "k8s.io"]
        deadline = time.monotonic() + CONTAINERD_TIMEOUT
        while subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise SystemExit("containerd does not answer")
            time.sleep(0.1)
        for image in self._spec.images:
            subprocess.run([*ctr, "images", "import", image], check=True)

    def _write_kubelet_config(self) -> str:
        nothing = dict.fromkeys(("nodefs.available", "imagefs.available"), "0%")
        config: Mapping[str, object] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._spec.cgroup,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "1Mi", **nothing},
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "clusterDNS": list(self._spec.cluster_dns),
            "clusterDomain": self._spec.cluster_domain,
            "resolvConf": "/etc/resolv.conf",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "makeIPTablesUtilChains": False,
            "shutdownGracePeriod": "0s",
        }
        path = self._folder / "kubelet.json"
        path.write_text(json.dumps(config))
        return str(path)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main(arguments: Sequence[str]) -> None:
    """Become the node of a specification."""
    spec = NodeSpec(**json.loads(Path(arguments[0]).read_text()))
    cgroups.enter(spec.cgroup)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Node(spec).run()


if __name__ == "__main__":
    main(sys.argv[1:])
