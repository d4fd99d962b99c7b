# SPDX-License-Identifier: Apache-2.0
"""The configuration: one frozen tree, parsed once, passed down in parts.

Every field is documented here and in `docs/reference/config.md`. Durations are seconds.
"""

from enum import StrEnum

import msgspec


class DataplaneMode(StrEnum):
    """Which data plane serves the frontends."""

    AUTO = "auto"
    """The best one that works here; today `userspace`."""
    NFTABLES = "nftables"
    USERSPACE = "userspace"
    NONE = "none"
    """None: answer DNS and publish, balance nothing."""


class LogFormat(StrEnum):
    """How a log line is written."""

    LOGFMT = "logfmt"
    JSON = "json"


class KubeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where objects come from."""

    kubeconfig: str | None = None
    """Path of a kubeconfig file. Default: `$KUBECONFIG`, else the Pod's service account."""
    context: str | None = None
    """Context of the kubeconfig. Default: its current one."""
    api_servers: tuple[str, ...] = ()
    """URLs of API servers, used in place of the kubeconfig's; all serve the same cluster."""
    manifests: str | None = None
    """File or directory of YAML/JSON manifests to serve instead of a cluster."""
    page_size: int = 500
    """Objects asked for in one page of a list."""
    silence_timeout: float = 90.0
    """A watch without a byte for this long is dead; API servers send a bookmark about every minute."""
    backoff_max: float = 30.0
    """Upper bound of the jittered wait between attempts."""
    object_limit: int = 16 << 20
    """Octets of one watch event; a larger one is refused."""


class UserspaceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The user-space data plane."""

    connect_timeout: float = 2.0
    """Time for one backend to accept a connection before the next is tried."""
    connect_attempts: int = 3
    """Backends tried for one connection."""
    udp_idle_timeout: float = 120.0
    """A UDP session without a datagram for this long ends."""
    udp_sessions_max: int = 65536
    """UDP sessions at once; the longest idle one makes room."""
    connections_max: int = 65536
    """TCP connections at once; further ones are refused."""


class DataplaneConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is balanced, and how."""

    mode: DataplaneMode = DataplaneMode.AUTO
    cluster_cidrs: tuple[str, ...] = ()
    """Sources that are pods: externalTrafficPolicy Local does not bind them. Empty: the Node's podCIDRs."""
    node_port_addresses: tuple[str, ...] = ("primary",)
    """CIDRs of this node's addresses that take NodePorts, or `primary`, `localhost`, `all`, freely mixed."""
    resync_interval: float = 300.0
    """Time between two comparisons of the data plane with the desired table."""
    userspace: UserspaceConfig = UserspaceConfig()


class DnsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cluster DNS."""

    enabled: bool = True
    """Whether `svcproxy run` starts the DNS role."""
    listen: tuple[str, ...] = ("127.0.0.1:53",)
    """ADDRESS:PORT pairs; IPv6 in brackets."""
    cluster_domain: str = "cluster.local"
    """The zone that is answered."""
    ttl: int = 30
    """TTL of answers, 0 to 3600."""
    workers: int = 1
    """Processes that share the addresses."""
    endpoint_pod_names: bool = False
    """Name endpoints without a hostname after their Pod."""
    upstreams: tuple[str, ...] = ()
    """Resolvers for other names. Not used yet: other names are refused."""


class AdminConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Health, metrics and status over HTTP, besides the instance's own socket in the run directory."""

    health_listen: str | None = "0.0.0.0:10256"
    """ADDRESS:PORT of /livez, /readyz and /healthz for load balancers and probes; null disables."""
    metrics_listen: str | None = "127.0.0.1:10249"
    """ADDRESS:PORT of /metrics and the read-only status API; null disables."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Logs, on standard error."""

    level: str = "info"
    """debug, info, warning or error."""
    format: LogFormat = LogFormat.LOGFMT


class StateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The snapshot that is served when the source of objects cannot be reached at start."""

    max_age: float = 86400.0
    """A snapshot older than this is refused."""
    write_interval: float = 10.0
    """Shortest time between two writes."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration."""

    node_name: str = ""
    """Name of the own Node object. Default: the host name in lower case."""
    run_dir: str = "/run/svcproxy"
    """Sockets, locks and process status. Each instance makes a directory of its own below."""
    state_dir: str = "/var/lib/svcproxy"
    """What survives a restart."""
    shutdown_timeout: float = 10.0
    """Time for established connections to end after SIGTERM."""
    kube: KubeConfig = KubeConfig()
    dataplane: DataplaneConfig = DataplaneConfig()
    dns: DnsConfig = DnsConfig()
    admin: AdminConfig = AdminConfig()
    log: LogConfig = LogConfig()
    state: StateConfig = StateConfig()
