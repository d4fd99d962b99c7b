# SPDX-License-Identifier: Apache-2.0
"""What becomes of each role of a launch plan. Performs no I/O: `now` is monotonic seconds, commands come out.

    BACKOFF --due--> RUNNING --ends--> BACKOFF           the wait grows unless the process had started well
    RUNNING --told to stop--> STOPPING --ends--> STOPPED     BACKOFF --told to stop--> STOPPED

What the processes of a role leave in its descriptor store is for the next one, and closed where that is far.

A role that asks for it by exit code 75 is started again at once, a few times in a row. A role that cannot use its
command line or configuration (exit code 2), or whose program cannot be started at all, ends everything, for nobody can
repair that here; but only as long as it has never started well: later on the others have something to lose.
"""

import random
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from svcproxy.process.backoff import Backoff
from svcproxy.process.supervision import LaunchPlan, RolePlan, RoleState, RoleStatus

FAILURE = 1
USAGE = 2
RESTART_WANTED = 75
"""EX_TEMPFAIL: the role ends on purpose, to begin anew with another configuration."""
RESTARTS_AT_ONCE = 3
"""Restarts without a wait that a role may ask for in a row before one of them has started well."""


KEPT_SECONDS = 1.0
"""The longest wait over which a role's sockets stay open. Beyond it clients are better off refused, or served by
another worker that has the same address."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start the program of a role, then tell `started` or `not_started`."""

    role: int
    """Its place in the plan."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to the process of a role; SIGKILL is for everything that it has started as well."""

    role: int
    pid: int
    signal: signal.Signals


@dataclass(frozen=True, slots=True)
class Forget:
    """Close what the processes of a role have left in its descriptor store."""

    role: int


Command = Start | Send | Forget


class _Role:
    def __init__(self, plan: RolePlan, backoff: Backoff, now: float) -> None:
        self.plan = plan
        self.backoff = backoff
        self.state = RoleState.BACKOFF
        self.since = now
        self.due = now
        """When to start it, in BACKOFF; when to kill it, in STOPPING."""
        self.pid: int | None = None
        self.killed = False
        self.starts = 0
        self.early_ends = 0
        """Ends in a row before it had started well, not counting restarts at once."""
        self.at_once = 0
        """Restarts at once in a row."""
        self.started_well = False
        """Whether it ever has."""
        self.detail = ""
        self.forget = False
        """Whether what its processes have left open is to be closed."""

    @property
    def settled(self) -> bool:
        """Whether it makes no difference that it goes on running."""
        return self.started_well and not self.early_ends and not self.at_once

    def enter(self, state: RoleState, now: float) -> None:
        self.state, self.since = state, now
        if state is RoleState.STOPPED or (state is RoleState.BACKOFF and self.due - now > KEPT_SECONDS):
            self.forget = self.plan.keeps_sockets


class Supervision:
    """All roles of a plan."""

    def __init__(self, plan: LaunchPlan, now: float, random: Callable[[], float] = random.random) -> None:
        self._plan = plan
        self._roles = [
            _Role(role, Backoff(plan.backoff_initial, plan.backoff_max, random=random), now) for role in plan.roles
        ]
        numbered = enumerate(plan.roles)
        self._to_stop = [
            [number for number, _ in members]
            for _, members in groupby(numbered, key=lambda entry: entry[1].group or entry[0])
        ]
        """Roles that are stopped together, those to be stopped first at the end."""
        self._stopping = False
        self._impatient = False
        self.exit_code = 0
        """What the supervisor is to end with."""

    @property
    def finished(self) -> bool:
        """Whether everything has been stopped."""
        return all(role.state is RoleState.STOPPED for role in self._roles)

    def commands(self, now: float) -> Iterator[Command]:
        """What is to be done now, each to be carried out before the next is asked for.

        Ask again after every event and at `wake_at`.
        """
        for number, role in enumerate(self._roles):
            self._notice_health(role, now)
            if role.forget:
                role.forget = False
                yield Forget(number)
        if self._impatient:
            yield from self._kill(range(len(self._roles)), now)
        elif self._stopping:
            yield from self._stop_next(now)
        else:
            for number, role in enumerate(self._roles):
                if role.state is RoleState.BACKOFF and role.due <= now:
                    yield Start(number)

    def wake_at(self) -> float | None:
        """When time alone changes something next; None: only an event does."""
        times = [
            role.due
            for role in self._roles
            if role.state is RoleState.BACKOFF or (role.state is RoleState.STOPPING and not role.killed)
        ]
        times += [
            role.since + self._plan.healthy_after
            for role in self._roles
            if role.state is RoleState.RUNNING and not role.settled
        ]
        return min(times, default=None)

    def started(self, number: int, pid: int, now: float) -> None:
        """The program of a role runs."""
        role = self._roles[number]
        assert role.state is RoleState.BACKOFF, role.state
        role.pid = pid
        role.starts += 1
        role.enter(RoleState.RUNNING, now)

    def not_started(self, number: int, reason: str, now: float) -> None:
        """The program of a role could not be started."""
        role = self._roles[number]
        assert role.state is RoleState.BACKOFF, role.state
        role.detail = reason
        if not role.starts:
            self._give_up(FAILURE, now)
        else:
            self._back_off(role, now)

    def ended(self, pid: int, code: int, now: float) -> str | None:
        """A process has ended with this exit code, or by the signal of this number if it is negative.

        Returns the name of its role, None if it was not the process of a role.
        """
        role = next((role for role in self._roles if role.pid == pid), None)
        if role is None:
            return None
        self._notice_health(role, now)
        role.pid = None
        role.detail = outcome(code)
        if self._stopping:
            role.enter(RoleState.STOPPED, now)
        elif code == USAGE and not role.started_well:
            self._give_up(USAGE, now)
        elif code == RESTART_WANTED and role.at_once < RESTARTS_AT_ONCE:
            role.at_once += 1
            role.due = now
            role.enter(RoleState.BACKOFF, now)
        else:
            self._back_off(role, now)
        return role.plan.name

    def stop(self, now: float) -> None:
        """Stop everything in order; said again: kill everything."""
        if self._stopping:
            self._impatient = True
        self._stopping = True
        for role in self._roles:
            if role.state is RoleState.BACKOFF:
                role.enter(RoleState.STOPPED, now)

    def running(self) -> list[int]:
        """Pids of all processes."""
        return [role.pid for role in self._roles if role.pid is not None]

    def statuses(self, epoch: float) -> tuple[RoleStatus, ...]:
        """For `supervisor.json`. `epoch`: Unix seconds at monotonic zero."""
        return tuple(
            RoleStatus(
                name=role.plan.name,
                state=role.state,
                pid=role.pid,
                restarts=max(role.starts - 1, 0),
                crash_loop=role.early_ends >= self._plan.crash_loop_after,
                detail=role.detail,
                since=round(epoch + role.since, 3),
            )
            for role in self._roles
        )

    def _notice_health(self, role: _Role, now: float) -> None:
        if role.state is RoleState.RUNNING and now - role.since >= self._plan.healthy_after:
            role.started_well = True
            role.early_ends = role.at_once = 0
            role.backoff.reset()

    def _back_off(self, role: _Role, now: float) -> None:
        role.early_ends += 1
        role.due = now + role.backoff.next()
        role.enter(RoleState.BACKOFF, now)

    def _give_up(self, code: int, now: float) -> None:
        self.exit_code = code
        self.stop(now)
        for role in self._roles:
            if role.pid is None:
                role.enter(RoleState.STOPPED, now)

    def _stop_next(self, now: float) -> Iterator[Command]:
        """Commands for the last group that still runs."""
        while self._to_stop and not any(self._roles[number].pid for number in self._to_stop[-1]):
            self._to_stop.pop()
        if not self._to_stop:
            return
        for number in self._to_stop[-1]:
            role = self._roles[number]
            if role.state is RoleState.RUNNING and role.pid is not None:
                role.due = now + self._plan.stop_timeout
                role.enter(RoleState.STOPPING, now)
                yield Send(number, role.pid, signal.SIGTERM)
        late = [number for number in self._to_stop[-1] if self._roles[number].due <= now]
        yield from self._kill(late, now)

    def _kill(self, numbers: Iterable[int], now: float) -> Iterator[Command]:
        for number in numbers:
            role = self._roles[number]
            if role.pid is not None and not role.killed:
                role.killed = True
                if role.state is RoleState.RUNNING:
                    role.enter(RoleState.STOPPING, now)
                yield Send(number, role.pid, signal.SIGKILL)


def outcome(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
