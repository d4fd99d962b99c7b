# SPDX-License-Identifier: Apache-2.0
"""The configuration: one frozen tree, parsed once, passed down in parts.

Every field is documented here and in `docs/reference/config.md`. Durations are seconds. What a value must look like is
part of its type: ranges, and text forms as `check` functions, which `svcproxy.convert` applies.

`svcproxy.options` fills the tree from a command line and a file; whoever only uses it needs no more than this module.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from svcproxy import syntax

Seconds = Annotated[float, Meta(ge=0.001, le=31_536_000)]
"""A duration, at most a year."""
ConntrackSeconds = Annotated[int, Meta(ge=0, le=31_536_000)]
"""A timeout of connection tracking, whole seconds; 0 leaves what the kernel has."""
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
FilePath = Annotated[str, Meta(extra={"check": syntax.path})]
NodeName = Annotated[str, Meta(extra={"check": syntax.node_name})]
Zone = Annotated[str, Meta(extra={"check": syntax.zone})]
ZoneOrCidr = Annotated[str, Meta(extra={"check": syntax.zone_or_cidr})]
NamespaceName = Annotated[str, Meta(extra={"check": syntax.dns_label})]
Cidr = Annotated[str, Meta(extra={"check": syntax.cidr})]
NodePortAddresses = Annotated[str, Meta(extra={"check": syntax.node_port_addresses})]
ListenAddress = Annotated[str, Meta(extra={"check": syntax.listen_address})]
InterceptedAddress = Annotated[str, Meta(extra={"check": syntax.intercepted_address})]
ResolverAddress = Annotated[str, Meta(extra={"check": syntax.resolver_address})]
StubDomains = Annotated[dict[str, tuple[ResolverAddress, ...]], Meta(extra={"check": syntax.stub_domains})]
InterfaceName = Annotated[str, Meta(extra={"check": syntax.interface_name})]
ApiServerUrl = Annotated[str, Meta(extra={"check": syntax.api_server_url})]


class DataplaneMode(StrEnum):
    """Which data plane serves the frontends."""

    AUTO = "auto"
    """The best one that works here: `nftables` for a cluster if the kernel can, else `userspace`."""
    NFTABLES = "nftables"
    USERSPACE = "userspace"
    NONE = "none"
    """None: answer DNS and publish, balance nothing."""


class DetectLocalMode(StrEnum):
    """How a packet is known to come from a pod; the names are kube-proxy's."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class PodNames(StrEnum):
    """Which names below `pod` exist; the words are CoreDNS'."""

    DISABLED = "disabled"
    INSECURE = "insecure"
    """Every address in a namespace that exists, as written in the name."""
    VERIFIED = "verified"
    """The addresses of the Pods of the namespace."""


class LogFormat(StrEnum):
    """How a log line is written."""

    LOGFMT = "logfmt"
    JSON = "json"


class KubeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where objects come from."""

    kubeconfig: FilePath | None = None
    """Path of a kubeconfig file. Default: `$KUBECONFIG`, else the Pod's service account. Excludes `manifests`."""
    context: str | None = None
    """Context of the kubeconfig. Default: its current one."""
    api_servers: tuple[ApiServerUrl, ...] = ()
    """URLs of API servers, used in place of the kubeconfig's; all serve the same cluster."""
    manifests: FilePath | None = None
    """File or directory of YAML/JSON manifests to serve instead of a cluster."""
    page_size: Annotated[int, Meta(ge=1, le=10_000)] = 500
    """Objects asked for in one page of a list."""
    silence_timeout: Seconds = 90.0
    """A watch without a byte for this long is dead; API servers send a bookmark about every minute."""
    backoff_max: Seconds = 30.0
    """Upper bound of the jittered wait between attempts."""
    object_limit: Annotated[int, Meta(ge=4096, le=1 << 30)] = 16 << 20
    """Octets of one watch event; a larger one is refused."""


class UserspaceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The user-space data plane."""

    connect_timeout: Seconds = 2.0
    """Time for one backend to accept a connection before the next is tried."""
    connect_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    """Backends tried for one connection."""
    udp_idle_timeout: Seconds = 120.0
    """A UDP session without a datagram for this long ends."""
    udp_sessions_max: Count = 65536
    """UDP sessions at once; the longest idle one makes room."""
    connections_max: Count = 65536
    """TCP connections at once; further ones are refused."""


class ConntrackConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the nftables data plane sets of the kernel's connection tracking at start. See below."""

    max_per_core: Annotated[int, Meta(ge=0, le=10_000_000)] = 32768
    """Connections tracked for each CPU. `nf_conntrack_max` is raised to the sum, never lowered. 0: not touched."""
    min: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 131072
    """The least that `nf_conntrack_max` is raised to, whatever the number of CPUs."""
    tcp_timeout_established: ConntrackSeconds = 86400
    """Seconds that an idle TCP connection is remembered. 0: not touched."""
    tcp_timeout_close_wait: ConntrackSeconds = 3600
    """Seconds that a half-closed TCP connection is remembered. 0: not touched."""
    tcp_be_liberal: bool = True
    """Do not call segments outside the window invalid: one that is not translated resets the connection. False: not
    touched."""
    udp_timeout: ConntrackSeconds = 0
    """Seconds that a UDP flow without an answer is remembered. 0: not touched."""
    udp_timeout_stream: ConntrackSeconds = 0
    """Seconds that an answered UDP flow is remembered. 0: not touched."""


class DataplaneConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is balanced, and how."""

    mode: DataplaneMode = DataplaneMode.AUTO
    """Which data plane serves. `auto`: `nftables` for a cluster if the kernel can, else `userspace`; `none`: DNS
    alone."""
    beside_others: bool = False
    """Whether `nftables` serves although kube-proxy or another implementation of Services is at work on this node.
    Otherwise it waits until that is gone, and removes what a kube-proxy has left."""
    detect_local_mode: DetectLocalMode | None = None
    """What tells pods from other sources: `cluster_cidrs`, the Node's podCIDRs, or the interface that packets come
    through. externalTrafficPolicy Local does not bind pods, and connections to a ClusterIP keep their source address.
    Default: `ClusterCIDR` if there are `cluster_cidrs`, else `NodeCIDR`."""
    cluster_cidrs: tuple[Cidr, ...] = ()
    """Sources that are pods. With `BridgeInterface` and `InterfaceNamePrefix` they are so besides what those tell."""
    pod_bridge_interface: InterfaceName | None = None
    """For `BridgeInterface`: the bridge that the pods of this node are attached to."""
    pod_interface_name_prefix: InterfaceName | None = None
    """For `InterfaceNamePrefix`: how the names of the pods' interfaces begin, such as `veth` or `cali`."""
    masquerade_all: bool = False
    """Whether backends see an address of this node for every connection to a ClusterIP, also for those of pods."""
    service_cidrs: tuple[Cidr, ...] = ()
    """Addresses inside that no Service has are met with silence. Empty: the ranges of the ServiceCIDR objects."""
    node_port_addresses: tuple[NodePortAddresses, ...] = ("primary",)
    """CIDRs of this node's addresses that take NodePorts, or `primary`, `localhost`, `all`, freely mixed."""
    external_ips: bool = True
    """Whether `spec.externalIPs` of Services are served."""
    external_ip_cidrs: tuple[Cidr, ...] = ()
    """CIDRs that external IPs must be in to be served (CVE-2020-8554). Empty: all."""
    resync_interval: Seconds = 300.0
    """Time between two comparisons of the data plane with the desired table."""
    userspace: UserspaceConfig = UserspaceConfig()
    conntrack: ConntrackConfig = ConntrackConfig()

    @property
    def local_mode(self) -> DetectLocalMode:
        """`detect_local_mode`, or what stands for it if it is not given."""
        if self.detect_local_mode is not None:
            return self.detect_local_mode
        return DetectLocalMode.CLUSTER_CIDR if self.cluster_cidrs else DetectLocalMode.NODE_CIDR

    @property
    def pod_interfaces(self) -> tuple[str, ...]:
        """Names of the interfaces that packets of pods come through, a prefix with `*` at its end."""
        if self.local_mode is DetectLocalMode.BRIDGE_INTERFACE and self.pod_bridge_interface:
            return (self.pod_bridge_interface,)
        if self.local_mode is DetectLocalMode.INTERFACE_NAME_PREFIX and self.pod_interface_name_prefix:
            return (f"{self.pod_interface_name_prefix}*",)
        return ()


class UpstreamPolicy(StrEnum):
    """Which of several healthy upstreams is asked first; the names are CoreDNS'."""

    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    SEQUENTIAL = "sequential"


class DnsForwardConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How names outside the zone are asked of upstreams."""

    policy: UpstreamPolicy = UpstreamPolicy.RANDOM
    """Which upstream is asked first: any, each in turn, or the first one listed. The next one is asked when it does not
    answer within 0.4 s."""
    deadline: Annotated[float, Meta(ge=0.5, le=4.8)] = 4.0
    """Time for an answer, over all upstreams; resolvers in pods give up after 5 s."""
    concurrent_max: Count = 1000
    """Questions on their way to upstreams at once. Further ones are refused; the zone is answered regardless."""
    per_client_max: Count = 100
    """Queries of one client address that wait for upstreams at once. Further ones are refused."""
    mixed_case: bool = False
    """Spell names at random towards upstreams, which must answer with the same spelling: harder to forge."""


class DnsCacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of upstreams' answers."""

    ttl_min: Annotated[int, Meta(ge=0, le=3600)] = 5
    """Seconds for which any answer is kept at least."""
    ttl_max: Annotated[int, Meta(ge=0, le=86400)] = 30
    """Seconds for which an answer is kept at most; TTLs are lowered to it."""
    denial_ttl_max: Annotated[int, Meta(ge=0, le=10800)] = 30
    """Seconds for which it is kept at most that a name or a type does not exist."""
    failure_ttl: Annotated[int, Meta(ge=0, le=300)] = 5
    """Seconds for which an upstream's SERVFAIL is kept; that no upstream answers, for 1 s at most."""
    stale_max: Annotated[int, Meta(ge=0, le=604800)] = 3600
    """Seconds for which an expired answer is still given when upstreams fail or take longer than 1.8 s; 0: never."""
    entries_max: Count = 10000
    """Answers kept, and again as many denials; the one used longest ago makes room."""
    octets_max: Annotated[int, Meta(ge=65536, le=1 << 34)] = 16 << 20
    """Memory for answers, and again as much for denials."""


INTERCEPTED_MAX = 7
"""Addresses that can be intercepted: a proof (`svcproxy.process.proof`) has a bit for each."""
DNS_PORT = 53
"""Where intercepted addresses are answered."""


class QueryClass(StrEnum):
    """Kinds of responses; the words are CoreDNS'."""

    SUCCESS = "success"
    DENIAL = "denial"
    """Of the name, or of the type."""
    ERROR = "error"
    ALL = "all"


class DnsQueryLogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line for each response, on standard error. See below."""

    classes: tuple[QueryClass, ...] = ()
    """Which responses are logged. Empty: none."""
    one_in: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Of so many responses one is looked at, at random."""
    lines_max: Count = 1000
    """Lines in a second, of each worker; further ones are counted and left out."""
    pods: bool = False
    """Whether the agent follows the Pods of its node, so that lines name the client's Pod even if it is in no Service.
    The agent's role must allow list and watch of pods."""


class DnsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cluster DNS."""

    enabled: bool = True
    """Whether `svcproxy run` starts the DNS role."""
    listen: tuple[ListenAddress, ...] = ("127.0.0.1:53",)
    """ADDRESS:PORT pairs; IPv6 in brackets."""
    intercept: tuple[InterceptedAddress, ...] = ()
    """Addresses, at most 7, that stand on this node as long as the role answers there, on port 53: the ClusterIP of the
    cluster's DNS Service, addresses of 169.254.0.0/16, ULAs. Needs CAP_NET_ADMIN. See below."""
    zones: tuple[ZoneOrCidr, ...] = ("cluster.local", "in-addr.arpa", "ip6.arpa")
    """Zones that are answered: cluster domains, which all hold the same names, and the addresses that PTR answers, as
    zones or CIDRs. PTR and the SOA of addresses name the first cluster domain."""
    ttl: Annotated[int, Meta(ge=0, le=3600)] = 30
    """TTL of answers, 0 to 3600."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that share the addresses; as many as it says when `svcproxy dns` or `svcproxy run` is started."""
    pods: PodNames = PodNames.INSECURE
    """Names of Pods by address: none, any in an existing namespace, or those of Pods that run. `verified` watches all
    Pods, for which the agent's role must allow list and watch."""
    endpoint_pod_names: bool = False
    """Name endpoints without a hostname after their Pod."""
    ignore_empty_service: bool = False
    """Whether a Service with a ClusterIP does not exist while it has no ready endpoint."""
    namespaces: tuple[NamespaceName, ...] = ()
    """The only namespaces whose names exist. Empty: all."""

    upstreams: tuple[ResolverAddress, ...] = ()
    """Resolvers for names outside the zone. Empty: those of `resolv_conf`."""
    resolv_conf: FilePath | None = "/etc/resolv.conf"
    """File whose `nameserver` lines are the upstreams if none are given here; it is followed. null: names outside the
    zone and the stub domains are refused, unless there are `upstreams`."""
    stub_domains: StubDomains = {}
    """Zones with upstreams of their own: a mapping of zones to lists of upstreams. The longest zone counts."""
    lameduck: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    """Time to answer on after SIGTERM, no longer ready, so that clients can be sent elsewhere; over at once when
    another instance has taken the sockets, and at a second signal. `svcproxy run` kills soon after the value of its
    start."""
    metrics_listen: ListenAddress | None = None
    """ADDRESS:PORT of /metrics, /health, /ready, /livez and /readyz of the first worker; each further one has the next
    port. null: on the worker's own socket alone."""
    forward: DnsForwardConfig = DnsForwardConfig()
    cache: DnsCacheConfig = DnsCacheConfig()
    query_log: DnsQueryLogConfig = DnsQueryLogConfig()

    @property
    def sockets(self) -> tuple[str, ...]:
        """ADDRESS:PORT of everything that is bound: `listen`, and what of `intercept` no wildcard covers."""
        wildcards = ((True, f"[::]:{DNS_PORT}"), (False, f"0.0.0.0:{DNS_PORT}"))
        by_wildcard = {is_ipv6 for is_ipv6, wildcard in wildcards if wildcard in self.listen}
        alone = (ip for ip in self.intercept if (":" in ip) not in by_wildcard)
        more = (syntax.join_address(ip, DNS_PORT) for ip in alone)
        return tuple(dict.fromkeys((*self.listen, *more)))

    def metrics_address(self, worker: int) -> str | None:
        """Where a worker, counted from 0, listens for metrics: each has the port after that of the one before it."""
        if self.metrics_listen is None:
            return None
        host, port = syntax.split_address(self.metrics_listen)
        return syntax.join_address(host, port + worker if port else 0)

    @property
    def cluster_domain(self) -> str:
        """The first zone that is none of addresses: the one that short names are completed with."""
        return next((zone for zone in self.zones if not syntax.is_reverse(zone)), "")


class AdminConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Health, metrics and status over HTTP, besides the instance's own socket in the run directory."""

    health_listen: ListenAddress | None = "0.0.0.0:10256"
    """ADDRESS:PORT of /livez, /readyz and /healthz for load balancers and probes; null disables."""
    metrics_listen: ListenAddress | None = "127.0.0.1:10249"
    """ADDRESS:PORT of /metrics and the read-only status API; null disables."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe records that are written."""
    format: LogFormat = LogFormat.LOGFMT
    """How a record is written, one line each."""


class StateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The snapshot that is served when the source of objects cannot be reached at start."""

    max_age: Seconds = 86400.0
    """A snapshot older than this is refused."""
    write_interval: Seconds = 10.0
    """Shortest time between two writes."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration."""

    node_name: NodeName = ""
    """Name of the own Node object. Default: `$NODE_NAME`, else the host name; lower-cased."""
    run_dir: FilePath = "/run/svcproxy"
    """Sockets, locks and process status. Each instance makes a directory of its own below."""
    state_dir: FilePath = "/var/lib/svcproxy"
    """What survives a restart."""
    shutdown_timeout: Annotated[float, Meta(ge=0, le=86400)] = 10.0
    """Time for established connections to end after SIGTERM. `svcproxy run` kills soon after the value of its start."""
    kube: KubeConfig = KubeConfig()
    dataplane: DataplaneConfig = DataplaneConfig()
    dns: DnsConfig = DnsConfig()
    admin: AdminConfig = AdminConfig()
    log: LogConfig = LogConfig()
    state: StateConfig = StateConfig()


LIVE: frozenset[str] = frozenset(
    {
        "shutdown_timeout",
        "dataplane.resync_interval",
        "dns.lameduck",
        "dns.query_log.classes",
        "dns.query_log.lines_max",
        "dns.query_log.one_in",
        "log.level",
        "log.format",
    }
)
"""Keys that take effect without a restart when the file changes; every other key needs one."""


def dump(config: Config) -> dict[str, Any]:
    """The tree as built-in values, every key present: what a file with the same meaning would hold."""
    tree = msgspec.to_builtins(config)
    assert isinstance(tree, dict)
    return tree


def changed_keys(old: Config, new: Config) -> tuple[str, ...]:
    """Dotted paths of the keys whose values differ, sorted."""
    before, after = _leaves(dump(old)), _leaves(dump(new))
    keys = before.keys() | after.keys()
    return tuple(sorted(key for key in keys if before.get(key, _ABSENT) != after.get(key, _ABSENT)))


_ABSENT = object()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(_leaves(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves
