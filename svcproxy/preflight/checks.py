# SPDX-License-Identifier: Apache-2.0
"""What a check finds, and how checks are run: each in a thread of its own, within its time, whatever the others do."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from svcproxy.config import Config

TIMEOUT = 10.0
"""Seconds that a check may take; local ones take milliseconds."""


class Verdict(StrEnum):
    """What a finding means."""

    OK = "ok"
    WARNING = "warning"
    """svcproxy serves, but not all or not as well as it could."""
    FAILURE = "failure"
    """svcproxy does not serve."""


class Role(StrEnum):
    """Which role needs it."""

    AGENT = "agent"
    DNS = "dns"


@dataclass(frozen=True, slots=True)
class Result:
    """What a check has found."""

    name: str
    verdict: Verdict
    found: str
    """What there is, for people."""
    advice: str = ""
    """What to do; empty if there is nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says, without its name."""

    verdict: Verdict
    found: str
    advice: str = ""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding(Verdict.OK, found)


def warning(found: str, advice: str) -> Finding:
    """See `Verdict`."""
    return Finding(Verdict.WARNING, found, advice)


def failure(found: str, advice: str) -> Finding:
    """See `Verdict`."""
    return Finding(Verdict.FAILURE, found, advice)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at."""

    name: str
    look: Callable[[Config], Finding]
    """May raise anything, and may take longer than it should."""
    roles: frozenset[Role] = frozenset(Role)
    timeout: float = TIMEOUT


def run(check: Check, config: Config) -> Result:
    """What a check finds within its time. Raises nothing."""
    found: list[Finding] = []

    def look() -> None:
        try:
            found.append(check.look(config))
        except Exception as exc:  # noqa: BLE001  # whatever it is, it must not stop the other checks
            text = f"the check itself failed: {type(exc).__name__}: {exc}"
            found.append(failure(text, "report this, with the output of `svcproxy version`"))

    thread = threading.Thread(target=look, name=check.name, daemon=True)
    thread.start()
    thread.join(check.timeout)
    if not found:
        late = f"no answer within {check.timeout:g} s"
        return Result(check.name, Verdict.FAILURE, late, "something on the node hangs: see its logs, then try again")
    return Result(check.name, found[0].verdict, found[0].found, found[0].advice)


def run_all(checks: Iterable[Check], config: Config) -> list[Result]:
    """What all checks find, in their order."""
    return [run(check, config) for check in checks]
