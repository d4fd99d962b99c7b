# SPDX-License-Identifier: Apache-2.0
"""From CoreDNS' Corefile to svcproxy's configuration. Pure.

A block with the plugin kubernetes says what the cluster's zones are like; the block for `.`, where other names go;
other blocks that forward are stub domains. What becomes of each plugin is in `svcproxy.migrate.corefile_plugins`.
"""

from collections.abc import Sequence

from svcproxy import syntax
from svcproxy.config import PodNames
from svcproxy.migrate.caddyfile import Corefile, Directive, ServerBlock, unresolved
from svcproxy.migrate.corefile_cache import cache
from svcproxy.migrate.corefile_forward import forward, refuse_others
from svcproxy.migrate.corefile_plugins import BY_NAME, Rule
from svcproxy.migrate.corefile_scope import NOT_CARRIED_OVER, Scope, first, has, one_of
from svcproxy.migrate.draft import Place, Source, Treatment
from svcproxy.migrate.values import duration
from svcproxy.migrate.zones import ROOT, Key, key, zone

TTL, PODS = 5, "disabled"
"""The plugin kubernetes' own."""
_EVERYWHERE = "0.0.0.0"  # noqa: S104  # what CoreDNS means by an address without a host
_NO_VALUE = "its variable has no value here: give it with --env NAME=VALUE"


def migrate(corefile: Corefile, scope: Scope) -> None:
    """Take every directive of every block over, or say why not."""
    for each in corefile.imports:
        scope.say(each, Treatment.NONE, "other files are not read: put what it has in this place and try again")
    for name, line in corefile.unknown.items():
        scope.draft.say(Place(scope.source, f"{{${name}}}", scope.file, line), Treatment.NONE, _NO_VALUE)
    forwards = False
    # Other blocks are held against the zones that kubernetes serves.
    for block in sorted(corefile.blocks, key=lambda each: not has(each, "kubernetes")):
        keys = _keys(scope, block)
        if keys:
            _block(scope, block, keys)
        forwards |= any(each.zone == ROOT for each in keys) and has(block, "forward")
    if not forwards and not scope.defers:
        refuse_others(scope, "no block forwards them")


def _block(scope: Scope, block: ServerBlock, keys: Sequence[Key]) -> None:
    for directive in block.directives:
        plugin = BY_NAME.get(directive.name)
        words = [directive.name, *directive.args, *(word for each in directive.block for word in each.args)]
        if any(map(unresolved, words)):
            scope.say(directive, Treatment.NONE, f"left out: {_NO_VALUE}")
        elif plugin is None:
            scope.say(directive, Treatment.NONE, "no plugin of CoreDNS 1.14.7: svcproxy does nothing in its place")
        elif plugin.rule is None:
            scope.say(directive, plugin.treatment, plugin.text)
        else:
            _carry_over(scope, plugin.rule, directive, block, keys)


def _carry_over(scope: Scope, rule: Rule, directive: Directive, block: ServerBlock, keys: Sequence[Key]) -> None:
    match rule:
        case Rule.KUBERNETES:
            _kubernetes(scope, directive, keys)
        case Rule.FORWARD:
            forward(scope, directive, keys)
        case Rule.CACHE:
            cache(scope, directive, block, keys)
        case Rule.BIND:
            _bind(scope, directive)
        case Rule.HEALTH:
            _health(scope, directive)
        case Rule.LOG:
            _log(scope, directive)
        case Rule.PROMETHEUS:
            _prometheus(scope, directive)
        case Rule.LOADBALANCE:
            _loadbalance(scope, directive)
        case Rule.MULTISOCKET:
            text = BY_NAME["multisocket"].text
            if directive.args:
                scope.set_number("dns.workers", directive, text)
            else:
                scope.say(directive, Treatment.DIFFERS, f"{text}: see dns.workers")


def _keys(scope: Scope, block: ServerBlock) -> list[Key]:
    """What the block is for, as far as svcproxy can be."""
    found: list[Key] = []
    for text in block.keys:
        host, colon, port = text.rpartition(":")
        stands_for = scope.words.stand_for.get(host if colon else text)
        spelled = f"{stands_for[0]}{colon}{port}" if stands_for else text
        place = Place(scope.source, text, scope.file, block.line)
        try:
            each = key(spelled)
        except ValueError as exc:
            scope.draft.say(place, Treatment.NONE, f"the block is left out: {exc}")
            continue
        if each.transport == "dns":
            found.append(each)
        else:
            scope.draft.say(place, Treatment.NONE, "the block is left out: svcproxy answers over UDP and TCP alone")
    return found


def _kubernetes(scope: Scope, directive: Directive, keys: Sequence[Key]) -> None:
    draft, place = scope.draft, scope.place(directive)
    try:
        zones = [zone(each) for each in scope.words.of(directive.args)] or [each.zone for each in keys]
    except ValueError as exc:
        scope.say(directive, Treatment.NONE, f"{NOT_CARRIED_OVER}{exc}")
        return
    if "dns.zones" in draft.values:
        scope.say(directive, Treatment.NONE, "there is one kubernetes for all names: the first one counts")
        return
    draft.set("dns.zones", zones, place, was=directive.words)
    scope.options(directive, _kubernetes_option)
    given = {each.name for each in directive.block}
    for name, default in (("ttl", TTL), ("pods", PODS)):
        if name not in given:
            place = scope.place(directive, f"kubernetes.{name}")
            draft.set(f"dns.{name}", default, place, "the plugin's own default", was="unset")
    if "fallthrough" not in given:
        text = "addresses that nothing in the cluster has are asked of the upstreams"
        draft.say(scope.place(directive, "kubernetes.fallthrough"), Treatment.DIFFERS, text, "unset")


def _kubernetes_option(scope: Scope, line: Directive, place: Place) -> None:
    """An option that takes more than its first argument as it is. Raises ValueError."""
    draft, value = scope.draft, " ".join(line.args)
    match line.name:
        case "namespaces":
            draft.set("dns.namespaces", list(dict.fromkeys(line.args)), place, was=value)
        case "pods":
            mode = one_of(first(line), [each.value for each in PodNames])
            draft.set("dns.pods", mode, place, was=value)
            if mode == PodNames.VERIFIED.value:
                text = "the agent's ClusterRole needs list and watch of pods (deploy/base/rbac.yaml)"
                draft.say(place, Treatment.DIFFERS, text, value, "dns.pods")
        case "endpoint_pod_names":
            draft.set("dns.endpoint_pod_names", True, place)
        case "ignore":
            one_of(first(line), ["empty_service"])
            draft.set("dns.ignore_empty_service", True, place, was=value)
        case _:
            forward_zones = [each for each in line.args if not syntax.is_reverse(syntax.zone_or_cidr(each))]
            if forward_zones or not line.args:
                text = (
                    "names that the cluster domain does not hold are denied, not asked of the upstreams; addresses "
                    "that nothing has are asked of them"
                )
                draft.say(place, Treatment.DIFFERS, text, value)


def _bind(scope: Scope, directive: Directive) -> None:
    for word in scope.words.of(directive.args):
        try:
            scope.binds.append(syntax.ip_address(word))
        except ValueError:
            scope.say(directive, Treatment.NONE, f"left out: {word} is no address; see dns.listen")
    if scope.source is Source.COREDNS:
        scope.say(directive, Treatment.DIFFERS, "svcproxy listens on addresses of the node, see dns.listen")
    for line in directive.block:
        text = "dns.listen names the addresses one by one"
        scope.draft.say(scope.place(line, f"bind.{line.name}"), Treatment.NONE, text, " ".join(line.args))


def _health(scope: Scope, directive: Directive) -> None:
    scope.say(directive, Treatment.DIFFERS, BY_NAME["health"].text)
    for line in directive.block:
        place, value = scope.place(line, f"health.{line.name}"), " ".join(line.args)
        if line.name == "lameduck":
            try:
                scope.draft.set("dns.lameduck", duration(first(line)), place, was=value)
            except ValueError as exc:
                scope.draft.say(place, Treatment.NONE, f"{NOT_CARRIED_OVER}{exc}", value)
        else:
            text = "sockets pass to the next instance, which answers before the old one ends"
            scope.draft.say(place, Treatment.NEEDLESS, text, value)


def _log(scope: Scope, directive: Directive) -> None:
    """`log [NAME…] [FORMAT]`, and `class CLASS…` in the block; without it all."""
    lines = [each for each in directive.block if each.name == "class"]
    classes = list(dict.fromkeys(word for each in lines for word in each.args)) or ["all"]
    text = BY_NAME["log"].text
    scope.draft.set("dns.query_log.classes", classes, scope.place(directive), text, was=directive.words, differs=True)
    if any(each not in (".", "{common}", "{combined}") for each in directive.args):
        scope.say(directive, Treatment.NONE, "names and formats cannot be chosen: all responses are logged alike")


def _prometheus(scope: Scope, directive: Directive) -> None:
    """`prometheus [ADDRESS]`; the first one counts."""
    key_ = "dns.metrics_listen"
    if key_ in scope.draft.values:
        text = f"there is one address for the metrics of a DNS worker, {key_}: the first one counts"
        scope.say(directive, Treatment.DIFFERS, text)
        return
    address = directive.args[0] if directive.args else "localhost:9153"
    address = f"{_EVERYWHERE}{address}" if address.startswith(":") else address.replace("localhost", "127.0.0.1")
    text = BY_NAME["prometheus"].text
    try:
        listen = syntax.listen_address(address)
    except ValueError as exc:
        scope.say(directive, Treatment.NONE, f"{NOT_CARRIED_OVER}{exc}")
    else:
        scope.draft.set(key_, listen, scope.place(directive), text, was=directive.words, differs=True)


def _loadbalance(scope: Scope, directive: Directive) -> None:
    if not directive.block and directive.args in ((), ("round_robin",)):
        scope.say(directive, Treatment.NEEDLESS, BY_NAME["loadbalance"].text)
    else:
        scope.say(directive, Treatment.NONE, "addresses have no weights, and no networks are preferred")
