# SPDX-License-Identifier: Apache-2.0
"""What svcproxy replies about messages, addresses and names outside where CoreDNS does worse. Pure."""

from dataclasses import replace

import dns.opcode

from tests.e2e.dns_differential.case import KEPT, Case
from tests.e2e.dns_differential.cluster import ZONE
from tests.e2e.dns_differential.questions import FRESH
from tests.e2e.dns_differential.replies import Record, Reply, Section


def notify(case: Case) -> Reply | None:
    """B9."""
    if case.question.opcode != dns.opcode.NOTIFY:
        return None
    return Reply("NOTIMP", "NOTIFY", case.echoed & {"RD"}, (), (), (), (), None, 12, True)


def not_implemented(case: Case) -> Reply | None:
    """CoreDNS sends the query's bits back."""
    return replace(case.reply, flags=case.echoed & {"RD"}) if case.reply.rcode == "NOTIMP" else None


def bad_version(case: Case) -> Reply | None:
    """CoreDNS says nothing of the size it takes."""
    edns, question = case.reply.edns, case.question
    if case.reply.rcode != "BADVERS" or edns is None or question.payload is None:
        return None
    return replace(case.reply, edns=edns._replace(payload=question.payload, dnssec=question.dnssec))


def options(case: Case) -> Reply | None:
    """B19."""
    edns = case.reply.edns
    return replace(case.reply, edns=edns._replace(options=())) if edns is not None else None


def other_class(case: Case) -> Reply | None:
    """B8; names outside are refused too."""
    question = case.question
    if question.qclass == "IN" or case.reply.rcode in {"BADVERS", "NOTIMP"}:
        return None
    outside = case.left is None and not case.reverse
    return case.empty("REFUSED", *(["RA"] if outside else []))


def transfer(case: Case) -> Reply | None:
    """CoreDNS asks the upstream for a transfer, of which it would read one message."""
    if case.question.qtype not in {"AXFR", "IXFR"} or case.reply.rcode not in {"NOERROR", "NXDOMAIN", "SERVFAIL"}:
        return None
    return case.empty("REFUSED", "RA") if case.left is None and not case.reverse else None


# addresses


def once(case: Case) -> Reply | None:
    """CoreDNS repeats the server's addresses for each that it listens on."""
    if case.question.qtype != "NS":
        return None
    return replace(case.reply, additional=tuple(sorted(set(case.reply.additional))))


def names_of_the_server(case: Case) -> Reply | None:
    """CoreDNS puts the names of the server into the zone of addresses."""
    if not case.reverse or "AA" not in case.reply.flags:
        return None
    reply, zone = case.reply, case.zone
    sections = [_renamed(each, zone) for each in (reply.answer, reply.authority, reply.additional)]
    return replace(reply, answer=sections[0], authority=sections[1], additional=sections[2])


def _renamed(records: Section, zone: str) -> Section:
    def renamed(each: Record) -> Record:
        if each.rrtype in {"SOA", "NS"}:
            return each._replace(rdata=each.rdata.replace(zone, f"{ZONE}."))
        return each._replace(owner=each.owner.replace(zone, f"{ZONE}.")) if each.rrtype in {"A", "AAAA"} else each

    return tuple(sorted(map(renamed, records)))


def pointer_to_nothing(case: Case) -> Reply | None:
    """CoreDNS points from endpoints to names below Services that do not exist, or are aliases."""
    if not case.reverse or case.question.qtype != "PTR" or "AA" not in case.reply.flags or not case.reply.answer:
        return None
    kept = tuple(each for each in case.reply.answer if _points_to_something(case, each.rdata.split(".")))
    return replace(case.reply, answer=kept) if kept else case.denied()


def _points_to_something(case: Case, labels: list[str]) -> bool:
    if len(labels) == 6:  # a Service's own name
        return True
    service = case.world.services.get((labels[2], labels[1]))
    return service is not None and "clusterIPs" in service["spec"]


def forward_names(case: Case) -> Reply | None:
    """CoreDNS finds the beginning of the cluster's names in the zones of addresses too."""
    labels = case.question.labels
    if (
        not case.reverse
        or len(labels) != 3
        or labels[0] not in {"svc", "pod", "dns-version"}
        or "AA" not in case.reply.flags
    ):
        return None
    return case.denied()


def too_many_nibbles(case: Case) -> Reply | None:
    """CoreDNS reads addresses out of names that are none."""
    labels = case.question.labels
    if not case.reverse or labels[-2] != "ip6" or len(labels) == 34 or "AA" not in case.reply.flags:
        return None
    return case.denied() if {each.rrtype for each in case.reply.answer} == {"PTR"} else None


def other_types_of_addresses(case: Case) -> Reply | None:
    """CoreDNS hands on what is asked of addresses but PTR: to it they do not exist then."""
    exists = case.has_pointer or len(case.question.labels) == 2
    if not case.reverse or case.question.qtype == "PTR" or not case.reply.nxdomain or not exists:
        return None
    return case.nodata()


# names outside


def spelling(case: Case) -> Reply | None:
    """B13, and answers of which one has been kept for longer."""
    reply, ours, question = case.reply, case.ours, case.question
    if "RA" not in ours.flags or question.labels[-3:] == FRESH.split("."):
        return None
    if any(each.owner != question.name for each in ours.answer if each.owner.lower() == question.name.lower()):
        return None
    sections = [(reply.answer, ours.answer), (reply.authority, ours.authority), (reply.additional, ours.additional)]
    alike = [mine if _folded(theirs) == _folded(mine) else theirs for theirs, mine in sections]
    return replace(reply, answer=alike[0], authority=alike[1], additional=alike[2])


def _folded(records: Section) -> list[Record]:
    """Regardless of case, and of how long they have been kept."""
    return sorted(each.lower._replace(ttl=max(KEPT, each.ttl)) for each in records)


def minimum(case: Case) -> Reply | None:
    """B16."""
    reply = case.reply
    if "RA" not in reply.flags or case.minimum >= KEPT or not reply.authority or reply.authority[0].ttl != KEPT:
        return None
    lowered = tuple(each._replace(ttl=case.minimum) for each in (*reply.answer, *reply.authority))
    return replace(reply, answer=lowered[: len(reply.answer)], authority=lowered[len(reply.answer) :])


def not_authoritative(case: Case) -> Reply | None:
    """CoreDNS says AA of what it has kept, and of an alias to what it had to ask for."""
    if "RA" not in case.ours.flags or "AA" not in case.reply.flags or case.reply.rcode != case.ours.rcode:
        return None
    own = {"AA"} if case.left is not None else set()
    return replace(case.reply, flags=case.reply.flags - {"AA"} | own | {"RA"})
