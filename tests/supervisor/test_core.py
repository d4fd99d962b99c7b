# SPDX-License-Identifier: Apache-2.0
"""What becomes of roles, in virtual time."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.process.supervision import LaunchPlan, RolePlan, RoleState
from svcproxy.supervisor.core import (
    FAILURE,
    KEPT_SECONDS,
    RESTART_WANTED,
    RESTARTS_AT_ONCE,
    USAGE,
    Command,
    Forget,
    Send,
    Start,
    Supervision,
    outcome,
)

TERM, KILL = signal.SIGTERM, signal.SIGKILL
STOP_TIMEOUT = 5.0
HEALTHY_AFTER = 10.0


def supervision(*names: str, keeps_sockets: bool = False) -> Supervision:
    """Roles named `group-number` belong to a group. Waits are 1, 2, 4, 8 seconds, without jitter."""
    roles = [
        RolePlan(name, ("x",), group=name.partition("-")[0] if "-" in name else "", keeps_sockets=keeps_sockets)
        for name in names
    ]
    plan = LaunchPlan(
        tuple(roles),
        status_file="",
        stop_timeout=STOP_TIMEOUT,
        backoff_initial=1.0,
        backoff_max=8.0,
        healthy_after=HEALTHY_AFTER,
    )
    return Supervision(plan, 0.0, random=lambda: 0.0)


def run(core: Supervision, now: float) -> list[Command]:
    """Carry out what is due. The first process of role n gets pid 100 + n, the second 200 + n, and so on."""
    done = list[Command]()
    for command in core.commands(now):
        done.append(command)
        if isinstance(command, Start):
            status = core.statuses(0)[command.role]
            core.started(command.role, 100 * (1 + status.restarts + bool(status.detail)) + command.role, now)
    return done


def states(core: Supervision) -> list[str]:
    return [status.state.value for status in core.statuses(0)]


def test_all_roles_start_in_order() -> None:
    core = supervision("agent", "dns-0", "dns-1")
    assert run(core, 0) == [Start(0), Start(1), Start(2)]
    assert core.running() == [100, 101, 102]
    assert run(core, 1) == []


def test_waits_grow_while_a_role_ends_early_and_begin_anew_after_it_started_well() -> None:
    core = supervision("a")
    now, waits = 0.0, []
    for lifetime in (0, 1, 9.9, 9.9, 9.9, HEALTHY_AFTER, 0):
        assert run(core, now) == [Start(0)]
        now += lifetime
        core.ended(core.running()[0], 1, now)
        due = core.wake_at()
        assert due is not None
        assert run(core, due - 0.001) == []
        waits.append(round(due - now, 3))
        now = due
    assert waits == [1, 2, 4, 8, 8, 1, 2]


def test_a_crash_loop_is_told_until_the_role_has_started_well() -> None:
    core = supervision("a")
    now, seen = 0.0, []
    for _ in range(4):
        run(core, now)
        core.ended(core.running()[0], -11, now)
        seen.append(core.statuses(0)[0].crash_loop)
        now = core.wake_at() or now
    assert seen == [False, False, True, True]
    run(core, now)
    status = core.statuses(epoch=1000.0)[0]
    assert (status.state, status.restarts, status.crash_loop) == (RoleState.RUNNING, 4, True)
    assert (status.detail, status.since) == ("killed by SIGSEGV", 1000.0 + now)
    assert core.wake_at() == now + HEALTHY_AFTER
    assert run(core, now + HEALTHY_AFTER) == []
    assert not core.statuses(0)[0].crash_loop
    assert core.wake_at() is None


def test_one_role_that_ends_leaves_the_others_alone() -> None:
    core = supervision("a", "b")
    run(core, 0)
    assert core.ended(100, -9, 1) == "a"
    assert states(core) == ["backoff", "running"]
    assert run(core, 2) == [Start(0)]
    assert core.running() == [200, 101]


def test_a_process_of_nobody_is_no_role() -> None:
    core = supervision("a")
    run(core, 0)
    assert core.ended(4711, 0, 1) is None
    assert states(core) == ["running"]


def test_a_role_that_wants_it_restarts_at_once_a_few_times_in_a_row() -> None:
    core = supervision("a")
    for _ in range(RESTARTS_AT_ONCE):
        assert run(core, 0) == [Start(0)]
        core.ended(core.running()[0], RESTART_WANTED, 0)
    assert not core.statuses(0)[0].crash_loop
    assert run(core, 0) == [Start(0)]
    core.ended(core.running()[0], RESTART_WANTED, 0)
    assert run(core, 0) == []
    assert core.wake_at() == 1
    run(core, 1)
    core.ended(core.running()[0], RESTART_WANTED, 1 + HEALTHY_AFTER)
    assert run(core, 1 + HEALTHY_AFTER) == [Start(0)]


def test_sockets_stay_open_over_short_waits_and_are_closed_in_long_ones() -> None:
    core = supervision("a", keeps_sockets=True)
    now, forgotten = 0.0, []
    for _ in range(3):
        assert Start(0) in run(core, now)
        core.ended(core.running()[0], -9, now)
        wait = (core.wake_at() or now) - now
        forgotten.append((wait > KEPT_SECONDS, run(core, now) == [Forget(0)]))
        assert run(core, now) == []
        now += wait
    assert forgotten == [(False, False), (True, True), (True, True)]


def test_sockets_stay_open_over_a_restart_at_once() -> None:
    core = supervision("a", keeps_sockets=True)
    run(core, 0)
    core.ended(100, RESTART_WANTED, 0)
    assert run(core, 0) == [Start(0)]


def test_sockets_of_a_role_that_was_stopped_are_closed() -> None:
    core = supervision("a", "b", keeps_sockets=True)
    run(core, 0)
    core.stop(1)
    assert run(core, 1) == [Send(1, 101, TERM)]
    core.ended(101, 0, 2)
    assert run(core, 2) == [Forget(1), Send(0, 100, TERM)]


def test_a_role_that_cannot_use_its_configuration_ends_everything() -> None:
    core = supervision("a", "b")
    run(core, 0)
    core.ended(100, USAGE, 1)
    assert run(core, 1) == [Send(1, 101, TERM)]
    assert states(core) == ["stopped", "stopping"]
    core.ended(101, 0, 2)
    assert (core.finished, core.exit_code) == (True, USAGE)


def test_later_on_it_waits_for_a_configuration_that_it_can_use() -> None:
    core = supervision("a", "b")
    run(core, 0)
    core.ended(100, 1, HEALTHY_AFTER)
    run(core, 20)
    core.ended(core.running()[0], USAGE, 20)
    assert states(core) == ["backoff", "running"]


def test_a_program_that_cannot_be_started_ends_everything() -> None:
    core = supervision("a", "b", "c")
    commands = core.commands(0)
    next(commands)
    core.started(0, 100, 0)
    assert next(commands) == Start(1)
    core.not_started(1, "no such file", 0)
    assert list(commands) == []  # c is not started any more
    assert run(core, 0) == [Send(0, 100, TERM)]
    core.ended(100, -TERM, 1)
    assert (core.finished, core.exit_code) == (True, FAILURE)
    assert core.statuses(0)[1].detail == "no such file"


def test_a_program_that_could_be_started_before_is_tried_again() -> None:
    core = supervision("a")
    run(core, 0)
    core.ended(100, 1, 0)
    assert list(core.commands(1)) == [Start(0)]
    core.not_started(0, "out of processes", 1)
    assert (states(core), core.wake_at()) == (["backoff"], 3)


def test_roles_stop_in_reverse_order_one_group_at_a_time() -> None:
    core = supervision("agent", "dns-0", "dns-1", "http")
    run(core, 0)
    core.stop(1)
    assert run(core, 1) == [Send(3, 103, TERM)]
    core.ended(103, 0, 2)
    assert run(core, 2) == [Send(1, 101, TERM), Send(2, 102, TERM)]
    core.ended(102, 0, 3)
    assert run(core, 3) == []
    core.ended(101, 0, 4)
    assert run(core, 4) == [Send(0, 100, TERM)]
    assert not core.finished
    core.ended(100, -TERM, 5)
    assert (core.finished, core.exit_code) == (True, 0)


def test_who_does_not_end_is_killed_once() -> None:
    core = supervision("a")
    run(core, 0)
    core.stop(1)
    run(core, 1)
    assert core.wake_at() == 1 + STOP_TIMEOUT
    assert run(core, 1 + STOP_TIMEOUT - 0.1) == []
    assert run(core, 1 + STOP_TIMEOUT) == [Send(0, 100, KILL)]
    assert run(core, 100) == []
    assert core.wake_at() is None


def test_told_twice_everything_is_killed() -> None:
    core = supervision("a", "b")
    run(core, 0)
    core.stop(1)
    run(core, 1)
    core.stop(2)
    assert run(core, 2) == [Send(0, 100, KILL), Send(1, 101, KILL)]
    core.ended(100, -9, 2)
    core.ended(101, -9, 2)
    assert core.finished


def test_who_waits_for_a_restart_is_stopped_without_a_signal() -> None:
    core = supervision("a")
    run(core, 0)
    core.ended(100, 1, 0)
    core.stop(0)
    assert run(core, 10) == []
    assert core.finished


@pytest.mark.parametrize(
    ("code", "text"),
    [
        pytest.param(0, "exit code 0", id="success"),
        pytest.param(3, "exit code 3", id="failure"),
        pytest.param(-9, "killed by SIGKILL", id="signal"),
        pytest.param(-63, "killed by signal 63", id="a signal without a name"),
    ],
)
def test_outcomes(code: int, text: str) -> None:
    assert outcome(code) == text


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["end", "end", "end", "wait", "stop"]),
            st.integers(0, 3),
            st.sampled_from([0, 1, USAGE, RESTART_WANTED, -9]),
            st.floats(0, 20),
        ),
        max_size=60,
    )
)
def test_whatever_happens_it_can_be_stopped_and_never_spins(events: list[tuple[str, int, int, float]]) -> None:
    core = supervision("agent", "dns-0", "dns-1", "http")
    now = 0.0
    for what, number, code, later in events:
        run(core, now)
        assert run(core, now) == []  # what has been carried out is not asked for again
        wake_at = core.wake_at()
        assert wake_at is None or wake_at > now
        now += later
        pids = core.running()
        if what == "end" and pids:
            core.ended(pids[number % len(pids)], code, now)
        elif what == "stop":
            core.stop(now)
    core.stop(now)
    for _ in range(10):
        run(core, now)
        now = max(now, core.wake_at() or 0)
        for command in run(core, now):
            assert isinstance(command, Send)
        for pid in core.running():
            core.ended(pid, -9, now)
    assert core.finished
    assert all(status.pid is None for status in core.statuses(0))
