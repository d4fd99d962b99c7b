# SPDX-License-Identifier: Apache-2.0
"""One question put to upstreams, until one of them answers or the time is up. Pure.

It is put over UDP to the first upstream, and to the next one when that has not answered within `Timing.patience`
seconds; whoever answers first is believed, so all of them stay heard. Once each has been asked, the waits double. A
reply that is cut is fetched again over TCP. An upstream that refuses or fails is not asked again for the same question.
One deadline ends it all.

A shell carries out what comes back: `Ask` (a new socket for each), `Drop`; it tells what arrives on the socket of an
attempt, that it failed, and when `wake_at` is reached, until there is an `outcome`. Times are monotonic seconds.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from svcproxy_dns.body import Body
from svcproxy_dns.replies import Front, Malformed, read_front, read_reply, select
from svcproxy_dns.upstreams import Plan, Upstream
from svcproxy_dns.wire import AA, AD, CD, DO, LABEL_MAX_OCTETS, RD, TC, Rcode, RRType, encode_record

ATTEMPTS_MAX = 12
"""Times that one question is asked in all, over whatever protocol."""
FORGERIES_MAX = 16
"""Messages with another ID that one attempt ignores; with more somebody is guessing, and TCP is used."""
PLAIN_PERIOD = 900.0
"""Seconds for which an upstream that needed it so is asked without EDNS."""
PAYLOAD_OCTETS = 1232
"""What we take over UDP: it fits every path without fragments."""

_KEY = struct.Struct(">2HB")
_BROKEN = frozenset({Rcode.FORMERR, Rcode.NOTIMP, Rcode.BADVERS})
"""What may come of EDNS from those who do not know it (RFC 6891 §7)."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    deadline: float = 4.0
    """From the question to giving up: below the 5 s of resolvers in pods."""
    patience: float = 0.4
    """Before the next upstream is asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, and how. `name`: lower case, on the wire."""

    name: bytes
    qtype: int
    qclass: int
    dnssec_ok: bool = False
    checking_disabled: bool = False

    @property
    def key(self) -> bytes:
        """What tells responses apart."""
        return key_of(self.name, self.qtype, self.qclass, self.dnssec_ok, self.checking_disabled)


def key_of(name: bytes, qtype: int, qclass: int, dnssec_ok: bool, checking_disabled: bool) -> bytes:
    """`Question.key` of a question that has not been made."""
    return name + _KEY.pack(qtype, qclass, dnssec_ok | checking_disabled << 1)


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a message to an upstream, on a socket of its own, and listen to it for this attempt."""

    attempt: int
    upstream: Upstream
    message: bytes
    tcp: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """Listen no longer for an attempt."""

    attempt: int


class Failure(Enum):
    """Why nobody answered."""

    TIMEOUT = auto()
    """Nobody did in time, or could be reached."""
    REFUSAL = auto()
    """Upstreams did, with an error."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An upstream answered."""

    body: Body
    ttl: int | None
    """Seconds for which the answer holds; None if it is not to be kept."""
    denies: bool
    authoritative: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """None did."""

    rcode: Rcode
    failure: Failure


@dataclass(slots=True)
class _Attempt:
    upstream: Upstream
    ident: int
    question: bytes
    """As sent."""
    sent_at: float
    tcp: bool
    edns: bool
    probe: bool
    open: bool = True
    forgeries: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one attempt came to."""

    upstream: Upstream
    rcode: int
    seconds: float


class Exchange:
    """See the module. `mixed_case`: spell the name at random, one more thing for a forger to guess (draft 0x20)."""

    def __init__(
        self,
        question: Question,
        plan: Plan,
        now: float,
        timing: Timing,
        rng: random.Random,
        *,
        mixed_case: bool = False,
    ) -> None:
        self.question = question
        self.outcome: Answered | Failed | None = None
        self.samples: list[Sample] = []
        """Replies so far, with the time that each took."""
        self.ignored = 0
        """Messages that were no reply to what was asked."""
        self.upstreams = plan.order
        self._probe = plan.probe
        self._timing = timing
        self._rng = rng
        self._mixed_case = mixed_case
        self._deadline = now + timing.deadline
        self._next_at = now
        self._wait = timing.patience
        self._turn = 0
        self._spent: set[Upstream] = set()
        """Upstreams that have answered with an error, or cannot be reached."""
        self._attempts: list[_Attempt] = []
        self._rcode = Rcode.SERVFAIL
        self._failure = Failure.TIMEOUT

    @property
    def wake_at(self) -> float:
        """When to call `woken`."""
        return min(self._next_at, self._deadline)

    def begin(self, now: float) -> list[Ask | Drop]:
        """Ask the first."""
        steps = self._ask_next(now)
        if self._probe is not None:
            steps += self._ask(self._probe, now, probe=True)
        return steps

    def woken(self, now: float) -> list[Ask | Drop]:
        """Time has passed."""
        if self.outcome is not None or now < self.wake_at:
            return []
        last = next((each for each in reversed(self._attempts) if not each.probe), None)
        if last is not None and last.open:
            last.upstream.unanswered(now)
        if now >= self._deadline:
            return self._finish(Failed(self._rcode, self._failure))
        return self._ask_next(now)

    def received(self, attempt: int, message: bytes, now: float) -> list[Ask | Drop]:
        """A message came on the socket of an attempt."""
        tried = self._attempts[attempt]
        front = read_front(message, tried.question)
        if self.outcome is not None or not tried.open:
            return []
        if front is None or front.ident != tried.ident:
            self.ignored += 1
            tried.forgeries += 1
            return self._again_over_tcp(attempt, now) if tried.forgeries > FORGERIES_MAX else []
        tried.upstream.answered()
        self.samples.append(Sample(tried.upstream, front.rcode, now - tried.sent_at))
        if not front.question and front.rcode != Rcode.NOERROR:
            return self._refused(attempt, front.rcode, now)
        if front.question != tried.question:
            self.ignored += 1
            return self._give_up(attempt, Rcode.FORMERR, now)
        return self._read(attempt, front, message, now)

    def failed(self, attempt: int, now: float, *, ours: bool) -> list[Ask | Drop]:
        """The socket of an attempt has failed. `ours`: for want of something here, no fault of the upstream."""
        tried = self._attempts[attempt]
        if self.outcome is not None or not tried.open:
            return []
        if not ours:
            tried.upstream.unanswered(now)
        return self._give_up(attempt, Rcode.SERVFAIL, now, Failure.TIMEOUT)

    def _read(self, attempt: int, front: Front, message: bytes, now: float) -> list[Ask | Drop]:
        tried = self._attempts[attempt]
        question = self.question
        if front.flags & TC:
            return self._again_over_tcp(attempt, now)
        try:
            reply = read_reply(message, front.question)
            if reply.rcode not in {Rcode.NOERROR, Rcode.NXDOMAIN}:
                return self._refused(attempt, reply.rcode, now)
            relevant = select(reply, question.name, question.qtype, dnssec=question.dnssec_ok)
            body = Body.of(question.name, relevant, authentic=bool(front.flags & AD))
        except Malformed:
            return self._again_over_tcp(attempt, now)
        except ValueError:
            return self._give_up(attempt, Rcode.SERVFAIL, now)
        if relevant.lame:
            return self._give_up(attempt, Rcode.SERVFAIL, now)
        if not tried.edns:
            tried.upstream.plain_until = max(tried.upstream.plain_until, tried.sent_at + PLAIN_PERIOD)
        return self._finish(Answered(body, relevant.ttl, relevant.denies, bool(front.flags & AA)))

    def _refused(self, attempt: int, rcode: int, now: float) -> list[Ask | Drop]:
        """An upstream has answered with an error: if it may be for EDNS, ask once more without."""
        tried = self._attempts[attempt]
        if tried.edns and rcode in _BROKEN:
            tried.open = False
            return [Drop(attempt), *self._ask(tried.upstream, now, tcp=tried.tcp, edns=False, probe=tried.probe)]
        known = Rcode(rcode) if rcode in {Rcode.REFUSED, Rcode.NOTIMP, Rcode.FORMERR} else Rcode.SERVFAIL
        return self._give_up(attempt, known, now)

    def _again_over_tcp(self, attempt: int, now: float) -> list[Ask | Drop]:
        tried = self._attempts[attempt]
        if tried.tcp:
            return self._give_up(attempt, Rcode.SERVFAIL, now)
        tried.open = False
        self._next_at = max(self._next_at, now + self._timing.patience)
        return [Drop(attempt), *self._ask(tried.upstream, now, tcp=True, edns=tried.edns, probe=tried.probe)]

    def _give_up(self, attempt: int, rcode: Rcode, now: float, failure: Failure = Failure.REFUSAL) -> list[Ask | Drop]:
        """Nothing more is expected of the upstream of an attempt: go on with the next one, or without."""
        tried = self._attempts[attempt]
        tried.open = False
        steps: list[Ask | Drop] = [Drop(attempt)]
        if tried.probe:
            return steps
        self._spent.add(tried.upstream)
        if failure is Failure.REFUSAL:
            self._rcode, self._failure = rcode, failure
            steps += self._close(lambda each: each.upstream is tried.upstream)
        if self._turn < len(self.upstreams):
            return steps + self._ask_next(now)
        if not any(each.open for each in self._attempts) and len(self._spent) == len(self.upstreams):
            return steps + self._finish(Failed(self._rcode, self._failure))
        return steps

    def _ask_next(self, now: float) -> list[Ask | Drop]:
        """Ask whoever's turn it is, and book the next turn."""
        candidates = [each for each in self.upstreams if each not in self._spent]
        if not candidates:
            if any(each.open for each in self._attempts):
                self._next_at = self._deadline
                return []
            return self._finish(Failed(self._rcode, self._failure))
        while (upstream := self.upstreams[self._turn % len(self.upstreams)]) in self._spent:
            self._turn += 1
        self._turn += 1
        if self._turn > len(self.upstreams):
            self._wait *= 2
        self._next_at = now + self._wait
        return self._ask(upstream, now, edns=now >= upstream.plain_until)

    def _ask(
        self, upstream: Upstream, now: float, *, tcp: bool = False, edns: bool = True, probe: bool = False
    ) -> list[Ask | Drop]:
        if len(self._attempts) >= ATTEMPTS_MAX:
            self._next_at = self._deadline
            return []
        ident = self._rng.getrandbits(16)
        name = _mix_case(self.question.name, self._rng) if self._mixed_case else self.question.name
        question = name + struct.pack(">2H", self.question.qtype, self.question.qclass)
        self._attempts.append(_Attempt(upstream, ident, question, now, tcp, edns, probe))
        return [Ask(len(self._attempts) - 1, upstream, self._encode(ident, question, edns=edns), tcp)]

    def _encode(self, ident: int, question: bytes, *, edns: bool) -> bytes:
        flags = RD | AD | (CD if self.question.checking_disabled else 0)
        message = struct.pack(">6H", ident, flags, 1, 0, 0, 1 if edns else 0) + question
        if not edns:
            return message
        opt = bytearray(encode_record(b"\0", RRType.OPT, DO if self.question.dnssec_ok else 0, b""))
        opt[3:5] = PAYLOAD_OCTETS.to_bytes(2, "big")
        return message + opt

    def _finish(self, outcome: Answered | Failed) -> list[Ask | Drop]:
        self.outcome = outcome
        return self._close(lambda _: True)

    def _close(self, which: Callable[[_Attempt], bool]) -> list[Ask | Drop]:
        """Listen no longer for some attempts."""
        steps: list[Ask | Drop] = []
        for number, each in enumerate(self._attempts):
            if each.open and which(each):
                each.open = False
                steps.append(Drop(number))
        return steps


def _mix_case(name: bytes, rng: random.Random) -> bytes:
    """The name with each letter in a case drawn at random; length octets are at most 63 and so never letters."""
    assert ord("A") > LABEL_MAX_OCTETS
    return bytes(octet ^ 0x20 if 97 <= octet <= 122 and rng.getrandbits(1) else octet for octet in name)
