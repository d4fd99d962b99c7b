# SPDX-License-Identifier: Apache-2.0
"""What becomes of each field of a KubeProxyConfiguration (v1alpha1, Kubernetes 1.37), and of each flag. Data.

What depends on several fields (`Field.rule`) is decided in `svcproxy.migrate.kube_proxy`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from svcproxy.migrate.draft import Treatment
from svcproxy.migrate.values import boolean, integer, whole_seconds


class Rule(StrEnum):
    """What takes more than the value of the field itself."""

    MODE = "mode"
    PODS = "pods"
    """What is a pod."""
    MASQUERADE_ALL = "masquerade-all"
    NODE_PORTS = "node-ports"
    LOCALHOST_NODE_PORTS = "localhost-node-ports"
    LISTEN = "listen"
    NODE_NAME = "node-name"
    KUBECONFIG = "kubeconfig"
    BIND_ADDRESS = "bind-address"
    LOG_FORMAT = "log-format"
    VERBOSITY = "verbosity"


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of one field."""

    path: str
    treatment: Treatment
    text: str = ""
    """Told when the field is given."""
    key: str = ""
    """The key that gets the value."""
    take: Callable[[Any], Any] | None = None
    """From the field's value to the key's. Raises ValueError."""
    rule: Rule | None = None
    zero_counts: bool = False
    """Whether 0, "" and false say something else than nothing."""


_SAME, _DIFFERS, _NEEDLESS, _NONE = Treatment.SAME, Treatment.DIFFERS, Treatment.NEEDLESS, Treatment.NONE

_LOGS: Final = "svcproxy writes every record to standard error at once, without buffers"
_WINDOWS: Final = "svcproxy runs on Linux alone"
_NO_IPVS: Final = "svcproxy makes no IPVS rules"
_NO_TIMEOUT: Final = (
    "connections are the kernel's connection tracking's, not IPVS'; see dataplane.conntrack for its time-outs"
)
_SYNC: Final = (
    "svcproxy hears of changes by others at once and undoes them; what it has programmed is read back every "
    "dataplane.resync_interval (300 s) besides, and after an error at once"
)
_MIN_SYNC: Final = (
    "every change is programmed at once, and costs what it changes; what comes while the kernel is busy goes in as one"
)
_MARK: Final = (
    "svcproxy marks no packets: what is masqueraded is told by the connection's original destination. Whoever else "
    "reads this mark (firewall rules, CNI) no longer finds it"
)
_CLIENT: Final = "svcproxy lists each kind once and watches it; kube.page_size and kube.backoff_max bound its requests"

FIELDS: Final = (
    Field("apiVersion", _SAME, zero_counts=True),
    Field("kind", _SAME, zero_counts=True),
    Field("featureGates", _NONE, "svcproxy has no feature gates: what it can do is always on"),
    Field("clientConnection.kubeconfig", _DIFFERS, rule=Rule.KUBECONFIG),
    Field("clientConnection.acceptContentTypes", _NEEDLESS, "svcproxy asks for JSON"),
    Field("clientConnection.contentType", _NEEDLESS, "svcproxy asks for JSON"),
    Field("clientConnection.qps", _NEEDLESS, _CLIENT),
    Field("clientConnection.burst", _NEEDLESS, _CLIENT),
    Field("logging.format", _DIFFERS, rule=Rule.LOG_FORMAT),
    Field("logging.flushFrequency", _NEEDLESS, _LOGS),
    Field("logging.verbosity", _DIFFERS, rule=Rule.VERBOSITY),
    Field("logging.vmodule", _NONE, "svcproxy has one level for everything: log.level"),
    Field("logging.options.text.splitStream", _NONE, _LOGS),
    Field("logging.options.text.infoBufferSize", _NEEDLESS, _LOGS),
    Field("logging.options.json.splitStream", _NONE, _LOGS),
    Field("logging.options.json.infoBufferSize", _NEEDLESS, _LOGS),
    Field("hostnameOverride", _SAME, rule=Rule.NODE_NAME),
    Field("bindAddress", _NONE, rule=Rule.BIND_ADDRESS),
    Field(
        "healthzBindAddress",
        _SAME,
        "/healthz and /livez answer as kube-proxy's; /readyz tells besides whether everything is programmed",
        "admin.health_listen",
        rule=Rule.LISTEN,
    ),
    Field(
        "metricsBindAddress",
        _DIFFERS,
        "the metrics have svcproxy's names (docs/reference/metrics.md): change dashboards and alerts",
        "admin.metrics_listen",
        rule=Rule.LISTEN,
    ),
    Field(
        "bindAddressHardFail",
        _NONE,
        "svcproxy does not end when an address is taken: it says so in its logs and tries again",
    ),
    Field("enableProfiling", _NONE, "svcproxy has no /debug/pprof"),
    Field("showHiddenMetricsForVersion", _NEEDLESS, "svcproxy has no hidden metrics"),
    Field("mode", _DIFFERS, key="dataplane.mode", rule=Rule.MODE),
    Field("iptables.masqueradeBit", _NEEDLESS, _MARK, zero_counts=True),
    Field("iptables.masqueradeAll", _SAME, key="dataplane.masquerade_all", rule=Rule.MASQUERADE_ALL),
    Field("iptables.localhostNodePorts", _DIFFERS, rule=Rule.LOCALHOST_NODE_PORTS, zero_counts=True),
    Field("iptables.syncPeriod", _NEEDLESS, _SYNC),
    Field("iptables.minSyncPeriod", _NEEDLESS, _MIN_SYNC),
    Field("ipvs.syncPeriod", _NEEDLESS, _SYNC),
    Field("ipvs.minSyncPeriod", _NEEDLESS, _MIN_SYNC),
    Field(
        "ipvs.scheduler",
        _DIFFERS,
        "every new connection goes to a ready endpoint at random, all alike (or as sessionAffinity says); there is no "
        "other scheduler",
    ),
    Field("ipvs.excludeCIDRs", _NEEDLESS, f"{_NO_IPVS}, and removes none"),
    Field(
        "ipvs.strictARP",
        _NEEDLESS,
        "no address of a Service is put on an interface, so that the node answers ARP for none of them",
    ),
    Field("ipvs.tcpTimeout", _NONE, _NO_TIMEOUT),
    Field("ipvs.tcpFinTimeout", _NONE, _NO_TIMEOUT),
    Field("ipvs.udpTimeout", _NONE, _NO_TIMEOUT),
    Field("nftables.masqueradeBit", _NEEDLESS, _MARK, zero_counts=True),
    Field("nftables.masqueradeAll", _SAME, key="dataplane.masquerade_all", rule=Rule.MASQUERADE_ALL),
    Field("nftables.syncPeriod", _NEEDLESS, _SYNC),
    Field("nftables.minSyncPeriod", _NEEDLESS, _MIN_SYNC),
    Field("winkernel.networkName", _NONE, _WINDOWS),
    Field("winkernel.sourceVip", _NONE, _WINDOWS),
    Field("winkernel.enableDSR", _NONE, _WINDOWS),
    Field("winkernel.rootHnsEndpointName", _NONE, _WINDOWS),
    Field("winkernel.forwardHealthCheckVip", _NONE, _WINDOWS),
    Field("detectLocalMode", _SAME, key="dataplane.detect_local_mode", rule=Rule.PODS),
    Field("detectLocal.bridgeInterface", _SAME, key="dataplane.pod_bridge_interface", rule=Rule.PODS),
    Field("detectLocal.interfaceNamePrefix", _SAME, key="dataplane.pod_interface_name_prefix", rule=Rule.PODS),
    Field("clusterCIDR", _SAME, key="dataplane.cluster_cidrs", rule=Rule.PODS),
    Field("nodePortAddresses", _SAME, key="dataplane.node_port_addresses", rule=Rule.NODE_PORTS),
    Field(
        "oomScoreAdj",
        _NEEDLESS,
        "the kubelet sets it for the priority class system-node-critical, which deploy/base has",
        zero_counts=True,
    ),
    Field(
        "conntrack.maxPerCore",
        _DIFFERS,
        "nf_conntrack_max is raised to it, never lowered",
        "dataplane.conntrack.max_per_core",
        integer,
        zero_counts=True,
    ),
    Field("conntrack.min", _SAME, "", "dataplane.conntrack.min", integer, zero_counts=True),
    Field(
        "conntrack.tcpEstablishedTimeout",
        _SAME,
        "",
        "dataplane.conntrack.tcp_timeout_established",
        whole_seconds,
        zero_counts=True,
    ),
    Field(
        "conntrack.tcpCloseWaitTimeout",
        _SAME,
        "",
        "dataplane.conntrack.tcp_timeout_close_wait",
        whole_seconds,
        zero_counts=True,
    ),
    Field("conntrack.tcpBeLiberal", _SAME, "", "dataplane.conntrack.tcp_be_liberal", boolean),
    Field("conntrack.udpTimeout", _SAME, "", "dataplane.conntrack.udp_timeout", whole_seconds),
    Field("conntrack.udpStreamTimeout", _SAME, "", "dataplane.conntrack.udp_timeout_stream", whole_seconds),
    Field(
        "configSyncPeriod",
        _NEEDLESS,
        "objects are watched; a watch that falls silent is replaced (kube.silence_timeout)",
    ),
    Field("portRange", _NEEDLESS, "kube-proxy has not used it for years, either"),
    Field("windowsRunAsService", _NONE, _WINDOWS),
)
BY_PATH: Final = {field.path: field for field in FIELDS}
SECTIONS: Final = {field.path.rpartition(".")[0] for field in FIELDS} | {"logging.options"}
"""Paths of mappings that hold fields."""


@dataclass(frozen=True, slots=True)
class Flag:
    """What a flag of kube-proxy's command line stands for."""

    name: str
    path: str = ""
    """The field; empty if there is none."""
    boolean: bool = False
    """Whether it may stand without a value."""
    beside_config: bool = False
    """Whether it counts although there is a --config."""
    text: str = ""
    """What becomes of it, where there is no field."""


_ONE_SHOT: Final = "svcproxy's own is `svcproxy cleanup`, run by hand"
FLAGS: Final = (
    Flag("config", beside_config=True),
    Flag("write-config-to", text="`svcproxy check-config -o json` prints the configuration in force"),
    Flag("cleanup", boolean=True, beside_config=True, text=_ONE_SHOT),
    Flag(
        "init-only",
        boolean=True,
        beside_config=True,
        text="svcproxy needs no privileged start: CAP_NET_ADMIN is enough; parameters that it may not set are reported",
    ),
    Flag("feature-gates", "featureGates"),
    Flag("kubeconfig", "clientConnection.kubeconfig"),
    Flag("master"),
    Flag("kube-api-content-type", "clientConnection.contentType"),
    Flag("kube-api-burst", "clientConnection.burst"),
    Flag("kube-api-qps", "clientConnection.qps"),
    Flag("hostname-override", "hostnameOverride", beside_config=True),
    Flag("bind-address", "bindAddress"),
    Flag("healthz-bind-address", "healthzBindAddress"),
    Flag("metrics-bind-address", "metricsBindAddress"),
    Flag("healthz-port"),
    Flag("metrics-port"),
    Flag("bind-address-hard-fail", "bindAddressHardFail", boolean=True),
    Flag("profiling", "enableProfiling", boolean=True),
    Flag("show-hidden-metrics-for-version", "showHiddenMetricsForVersion"),
    Flag("proxy-mode", "mode"),
    Flag("iptables-masquerade-bit", "iptables.masqueradeBit"),
    Flag("masquerade-all", "iptables.masqueradeAll", boolean=True),
    Flag("iptables-localhost-nodeports", "iptables.localhostNodePorts", boolean=True),
    Flag("iptables-sync-period", "iptables.syncPeriod"),
    Flag("iptables-min-sync-period", "iptables.minSyncPeriod"),
    Flag("ipvs-sync-period", "ipvs.syncPeriod"),
    Flag("ipvs-min-sync-period", "ipvs.minSyncPeriod"),
    Flag("ipvs-scheduler", "ipvs.scheduler"),
    Flag("ipvs-exclude-cidrs", "ipvs.excludeCIDRs"),
    Flag("ipvs-strict-arp", "ipvs.strictARP", boolean=True),
    Flag("ipvs-tcp-timeout", "ipvs.tcpTimeout"),
    Flag("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout"),
    Flag("ipvs-udp-timeout", "ipvs.udpTimeout"),
    Flag("detect-local-mode", "detectLocalMode"),
    Flag("pod-bridge-interface", "detectLocal.bridgeInterface"),
    Flag("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix"),
    Flag("cluster-cidr", "clusterCIDR"),
    Flag("nodeport-addresses", "nodePortAddresses"),
    Flag("oom-score-adj", "oomScoreAdj"),
    Flag("conntrack-max-per-core", "conntrack.maxPerCore"),
    Flag("conntrack-min", "conntrack.min"),
    Flag("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout"),
    Flag("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout"),
    Flag("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", boolean=True),
    Flag("conntrack-udp-timeout", "conntrack.udpTimeout"),
    Flag("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout"),
    Flag("config-sync-period", "configSyncPeriod"),
    Flag("v", "logging.verbosity", beside_config=True),
    Flag("vmodule", "logging.vmodule", beside_config=True),
    Flag("logging-format", "logging.format", beside_config=True),
    Flag("log-flush-frequency", "logging.flushFrequency", beside_config=True),
    Flag("log-text-split-stream", "logging.options.text.splitStream", boolean=True, beside_config=True),
    Flag("log-text-info-buffer-size", "logging.options.text.infoBufferSize", beside_config=True),
    Flag("log-json-split-stream", "logging.options.json.splitStream", boolean=True, beside_config=True),
    Flag("log-json-info-buffer-size", "logging.options.json.infoBufferSize", beside_config=True),
    Flag("version", boolean=True, beside_config=True, text="`svcproxy version`"),
    Flag("help", boolean=True, beside_config=True, text="`svcproxy --help`"),
)
BY_FLAG: Final = {flag.name: flag for flag in FLAGS}
