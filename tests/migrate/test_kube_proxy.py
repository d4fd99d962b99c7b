# SPDX-License-Identifier: Apache-2.0
"""What becomes of kube-proxy's settings."""

import json
from typing import Any

import pytest

from svcproxy.errors import ConfigError
from svcproxy.migrate.draft import Treatment
from svcproxy.migrate.kube_proxy_fields import FIELDS
from tests.migrate.world import API_VERSION, command, kube_proxy, made

DEFAULTS = {"dataplane.mode": "nftables", "dataplane.node_port_addresses": ["all"]}
"""What comes of a configuration that says nothing."""
NFTABLES = {"dataplane.mode": "nftables"}


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        pytest.param({}, DEFAULTS, id="nothing"),
        pytest.param({"mode": "nftables"}, NFTABLES, id="NodePorts are on the primary address in mode nftables"),
        pytest.param({"mode": "ipvs"}, DEFAULTS, id="and on all in mode ipvs"),
        pytest.param(
            {"clusterCIDR": "10.244.0.0/16,fd00::/56"},
            {**DEFAULTS, "dataplane.cluster_cidrs": ["10.244.0.0/16", "fd00::/56"]},
            id="both families",
        ),
        pytest.param(
            {"clusterCIDR": "10.244.0.0/16", "detectLocalMode": "ClusterCIDR"},
            {
                **DEFAULTS,
                "dataplane.cluster_cidrs": ["10.244.0.0/16"],
                "dataplane.detect_local_mode": "ClusterCIDR",
            },
            id="the mode is said",
        ),
        pytest.param({"detectLocalMode": "ClusterCIDR"}, DEFAULTS, id="a mode without its value: not refused"),
        pytest.param(
            {"clusterCIDR": "10.244.0.0/16", "detectLocalMode": "NodeCIDR"},
            {**DEFAULTS, "dataplane.detect_local_mode": "NodeCIDR"},
            id="a value that its mode does not use",
        ),
        pytest.param(
            {
                "detectLocalMode": "BridgeInterface",
                "detectLocal": {"bridgeInterface": "cni0", "interfaceNamePrefix": "v"},
            },
            {
                **DEFAULTS,
                "dataplane.detect_local_mode": "BridgeInterface",
                "dataplane.pod_bridge_interface": "cni0",
            },
            id="bridge",
        ),
        pytest.param(
            {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "cali"}},
            {
                **DEFAULTS,
                "dataplane.detect_local_mode": "InterfaceNamePrefix",
                "dataplane.pod_interface_name_prefix": "cali",
            },
            id="prefix",
        ),
        pytest.param({"detectLocalMode": "BridgeInterface"}, DEFAULTS, id="a bridge without a name: left out"),
        pytest.param(
            {"iptables": {"masqueradeAll": True}}, {**DEFAULTS, "dataplane.masquerade_all": True}, id="masquerade all"
        ),
        pytest.param(
            {"mode": "ipvs", "iptables": {"masqueradeAll": True}},
            {**DEFAULTS, "dataplane.masquerade_all": True},
            id="masquerade all, ipvs",
        ),
        pytest.param(
            {"mode": "nftables", "iptables": {"masqueradeAll": True}}, NFTABLES, id="masquerade all of another mode"
        ),
        pytest.param(
            {"mode": "nftables", "nftables": {"masqueradeAll": True}},
            {**NFTABLES, "dataplane.masquerade_all": True},
            id="masquerade all, nftables",
        ),
        pytest.param(
            {"nodePortAddresses": ["primary", "192.0.2.1/24"]},
            {**NFTABLES, "dataplane.node_port_addresses": ["primary", "192.0.2.0/24"]},
            id="addresses of NodePorts",
        ),
        pytest.param(
            {"healthzBindAddress": "127.0.0.1", "metricsBindAddress": "[::]:9100"},
            {**DEFAULTS, "admin.health_listen": "127.0.0.1:10256", "admin.metrics_listen": "[::]:9100"},
            id="addresses to listen on, with and without a port",
        ),
        pytest.param(
            {
                "conntrack": {
                    "maxPerCore": 0,
                    "min": 1000,
                    "tcpEstablishedTimeout": "0s",
                    "tcpCloseWaitTimeout": "1h30m",
                    "tcpBeLiberal": True,
                    "udpTimeout": "1500ms",
                    "udpStreamTimeout": "5m",
                }
            },
            {
                **DEFAULTS,
                "dataplane.conntrack.max_per_core": 0,
                "dataplane.conntrack.min": 1000,
                "dataplane.conntrack.tcp_timeout_established": 0,
                "dataplane.conntrack.tcp_timeout_close_wait": 5400,
                "dataplane.conntrack.tcp_be_liberal": True,
                "dataplane.conntrack.udp_timeout": 2,
                "dataplane.conntrack.udp_timeout_stream": 300,
            },
            id="connection tracking: 0 is a value where it means something",
        ),
        pytest.param(
            {"logging": {"format": "json", "verbosity": 5}},
            {**DEFAULTS, "log.format": "json", "log.level": "debug"},
            id="logs",
        ),
        pytest.param({"hostnameOverride": "Node-7"}, {**DEFAULTS, "node_name": "node-7"}, id="name of the node"),
    ],
)
def test_what_is_set(fields: dict[str, Any], config: dict[str, Any]) -> None:
    assert kube_proxy(**fields).config == config


@pytest.mark.parametrize(
    ("fields", "setting", "treatment", "text"),
    [
        pytest.param({}, "mode", "differs", "in place of iptables", id="default mode"),
        pytest.param({"mode": "kernelspace"}, "mode", "none", "Windows", id="mode of Windows"),
        pytest.param({}, "iptables.localhostNodePorts", "differs", "route_localnet", id="NodePorts on localhost"),
        pytest.param({}, "conntrack.tcpBeLiberal", "differs", "tcp_be_liberal: false", id="liberal"),
        pytest.param({}, "clusterCIDR", "differs", "podCIDRs", id="nothing says what a pod is"),
        pytest.param({"portRange": 7}, "portRange", "needless", "has not used it", id="portRange"),
        pytest.param({"colour": "red"}, "colour", "none", "no such setting", id="unknown"),
        pytest.param({"iptables": {"colour": 1}}, "iptables.colour", "none", "no such setting", id="unknown, inside"),
        pytest.param({"clusterCIDR": "10.0.0.0"}, "clusterCIDR", "none", "is not a CIDR", id="not a CIDR"),
        pytest.param(
            {"conntrack": {"udpTimeout": "soon"}}, "conntrack.udpTimeout", "none", "not a duration", id="not a duration"
        ),
        pytest.param(
            {"conntrack": {"min": -1}},
            "conntrack.min",
            "none",
            "cannot be carried over: -1 is out of range",
            id="range",
        ),
        pytest.param(
            {"nodePortAddresses": ["localhost"]},
            "nodePortAddresses",
            "differs",
            "route_localnet",
            id="localhost listed",
        ),
        pytest.param(
            {"mode": "nftables", "ipvs": {"scheduler": "lc"}},
            "ipvs.scheduler",
            "needless",
            "mode nftables",
            id="unused",
        ),
        pytest.param(
            {"mode": "ipvs", "ipvs": {"scheduler": "lc"}}, "ipvs.scheduler", "differs", "random", id="scheduler"
        ),
        pytest.param({"bindAddress": "192.0.2.1"}, "bindAddress", "none", "Node object", id="bindAddress"),
    ],
)
def test_what_is_said(fields: dict[str, Any], setting: str, treatment: str, text: str) -> None:
    found = kube_proxy(**fields).of(setting)
    assert (found.treatment.value, text in found.text) == (treatment, True), found


VALUES: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "KubeProxyConfiguration",
    "mode": "nftables",
    "detectLocalMode": "ClusterCIDR",
    "clusterCIDR": "10.0.0.0/8",
    "nodePortAddresses": ["all"],
    "hostnameOverride": "n",
    "logging.verbosity": 1,
    "oomScoreAdj": 0,
    "conntrack.maxPerCore": 1,
    "conntrack.min": 1,
}
BOOLEANS = {"masqueradeAll", "localhostNodePorts", "tcpBeLiberal"}


@pytest.mark.parametrize("path", [field.path for field in FIELDS if field.path not in ("apiVersion", "kind")])
def test_no_field_is_passed_over_in_silence(path: str) -> None:
    section, _, name = path.rpartition(".")
    value = VALUES.get(path, True if name in BOOLEANS else "127.0.0.1" if "Address" in name else "1s")
    fields: dict[str, Any] = {"mode": section or "iptables"} if section in ("iptables", "ipvs", "nftables") else {}
    at = fields
    for step in section.split(".") if section else ():
        at = at.setdefault(step, {})
    at[name] = value
    assert kube_proxy(**fields).said(path)


def test_zero_values_are_as_good_as_none() -> None:
    everything = {
        "bindAddress": "0.0.0.0", "bindAddressHardFail": False, "configSyncPeriod": "0s", "oomScoreAdj": None,
        "clientConnection": {"qps": 0, "kubeconfig": ""}, "logging": {"verbosity": 0, "options": {"json": {}}},
        "nodePortAddresses": None, "ipvs": None, "featureGates": {},
    }  # fmt: skip
    assert kube_proxy(**everything).draft == kube_proxy().draft


def test_places_are_told() -> None:
    text = f"apiVersion: {API_VERSION}\nkind: KubeProxyConfiguration\niptables:\n  syncPeriod: 10s\n"
    place = made(kube_proxy=text).of("iptables.syncPeriod").place
    assert (place.file, place.line) == ("kube_proxy", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("apiVersion: v1\nkind: KubeProxyConfiguration\n", "apiVersion: expected kubeproxy", id="version"),
        pytest.param("apiVersion: v1\nkind: Secret\n", "holds nothing of kube-proxy", id="another kind"),
        pytest.param("a: 1\n", "holds nothing of kube-proxy", id="no object"),
        pytest.param("a: [\n", "did not find expected node content", id="not YAML"),
        pytest.param(
            f"apiVersion: {API_VERSION}\nkind: KubeProxyConfiguration\niptables: 7\n",
            "iptables: expected a mapping",
            id="type",
        ),
        pytest.param(
            f"apiVersion: {API_VERSION}\nkind: KubeProxyConfiguration\nmode: a\nmode: b\n",
            ":4: mode: set twice",
            id="twice",
        ),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="kube_proxy") as refused:
        made(kube_proxy=text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        pytest.param(["--proxy-mode=nftables"], NFTABLES, id="joined"),
        pytest.param(["--proxy-mode", "nftables"], NFTABLES, id="apart"),
        pytest.param(
            ["--masquerade-all", "--proxy-mode", "ipvs"], {**DEFAULTS, "dataplane.masquerade_all": True}, id="bare"
        ),
        pytest.param(["--masquerade-all=false"], DEFAULTS, id="false"),
        pytest.param(["-v=4"], {**DEFAULTS, "log.level": "debug"}, id="-v"),
        pytest.param(
            ["--cluster-cidr=10.0.0.0/8,fd00::/8", "--nodeport-addresses=all,192.0.2.0/24"],
            {
                **DEFAULTS,
                "dataplane.cluster_cidrs": ["10.0.0.0/8", "fd00::/8"],
                "dataplane.node_port_addresses": ["all", "192.0.2.0/24"],
            },
            id="lists",
        ),
        pytest.param(
            ["--conntrack-min=7", "--conntrack-udp-timeout=3s"],
            {**DEFAULTS, "dataplane.conntrack.min": 7, "dataplane.conntrack.udp_timeout": 3},
            id="numbers are texts",
        ),
        pytest.param(
            ["--master=https://192.0.2.1:6443"],
            {**DEFAULTS, "kube.api_servers": ["https://192.0.2.1:6443"]},
            id="master",
        ),
        pytest.param(["--healthz-port=7"], {**DEFAULTS, "admin.health_listen": "0.0.0.0:7"}, id="deprecated port"),
        pytest.param(
            ["sh", "-c", "exec kube-proxy --proxy-mode=nftables 2>&1 # --proxy-mode=ipvs"], NFTABLES, id="in a shell"
        ),
    ],
)
def test_flags(flags: list[str], config: dict[str, Any]) -> None:
    assert command(*flags).config == config


def test_flags_beside_a_configuration_file() -> None:
    found = command(
        "--config=/x", "--proxy-mode=ipvs", "--hostname-override=$(NODE_NAME)", "-v=4", config={"mode": "nftables"}
    )
    assert found.config == {**NFTABLES, "log.level": "debug"}
    assert "ignores it beside --config" in found.of("--proxy-mode").text
    assert found.of("--hostname-override").treatment is Treatment.NEEDLESS
    assert command("--no-such-flag=1").of("--no-such-flag").treatment is Treatment.NONE


def test_the_server_of_its_kubeconfig_is_carried_over() -> None:
    kubeconfig = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://api.example:6443/"}}],
    }  # fmt: skip
    config = {"apiVersion": API_VERSION, "kind": "KubeProxyConfiguration"}
    data = {"config.conf": json.dumps(config), "kubeconfig.conf": json.dumps(kubeconfig)}
    found = made(kube_proxy=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "data": data}))
    assert found.config["kube.api_servers"] == ["https://api.example:6443"]
    del kubeconfig["current-context"]
    data["kubeconfig.conf"] = json.dumps(kubeconfig)
    found = made(kube_proxy=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "data": data}))
    assert "kube.api_servers" not in found.config
