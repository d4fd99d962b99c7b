# SPDX-License-Identifier: Apache-2.0
"""The same question put to both servers, with whatever has to be asked besides to tell whether svcproxy is right."""

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from tests.e2e.dns_differential.case import Case
from tests.e2e.dns_differential.cluster import RandomNames
from tests.e2e.dns_differential.questions import Question
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
        found = await _compare(servers, world, question)
    return found


async def _compare(servers: Servers, world: RandomNames, question: Question) -> Comparison:
    """If either reply is cut, what is compared is what TCP brings, and the cut itself is looked at."""
    coredns, svcproxy = await servers.ask(question)
    if coredns is None or svcproxy is None:
        return Comparison(question, coredns, svcproxy, coredns)
    if question.tcp or not (coredns.truncated or svcproxy.truncated) or coredns.rcode == "NOTIMP":
        return await _judged(servers, world, question, coredns, svcproxy)
    whole = await _compare(servers, world, replace(question, tcp=True))
    rules, complaint = whole.rules, whole.complaint
    if svcproxy.truncated:
        complaint = complaint or _badly_cut(svcproxy, whole.svcproxy) or ("" if coredns.truncated else "cut alone")
    elif svcproxy.octets > question.limit:
        complaint = f"{svcproxy.octets} octets in place of {question.limit}"
    elif "RA" in svcproxy.flags:
        rules = (*rules, "B18")
    elif svcproxy.answer == (whole.svcproxy.answer if whole.svcproxy is not None else None):
        complaint = complaint or ("" if _smaller(svcproxy, coredns) else "not cut")
    return replace(
        whole, rules=rules, complaint=complaint and f"{complaint}\n  CoreDNS {coredns}\n  svcproxy {svcproxy}"
    )


def _smaller(svcproxy: Reply, coredns: Reply) -> bool:
    """Whether there is less to say."""
    return len(svcproxy.answer) < len(coredns.answer) or svcproxy.rcode != coredns.rcode


def _badly_cut(cut: Reply, whole: Reply | None) -> str:
    """What is wrong with a cut reply."""
    if whole is None or cut.rcode != whole.rcode:
        return "another code over TCP"
    if any(
        not {each._replace(ttl=0) for each in part} <= {each._replace(ttl=0) for each in every}
        for part, every in ((cut.answer, whole.answer), (cut.additional, whole.additional))
    ):
        return "other records over TCP"
    return "" if cut.answer else "nothing left"


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
