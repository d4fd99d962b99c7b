# SPDX-License-Identifier: Apache-2.0
"""`svcproxy services` and `svcproxy endpoints`: what the instance knows, as kubectl would show it."""

import argparse
from pathlib import Path

from svcproxy import api
from svcproxy.client.connection import StatusClient, find_instance
from svcproxy.client.console import Console, Table, console, duration, or_dash
from svcproxy.errors import ConfigError, Problem

ENDPOINTS_IN_LINE = 3
"""Endpoints spelt out in one line of the list."""


def services(arguments: argparse.Namespace) -> int:
    """List Services, or show one with its frontends and endpoints."""
    client = _client(arguments)
    if arguments.service:
        detail = client.get(f"/v1/services/{_qualified(arguments)}", api.ServiceDetail)
        if arguments.output == "json":
            console().json(detail)
        else:
            _show_service(detail, console())
        return 0
    question = _namespace(arguments)
    items = [item for page in client.pages("/v1/services", api.ServicePage, question) for item in page.items]
    if arguments.output == "json":
        console().json(api.ServicePage(tuple(items)))
    else:
        console().table(services_table(items))
    return 0


def endpoints(arguments: argparse.Namespace) -> int:
    """List the endpoints of every Service, or show those of one with their conditions."""
    client = _client(arguments)
    if arguments.service:
        detail = client.get(f"/v1/services/{_qualified(arguments)}", api.ServiceDetail)
        if arguments.output == "json":
            console().json(detail.endpoints)
        else:
            console().table(_endpoints(detail.endpoints))
        return 0
    question = _namespace(arguments)
    items = [item for page in client.pages("/v1/endpoints", api.EndpointsPage, question) for item in page.items]
    if arguments.output == "json":
        console().json(api.EndpointsPage(tuple(items)))
    else:
        rows = [(item.namespace, item.name, _summary(item)) for item in items]
        console().table(Table(("NAMESPACE", "NAME", "ENDPOINTS"), rows))
    return 0


def _client(arguments: argparse.Namespace) -> StatusClient:
    return StatusClient(find_instance(Path(arguments.run_dir), arguments.instance).admin_socket)


def _namespace(arguments: argparse.Namespace) -> dict[str, str]:
    return {"namespace": arguments.namespace} if arguments.namespace else {}


def _qualified(arguments: argparse.Namespace) -> str:
    """`namespace/name` of the Service that was named, in either form. Raises `ConfigError`."""
    namespace, slash, name = arguments.service.rpartition("/")
    if slash and (not namespace or "/" in namespace):
        raise ConfigError([Problem(f"{arguments.service!r} is not NAME or NAMESPACE/NAME", path="SERVICE")])
    return f"{namespace or arguments.namespace or 'default'}/{name}"


def services_table(items: list[api.ServiceSummary], title: str = "") -> Table:
    """Services, one on a line."""
    rows = [
        (
            each.namespace,
            each.name,
            each.type,
            or_dash(each.cluster_ips),
            or_dash(each.external),
            or_dash(each.ports),
            f"{each.ready}/{each.endpoints}",
            duration(each.age),
        )
        for each in items
    ]
    return Table(("NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "READY", "AGE"), rows, title)


def _show_service(detail: api.ServiceDetail, out: Console) -> None:
    out.table(services_table([detail.summary]))
    out.line()
    rows = [
        (
            each.frontend,
            each.kind,
            each.policy,
            or_dash(each.backends, ENDPOINTS_IN_LINE) if each.backends else f"none: {each.when_empty}",
            _options(each),
        )
        for each in detail.frontends
    ]
    out.table(Table(("FRONTEND", "KIND", "POLICY", "BACKENDS", "OPTIONS"), rows, "Frontends"))
    out.line()
    out.table(_endpoints(detail.endpoints, "Endpoints"))


def _options(frontend: api.FrontendDetail) -> str:
    """What is special about a frontend."""
    options = []
    if frontend.affinity_timeout is not None:
        options.append(f"affinity {frontend.affinity_timeout} s")
    if frontend.source_ranges is not None:
        options.append(f"from {or_dash(frontend.source_ranges)}")
    if frontend.refused:
        options.append(f"REFUSED: {frontend.refused}")
    return "; ".join(options) or "-"


def _endpoints(details: tuple[api.EndpointDetail, ...], title: str = "") -> Table:
    rows = [
        (
            each.address,
            or_dash(each.ports),
            *("yes" if condition else "no" for condition in (each.ready, each.serving, each.terminating)),
            each.node or "-",
            or_dash(each.zones),
            each.pod or "-",
            each.slice,
        )
        for each in details
    ]
    columns = ("ADDRESS", "PORTS", "READY", "SERVING", "TERMINATING", "NODE", "ZONE HINTS", "POD", "SLICE")
    return Table(columns, rows, title)


def _summary(item: api.EndpointsSummary) -> str:
    """`10.0.0.1:8080,10.0.0.2:8080 + 7 more...` of the ready ones, as kubectl does."""
    ready = [
        f"[{each.address}]:{port}" if ":" in each.address else f"{each.address}:{port}"
        for each in item.endpoints
        if each.ready
        for port in ([entry.rpartition("/")[0].rpartition(":")[2] for entry in each.ports] or ["-"])
    ]
    return or_dash(ready, ENDPOINTS_IN_LINE) if ready else "<none>"
