# SPDX-License-Identifier: Apache-2.0
"""`svcproxy trace` and `svcproxy env`: what this node would do with a connection, and tell a Pod of its Services."""

import argparse
from pathlib import Path

from svcproxy import api
from svcproxy.client.connection import StatusClient, find_instance
from svcproxy.client.console import Console, Table, console


def run(arguments: argparse.Namespace) -> int:
    """Explain, step by step, what becomes of a new connection. 1 if it would not reach a backend, or not as wanted."""
    instance = find_instance(Path(arguments.run_dir), arguments.instance)
    question = {"address": arguments.address} | ({"from": arguments.source} if arguments.source else {})
    answer = StatusClient(instance.admin_socket).get("/v1/trace", api.Trace, question)
    out = console()
    if arguments.output == "json":
        out.json(answer)
    else:
        show(answer, out)
    return 0 if answer.verdict == "forward" and (answer.kernel is None or answer.kernel.agrees) else 1


def show(answer: api.Trace, out: Console) -> None:
    """The steps in words, and the endpoints that were looked at."""
    out.line(f"{answer.destination} from {answer.source or 'outside'}")
    for number, step in enumerate(answer.steps, start=1):
        out.line(f"{number:3}. {step.text}")
    if answer.kernel is not None:
        out.line(f"     the kernel: {'; '.join(answer.kernel.path)}")
        out.line(
            "     the kernel agrees" if answer.kernel.agrees else f"     THE KERNEL DIFFERS: {answer.kernel.difference}"
        )
    if answer.endpoints:
        rows = [
            (each.backend, "yes" if each.selected else "no", each.reason, each.node or "-", each.slice)
            for each in answer.endpoints
        ]
        shown, total = len(answer.endpoints), answer.endpoints_total
        title = "Endpoints" if shown == total else f"Endpoints ({shown} of {total})"
        out.line()
        out.table(Table(("BACKEND", "SELECTED", "BECAUSE", "NODE", "SLICE"), rows, title))


def environment(arguments: argparse.Namespace) -> int:
    """Print the variables of Services, one `NAME=value` on each line."""
    instance = find_instance(Path(arguments.run_dir), arguments.instance)
    question = {"namespace": arguments.namespace or "default", "service": arguments.service}
    answer = StatusClient(instance.admin_socket).get("/v1/env", api.Environment, question)
    if arguments.output == "json":
        console().json({each.name: each.value for each in answer.variables})
    else:
        for each in answer.variables:
            console().line(f"{each.name}={each.value}")
    return 0
