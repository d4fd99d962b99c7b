# SPDX-License-Identifier: Apache-2.0
"""From NodeLocal DNSCache and the ConfigMap kube-dns to svcproxy's configuration. Pure.

node-cache makes its Corefile from a template: `__PILLAR__…` words stand for what its flags, the Service
kube-dns-upstream and the ConfigMap kube-dns say (kubernetes/dns `cmd/node-cache/app/configmap.go`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from svcproxy import syntax
from svcproxy.errors import ConfigError, Problem
from svcproxy.migrate.caddyfile import Corefile
from svcproxy.migrate.corefile import migrate
from svcproxy.migrate.corefile_forward import RESOLV_CONF, add_stub_domain
from svcproxy.migrate.corefile_plugins import BY_CACHE_FLAG
from svcproxy.migrate.corefile_scope import Scope, Words
from svcproxy.migrate.draft import Draft, Place, Source, Treatment
from svcproxy.migrate.zones import upstream

TEMPLATE = "__PILLAR__"
DOMAIN, LOCAL, SERVER = f"{TEMPLATE}DNS__DOMAIN__", f"{TEMPLATE}LOCAL__DNS__", f"{TEMPLATE}DNS__SERVER__"
LOCAL_LISTEN = "127.0.0.1:9053"
"""As in deploy/base: port 53 of 127.0.0.1 may be somebody else's."""
CLUSTER, UPSTREAM = f"{TEMPLATE}CLUSTER__DNS__", f"{TEMPLATE}UPSTREAM__SERVERS__"


@dataclass(frozen=True, slots=True)
class KubeDns:
    """The ConfigMap kube-dns."""

    file: str
    stub_domains: dict[str, list[str]]
    upstreams: list[str]
    others: tuple[str, ...] = ()
    """Its other keys."""


def read_kube_dns(data: dict[str, str], file: str) -> KubeDns:
    """The ConfigMap's data, whose values are JSON. Raises `ConfigError`."""
    found: dict[str, object] = {}
    for name, type_ in (("stubDomains", dict[str, list[str]]), ("upstreamNameservers", list[str])):
        text = data.get(name, "").strip()
        try:
            found[name] = msgspec.json.decode(text, type=type_) if text else type_()
        except msgspec.DecodeError as exc:
            raise ConfigError([Problem(f"not what JSON of {name} is: {exc}", file, path=name)]) from exc
    others = tuple(sorted(data.keys() - found.keys()))
    stub_domains, upstreams = found["stubDomains"], found["upstreamNameservers"]
    assert isinstance(stub_domains, dict)
    assert isinstance(upstreams, list)
    return KubeDns(file, stub_domains, upstreams, others)


@dataclass(slots=True)
class NodeLocalDns:
    """A NodeLocal DNSCache, as far as it is known."""

    corefile: Corefile | None = None
    arguments: list[str] = field(default_factory=list)
    arguments_file: str = ""


def migrate_kube_dns(kube_dns: KubeDns, draft: Draft, *, read: bool) -> None:
    """Take its stub domains over. `read`: whether anybody reads it; CoreDNS does not, NodeLocal DNSCache does."""
    for name in kube_dns.others:
        text = "not one of stubDomains and upstreamNameservers"
        draft.say(Place(Source.KUBE_DNS, name, kube_dns.file), Treatment.NONE, text)
    if not read:
        for name, value in (("stubDomains", kube_dns.stub_domains), ("upstreamNameservers", kube_dns.upstreams)):
            if value:
                text = "left out: CoreDNS does not read it, and there is no NodeLocal DNSCache, which does"
                draft.say(Place(Source.KUBE_DNS, name, kube_dns.file), Treatment.NEEDLESS, text, value)
        return
    for name, words in kube_dns.stub_domains.items():
        place = Place(Source.KUBE_DNS, f"stubDomains {name}", kube_dns.file)
        try:
            add_stub_domain(draft, syntax.zone(name), _addresses(words, draft, place), place, words)
        except ValueError as exc:
            draft.say(place, Treatment.NONE, f"cannot be carried over: {exc}", words)


def _addresses(words: Sequence[str], draft: Draft, place: Place) -> list[str]:
    found: dict[str, None] = {}
    for word in words:
        try:
            found[upstream(word).address or _no_file(word)] = None
        except ValueError as exc:
            draft.say(place, Treatment.NONE, f"this upstream is left out: {exc}", word)
    return list(found)


def _no_file(word: str) -> str:
    raise ValueError(f"{word}: upstreams are given by address")


def migrate_upstreams(kube_dns: KubeDns, draft: Draft) -> None:
    """Take `upstreamNameservers` over where there is no Corefile that says whether they count."""
    place = Place(Source.KUBE_DNS, "upstreamNameservers", kube_dns.file)
    if addresses := _addresses(kube_dns.upstreams, draft, place):
        draft.set("dns.upstreams", addresses, place, was=kube_dns.upstreams)


def migrate_node_local_dns(
    cache: NodeLocalDns, kube_dns: KubeDns | None, cluster_ips: Sequence[str], draft: Draft
) -> list[str]:
    """Take the cache's settings over; returns the addresses that it answers on.

    `cluster_ips`: those of the Service kube-dns, as far as they are known.
    """
    local = list(_flags(cache, draft))
    servers = [each for each in local if each in cluster_ips] or list(cluster_ips)
    domain = next((each for each in draft.values.get("dns.zones", ()) if "/" not in each), "cluster.local")
    upstreams = kube_dns.upstreams if kube_dns is not None else []
    stand_for = {
        DOMAIN: (domain,),
        LOCAL: tuple(each for each in local if each not in servers),
        SERVER: tuple(servers),
        UPSTREAM: tuple(upstreams) or (RESOLV_CONF,),
    }
    if cache.corefile is None:
        return local
    words = Words(stand_for, frozenset({CLUSTER, *cluster_ips}))
    scope = Scope(draft, Source.NODE_LOCAL_DNS, cache.corefile.file, words)
    migrate(cache.corefile, scope)
    if kube_dns is not None and upstreams:
        place = Place(Source.KUBE_DNS, "upstreamNameservers", kube_dns.file)
        if any(UPSTREAM in each.args for block in cache.corefile.blocks for each in block.directives):
            draft.say(place, Treatment.SAME, "", upstreams, "dns.upstreams")
        else:
            text = "left out: the cache's Corefile forwards elsewhere"
            draft.say(place, Treatment.NEEDLESS, text, upstreams)
    return list(dict.fromkeys([*local, *scope.binds]))


def _flags(cache: NodeLocalDns, draft: Draft) -> Iterator[str]:
    """The addresses of -localip; says what becomes of every flag."""
    queue = list(cache.arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        flag = BY_CACHE_FLAG.get(name)
        if not equals and queue and not (flag is not None and flag.boolean) and not queue[0].startswith("-"):
            value = queue.pop(0)
        place = Place(Source.NODE_LOCAL_DNS, f"-{name}", cache.arguments_file)
        if flag is None:
            draft.say(place, Treatment.NONE, "node-cache has no such flag, as far as svcproxy knows", value)
        elif name == "localip":
            yield from _local_ips(value, draft, place)
        elif flag.text:
            draft.say(place, flag.treatment, flag.text, value)


def _local_ips(value: str, draft: Draft, place: Place) -> Iterator[str]:
    for word in filter(None, value.split(",")):
        try:
            yield syntax.ip_address(word.strip())
        except ValueError as exc:
            text = "the template is not filled in" if word.startswith(TEMPLATE) else str(exc)
            draft.say(place, Treatment.NONE, f"left out: {text}", word)


def listen(addresses: Sequence[str], draft: Draft, place: Place) -> None:
    """Answer on these addresses, which pods ask today."""
    text = "for questions from the node itself; what pods ask is in dns.intercept"
    draft.set("dns.listen", [LOCAL_LISTEN], place, text, was=", ".join(addresses), differs=True)
    text = "the DNS role, which needs CAP_NET_ADMIN for it, has these addresses on the node while it answers"
    draft.set("dns.intercept", list(addresses), place, text, was=", ".join(addresses), differs=True)
