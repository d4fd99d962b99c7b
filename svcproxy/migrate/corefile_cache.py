# SPDX-License-Identifier: Apache-2.0
"""CoreDNS' plugin cache: what becomes of it and its options. Pure."""

from collections.abc import Sequence

from svcproxy.migrate.caddyfile import Directive, ServerBlock
from svcproxy.migrate.corefile_scope import Scope, first, has, one_of
from svcproxy.migrate.draft import Place, Treatment
from svcproxy.migrate.values import integer, whole_seconds
from svcproxy.migrate.zones import ROOT, Key, within, zone

TTL, DENIAL_TTL = 3600, 1800
"""The plugin's own."""
_REVERSE = ("in-addr.arpa", "ip6.arpa")
_TTL_KEYS = {"success": "dns.cache.ttl_max", "denial": "dns.cache.denial_ttl_max"}
_STALE = (
    "svcproxy gives expired answers, for up to dns.cache.stale_max (1 h), when upstreams fail or take longer than "
    "1.8 s; 0 is CoreDNS' way"
)


def cache(scope: Scope, directive: Directive, block: ServerBlock, keys: Sequence[Key]) -> None:
    """The one of the block for `.` counts."""
    if all(each.zone != ROOT for each in keys):
        _of_zones(scope, directive, block, keys)
        return
    ttl = directive.args[0] if directive.args and directive.args[0].isdecimal() else None
    place, was = scope.place(directive), directive.words
    for key, default in (("dns.cache.ttl_max", TTL), ("dns.cache.denial_ttl_max", DENIAL_TTL)):
        if ttl is None:
            scope.draft.set(key, default, place, "the plugin's own default", was=was)
        else:
            scope.draft.set(key, int(ttl), place, was=was)
    if zones := directive.args[ttl is not None :]:
        text = f"answers are kept whatever their zone, not only those in {' '.join(zones)}"
        scope.say(directive, Treatment.DIFFERS, text)
    scope.options(directive, _option)
    if not any(each.name == "serve_stale" for each in directive.block):
        scope.draft.say(scope.place(directive, "cache.serve_stale"), Treatment.DIFFERS, _STALE, "unset")


def _of_zones(scope: Scope, directive: Directive, block: ServerBlock, keys: Sequence[Key]) -> None:
    cluster = scope.draft.values.get("dns.zones", ["cluster.local", *_REVERSE])
    if not has(block, "forward") or all(each.zone in cluster for each in keys):
        text = "names of the cluster are not cached, but answered from what is known of them"
        scope.say(directive, Treatment.NEEDLESS, text)
    else:
        text = "dns.cache is the same for all upstreams: what the block of . has counts"
        scope.say(directive, Treatment.DIFFERS, text)


def _option(scope: Scope, line: Directive, place: Place) -> None:
    value = " ".join(line.args)
    match line.name:
        case "success" | "denial":
            _bounds(scope, line, place, value)
        case "serve_stale":
            seconds = whole_seconds(line.args[0]) if line.args else 3600
            text = "an expired answer is given only when upstreams fail or take longer than 1.8 s, with TTL 30"
            scope.draft.set("dns.cache.stale_max", seconds, place, text, was=value, differs=True)
        case _:
            _disable(scope, line, place, value)


def _bounds(scope: Scope, line: Directive, place: Place, value: str) -> None:
    """CAPACITY [TTL [MINTTL]]."""
    draft, entries = scope.draft, integer(first(line))
    if draft.values.get("dns.cache.entries_max", entries) == entries:
        draft.set("dns.cache.entries_max", entries, place, was=value)
    else:
        text = "there is one bound for answers, and the same again for denials: dns.cache.entries_max"
        draft.say(place, Treatment.DIFFERS, text, value)
    if len(line.args) > 1:
        draft.set(_TTL_KEYS[line.name], integer(line.args[1]), place, was=value)
    if len(line.args) > 2:
        text = "the same for answers and denials"
        draft.set("dns.cache.ttl_min", integer(line.args[2]), place, text, was=value, differs=True)


def _disable(scope: Scope, line: Directive, place: Place, value: str) -> None:
    key = _TTL_KEYS[one_of(first(line), list(_TTL_KEYS))]
    zones = [zone(each) for each in line.args[1:]] or [ROOT]
    cluster = scope.draft.values.get("dns.zones", ["cluster.local"])
    if ROOT in zones:
        scope.draft.set(key, 0, place, was=value)
        scope.draft.set("dns.cache.ttl_min", 0, place, was=value)
    elif all(any(within(each, parent) for parent in cluster) for each in zones):
        scope.draft.say(place, Treatment.NEEDLESS, "the cluster's names are never cached", value)
    else:
        text = "answers are kept whatever their zone; those of dns.zones are never cached"
        scope.draft.say(place, Treatment.DIFFERS, text, value)
