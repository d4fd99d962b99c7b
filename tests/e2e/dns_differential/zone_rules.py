# SPDX-License-Identifier: Apache-2.0
"""What svcproxy replies about names of the cluster's zone where CoreDNS does worse. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from svcproxy.names.labels import address_label
from tests.e2e.dns_differential.case import ADDRESSES, Case
from tests.e2e.dns_differential.cluster import FQDN, KNOWN_ADDRESS, ZONE
from tests.e2e.dns_differential.replies import Record, Reply, Section
from tests.e2e.objects import Object

_PROTOCOLS: Final = {"_tcp": "TCP", "_udp": "UDP", "_sctp": "SCTP"}
_OF_THE_SERVER: Final = (["dns"], ["ns", "dns"])


def parent_without_text(case: Case) -> Reply | None:
    """B1."""
    left = case.left
    if case.question.qtype != "TXT" or left is None or not case.reply.nxdomain:
        return None
    of_namespace = len(left) == 2 and left[1] in {"svc", "pod"} and left[0] in case.world.namespaces
    return case.nodata() if of_namespace or left in ([], ["svc"], ["pod"]) else None


def version(case: Case) -> Reply | None:
    """B2."""
    return case.nodata() if case.left == ["dns-version"] and case.reply.nxdomain else None


def version_ttl(case: Case) -> Reply | None:
    """A64: CoreDNS' cache lowers the TTL although it does not keep the answer."""
    if case.left != ["dns-version"] or case.question.qtype != "TXT" or not case.reply.answer:
        return None
    return replace(case.reply, answer=tuple(each._replace(ttl=28800) for each in case.reply.answer))


def server(case: Case) -> Reply | None:
    """B3."""
    return case.nodata() if case.left in _OF_THE_SERVER and case.reply.nxdomain else None


def server_in_any_case(case: Case) -> Reply | None:
    """CoreDNS knows the server's own name, and NS of the zone, in lower case alone."""
    lower, zone, asked = case.lower, case.zone.lower(), case.zone
    if lower is None or not lower.answer or case.reply.answer or case.reply.rcode not in {"NOERROR", "NXDOMAIN"}:
        return None

    def respelled(records: Section) -> Section:
        return tuple(
            sorted(
                each._replace(owner=each.owner.replace(zone, asked), rdata=each.rdata.replace(zone, asked))
                for each in records
            )
        )

    owned = tuple(each._replace(owner=case.question.name) for each in lower.answer)
    return replace(case.empty("NOERROR", "AA"), answer=respelled(owned), additional=respelled(lower.additional))


def protocol(case: Case) -> Reply | None:
    """B4."""
    return case.nodata() if case.reply.nxdomain and _is_protocol(case) else None


def _is_protocol(case: Case) -> bool:
    """Whether the name is `_proto` in front of a Service that has a named port of it."""
    left, key = case.left, case.service
    if not left or len(left) != 4 or left[0] not in _PROTOCOLS or key is None:
        return False
    spec = case.world.services.get(key, {"spec": {}})["spec"]
    ports: Sequence[Object] = spec.get("ports", ()) if "clusterIPs" in spec else ()
    if spec.get("clusterIPs") == ["None"]:
        slices = [each for each in case.world.slices_of(key) if each["addressType"] != "FQDN"]
        ports = [port for each in slices if _any_ready(each) for port in each["ports"]]
    return any(port.get("name") and port["protocol"] == _PROTOCOLS[left[0]] for port in ports)


def _any_ready(found: Object) -> bool:
    return any(endpoint["conditions"].get("ready", True) for endpoint in found["endpoints"])


def soa_of_nothing(case: Case) -> Reply | None:
    """B5."""
    if case.question.qtype != "SOA" or not case.reply.nodata:
        return None
    if case.reverse:
        if len(case.question.labels) == 2 or case.has_pointer:
            return None
        known = ".".join(case.question.labels) == KNOWN_ADDRESS
        return replace(case.denied(), rcode="NOERROR" if known else "NXDOMAIN")
    known = case.left in ([], ["dns-version"], *_OF_THE_SERVER) or _is_protocol(case)
    return None if known or not case.absent else case.nxdomain()


def loose_port(case: Case) -> Reply | None:
    """B6."""
    left = case.left
    if not left or len(left) != 5 or left[-1] != "svc" or case.reply.rcode != "NOERROR":
        return None
    strict = all(label.startswith("_") and len(label) > 1 for label in left[:2])
    return None if strict else case.nxdomain()


def below_pod(case: Case) -> Reply | None:
    """B7."""
    left = case.left
    if not left or len(left) < 4 or left[-1] != "pod" or case.reply.rcode != "NOERROR":
        return None
    return case.nxdomain()


def second_family(case: Case) -> Reply | None:
    """B14; and names of addresses that end in zeros, which CoreDNS compares as they are spelled."""
    left, question = case.left, case.question
    if not left or len(left) != 3 or left[-1] != "pod" or not case.reply.nxdomain:
        return None
    for (namespace, _), pod in case.world.pods.items():
        status = pod["status"]
        if namespace != left[1] or status["phase"] in {"Succeeded", "Failed"}:
            continue
        for ip in [each["ip"] for each in status.get("podIPs", ())]:
            if left[0] in {ip.replace(".", "-").replace(":", "-"), address_label(ip)}:
                qtype = "AAAA" if ":" in ip else "A"
                answer = Record(question.name, 30, qtype, ip)
                nodata = case.nodata()
                return replace(nodata, answer=(answer,), authority=()) if question.qtype == qtype else nodata
    return None


def without_names(case: Case) -> Reply | None:
    """CoreDNS answers with what FQDN slices hold."""
    left, key, reply = case.left, case.service, case.reply
    if not left or key is None or reply.rcode != "NOERROR":
        return None
    slices = case.world.slices_of(key)
    if all(each["addressType"] != "FQDN" for each in slices):
        return None
    label = FQDN.replace(".", "-")
    if left[0] == label and len(left) == 4:
        return case.nxdomain()
    if case.world.services.get(key, {"spec": {}})["spec"].get("clusterIPs") != ["None"]:
        return None
    answer = tuple(
        each for each in reply.answer if f"{FQDN}." not in {each.owner, each.rdata} and f" {label}." not in each.rdata
    )
    if answer == reply.answer and (answer or not reply.nodata):
        return None
    others = [each for each in slices if each["addressType"] != "FQDN" and _any_ready(each)]
    if not others:
        return case.nxdomain()
    return replace(reply, answer=answer) if answer else case.nodata()


def port_of_pod(case: Case) -> Reply | None:
    """SRV of a pod: CoreDNS says port 0."""
    left = case.left
    if not left or len(left) != 3 or left[-1] != "pod" or case.question.qtype != "SRV":
        return None
    return case.nodata() if [each.rdata.split()[2] for each in case.reply.answer] == ["0"] else None


def address_of_port(case: Case) -> Reply | None:
    """Addresses of a port's name, which CoreDNS tells."""
    left = case.left
    if case.question.qtype not in ADDRESSES or not left or len(left) != 5 or left[-1] != "svc":
        return None
    return case.nodata() if case.reply.answer else None


def weights(case: Case) -> Reply | None:
    """CoreDNS counts an endpoint as often as slices have it: what differs may only be greater weights."""
    theirs, ours = case.reply.answer, case.ours.answer
    if case.question.qtype != "SRV" or len(theirs) != len(ours):
        return None
    found = [{int(each.rdata.split()[1]) for each in side if each.rrtype == "SRV"} for side in (theirs, ours)]
    if any(len(each) != 1 for each in found):
        return None
    (their_weight,), (our_weight,) = found
    if not their_weight < our_weight <= max(100 // len(ours), 1):
        return None
    answer = [each._replace(rdata=each.rdata.replace(f" {their_weight} ", f" {our_weight} ", 1)) for each in theirs]
    return replace(case.reply, answer=tuple(sorted(answer)))


def any_type_of_alias(case: Case) -> Reply | None:
    """B11."""
    handled = {*ADDRESSES, "CNAME", "SRV"}
    return _with_target(case) if case.reply.nodata and case.question.qtype not in handled else None


def alias_to_nothing(case: Case) -> Reply | None:
    """CoreDNS leaves out the alias if it finds no address within the zone, and what upstreams say of another target."""
    dangling = [each.rrtype for each in case.reply.answer] == ["CNAME"] and not case.reply.authority
    if case.question.qtype not in ADDRESSES or case.reply.rcode != "NOERROR":
        return None
    return _with_target(case) if case.reply.nodata or dangling else None


def failing_target(case: Case) -> Reply | None:
    """B10."""
    failed = case.target is not None and case.target.rcode == "SERVFAIL"
    if not failed or case.reply.rcode != "NOERROR" or case.question.qtype in {"CNAME", "SRV"}:
        return None
    return case.empty("SERVFAIL", "RA")


def _with_target(case: Case) -> Reply | None:
    """The CNAME, and what svcproxy says of its target."""
    target, alias = case.target, case.alias
    if target is None or alias is None or target.rcode == "SERVFAIL" or _loops(case):
        return None
    cname = Record(case.question.name, 30, "CNAME", alias)
    authority = target.authority
    if authority and authority[0].owner == f"{ZONE}.":
        authority = case.nodata().authority  # as the question spells the zone
    return replace(
        case.empty(target.rcode, *(case.ours.flags & {"AA", "RA"})),
        answer=tuple(sorted((cname, *target.answer))),
        authority=authority,
    )


def _loops(case: Case) -> bool:
    """Whether the alias leads to one that it has led to before: there is no data then, and no alias (A45)."""
    seen = set()
    name = case.question.name.lower()
    while name not in seen:
        seen.add(name)
        target = replace(case, question=replace(case.question, name=name)).alias
        if target is None:
            return False
        name = target
    return True
