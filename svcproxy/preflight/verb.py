# SPDX-License-Identifier: Apache-2.0
"""`svcproxy preflight`: whether this node has what svcproxy needs, and what stands in the way. Changes nothing."""

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from svcproxy.client.console import Console, console
from svcproxy.config import Config
from svcproxy.errors import ConfigError
from svcproxy.options import from_arguments
from svcproxy.preflight.checks import Check, Result, Role, Verdict, run_all

_GROUPS = {
    Role.AGENT: (
        "svcproxy.preflight.kernel",
        "svcproxy.preflight.host",
        "svcproxy.preflight.ports",
        "svcproxy.preflight.cluster",
    ),
    Role.DNS: ("svcproxy.preflight.host", "svcproxy.preflight.ports", "svcproxy.preflight.resolvers"),
}
"""Modules with the checks of each role; only what is asked for is loaded."""
_MARKS = {Verdict.OK: "ok", Verdict.WARNING: "warning", Verdict.FAILURE: "FAILURE"}


def run(arguments: argparse.Namespace) -> int:
    """Print what each check finds. Returns 1 if svcproxy would not serve, else 0."""
    configuration, config = _configuration(arguments)
    if arguments.role == "all":  # as `svcproxy run` starts them
        roles = frozenset(Role) if config.dns.enabled else frozenset({Role.AGENT})
    else:
        roles = frozenset({Role(arguments.role)})
    results = [configuration, *run_all(_checks(roles), config)]
    if arguments.output == "json":
        console().json({"checks": results, "counts": _counts(results)})
    else:
        show(console(), results)
    sys.stdout.flush()
    return 1 if any(each.verdict is Verdict.FAILURE for each in results) else 0


def _configuration(arguments: argparse.Namespace) -> tuple[Result, Config]:
    """Whether the configuration is valid, and what the other checks go by: the defaults, if it is not."""
    name = "configuration"
    try:
        config = from_arguments(arguments)
    except ConfigError as exc:
        advice = "correct it; the checks below go by the defaults"
        text = "; ".join(map(str, exc.problems))
        bare = argparse.Namespace(node_name=getattr(arguments, "node_name", None))
        return Result(name, Verdict.FAILURE, text, advice), _defaults(bare)
    given = getattr(arguments, "config", None)
    return Result(name, Verdict.OK, f"{given}: valid" if given else "valid: defaults and flags"), config


def _defaults(arguments: argparse.Namespace) -> Config:
    try:
        return from_arguments(arguments)
    except ConfigError:
        return Config()


def _checks(roles: frozenset[Role]) -> Iterator[Check]:
    """The checks of the roles, each once."""
    seen: set[str] = set()
    for role in Role:
        for module in _GROUPS[role] if role in roles else ():
            checks: Sequence[Check] = importlib.import_module(module).CHECKS
            for each in checks:
                if each.roles & roles and each.name not in seen:
                    seen.add(each.name)
                    yield each


def _counts(results: Sequence[Result]) -> dict[str, int]:
    counted = Counter(each.verdict for each in results)
    return {verdict.value: counted[verdict] for verdict in Verdict}


def show(out: Console, results: Sequence[Result]) -> None:
    """A line for each check; below it what to do."""
    width = max(len(each.name) for each in results)
    for each in results:
        out.line(f"{_MARKS[each.verdict]:8} {each.name:{width}}  {_printable(each.found)}")
        if each.advice:
            out.line(f"{'':8} {'':{width}}  -> {_printable(each.advice)}")
    counts = _counts(results)
    out.line()
    out.line(", ".join(f"{counts[verdict.value]} {verdict.value}" for verdict in Verdict))


def _printable(text: str) -> str:
    """What comes from outside in one line, without control characters."""
    return "".join(char if char.isprintable() else " " for char in text)
