# SPDX-License-Identifier: Apache-2.0
"""Run in a network namespace of its own: two API servers behind `default/kubernetes`, no route to Service addresses.

The agent is given one API server, finds the other by its endpoints, and goes on with that one when the first is killed.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from svcproxy.testing.control_plane import ControlPlane
from tests.e2e.harness import SERVICES, SLICES, AgentProcess, endpoint_slice, eventually, service

HOSTS = ("10.77.0.10", "10.77.0.11")
KUBERNETES_VIP = "10.96.0.1"


def prepare() -> None:
    """The namespace: loopback and two addresses, nothing else."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for host in HOSTS:
        subprocess.run(["ip", "address", "add", f"{host}/32", "dev", "lo"], check=True)
    found = subprocess.run(["ip", "route", "get", KUBERNETES_VIP], capture_output=True, check=False)
    assert found.returncode != 0, "there is a route to Service addresses"


async def main() -> None:
    prepare()
    with (
        ControlPlane(host=HOSTS[0], server_hosts=HOSTS) as plane,
        tempfile.TemporaryDirectory() as directory,
        AgentProcess(Path(directory), "--kubeconfig", str(plane.kubeconfig())) as agent,
    ):
        await agent.ready()
        await eventually(
            lambda: len(agent.get("/v1/services/default/kubernetes")["endpoints"]) == len(HOSTS),
            "both API servers are endpoints of default/kubernetes",
        )
        plane.apiservers[0].kill()
        plane.request("POST", SERVICES, service("late"), server=1)
        plane.request("POST", SLICES, endpoint_slice("late-1", "late", ["10.1.0.1"]), server=1)
        await eventually(
            lambda: ("default/late:http", frozenset({"10.1.0.1:8080"})) in agent.frontends().values(),
            "the agent follows the other API server",
        )
        servers = {source["server"] for source in agent.get("/v1/status")["sources"]}
        assert plane.urls[1] in servers, servers
        assert agent.stop() == 0
        agent.start()
        await agent.ready()
        await eventually(lambda: agent.readiness().get("stale") is False, "started again, it remembers where to go")
    print("served without a route to Service addresses")


if __name__ == "__main__":
    os.environ.pop("KUBECONFIG", None)
    sys.exit(asyncio.run(main()))
