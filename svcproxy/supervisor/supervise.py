# SPDX-License-Identifier: Apache-2.0
"""Keeps the processes of one launch plan running. One thread, no event loop: it sleeps in sigtimedwait(2).

A role that ends is started again after a growing wait, at once if it asked for that (exit code 75), and never if it
cannot use its command line or configuration (exit code 2): then everything stops, for nobody can repair that here.
SIGTERM and SIGINT stop the roles in reverse order, each with SIGTERM and, after the plan's time, SIGKILL. A killed
supervisor takes its children with it (svcproxy.process.child).
"""

import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from svcproxy.process.backoff import Backoff
from svcproxy.process.child import LaunchError, launch
from svcproxy.process.supervision import LaunchPlan, RolePlan, RoleState, RoleStatus, write_status

USAGE = 2
RESTART_WANTED = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_IDLE = 3600.0
_RESTARTS_AT_ONCE = 3
"""Restarts without a wait that a role may ask for in a row before it has started well."""


class Role:
    """One role and its process."""

    def __init__(self, plan: RolePlan, launch_plan: LaunchPlan) -> None:
        self.plan = plan
        self.pid: int | None = None
        self.due: float | None = 0.0
        """Monotonic seconds when it is to be started; None while it runs or shall not."""
        self._backoff = Backoff(launch_plan.backoff_initial, launch_plan.backoff_max)
        self._healthy_after = launch_plan.healthy_after
        self._crash_loop_after = launch_plan.crash_loop_after
        self._started = 0.0
        self._starts = 0
        self._early_ends = 0
        self._detail = ""

    def start(self, now: float) -> None:
        """Start the process."""
        self._started, self._starts, self.due = now, self._starts + 1, None
        try:
            self.pid = launch(self.plan.argv, os.environ | self.plan.environment, self.plan.privileges)
        except LaunchError as exc:
            self._ended(now, str(exc), at_once=False)

    def reaped(self, status: int, now: float) -> int:
        """The process has ended; returns its exit code, negative for a signal."""
        self.pid = None
        code = os.waitstatus_to_exitcode(status)
        detail = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._ended(now, detail, at_once=code == RESTART_WANTED)
        return code

    def _ended(self, now: float, detail: str, *, at_once: bool) -> None:
        self._detail = detail
        if now - self._started >= self._healthy_after:
            self._early_ends = 0
            self._backoff.reset()
        else:
            self._early_ends += 1
        free = at_once and self._early_ends <= _RESTARTS_AT_ONCE
        self.due = now if free else now + self._backoff.next()

    def status(self) -> RoleStatus:
        """For `supervisor.json`."""
        state = RoleState.RUNNING if self.pid else RoleState.STOPPED if self.due is None else RoleState.BACKOFF
        return RoleStatus(
            self.plan.name,
            state,
            self.pid,
            max(self._starts - 1, 0),
            self._early_ends >= self._crash_loop_after,
            self._detail,
        )


class Supervisor:
    """All roles of a plan."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._roles = [Role(each, plan) for each in plan.roles]
        self._exit_code = 0

    def run(self) -> int:
        """Keep everything running until told to stop, or until a role cannot use its configuration."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            now = time.monotonic()
            for role in self._roles:
                if role.due is not None and role.due <= now:
                    role.start(now)
            self._write_status()
            due = min((role.due for role in self._roles if role.due is not None), default=now + _IDLE)
            received = signal.sigtimedwait(_SIGNALS, max(0.0, due - now))
            if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._log("stopping", signal=signal.Signals(received.si_signo).name)
                break
            if received is not None and received.si_signo == signal.SIGHUP:
                self._forward(signal.SIGHUP)
            if self._reap() == USAGE:
                self._exit_code = USAGE
                break
        self._stop()
        return self._exit_code

    def _reap(self) -> int:
        """Take note of every process that has ended; returns USAGE if one could not use its configuration."""
        result = 0
        for role in self._roles:
            if role.pid is None:
                continue
            pid, status = os.waitpid(role.pid, os.WNOHANG)
            if pid:
                code = role.reaped(status, time.monotonic())
                self._log("role ended", name=role.plan.name, pid=pid, detail=role.status().detail)
                result = USAGE if code == USAGE else result
        return result

    def _stop(self) -> None:
        for role in reversed(self._roles):
            role.due = None
            if role.pid is None:
                continue
            os.kill(role.pid, signal.SIGTERM)
            if not self._wait(role, time.monotonic() + self._plan.stop_timeout):
                self._log("role does not end, killing it", name=role.plan.name, pid=role.pid)
                os.kill(role.pid, signal.SIGKILL)
                os.waitpid(role.pid, 0)
            role.pid = None
        Path(self._plan.status_file).unlink(missing_ok=True)

    @staticmethod
    def _wait(role: Role, deadline: float) -> bool:
        assert role.pid is not None
        while not os.waitpid(role.pid, os.WNOHANG)[0]:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            signal.sigtimedwait((signal.SIGCHLD,), left)
        return True

    def _forward(self, number: signal.Signals) -> None:
        for role in self._roles:
            if role.pid is not None:
                os.kill(role.pid, number)

    def _write_status(self) -> None:
        try:
            write_status(Path(self._plan.status_file), tuple(role.status() for role in self._roles))
        except OSError as exc:
            self._log("cannot write status", cause=str(exc))

    @staticmethod
    def _log(message: str, **values: object) -> None:
        pairs = "".join(f" {key}={str(value)!r}" for key, value in values.items())
        sys.stderr.write(f"level=info role=supervisor msg={message!r}{pairs}\n")


def main() -> int:
    """Supervise the plan that the command line holds as JSON."""
    return Supervisor(msgspec.json.decode(sys.argv[1], type=LaunchPlan)).run()


if __name__ == "__main__":
    sys.exit(main())
