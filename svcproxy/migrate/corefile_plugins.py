# SPDX-License-Identifier: Apache-2.0
"""What becomes of each plugin of CoreDNS 1.14.7, and of the options of those that are carried over. Data.

What takes more than a word (`Plugin.rule`) is in `svcproxy.migrate.corefile`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from svcproxy.migrate.draft import Treatment
from svcproxy.migrate.values import integer, whole_seconds


class Rule(StrEnum):
    """What is carried over."""

    KUBERNETES = "kubernetes"
    FORWARD = "forward"
    CACHE = "cache"
    BIND = "bind"
    HEALTH = "health"
    LOG = "log"
    PROMETHEUS = "prometheus"
    LOADBALANCE = "loadbalance"
    MULTISOCKET = "multisocket"


@dataclass(frozen=True, slots=True)
class Plugin:
    """What becomes of a directive."""

    name: str
    treatment: Treatment
    text: str = ""
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """What becomes of a line in the block of a directive."""

    name: str
    treatment: Treatment
    text: str = ""
    key: str = ""
    """The key that gets the first argument; `rule` for those that take more."""
    take: Callable[[Any], Any] | None = None
    rule: bool = False


_SAME, _DIFFERS, _NEEDLESS, _NONE = Treatment.SAME, Treatment.DIFFERS, Treatment.NEEDLESS, Treatment.NONE

_TRANSPORT: Final = "svcproxy answers over UDP and TCP alone"
_OWN_NAMES: Final = (
    "svcproxy has no names but the cluster's: these are asked of the upstreams. Have a DNS server answer them, and "
    "name that in dns.stub_domains"
)
_ELSEWHERE: Final = "svcproxy does not read it: have a DNS server answer these names, and name that in dns.stub_domains"
_CHANGES: Final = "svcproxy passes questions and answers on as they are"
_OBSERVED: Final = "see `svcproxy status`, the metrics and the logs"
_PROBES: Final = (
    "the DNS role is probed by a command, `svcproxy status --role dns --probe {}` (deploy/base has it), or over HTTP "
    "at dns.metrics_listen: /health, /ready"
)
_CREDENTIALS: Final = (
    "the agent reads the API, with a service account of its own; see kube.kubeconfig, kube.api_servers"
)
_REQUESTS: Final = "the agent lists each kind once and watches it for all that svcproxy does"
_SOCKETS: Final = "every question goes out from a socket of its own, which makes answers harder to forge"
_HEALTH: Final = (
    "upstreams are not probed: one that leaves a question unanswered for 0.4 s is asked last until it answers a copy "
    "of one"
)
_NO_TLS: Final = "svcproxy speaks plain DNS to upstreams, not DNS over TLS or HTTPS"

PLUGINS: Final = (
    Plugin("root", _NEEDLESS, "svcproxy reads no zone files"),
    Plugin("metadata", _NEEDLESS, "svcproxy has no plugins that read it"),
    Plugin("geoip", _NONE, _CHANGES),
    Plugin("cancel", _DIFFERS, "dns.forward.deadline bounds the time for each question"),
    Plugin("proxyproto", _NONE, "clients are known by the address that they send from"),
    Plugin("quic", _NONE, _TRANSPORT),
    Plugin("grpc_server", _NONE, _TRANSPORT),
    Plugin("https", _NONE, _TRANSPORT),
    Plugin("https3", _NONE, _TRANSPORT),
    Plugin("timeouts", _NONE, "times of TCP connections are fixed: 10 s between queries, 3 s for the first"),
    Plugin("multisocket", _DIFFERS, "one process for each socket", Rule.MULTISOCKET),
    Plugin(
        "reload",
        _DIFFERS,
        "the configuration file is always followed, without an interval; what a change needs a restart for "
        "(docs/reference/config.md) ends the role, which starts again with its sockets kept",
    ),
    Plugin("nsid", _NONE, "no EDNS option is answered"),
    Plugin(
        "bufsize",
        _DIFFERS,
        "answers over UDP have up to 4096 octets where the client takes as many; upstreams are asked for 1232",
    ),
    Plugin("bind", _DIFFERS, rule=Rule.BIND),
    Plugin("debug", _DIFFERS, "log.level: debug tells more; nothing makes svcproxy end at an error of its own"),
    Plugin("trace", _NONE, _OBSERVED),
    Plugin("ready", _DIFFERS, _PROBES.format("readyz")),
    Plugin("health", _DIFFERS, _PROBES.format("livez"), Rule.HEALTH),
    Plugin("pprof", _NONE, _OBSERVED),
    Plugin("shed", _NEEDLESS, "each query is answered before the next is read, what waits is in the socket's buffer"),
    Plugin(
        "prometheus",
        _DIFFERS,
        "on each node, with CoreDNS' names where CoreDNS has them (docs/reference/dns-metrics.md)",
        Rule.PROMETHEUS,
    ),
    Plugin("errors", _DIFFERS, "errors are logged in svcproxy's own words"),
    Plugin(
        "log",
        _DIFFERS,
        "one line for each response, with names as CoreDNS has them; dns.query_log.lines_max bounds them",
        Rule.LOG,
    ),
    Plugin("dnstap", _NONE, _OBSERVED),
    Plugin("local", _NONE, "localhost and its like are asked of the upstreams"),
    Plugin("dns64", _NONE, _CHANGES),
    Plugin("any", _DIFFERS, "ANY is answered without records (NODATA) in the zones, and forwarded outside"),
    Plugin("chaos", _NONE, "classes other than IN are refused"),
    Plugin(
        "loadbalance",
        _NEEDLESS,
        "addresses of a headless Service are rotated; upstreams' answers keep their order",
        Rule.LOADBALANCE,
    ),
    Plugin("tsig", _NONE, "queries are not signed"),
    Plugin(
        "rewrite",
        _NONE,
        f"{_CHANGES}. Names that are rewritten into the cluster domain can become ExternalName Services",
    ),
    Plugin(
        "autopath",
        _NONE,
        "pods go through their search list themselves: names that do not exist in the cluster domain are denied on the "
        "node at once",
    ),
    Plugin("acl", _NONE, "everyone who reaches dns.listen is answered: use a NetworkPolicy or a firewall"),
    Plugin("cache", _SAME, rule=Rule.CACHE),
    Plugin("header", _NONE, "flags of responses are as the protocol wants them"),
    Plugin("dnssec", _NONE, "the cluster's names are not signed"),
    Plugin("tls", _NONE, _TRANSPORT),
    Plugin("minimal", _DIFFERS, "additional records are left out only where they do not fit"),
    Plugin("template", _NONE, _OWN_NAMES),
    Plugin("transfer", _NONE, "zone transfers are refused"),
    Plugin("hosts", _NONE, _OWN_NAMES),
    Plugin("route53", _NONE, _ELSEWHERE),
    Plugin("azure", _NONE, _ELSEWHERE),
    Plugin("clouddns", _NONE, _ELSEWHERE),
    Plugin("k8s_external", _NONE, "Services have no names outside the cluster domain: keep a CoreDNS for this zone"),
    Plugin("kubernetes", _SAME, rule=Rule.KUBERNETES),
    Plugin("file", _NONE, _ELSEWHERE),
    Plugin("auto", _NONE, _ELSEWHERE),
    Plugin("secondary", _NONE, _ELSEWHERE),
    Plugin("etcd", _NONE, _ELSEWHERE),
    Plugin(
        "loop", _DIFFERS, "loops are looked for all the time; the upstream that loops is left alone and nothing ends"
    ),
    Plugin("forward", _SAME, rule=Rule.FORWARD),
    Plugin("grpc", _NONE, "upstreams are asked over UDP and TCP alone: these names are asked of the other upstreams"),
    Plugin("erratic", _NONE, "it is for tests"),
    Plugin("whoami", _NONE, "it is for tests"),
    Plugin("on", _NONE, "svcproxy starts no programs"),
    Plugin("sign", _NONE, "svcproxy signs no zones"),
    Plugin("view", _NONE, "all clients get the same answers; what this block has is taken for everyone"),
    Plugin("nomad", _NONE, _ELSEWHERE),
)
BY_NAME: Final = {plugin.name: plugin for plugin in PLUGINS}

OPTIONS: Final = {
    "kubernetes": (
        Option("endpoint", _DIFFERS, _CREDENTIALS),
        Option("tls", _DIFFERS, _CREDENTIALS),
        Option("kubeconfig", _DIFFERS, _CREDENTIALS),
        Option("apiserver_qps", _NEEDLESS, _REQUESTS),
        Option("apiserver_burst", _NEEDLESS, _REQUESTS),
        Option("apiserver_max_inflight", _NEEDLESS, _REQUESTS),
        Option("namespaces", _SAME, key="dns.namespaces", rule=True),
        Option("namespace_labels", _NONE, "namespaces cannot be chosen by label; dns.namespaces names them"),
        Option("labels", _NONE, "every Service has its names, whatever its labels"),
        Option("pods", _SAME, key="dns.pods", rule=True),
        Option("endpoint_pod_names", _SAME, key="dns.endpoint_pod_names", rule=True),
        Option("ttl", _SAME, key="dns.ttl", take=integer),
        Option("noendpoints", _NONE, "endpoints have names: headless Services are answered"),
        Option("fallthrough", _DIFFERS, rule=True),
        Option("ignore", _SAME, key="dns.ignore_empty_service", rule=True),
        Option("multicluster", _NONE, "names of ServiceImports (clusterset.local) are not served"),
        Option("zonal", _NONE, "names of zones are not served; topology is the data plane's"),
        Option(
            "startup_timeout",
            _DIFFERS,
            "the DNS role serves when it knows all names, or after 10 s; what it does not know then is SERVFAIL",
        ),
    ),
    "forward": (
        Option("except", _NONE, "all names but those of the zones and of dns.stub_domains go to the same upstreams"),
        Option("max_fails", _DIFFERS, _HEALTH),
        Option("max_connect_attempts", _DIFFERS, "upstreams are asked in turn until dns.forward.deadline"),
        Option("health_check", _DIFFERS, _HEALTH),
        Option("force_tcp", _NONE, "upstreams are asked over UDP, and over TCP where the answer is cut"),
        Option("prefer_udp", _SAME),
        Option("tls", _NONE, _NO_TLS),
        Option("tls_servername", _NONE, _NO_TLS),
        Option("expire", _NEEDLESS, _SOCKETS),
        Option("max_age", _NEEDLESS, _SOCKETS),
        Option("max_idle_conns", _NEEDLESS, _SOCKETS),
        Option(
            "read_timeout",
            _DIFFERS,
            "the next upstream is asked after 0.4 s of silence; dns.forward.deadline bounds the whole",
        ),
        Option("doh_method", _NONE, _NO_TLS),
        Option("policy", _SAME, key="dns.forward.policy", rule=True),
        Option("max_concurrent", _SAME, key="dns.forward.concurrent_max", rule=True),
        Option("next", _NONE, "after SERVFAIL, REFUSED and referrals the next upstream of the same list is asked"),
        Option("next_on_nodata", _NONE, "that a name has no such records is an answer"),
        Option(
            "failfast_all_unhealthy_upstreams",
            _DIFFERS,
            "upstreams that were silent are asked all the same; that nobody answers is remembered for 1 s",
        ),
        Option("failover", _DIFFERS, "SERVFAIL, REFUSED and referrals always go on to the next upstream, others never"),
        Option("resolver", _NONE, "upstreams are given by address"),
        Option("source_address", _NONE, "the kernel chooses the address that questions are sent from"),
    ),
    "cache": (
        Option("success", _SAME, rule=True),
        Option("denial", _SAME, rule=True),
        Option("prefetch", _NONE, "answers are not fetched before they expire"),
        Option("serve_stale", _DIFFERS, key="dns.cache.stale_max", rule=True),
        Option("serve_stale_policy", _NONE, "a denial takes the place of the answer before it"),
        Option("servfail", _SAME, key="dns.cache.failure_ttl", take=whole_seconds),
        Option("disable", _SAME, rule=True),
        Option("keepttl", _NONE, "TTLs count down"),
    ),
}
BY_OPTION: Final = {(plugin, option.name): option for plugin, options in OPTIONS.items() for option in options}


@dataclass(frozen=True, slots=True)
class CacheFlag:
    """What becomes of a flag of node-cache."""

    name: str
    treatment: Treatment
    text: str = ""
    boolean: bool = False


_INTERFACE: Final = "svcproxy needs no interface of this kind"
_RULES: Final = "svcproxy makes no iptables rules for DNS"
NODE_CACHE_FLAGS: Final = (
    CacheFlag("localip", _SAME),
    CacheFlag("interfacename", _NEEDLESS, _INTERFACE),
    CacheFlag("setupinterface", _NEEDLESS, _INTERFACE, boolean=True),
    CacheFlag("setupiptables", _NEEDLESS, _RULES, boolean=True),
    CacheFlag("setupebtables", _NONE, _RULES, boolean=True),
    CacheFlag("syncinterval", _NEEDLESS, "what is set up is not polled"),
    CacheFlag("upstreamsvc", _NEEDLESS, "the cluster's names are answered on the node: nothing is asked of CoreDNS"),
    CacheFlag("metrics-listen-address", _DIFFERS, "see the remark on prometheus"),
    CacheFlag("health-port", _DIFFERS, _PROBES.format("livez")),
    CacheFlag("basecorefile", _NEEDLESS, "svcproxy has one file, --config"),
    CacheFlag(
        "kubednscm",
        _NEEDLESS,
        "the ConfigMap kube-dns is not read: what it has is in dns.stub_domains and dns.upstreams",
    ),
    CacheFlag(
        "skipteardown", _DIFFERS, "nothing that would lead queries astray stays when the DNS role ends", boolean=True
    ),
    CacheFlag("reloadwithsignal", _NEEDLESS, "the configuration file is always followed", boolean=True),
    CacheFlag("conf", _NEEDLESS, "svcproxy has one file, --config"),
    CacheFlag("pidfile", _NEEDLESS, "instances are in the run directory"),
    CacheFlag("quiet", _NEEDLESS, "log.level", boolean=True),
    CacheFlag("dns.port", _NEEDLESS, "ports are in dns.listen"),
    CacheFlag("p", _NEEDLESS, "ports are in dns.listen"),
    CacheFlag("v", _NEEDLESS, "log.level"),
    CacheFlag("logtostderr", _NEEDLESS, "logs are on standard error", boolean=True),
)
BY_CACHE_FLAG: Final = {flag.name: flag for flag in NODE_CACHE_FLAGS}
