# SPDX-License-Identifier: Apache-2.0
"""Why a name is answered as it is: from the DNS workers what they would answer, from the agent what it is made of.

Either is of use without the other; what cannot be asked is noted.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from svcproxy import api, syntax
from svcproxy.client.connection import ClientError, StatusClient, find_instance, worker_instances
from svcproxy.client.console import Console, Table
from svcproxy.client.listing import services_table

ENDPOINTS_SHOWN = 20
UPSTREAM_COLUMNS = ("UPSTREAM", "STATE", "UNANSWERED")

T = TypeVar("T")


@dataclass(slots=True)
class Node:
    """The instances of this node that can be asked."""

    agent: StatusClient | None = None
    workers: list[StatusClient] = field(default_factory=list)
    listen: list[str] = field(default_factory=list)
    """ADDRESS:PORT that DNS is answered on."""
    zones: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be asked, and why."""

    @property
    def domain(self) -> str:
        """The first cluster domain, empty if nobody knows."""
        return next((zone for zone in self.zones if not syntax.is_reverse(zone)), "")

    def explain(self, name: str, qtype: str) -> api.Explanation | None:
        """What the first worker that can be asked says."""
        for worker in self.workers:
            found = self._try(lambda: worker.get("/v1/resolve", api.Explanation, {"name": name, "type": qtype}))  # noqa: B023
            if found is not None:
                return found
        return None

    def service(self, key: str) -> api.ServiceDetail | None:
        """A Service as the agent knows it."""
        agent = self.agent
        if agent is None:
            return None
        try:
            return agent.get(f"/v1/services/{key}", api.ServiceDetail)
        except ClientError as exc:
            self.notes.append(f"the agent: {exc}")
            return None

    def _try(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except ClientError as exc:
            self.notes.append(str(exc))
            return None


def find_node(arguments: argparse.Namespace) -> Node:
    """Who is there. Raises `ClientError` if nobody knows where DNS is answered."""
    node, run_dir = Node(), Path(arguments.run_dir)
    try:
        agent = StatusClient(find_instance(run_dir, arguments.instance).admin_socket)
        dns: Any = agent.get_json("/v1/config")["dns"]
        node.agent, node.listen, node.zones = agent, dns["listen"], dns["zones"]
    except ClientError as exc:
        node.notes.append(f"no agent to ask: {exc}")
    listen: set[str] = set()
    for worker in _workers(node, run_dir, arguments.instance):
        try:
            status = worker.get("/v1/status", api.DnsStatus)
        except ClientError as exc:
            node.notes.append(f"a DNS worker cannot be asked: {exc}")
            continue
        node.workers.append(worker)
        node.zones = list(status.zones)
        listen.update(each.partition("/")[2] for each in status.listen)
    node.listen = sorted(listen) or node.listen
    if node.agent is None and not node.workers:
        raise ClientError("; ".join(node.notes))
    return node


def _workers(node: Node, run_dir: Path, name: str) -> list[StatusClient]:
    try:
        return [StatusClient(each.admin_socket) for each in worker_instances(run_dir, "dns", name)]
    except ClientError as exc:
        node.notes.append(f"no DNS worker to ask: {exc}")
        return []


def service_named(name: str, domain: str) -> str:
    """`namespace/name` of the Service that a name in a cluster domain is about; empty if it is about none."""
    labels = name.lower().removesuffix(".").removesuffix(domain).strip(".").split(".")
    return f"{labels[-2]}/{labels[-3]}" if len(labels) > 2 and labels[-1] == "svc" else ""


def show_explanation(found: api.Explanation, out: Console) -> None:
    """The steps in words, and whom upstream is asked."""
    for number, step in enumerate(found.steps, start=1):
        out.line(f"{number:3}. {step.text}")
    if found.upstreams:
        out.line()
        out.table(Table(UPSTREAM_COLUMNS, list(map(upstream_row, found.upstreams)), "Upstreams"))


def upstream_row(each: api.DnsUpstream) -> tuple[str, str, str]:
    """A resolver, and how it is: `UPSTREAM_COLUMNS`."""
    return each.address, _state(each), str(each.unanswered)


def _state(upstream: api.DnsUpstream) -> str:
    if upstream.looping:
        return "LOOPING: it asks this server"
    return "SUSPECT: it left the last query unanswered" if upstream.suspect else "well"


def show_service(detail: api.ServiceDetail, out: Console) -> None:
    """What the answer is made of."""
    summary = detail.summary
    key = f"{summary.namespace}/{summary.name}"
    out.line()
    out.table(services_table([summary], f"Service {key}, as the agent knows it"))
    if not detail.endpoints:
        return
    shown = detail.endpoints[:ENDPOINTS_SHOWN]
    count = f" ({len(shown)} of {len(detail.endpoints)})" if len(shown) < len(detail.endpoints) else ""
    rows = [(each.address, "yes" if each.ready else "no", each.pod or "-", each.slice) for each in shown]
    out.line()
    out.table(Table(("ADDRESS", "READY", "POD", "SLICE"), rows, f"Endpoints of {key}{count}"))
