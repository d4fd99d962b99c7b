# SPDX-License-Identifier: Apache-2.0
"""Carries out what the core decides for one launch plan. One thread, no event loop: it sleeps in sigtimedwait(2).

All its signals stay blocked, so that none can be lost between a look and a sleep. SIGTERM and SIGINT stop the roles,
a second one kills them; SIGHUP is forwarded. A killed supervisor takes its children with it (svcproxy.process.child).
As process 1 of a container it reaps orphans too.
"""

import contextlib
import importlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from svcproxy.process.child import LaunchError, launch
from svcproxy.process.descriptor_store import STORE_VARIABLE, DescriptorStore
from svcproxy.process.logs import configure
from svcproxy.process.supervision import LaunchPlan, RolePlan, RoleState, RoleStatus, remove_status, write_status
from svcproxy.supervisor.core import USAGE, Forget, Send, Start, Supervision

if TYPE_CHECKING:
    from svcproxy.supervisor.interception import Interception

log = logging.getLogger("svcproxy.supervisor")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Supervisor:
    """One run of a launch plan."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._core = Supervision(plan, time.monotonic())
        self._epoch = time.time() - time.monotonic()
        self._status_file = Path(plan.status_file)
        self._written: tuple[RoleStatus, ...] = ()
        self._interception: Interception | None = None
        if plan.interception is not None:
            # Loaded here, for most supervisors need none of it.
            module = importlib.import_module("svcproxy.supervisor.interception")
            self._interception = module.Interception(plan.interception.addresses, time.monotonic())
        self._stores = {number: DescriptorStore.make() for number, role in enumerate(plan.roles) if role.keeps_sockets}

    def run(self) -> int:
        """Keep everything running until told to stop, or until a role cannot be run. Returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            while True:
                self._carry_out()
                if self._core.finished:
                    return self._core.exit_code
                self._write_status()
                self._intercept()
                self._sleep()
                self._reap()
        finally:
            if self._interception is not None:
                self._interception.close()
            remove_status(self._status_file)

    def _carry_out(self) -> None:
        for command in self._core.commands(time.monotonic()):
            match command:
                case Start(number):
                    self._start(number)
                case Forget(number):
                    self._stores[number].clear()
                case Send(number, pid, what):
                    if what is signal.SIGKILL:
                        log.warning("role does not end, killing it", extra=self._facts(number, pid))
                        _send_to_group(pid, what)
                    else:
                        _send(pid, what)

    def _start(self, number: int) -> None:
        plan = self._plan.roles[number]
        try:
            pid = self._launch(number)
        except LaunchError as exc:
            log.error("role cannot be started", extra={"object": plan.name, "cause": str(exc)})  # noqa: TRY400  # it says all
            self._core.not_started(number, str(exc), time.monotonic())
        else:
            self._core.started(number, pid, time.monotonic())
            log.info("role started", extra=self._facts(number, pid))

    def _launch(self, number: int) -> int:
        plan = self._plan.roles[number]
        inherited = self._stores[number].descriptors if number in self._stores else ()
        environment = os.environ | plan.environment
        if inherited:
            environment[STORE_VARIABLE] = ",".join(map(str, inherited))
        if self._interception is None or not self._proves(plan):
            return launch(plan.argv, environment, plan.privileges, inherited)
        try:
            descriptor, told = self._interception.open(number)
        except OSError as exc:
            raise LaunchError(f"pipe: {exc.strerror}") from exc
        try:
            return launch(plan.argv, environment | told, plan.privileges, (*inherited, descriptor))
        except LaunchError:
            self._interception.ended(number)
            raise
        finally:
            os.close(descriptor)

    def _proves(self, role: RolePlan) -> bool:
        return self._plan.interception is not None and role.group == self._plan.interception.group

    def _intercept(self) -> None:
        """Renew what is intercepted when it is time, and kill workers that hang."""
        now = time.monotonic()
        if self._interception is None or now < self._interception.due:
            return
        for number in self._interception.turn(now):
            role = self._core.statuses(self._epoch)[number]
            if role.state is RoleState.RUNNING and role.pid is not None:
                log.warning("role hangs, killing it", extra=self._facts(number, role.pid))
                _send_to_group(role.pid, signal.SIGKILL)

    def _wake_at(self) -> float | None:
        times = [self._core.wake_at(), self._interception.due if self._interception is not None else None]
        return min((each for each in times if each is not None), default=None)

    def _sleep(self) -> None:
        """Until a signal comes or time changes something; take the signal in."""
        wake_at = self._wake_at()
        if wake_at is None:
            received = signal.sigwaitinfo(_SIGNALS)
        else:
            at_once = signal.sigtimedwait(_SIGNALS, max(0.0, wake_at - time.monotonic()))
            if at_once is None:
                return
            received = at_once
        if received.si_signo in (signal.SIGTERM, signal.SIGINT):
            log.info("stopping", extra={"signal": signal.Signals(received.si_signo).name})
            if self._interception is not None:
                self._interception.stop(time.monotonic())
            self._core.stop(time.monotonic())
        elif received.si_signo == signal.SIGHUP:
            for pid in self._core.running():
                _send(pid, signal.SIGHUP)

    def _reap(self) -> None:
        """Take note of every process that has ended, and end what it has left in its group."""
        while (pid := _next_ended()) is not None:
            if pid in self._core.running():
                _send_to_group(pid, signal.SIGKILL)  # the group's number is nobody else's before the process is reaped
            _, status = os.waitpid(pid, 0)
            name = self._core.ended(pid, os.waitstatus_to_exitcode(status), time.monotonic())
            if name is not None:
                if self._interception is not None:
                    self._interception.ended(self._number(name))
                role = next(role for role in self._core.statuses(self._epoch) if role.name == name)
                level = logging.WARNING if role.state is RoleState.BACKOFF else logging.INFO
                log.log(
                    level, "role ended", extra={"object": name, "pid": pid, "how": role.detail, "state": role.state}
                )

    def _write_status(self) -> None:
        statuses = self._core.statuses(self._epoch)
        if statuses == self._written:
            return
        self._written = statuses
        try:
            write_status(self._status_file, statuses)
        except OSError as exc:
            log.warning("status not written", extra={"cause": str(exc)})

    def _number(self, name: str) -> int:
        return next(number for number, role in enumerate(self._plan.roles) if role.name == name)

    def _facts(self, number: int, pid: int) -> dict[str, object]:
        return {"object": self._plan.roles[number].name, "pid": pid}


def _next_ended() -> int | None:
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended.si_pid if ended is not None else None
    return None


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except PermissionError:
        log.warning("role may not be signalled: CAP_KILL is missing", extra={"pid": pid, "signal": number.name})


def _send_to_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def main(arguments: list[str]) -> int:
    """Supervise the plan in the file that the only argument names; returns the exit code."""
    try:
        (path,) = arguments
        plan = msgspec.json.decode(Path(path).read_bytes(), type=LaunchPlan)
    except (ValueError, OSError) as exc:
        sys.stderr.write(f"usage: python -m svcproxy.supervisor.supervise PLAN (a launch plan as JSON): {exc}\n")
        return USAGE
    configure(plan.log, "supervisor")
    return Supervisor(plan).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
