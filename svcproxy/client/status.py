# SPDX-License-Identifier: Apache-2.0
"""`svcproxy status`: how an instance is, for people, for programs and for probes."""

import argparse
import http.client
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from svcproxy import api
from svcproxy.client.connection import ClientError, StatusClient, find_instance, worker_instances
from svcproxy.client.console import Console, Table, console, duration, milliseconds, or_dash
from svcproxy.client.explanation import UPSTREAM_COLUMNS, upstream_row
from svcproxy.process.instance import InstancePaths

PROBE_TIMEOUT = 5.0
"""Seconds a probe waits for its answer."""
AGENT = "agent"


def run(arguments: argparse.Namespace) -> int:
    """Show the status, or answer a probe by the exit code."""
    if arguments.probe:
        return _probe(Path(arguments.run_dir), arguments.instance, arguments.role, arguments.probe)
    run_dir, out = Path(arguments.run_dir), console()
    if arguments.role != AGENT:
        return _show_workers(
            [_worker_status(each) for each in worker_instances(run_dir, "dns", arguments.instance)],
            arguments.output,
            out,
        )
    workers = list(_workers_that_answer(run_dir, arguments.instance))
    try:
        answer = StatusClient(find_instance(run_dir, arguments.instance).admin_socket).get("/v1/status", api.Status)
    except ClientError:
        if workers:
            _show_workers(workers, arguments.output, out)
        raise
    if arguments.output == "json":
        out.json(msgspec.to_builtins(answer) | {"dns": workers})
    else:
        show(answer, out)
        for table in dns_tables(workers):
            out.line()
            out.table(table)
    return 0


def _show_workers(workers: list[api.DnsStatus], output: str, out: Console) -> int:
    if output == "json":
        out.json({"dns": workers})
    else:
        for number, table in enumerate(dns_tables(workers)):
            if number:
                out.line()
            out.table(table)
    return 0


def _worker_status(instance: InstancePaths) -> api.DnsStatus:
    return StatusClient(instance.admin_socket).get("/v1/status", api.DnsStatus)


def _workers_that_answer(run_dir: Path, name: str) -> Iterator[api.DnsStatus]:
    """Those that do not have probes to say so."""
    with suppress(ClientError):
        for instance in worker_instances(run_dir, "dns", name):
            with suppress(ClientError):
                yield _worker_status(instance)


def dns_tables(workers: Sequence[api.DnsStatus]) -> Iterator[Table]:
    """DNS workers, and the resolvers that they ask; none without workers."""
    if not workers:
        return
    yield Table(
        ("WORKER", "STATE", "FEED", "REVISION", "QUERIES", "SERVFAIL", "CACHED", "LISTENS ON"),
        [
            (
                each.name,
                _state(each.readiness),
                each.feed,
                str(each.revision),
                str(each.queries),
                str(each.failures),
                str(each.cached),
                or_dash(each.listen),
            )
            for each in workers
        ],
        "DNS",
    )
    troubles = [(each.name, reason) for each in workers for reason in (*each.readiness.reasons, *each.config_errors)]
    if troubles:
        yield Table(("WORKER", "PROBLEM"), troubles, "Problems of DNS")
    if any(each.upstreams for each in workers):
        yield Table(
            ("WORKER", *UPSTREAM_COLUMNS),
            [(each.name, *upstream_row(upstream)) for each in workers for upstream in each.upstreams],
            "Upstreams of DNS",
        )


def _probe(run_dir: Path, name: str, role: str, probe: str) -> int:
    """0 if every process of the role says yes, else 1 with the reasons on standard error."""
    instances = [find_instance(run_dir, name)] if role == AGENT else worker_instances(run_dir, role, name)
    failed = 0
    for instance in instances:
        answer = StatusClient(instance.admin_socket, PROBE_TIMEOUT).ask(f"/{probe}")
        if answer.status != http.client.OK:
            failed += 1
            where = instance.admin_socket.relative_to(run_dir)
            sys.stderr.write(f"{where}: {probe}: {answer.status}: {_reasons(answer.body)}\n")
    return 1 if failed else 0


def _reasons(body: bytes) -> str:
    """Why not; a body without reasons (kube-proxy's) as it is."""
    try:
        return "; ".join(msgspec.json.decode(body, type=api.Readiness).reasons)
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")


def show(status: api.Status, out: Console) -> None:
    """The status in words and tables; sections without content are left out."""
    rows = list(_head(status))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        out.line(f"{name.ljust(width)}   {text}")
    for table in _tables(status):
        if table.rows:
            out.line()
            out.table(table)


def _head(status: api.Status) -> Iterator[tuple[str, str]]:
    yield "Node", status.node
    about = f"svcproxy {status.version}, pid {status.pid}, up {duration(status.uptime)}"
    yield "Instance", f"{status.instance} ({about})"
    yield "State", _state(status.readiness)
    for reason in status.readiness.reasons:
        yield "", reason
    counts = status.counts
    yield (
        "Objects",
        (f"{counts.services} Services, {counts.endpoint_slices} EndpointSlices, {counts.namespaces} Namespaces"),
    )
    yield (
        "Data plane",
        f"{status.dataplane}: {counts.frontends} frontends, {counts.backends} backends"
        + (f", {status.refused_count} REFUSED" if status.refused_count else ""),
    )
    if counts.health_checks:
        yield "Health checks", f"{counts.health_checks} Services with a health-check node port"
    yield "Feed", f"revision {status.revision}, {len(status.workers)} workers"
    for error in status.config_errors:
        yield "CONFIG ERROR", error


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _state(readiness: api.Readiness) -> str:
    if readiness.waiting:
        return "waiting: another instance holds the node"
    if not readiness.ready:
        return "NOT READY"
    return "ready, STALE" if readiness.stale else "ready"


def _tables(status: api.Status) -> Iterator[Table]:
    yield Table(
        ("KIND", "SYNCED", "CONTACT", "SERVER", "ERROR"),
        [
            (each.kind, _yes(each.synced), duration(each.contact_age), each.server, each.error or "-")
            for each in status.sources
        ],
        "Sources",
    )
    yield Table(
        ("WORKER", "REVISION", "LAG", "ACKNOWLEDGED"),
        [(each.name, str(each.revision), str(each.lag), _ago(each.ack_age)) for each in status.workers],
        "Workers",
    )
    yield Table(
        ("ROLE", "STATE", "PID", "RESTARTS", "LAST END"),
        [
            (
                each.name,
                f"{each.state}, CRASH LOOP" if each.crash_loop else each.state,
                "-" if each.pid is None else str(each.pid),
                str(each.restarts),
                each.detail or "-",
            )
            for each in status.roles
        ],
        "Roles",
    )
    yield Table(
        ("EVENT TO", "CHANGES", "P50", "P99", "LAST"),
        [
            (each.stage, str(each.count), *map(milliseconds, (each.p50, each.p99, each.last)))
            for each in status.latencies
        ],
        "Latency",
    )
    yield Table(
        ("FEATURE", "ERROR", "INSTEAD"),
        [(each.name, each.detail, each.fallback) for each in status.probes if not each.ok],
        "Features that the kernel lacks",
    )
    yield Table(
        ("PARAMETER", "WANTED", "BEFORE", "NOW", "ERROR"),
        [
            (each.name, str(each.wanted), _number(each.before), _number(each.after), each.error or "-")
            for each in status.settings
            if each.error or each.before != each.after
        ],
        "Parameters of the kernel that were to be changed",
    )
    yield Table(
        ("IMPLEMENTATION", "AT WORK", "FOUND"),
        [
            (each.implementation, {True: "yes", False: "no", None: "unknown"}[each.alive], ", ".join(each.evidence))
            for each in status.others
        ],
        "Other implementations of Services, as found at start",
    )
    yield Table(
        ("FRONTEND", "SERVICE", "REASON"),
        [(each.frontend, each.service or "-", each.reason) for each in status.refused],
        _title("Refused frontends", len(status.refused), status.refused_count),
    )
    yield Table(
        ("FRONTEND", "SERVICE", "HOW IT IS SERVED"),
        [(each.frontend, each.service or "-", each.reason) for each in status.compromised],
        _title("Frontends served otherwise than asked for", len(status.compromised), status.compromised_count),
    )
    yield Table(
        ("ADDRESS", "SERVED FOR", "ALSO CLAIMED BY"),
        [(each.frontend, each.winner, ", ".join(each.losers)) for each in status.conflicts],
        _title("Address conflicts", len(status.conflicts), status.conflicts_count),
    )
    yield Table(
        ("SERVICE", "PROBLEM"),
        [(each.service, message) for each in status.problems for message in each.messages],
        _title("Problems", len(status.problems), status.problems_count),
    )
    yield Table(
        ("KIND", "NAME", "SEEN", "TIMES", "REASON"),
        [(each.kind or "?", each.name or "?", _ago(each.age), str(each.count), each.reason) for each in status.invalid],
        _title("Invalid objects", len(status.invalid), status.invalid_count),
    )
    yield Table(
        ("LISTENER", "ADDRESS", "STATE"),
        [(each.name, each.address, each.error or "listening") for each in status.listeners],
        "Listeners",
    )


def _title(text: str, shown: int, count: int) -> str:
    return text if shown == count else f"{text} ({shown} of {count})"


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"
