# SPDX-License-Identifier: Apache-2.0
"""Where svcproxy is meant to answer otherwise than CoreDNS 1.14.7. Whatever else differs is a bug of ours. Pure.

A rule says of a question and CoreDNS' reply what svcproxy has to reply instead. Those called `B` and a number are the
cases of that number among the acceptance cases. Where a rule is optional either way is right, so it is asked only
while the replies differ.
"""

from dataclasses import dataclass, replace
from typing import Final

from tests.e2e.dns_differential import other_rules as other
from tests.e2e.dns_differential import zone_rules as zone
from tests.e2e.dns_differential.case import Case, Wanted
from tests.e2e.dns_differential.replies import Reply


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to differ that is meant."""

    id: str
    text: str
    wanted: Wanted
    optional: bool = False


RULES: Final = (
    Rule("B19", "options that are not implemented are not reflected", other.options),
    Rule("B9", "NOTIFY is not implemented", other.notify),
    Rule("B8", "classes other than IN are refused", other.other_class),
    Rule("transfers", "no zone is transferred, whoever has it", other.transfer),
    Rule("B1", "TXT of the parents of names: NODATA", zone.parent_without_text),
    Rule("B2", "types of dns-version other than TXT: NODATA", zone.version),
    Rule("case of the server", "the server is known in any case", zone.server_in_any_case),
    Rule("once", "additional records are told once", other.once),
    Rule("B3", "the server's name and its parent exist for all types", zone.server),
    Rule("B4", "the parent of a port exists", zone.protocol),
    Rule("B5", "SOA of what does not exist: NXDOMAIN", zone.soa_of_nothing),
    Rule("B6", "underscores are not optional, and the unnamed port has no name", zone.loose_port),
    Rule("B7", "nothing is below a pod", zone.below_pod),
    Rule("B10", "an alias fails whose target fails", zone.failing_target),
    Rule("B11", "an ExternalName Service is an alias whatever is asked", zone.any_type_of_alias),
    Rule("B14", "every address of a pod has a name", zone.second_family),
    Rule("B16", "a denial is kept as long as its SOA says", other.minimum),
    Rule("FQDN", "slices of names are not for DNS", zone.without_names),
    Rule("SRV of pods", "pods have no ports", zone.port_of_pod),
    Rule("PTR to nothing", "addresses point to names that exist", other.pointer_to_nothing),
    Rule("forward names", "names that are no addresses are not in their zones", other.forward_names),
    Rule("nibbles", "names that have not 32 nibbles are no addresses", other.too_many_nibbles),
    Rule("types of addresses", "an address that has a name exists for all types", other.other_types_of_addresses),
    Rule("server of addresses", "the server of addresses has the name that exists", other.names_of_the_server),
    Rule("NOTIMP", "the flags of a refusal are those of a refusal", other.not_implemented, optional=True),
    Rule("BADVERS", "a payload size is told with BADVERS too", other.bad_version, optional=True),
    Rule("TTL of the version", "dns-version has a TTL of its own", zone.version_ttl, optional=True),
    Rule("A of ports", "a port has no addresses", zone.address_of_port, optional=True),
    Rule(
        "alias to nothing", "an alias to nothing is one all the same (RFC 6604)", zone.alias_to_nothing, optional=True
    ),
    Rule("weights", "an endpoint in several slices counts once", zone.weights, optional=True),
    Rule("B13", "names outside are spelled as asked, and kept as long as they are", other.spelling, optional=True),
    Rule("AA", "what upstreams say is not authoritative", other.not_authoritative, optional=True),
)


def wanted_reply(case: Case) -> tuple[Reply, list[Rule]]:
    """What svcproxy has to reply, and the rules that say so."""
    applied = []
    for rule in RULES:
        if rule.optional and case.reply == case.ours:
            break
        wanted = rule.wanted(case)
        if wanted is not None and wanted != case.reply:
            applied.append(rule)
            case = replace(case, reply=wanted)
    return case.reply, applied
