# SPDX-License-Identifier: Apache-2.0
"""CoreDNS' plugin forward: upstreams, stub domains, and what becomes of its options. Pure."""

from collections.abc import Sequence

from svcproxy import syntax
from svcproxy.config import UpstreamPolicy
from svcproxy.migrate.caddyfile import Directive
from svcproxy.migrate.corefile_plugins import BY_OPTION
from svcproxy.migrate.corefile_scope import NOT_CARRIED_OVER, Scope, first, one_of
from svcproxy.migrate.draft import Draft, Place, Treatment
from svcproxy.migrate.values import integer
from svcproxy.migrate.zones import ROOT, Key, reverse_zone, upstream, within, zone

RESOLV_CONF = "/etc/resolv.conf"
_KEYS = ("dns.upstreams", "dns.resolv_conf")


def forward(scope: Scope, directive: Directive, keys: Sequence[Key]) -> None:
    """FROM TO… { OPTION… }: FROM is `.` for the zones of the block."""
    if len(directive.args) < 2:
        scope.say(directive, Treatment.NONE, "left out: it names no upstreams")
        return
    try:
        of = zone(scope.words.of(directive.args[:1])[0])
    except (ValueError, IndexError) as exc:
        scope.say(directive, Treatment.NONE, f"{NOT_CARRIED_OVER}{exc}")
        return
    zones = [of] if of != ROOT else [each.zone for each in keys]
    if scope.words.cluster_dns.intersection(directive.args[1:]):
        _answered_here(scope, directive, zones)
        return
    addresses, files = _targets(scope, directive, scope.words.of(directive.args[1:]))
    if ROOT in zones:
        _all_names(scope, directive, addresses, files)
    for each in zones:
        if each != ROOT:
            _stub_domain(scope, directive, each, addresses, files)
    if ROOT in zones:
        scope.options(directive, _option)
        return
    text = "dns.forward is the same for all upstreams: what the block of . has counts"
    for line in directive.block:
        option = BY_OPTION.get(("forward", line.name))
        if option is not None and option.treatment is Treatment.SAME and not option.key:
            continue
        scope.draft.say(scope.place(line, f"forward.{line.name}"), Treatment.DIFFERS, text, " ".join(line.args))


def refuse_others(scope: Scope, why: str) -> None:
    """Names outside the zones are nobody's business, unless upstreams are known already."""
    if not any(key in scope.draft.values for key in _KEYS):
        text = f"names outside the zones are refused, for {why}; set dns.upstreams to have them resolved"
        scope.draft.set("dns.resolv_conf", None, Place(scope.source, "forward", scope.file), text, differs=True)


def add_stub_domain(draft: Draft, name: str, addresses: Sequence[str], place: Place, was: object) -> None:
    """Have a zone's names asked of these upstreams; the last one who says so counts."""
    if not addresses:
        text = f"names in {name} are asked of the other upstreams: none of these can be"
        draft.say(place, Treatment.NONE, text, was)
        return
    known = dict(draft.values.get("dns.stub_domains", {}))
    text = f"in place of {', '.join(known[name])}, which is said elsewhere" if name in known else ""
    if known.get(name) == list(addresses):
        text = ""
    draft.values["dns.stub_domains"] = {**known, name: list(addresses)}
    draft.say(place, Treatment.DIFFERS if text else Treatment.SAME, text, was, "dns.stub_domains")


def _answered_here(scope: Scope, directive: Directive, zones: Sequence[str]) -> None:
    """It goes to the cluster's own DNS, in whose place svcproxy is."""
    scope.defers = scope.defers or ROOT in zones
    text = "svcproxy answers the cluster's names itself"
    if ROOT in zones:
        text = "what the cluster's own DNS forwards, svcproxy forwards from each node"
    scope.say(directive, Treatment.NEEDLESS, text)


def _targets(scope: Scope, directive: Directive, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(addresses, files) that can be used."""
    addresses: dict[str, None] = {}
    files: list[str] = []
    for word in words:
        try:
            found = upstream(word)
        except ValueError as exc:
            scope.say(directive, Treatment.NONE, f"this upstream is left out: {exc}")
            continue
        if found.file:
            files.append(found.file)
        else:
            addresses[found.address] = None
    return list(addresses), files


def _all_names(scope: Scope, directive: Directive, addresses: list[str], files: list[str]) -> None:
    draft, place = scope.draft, scope.place(directive)
    if any(each.key in _KEYS and each.place.source is scope.source for each in draft.remarks):
        scope.say(directive, Treatment.NONE, "there is one list of upstreams for all names: the first one counts")
        return
    wanted = {"dns.upstreams": addresses} if addresses else {"dns.resolv_conf": files[0]} if files else {}
    for key in _KEYS:
        if wanted and key in draft.values and draft.values[key] != wanted.get(key):
            text = f"pods ask {scope.source} first, whose upstreams count instead"
            draft.unset(key, Treatment.DIFFERS, text)
    if addresses:
        draft.set("dns.upstreams", addresses, place, was=directive.words)
        for file in files:
            text = f"left out: {file} is not read beside upstreams given by address"
            scope.say(directive, Treatment.NONE, text)
    elif files:
        text = "" if files[0] == RESOLV_CONF else "it has to be mounted into the container of the DNS role"
        draft.set("dns.resolv_conf", files[0], place, text, was=directive.words, differs=bool(text))
    else:
        refuse_others(scope, "none of the upstreams can be asked")


def _stub_domain(scope: Scope, directive: Directive, of: str, addresses: list[str], files: list[str]) -> None:
    draft, place = scope.draft, scope.place(directive, f"forward {of}")
    try:
        name = reverse_zone(of)
    except ValueError as exc:
        draft.say(place, Treatment.NONE, f"{NOT_CARRIED_OVER}{exc}", directive.words)
        return
    for domain in draft.values.get("dns.zones", ["cluster.local"]):
        if not syntax.is_reverse(domain) and within(name, domain):
            text = f"svcproxy answers everything in {domain} itself: other names in {name} do not exist"
            draft.say(place, Treatment.NONE, text, directive.words)
            return
    for file in files:
        text = f"left out: {file} cannot be the upstream of a stub domain"
        draft.say(place, Treatment.NONE, text, directive.words)
    add_stub_domain(draft, name, addresses, place, directive.words)


def _option(scope: Scope, line: Directive, place: Place) -> None:
    value = " ".join(line.args)
    if line.name == "policy":
        policy = one_of(first(line), [each.value for each in UpstreamPolicy])
        scope.draft.set("dns.forward.policy", policy, place, was=value)
    elif (most := integer(first(line))) > 0:
        scope.draft.set("dns.forward.concurrent_max", most, place, was=value)
    else:
        text = "svcproxy always has a bound: dns.forward.concurrent_max (1000)"
        scope.draft.say(place, Treatment.DIFFERS, text, value)
