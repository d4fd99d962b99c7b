# SPDX-License-Identifier: Apache-2.0
"""One question and several upstreams, in virtual time: who is asked when, and what is believed."""

import random
from collections.abc import Sequence

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.forwarding import (
    ATTEMPTS_MAX,
    FORGERIES_MAX,
    Answered,
    Ask,
    Drop,
    Exchange,
    Failed,
    Failure,
    Question,
    Timing,
)
from svcproxy_dns.upstreams import Plan, Upstream
from svcproxy_dns.wire import Rcode, encode_name

NAME = encode_name("www.example.com")
Steps = list[Ask | Drop]


class Run:
    """An exchange, and the time."""

    def __init__(
        self, count: int = 1, *, probe: bool = False, mixed_case: bool = False, dnssec_ok: bool = False
    ) -> None:
        self.upstreams = [Upstream(f"192.0.2.{low}:53") for low in range(1, count + 1)]
        self.suspect = Upstream("192.0.2.9:53")
        self.suspect.suspect = True
        self.now = 100.0
        self.core = Exchange(
            Question(NAME, 1, 1, dnssec_ok),
            Plan(tuple(self.upstreams), self.suspect if probe else None),
            self.now,
            Timing(),
            random.Random(7),
            mixed_case=mixed_case,
        )
        self.asked: list[tuple[float, str, bool]] = []
        """(seconds since the start, upstream, over TCP)"""
        self.open: dict[int, Ask] = {}
        self.take(self.core.begin(self.now))

    def take(self, steps: Steps) -> None:
        for step in steps:
            match step:
                case Ask():
                    self.asked.append((round(self.now - 100.0, 3), step.upstream.address[8:9], step.tcp))
                    self.open[step.attempt] = step
                case Drop():
                    del self.open[step.attempt]
        assert (self.core.outcome is None) or not self.open

    def pass_time(self, seconds: float = 60.0) -> None:
        """Let time pass, as long as there is no outcome."""
        until = self.now + seconds
        while self.core.outcome is None and self.core.wake_at <= until:
            assert self.core.wake_at >= self.now
            self.now = self.core.wake_at
            self.take(self.core.woken(self.now))
        if self.core.outcome is None:
            self.now = until

    def receive(self, attempt: int, octets: bytes) -> None:
        self.take(self.core.received(attempt, octets, self.now))

    def fail(self, attempt: int, *, ours: bool = False) -> None:
        self.take(self.core.failed(attempt, self.now, ours=ours))

    def query(self, attempt: int = 0) -> dns.message.Message:
        return dns.message.from_wire(self.open[attempt].message)

    def reply(self, attempt: int = 0, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, flags: int = 0) -> bytes:
        response = dns.message.make_response(self.query(attempt), recursion_available=True)
        response.set_rcode(rcode)
        response.flags |= flags
        if rcode == dns.rcode.NOERROR:
            name = response.question[0].name
            response.answer.append(dns.rrset.from_text(name, 300, "IN", "A", "192.0.2.53"))
        return response.to_wire()


def test_m19_a_silent_upstream_is_asked_again_and_given_up_after_4_seconds() -> None:
    run = Run()
    run.pass_time()
    assert run.asked == [(0.0, "1", False), (0.4, "1", False), (1.2, "1", False), (2.8, "1", False)]
    assert run.now == 104.0
    assert run.core.outcome == Failed(Rcode.SERVFAIL, Failure.TIMEOUT)
    assert run.upstreams[0].suspect


def test_b17_the_next_is_asked_after_0_4_seconds() -> None:
    run = Run(3)
    run.pass_time()
    assert [(at, who) for at, who, _ in run.asked] == [
        (0.0, "1"),
        (0.4, "2"),
        (0.8, "3"),
        (1.2, "1"),
        (2.0, "2"),
        (3.6, "3"),
    ]


def test_b17_whoever_answers_first_is_believed_also_the_slow_one() -> None:
    run = Run(2)
    run.pass_time(0.45)
    assert run.upstreams[0].suspect
    run.receive(0, run.reply(0))
    assert isinstance(run.core.outcome, Answered)
    assert [each.suspect for each in run.upstreams] == [False, False]


def test_a_suspect_that_answers_its_copy_is_suspect_no_longer() -> None:
    run = Run(probe=True)
    assert [who for _, who, _ in run.asked] == ["1", "9"]
    run.receive(1, run.reply(1))
    assert isinstance(run.core.outcome, Answered)
    assert not run.suspect.suspect


def test_a_suspect_that_refuses_its_copy_costs_nothing() -> None:
    run = Run(probe=True)
    run.receive(1, run.reply(1, dns.rcode.REFUSED))
    assert run.core.outcome is None
    run.receive(0, run.reply(0))
    assert isinstance(run.core.outcome, Answered)


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
def test_an_error_is_passed_on_when_nobody_knows_better(rcode: dns.rcode.Rcode) -> None:
    run = Run(2)
    while run.core.outcome is None:
        attempt = max(run.open)
        run.receive(attempt, run.reply(attempt, rcode))
    assert run.core.outcome == Failed(Rcode(int(rcode)), Failure.REFUSAL)
    assert {at for at, *_ in run.asked} == {0.0}
    assert [each.suspect for each in run.upstreams] == [False, False], "they are alive"


def test_after_an_error_the_next_is_asked_at_once() -> None:
    run = Run(2)
    run.receive(0, run.reply(0, dns.rcode.SERVFAIL))
    assert run.asked == [(0.0, "1", False), (0.0, "2", False)]
    run.receive(1, run.reply(1))
    assert isinstance(run.core.outcome, Answered)


def test_whoever_has_refused_is_not_asked_again() -> None:
    run = Run(2)
    run.receive(0, run.reply(0, dns.rcode.SERVFAIL))
    run.pass_time()
    assert {who for _, who, _ in run.asked[1:]} == {"2"}
    assert run.core.outcome == Failed(Rcode.SERVFAIL, Failure.REFUSAL)


def test_m21_what_is_cut_is_asked_for_over_tcp() -> None:
    run = Run()
    run.receive(0, run.reply(0, flags=dns.flags.TC))
    assert run.asked[1:] == [(0.0, "1", True)]
    run.receive(1, run.reply(1))
    assert isinstance(run.core.outcome, Answered)


def test_what_is_cut_over_tcp_too_is_a_failure() -> None:
    run = Run()
    run.receive(0, run.reply(0, flags=dns.flags.TC))
    run.receive(1, run.reply(1, flags=dns.flags.TC))
    assert run.core.outcome == Failed(Rcode.SERVFAIL, Failure.REFUSAL)


@pytest.mark.parametrize("rcode", [dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS])
def test_edns_is_left_out_for_those_who_do_not_know_it(rcode: dns.rcode.Rcode) -> None:
    run = Run()
    assert run.query(0).edns == 0
    run.receive(0, run.reply(0, rcode))
    assert run.query(1).edns == -1
    run.receive(1, run.reply(1))
    assert isinstance(run.core.outcome, Answered)
    assert run.upstreams[0].plain_until == 1000.0


def test_an_error_ends_the_wait_for_what_else_the_upstream_was_asked() -> None:
    run = Run()
    run.pass_time(0.5)
    assert sorted(run.open) == [0, 1]
    run.receive(0, run.reply(0, dns.rcode.SERVFAIL))
    assert run.core.outcome == Failed(Rcode.SERVFAIL, Failure.REFUSAL)


def test_a_question_is_put_as_we_like_it() -> None:
    query = Run(dnssec_ok=True).query()
    assert (query.payload, bool(query.ednsflags & dns.flags.DO), query.options) == (1232, True, ())
    assert query.flags == dns.flags.RD | dns.flags.AD
    assert query.question[0].to_text() == "www.example.com. IN A"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda octets: bytes([octets[0] ^ 1]) + octets[1:], id="another ID"),
        pytest.param(lambda octets: octets[:2] + bytes([octets[2] & 0x7F]) + octets[3:], id="a query"),
        pytest.param(lambda octets: octets[:2] + bytes([octets[2] | 0x10]) + octets[3:], id="another opcode"),
        pytest.param(lambda octets: octets[:11], id="no header"),
        pytest.param(lambda octets: b"", id="empty"),
        pytest.param(lambda octets: octets[:5] + b"\2" + octets[6:], id="two questions"),
        pytest.param(lambda octets: octets[:14], id="no question"),
    ],
)
def test_what_is_no_reply_is_ignored(change: object) -> None:
    run = Run()
    assert callable(change)
    good = run.reply()
    run.receive(0, change(good))
    assert (run.core.outcome, run.core.ignored) == (None, 1)
    run.receive(0, good)
    assert isinstance(run.core.outcome, Answered)


def test_whoever_guesses_ids_is_evaded_over_tcp() -> None:
    run = Run()
    good = run.reply()
    for number in range(FORGERIES_MAX + 1):
        assert not any(tcp for *_, tcp in run.asked)
        run.receive(0, number.to_bytes(2, "big") + good[2:])
    assert run.asked[1:] == [(0.0, "1", True)]
    assert list(run.open) == [1]


@pytest.mark.parametrize(
    ("mixed_case", "question"),
    [
        pytest.param(False, encode_name("WWW.example.com") + b"\0\1\0\1", id="another case"),
        pytest.param(True, NAME + b"\0\1\0\1", id="the name as it was not spelled"),
        pytest.param(False, encode_name("www.example.net") + b"\0\1\0\1", id="another name"),
        pytest.param(False, NAME + b"\0\x1c\0\1", id="another type"),
        pytest.param(False, NAME + b"\0\1\0\3", id="another class"),
    ],
)
def test_m22_an_answer_to_another_question_is_not_believed(mixed_case: bool, question: bytes) -> None:
    run = Run(mixed_case=mixed_case)
    good = run.reply()
    run.receive(0, good[:12] + question + good[12 + len(question) :])
    assert run.core.outcome == Failed(Rcode.FORMERR, Failure.REFUSAL)


def test_an_unreachable_upstream_is_suspect_and_the_next_asked_at_once() -> None:
    run = Run(2)
    run.fail(0)
    assert run.asked == [(0.0, "1", False), (0.0, "2", False)]
    assert run.upstreams[0].suspect
    run.fail(1)
    assert run.core.outcome == Failed(Rcode.SERVFAIL, Failure.TIMEOUT)


def test_what_we_lack_is_no_fault_of_the_upstream() -> None:
    run = Run()
    run.fail(0, ours=True)
    assert run.core.outcome == Failed(Rcode.SERVFAIL, Failure.TIMEOUT)
    assert not run.upstreams[0].suspect


def test_ids_are_drawn_anew_for_each_attempt() -> None:
    run = Run(3)
    run.pass_time(3.9)
    assert len({ask.message[:2] for ask in run.open.values()}) == len(run.open) == 6


_EVENTS = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.sampled_from(["good", "servfail", "formerr", "tc", "wrong", "noise", "broken", "ours", "wait", "long"]),
    ),
    max_size=40,
)


@given(st.integers(1, 4), st.booleans(), _EVENTS, st.binary(max_size=40))
def test_whatever_happens_it_ends_by_the_deadline_and_within_bounds(
    count: int, probe: bool, events: Sequence[tuple[int, str]], noise: bytes
) -> None:
    run = Run(count, probe=probe)
    for which, what in events:
        if run.core.outcome is not None:
            break
        if what in {"wait", "long"}:
            run.pass_time(0.3 if what == "wait" else 1.0)
            continue
        if not run.open:
            continue
        attempt = sorted(run.open)[which % len(run.open)]
        match what:
            case "good":
                run.receive(attempt, run.reply(attempt))
            case "servfail":
                run.receive(attempt, run.reply(attempt, dns.rcode.SERVFAIL))
            case "formerr":
                run.receive(attempt, run.reply(attempt, dns.rcode.FORMERR))
            case "tc":
                run.receive(attempt, run.reply(attempt, flags=dns.flags.TC))
            case "wrong":
                run.receive(attempt, run.reply(attempt).replace(b"\3www", b"\3xxx"))
            case "noise":
                run.receive(attempt, run.open[attempt].message[:2] + noise)
            case _:
                run.fail(attempt, ours=what == "ours")
    run.pass_time()
    assert run.core.outcome is not None
    assert run.now <= 104.0 + 1e-6
    assert len(run.asked) <= ATTEMPTS_MAX
    assert not run.open
