# SPDX-License-Identifier: Apache-2.0
"""What a check finds, and how checks are run: all at once, each within its time, whatever the others do."""

import threading
import time
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


class _Running:
    """A check on its way, in a thread that nobody waits for longer than the check may take."""

    def __init__(self, check: Check, config: Config) -> None:
        self._check = check
        self._config = config
        self._found: list[Finding] = []
        self._deadline = time.monotonic() + check.timeout
        self._thread = threading.Thread(target=self._look, name=check.name, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            self._found.append(self._check.look(self._config))
        except Exception as exc:  # noqa: BLE001  # whatever it is, it must not stop the other checks
            text = f"the check itself failed: {type(exc).__name__}: {exc}"
            self._found.append(failure(text, "report this, with the output of `svcproxy version`"))

    def result(self) -> Result:
        """What it has found, once it has or its time is over."""
        check = self._check
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if not self._found:
            late = f"no answer within {check.timeout:g} s"
            return Result(
                check.name, Verdict.FAILURE, late, "something on the node hangs: see its logs, then try again"
            )
        [finding] = self._found
        return Result(check.name, finding.verdict, finding.found, finding.advice)


def run_all(checks: Iterable[Check], config: Config) -> list[Result]:
    """What all checks find, in their order; they run at the same time. Raises nothing."""
    running = [_Running(check, config) for check in checks]
    return [each.result() for each in running]
