# SPDX-License-Identifier: Apache-2.0
"""A cluster for people.

python -m tests.cluster up [SIZE]              start it, with svcproxy installed; it stays
python -m tests.cluster down                   end it; also removes what other clusters have left that were killed
python -m tests.cluster kubectl WORD…
python -m tests.cluster exec PLACE COMMAND…    on a node as its host's processes do, or in control-plane or outside
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from svcproxy.testing import binaries
from tests.cluster import cluster
from tests.cluster.install import install

NAME = "dev"
STATE = cluster.CLUSTERS / NAME / "state.json"
LOG = cluster.CLUSTERS / f"{NAME}.log"
STOP_TIMEOUT = 30.0


def up(size: int) -> None:
    """Start a process that holds the cluster, and return when it is ready."""
    if cluster.holder(NAME):
        raise SystemExit("it is up already, or was not taken down: make cluster-down")
    cluster.sweep()
    cluster.CLUSTERS.mkdir(parents=True, exist_ok=True)
    with LOG.open("wb") as log:
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster", "hold", str(size)],
            cwd=cluster.CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not STATE.exists():
        if holder.poll() is not None:
            raise SystemExit(f"it did not start:\n{LOG.read_text()}")
        time.sleep(0.2)
    own = ".venv/bin/python -m tests.cluster"
    print(f"kubeconfig: {read_state()['kubeconfig']} (in the network namespace control-plane)")
    print(f"use:        {own} kubectl get pods --all-namespaces --output wide")
    print(f"look:       {own} exec node1 nft list tables; {own} exec outside ip route")
    print(f"logs:       {STATE.parent}/node1/kubelet.log")
    print("end:        make cluster-down")


def hold(size: int) -> None:
    """Be the process that holds the cluster, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with cluster.Cluster(NAME, size) as running:
        install(running)
        cluster.write_state(running)
        signal.pause()


def down() -> None:
    """End the holder, and what is left."""
    if pid := cluster.holder(NAME):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while pid := cluster.holder(NAME):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    cluster.sweep()
    LOG.unlink(missing_ok=True)


def read_state() -> dict[str, Any]:
    """Of a cluster that somebody holds; else empty."""
    if cluster.holder(NAME):
        with suppress(FileNotFoundError):
            state: dict[str, Any] = json.loads(STATE.read_text())
            return state
    return {}


def enter(place: str, command: Sequence[str]) -> NoReturn:
    """Become a command in a place of the cluster."""
    if not (state := read_state()):
        raise SystemExit("there is no cluster: make cluster")
    if place in state["nodes"]:
        into = [f"--target={state['nodes'][place]}", "--mount", "--uts", "--ipc", "--net", "--pid"]
    elif place in state["network_namespaces"]:
        into = [f"--net={state['network_namespaces'][place]}"]
    else:
        raise SystemExit(
            f"no such place: {place}; there are {', '.join([*state['nodes'], *state['network_namespaces']])}"
        )
    os.execvp("nsenter", ["nsenter", *into, *command])


def main(words: Sequence[str]) -> None:
    """Do as the words say."""
    match words:
        case ["up"]:
            up(3)
        case ["up", size]:
            up(int(size))
        case ["hold", size]:
            hold(int(size))
        case ["down"]:
            down()
        case ["kubectl", *arguments]:
            kubectl = [str(binaries.find("kubectl")), f"--kubeconfig={read_state().get('kubeconfig')}"]
            enter("control-plane", [*kubectl, *arguments])
        case ["exec", place, *command] if command:
            enter(place, command)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
