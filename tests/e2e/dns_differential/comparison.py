# SPDX-License-Identifier: Apache-2.0
"""The same question put to both servers, with whatever has to be asked besides to tell whether svcproxy is right."""

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from tests.e2e.dns_differential.case import Case
from tests.e2e.dns_differential.cluster import RandomNames
from tests.e2e.dns_differential.questions import FRESH, Question
from tests.e2e.dns_differential.replies import Reply
from tests.e2e.dns_differential.rules import wanted_reply
from tests.e2e.dns_differential.servers import Servers

FAILURE_KEPT: Final = 5.5
"""Seconds after which no server remembers that an upstream was too slow."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of a question."""

    question: Question
    coredns: Reply | None
    svcproxy: Reply | None
    wanted: Reply | None
    rules: tuple[str, ...] = ()
    """Ids of those that tell the difference."""
    complaint: str = ""

    @property
    def right(self) -> bool:
        """Whether svcproxy did what it had to do."""
        return self.svcproxy == self.wanted and not self.complaint

    def __str__(self) -> str:
        question = ", ".join(f"{name}={getattr(self.question, name)!r}" for name in self.question.__slots__)
        sides = {"CoreDNS": self.coredns, "wanted": self.wanted, "svcproxy": self.svcproxy}
        lines = [question, *(f"  {side:8} {reply}" for side, reply in sides.items())]
        return "\n".join([*lines, *([f"  {self.complaint}"] if self.complaint else [])])


async def compare(servers: Servers, world: RandomNames, question: Question) -> Comparison:
    """Both replies, asked for again if one server had lost patience with the upstream."""
    found = await _compare(servers, world, question)
    if not found.right and "SERVFAIL" in {
        reply.rcode for reply in (found.coredns, found.svcproxy) if reply is not None
    }:
        await asyncio.sleep(FAILURE_KEPT)
        fresh = question.labels[-3:] == FRESH.split(".")
        again = replace(question, name=f"again-{question.name}") if fresh else question
        found = await _compare(servers, world, again)
    return found


async def _compare(servers: Servers, world: RandomNames, question: Question) -> Comparison:
    """If either reply is cut, what is compared is what TCP brings, and the cut itself is looked at."""
    coredns, svcproxy = await servers.ask(question)
    if coredns is None or svcproxy is None:
        return Comparison(question, coredns, svcproxy, coredns)
    if question.tcp or not (coredns.truncated or svcproxy.truncated) or coredns.rcode == "NOTIMP":
        return await _judged(servers, world, question, coredns, svcproxy)
    whole = await _compare(servers, world, replace(question, tcp=True))
    rules = whole.rules
    complaint = whole.complaint or _badly_cut(question, svcproxy, whole.svcproxy)
    if svcproxy.truncated and not coredns.truncated:
        complaint = complaint or "cut alone"
    if not svcproxy.truncated and "RA" in svcproxy.flags:
        rules = (*rules, "B18")
    return replace(
        whole, rules=rules, complaint=complaint and f"{complaint}\n  CoreDNS {coredns}\n  svcproxy {svcproxy}"
    )


def _badly_cut(question: Question, reply: Reply, whole: Reply | None) -> str:
    """What is wrong with a reply over UDP, given what TCP brings."""
    if whole is None or reply.rcode != whole.rcode:
        return "another code over TCP"
    if reply.octets > question.limit:
        return f"{reply.octets} octets in place of {question.limit}"
    sections = [(reply.answer, whole.answer), (reply.additional, whole.additional)]
    for part, every in [({each._replace(ttl=0) for each in of} for of in pair) for pair in sections]:
        if not part <= every:
            return "other records over TCP"
        if part != every and not reply.truncated:
            return "cut without saying so"
    return "" if reply.answer or not whole.answer else "nothing left"


async def _judged(
    servers: Servers, world: RandomNames, question: Question, coredns: Reply, svcproxy: Reply
) -> Comparison:
    complaint = "" if svcproxy.octets <= question.limit else f"{svcproxy.octets} octets"
    if not svcproxy.ordered:
        complaint = "an alias comes after its target"
    case = await _completed(servers, Case(question, world, coredns, svcproxy, minimum=servers.upstream.minimum))
    wanted, rules = wanted_reply(case)
    return Comparison(question, coredns, svcproxy, wanted, tuple(rule.id for rule in rules), complaint)


async def _completed(servers: Servers, case: Case) -> Case:
    """With the replies to what else has to be asked."""
    question = case.question
    plain = Question(question.name, question.qtype, tcp=True)
    if question.qtype == "SOA":
        reply = await servers.coredns.client.ask(replace(plain, qtype="A"))
        case = replace(case, absent=reply is not None and reply.rcode == "NXDOMAIN")
    if case.reverse and question.qtype != "PTR":
        reply = await servers.svcproxy.client.ask(replace(plain, qtype="PTR"))
        case = replace(case, has_pointer=reply is not None and "AA" in reply.flags and bool(reply.answer))
    of_server = case.left == ["ns", "dns"] or (question.qtype == "NS" and len(question.labels) == 2)
    if of_server and question.qclass == "IN" and question.name != question.name.lower():
        case = replace(case, lower=await servers.coredns.client.ask(replace(plain, name=question.name.lower())))
    if case.alias is not None:
        case = replace(case, target=await servers.svcproxy.client.ask(replace(plain, name=case.alias)))
    return case
