# SPDX-License-Identifier: Apache-2.0
"""From kube-proxy's configuration and command line to svcproxy's. Pure.

What becomes of each field is in `svcproxy.migrate.kube_proxy_fields`; here is what depends on several.
"""

from collections.abc import Callable
from typing import Final

from svcproxy import syntax
from svcproxy.migrate.draft import Draft, Place, Source, Treatment
from svcproxy.migrate.kube_proxy_fields import FIELDS, Field, Rule
from svcproxy.migrate.kube_proxy_settings import Given, KubeProxy
from svcproxy.migrate.values import boolean, integer, items, string

DEBUG_VERBOSITY = 4
"""From here on kube-proxy tells about single changes, as svcproxy does at `debug`."""
_NODE_NAME = ("$(NODE_NAME)", "$NODE_NAME", "${NODE_NAME}")
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104  # kube-proxy's words for "not given"
_PORTS: Final = {"healthzBindAddress": 10256, "metricsBindAddress": 10249}


def migrate(kube_proxy: KubeProxy, draft: Draft) -> None:
    """Set what has an equivalent, and say what becomes of every field."""
    kube_proxy.settle()
    for given in kube_proxy.unknown:
        draft.say(given.place, Treatment.NONE, "kube-proxy 1.37 has no such setting", given.value)
    for given, text in kube_proxy.remarks:
        draft.say(given.place, Treatment.NEEDLESS, text, given.value)
    work = _Migration(kube_proxy, draft)
    for each in FIELDS:
        try:
            work.field(each)
        except ValueError as exc:
            given = kube_proxy.fields[each.path]
            draft.say(given.place, Treatment.NONE, f"cannot be carried over: {exc}", given.value)
    work.unsaid()


class _Migration:
    def __init__(self, kube_proxy: KubeProxy, draft: Draft) -> None:
        self._of = kube_proxy
        self._draft = draft

    def field(self, each: Field) -> None:
        """What becomes of one field, if it says something. Raises ValueError if its value cannot be read."""
        given = self._of.given(each.path)
        if given is None:
            return
        section = each.path.partition(".")[0]
        unused = section in {"iptables", "ipvs", "nftables"} and not self._in_use(section)
        if unused:
            text = f"kube-proxy does not use it in mode {self._of.mode}, either"
            self._draft.say(given.place, Treatment.NEEDLESS, text, given.value)
        elif each.rule is not None:
            _RULES[each.rule](self, each, given)
        elif each.take is not None:
            differs = each.treatment is Treatment.DIFFERS
            self._draft.set(each.key, each.take(given.value), given.place, each.text, was=given.value, differs=differs)
        elif each.treatment is not Treatment.SAME:
            self._draft.say(given.place, each.treatment, each.text, given.value)

    def _in_use(self, section: str) -> bool:
        """In mode ipvs kube-proxy reads what is about masquerading from the section iptables."""
        return section == self._of.mode or (section == "iptables" and self._of.mode == "ipvs")

    def _masquerade_all(self, each: Field, given: Given) -> None:
        if boolean(given.value):
            self._draft.set(each.key, True, given.place, was=given.value)

    def _localhost_node_ports(self, _: Field, given: Given) -> None:
        if boolean(given.value):
            self._draft.say(given.place, Treatment.DIFFERS, _LOCALHOST, given.value)

    def _kubeconfig(self, _: Field, given: Given) -> None:
        self._draft.say(given.place, Treatment.DIFFERS, _KUBECONFIG, given.value)

    def _bind_address(self, _: Field, given: Given) -> None:
        if given.value not in _ANY:
            self._draft.say(given.place, Treatment.NONE, _BIND_ADDRESS, given.value)

    def _log_format(self, _: Field, given: Given) -> None:
        chosen = "json" if given.value == "json" else "logfmt"
        text = "records have svcproxy's own words and fields"
        self._draft.set("log.format", chosen, given.place, text, was=given.value, differs=True)

    def _verbosity(self, _: Field, given: Given) -> None:
        chosen = "debug" if integer(given.value) >= DEBUG_VERBOSITY else "info"
        text = f"svcproxy has the levels debug ({DEBUG_VERBOSITY} and over), info, warning and error"
        self._draft.set("log.level", chosen, given.place, text, was=given.value, differs=True)

    def unsaid(self) -> None:
        """What kube-proxy does by default and svcproxy does not."""
        draft, of = self._draft, self._of
        if of.given("mode") is None:
            place = Place(Source.KUBE_PROXY, "mode")
            draft.set("dataplane.mode", "nftables", place, _mode_text("iptables"), was="iptables", differs=True)
        if of.given("nodePortAddresses") is None and of.mode != "nftables":
            place = Place(Source.KUBE_PROXY, "nodePortAddresses")
            draft.set("dataplane.node_port_addresses", ["all"], place, _ALL_ADDRESSES, was="unset", differs=True)
        if of.mode == "iptables" and of.given("iptables.localhostNodePorts") is None:
            draft.say(Place(Source.KUBE_PROXY, "iptables.localhostNodePorts"), Treatment.DIFFERS, _LOCALHOST, "unset")
        if of.given("conntrack.tcpBeLiberal") is None:
            draft.say(Place(Source.KUBE_PROXY, "conntrack.tcpBeLiberal"), Treatment.DIFFERS, _LIBERAL, "unset")
        if of.given("clusterCIDR") is None and self._local_mode() == "ClusterCIDR":
            mode = of.given("detectLocalMode")
            place = mode.place if mode is not None else Place(Source.KUBE_PROXY, "clusterCIDR")
            draft.say(place, Treatment.DIFFERS, _NO_DETECTION, "clusterCIDR unset")
        if of.server is not None:
            try:
                url = syntax.api_server_url(string(of.server.value))
            except ValueError as exc:
                draft.say(of.server.place, Treatment.NONE, f"cannot be carried over: {exc}", of.server.value)
            else:
                draft.set("kube.api_servers", [url], of.server.place, _SERVER, was=of.server.value, differs=True)

    def _mode(self, _: Field, given: Given) -> None:
        mode = string(given.value)
        if mode not in ("iptables", "ipvs", "nftables"):
            self._draft.say(given.place, Treatment.NONE, f"mode {mode} is for Windows; svcproxy runs on Linux", mode)
            return
        self._draft.set("dataplane.mode", "nftables", given.place, _mode_text(mode), was=mode, differs=True)

    def _local_mode(self) -> str:
        given = self._of.given("detectLocalMode")
        return str(given.value) if given is not None else "ClusterCIDR"

    def _pods(self, each: Field, given: Given) -> None:
        """What is a pod. svcproxy refuses a value that its mode does not use; kube-proxy passes over it."""
        mode = self._local_mode()
        owner = {
            "clusterCIDR": "ClusterCIDR",
            "detectLocal.bridgeInterface": "BridgeInterface",
            "detectLocal.interfaceNamePrefix": "InterfaceNamePrefix",
        }.get(each.path, mode)
        if owner != mode:
            text = f"kube-proxy does not use it with detectLocalMode {mode}, either"
            self._draft.say(given.place, Treatment.NEEDLESS, text, given.value)
        elif each.path == "clusterCIDR":
            self._draft.set(each.key, [syntax.cidr(cidr) for cidr in items(given.value)], given.place, was=given.value)
        elif each.path != "detectLocalMode":
            self._draft.set(each.key, syntax.interface_name(string(given.value)), given.place, was=given.value)
        elif mode != "ClusterCIDR" or self._of.given("clusterCIDR") is not None:
            self._draft.set(each.key, mode, given.place, was=given.value)

    def _node_ports(self, each: Field, given: Given) -> None:
        entries = [syntax.node_port_addresses(entry) for entry in items(given.value)]
        loopback = any(entry == "localhost" or entry.startswith("127.") for entry in entries)
        text = _LOCALHOST_LISTED if loopback else ""
        self._draft.set(each.key, entries, given.place, text, was=given.value, differs=bool(text))

    def _listen(self, each: Field, given: Given) -> None:
        """`0.0.0.0:10256`; kube-proxy takes an address without a port as well."""
        text = string(given.value)
        port = _PORTS[each.path]
        try:
            address = syntax.ip_address(text.strip("[]"))
        except ValueError:
            listen = syntax.listen_address(f"{_ANY[0]}{text}" if text.startswith(":") else text)
        else:
            listen = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        differs = each.treatment is Treatment.DIFFERS
        self._draft.set(each.key, listen, given.place, each.text, was=text, differs=differs)

    def _node_name(self, _: Field, given: Given) -> None:
        name = string(given.value)
        if name in _NODE_NAME:
            text = "svcproxy takes its node's name from $NODE_NAME (deploy/base sets it)"
            self._draft.say(given.place, Treatment.NEEDLESS, text, name)
        else:
            text = "one configuration serves every node: this name is right for one alone. Better set $NODE_NAME"
            self._draft.set("node_name", syntax.node_name(name), given.place, text, was=name, differs=True)


_RULES: Final[dict[Rule, Callable[[_Migration, Field, Given], None]]] = {
    Rule.MODE: _Migration._mode,
    Rule.PODS: _Migration._pods,
    Rule.MASQUERADE_ALL: _Migration._masquerade_all,
    Rule.NODE_PORTS: _Migration._node_ports,
    Rule.LOCALHOST_NODE_PORTS: _Migration._localhost_node_ports,
    Rule.LISTEN: _Migration._listen,
    Rule.NODE_NAME: _Migration._node_name,
    Rule.KUBECONFIG: _Migration._kubeconfig,
    Rule.BIND_ADDRESS: _Migration._bind_address,
    Rule.LOG_FORMAT: _Migration._log_format,
    Rule.VERBOSITY: _Migration._verbosity,
}


def _mode_text(mode: str) -> str:
    if mode == "nftables":
        return "tables of svcproxy's own, `ip svcproxy` and `ip6 svcproxy`; it takes over from kube-proxy's by itself"
    told = {
        "iptables": "rules of nftables in place of iptables",
        "ipvs": "rules of nftables in place of IPVS: no interface kube-ipvs0, so that addresses of Services are on no "
        "interface; what answers on them there (pings, ports that no Service has) no longer does",
    }[mode]
    return f"{told}; svcproxy takes over from kube-proxy's by itself"


_LOCALHOST = (
    "kube-proxy opens NodePorts on 127.0.0.1 too (IPv4, mode iptables); svcproxy does not. To have it, add localhost "
    "to dataplane.node_port_addresses and set net.ipv4.conf.all.route_localnet to 1 on the nodes, which lets "
    "neighbours on the network reach what listens on 127.0.0.1 alone unless a firewall keeps them out"
)
_LOCALHOST_LISTED = (
    "for addresses of 127.0.0.0/8 the nodes need net.ipv4.conf.all.route_localnet set to 1, which svcproxy does not set"
)
_KUBECONFIG = (
    "svcproxy has a service account and a role of its own (deploy/base/rbac.yaml) and does not use kube-proxy's "
    "credentials"
)
_BIND_ADDRESS = "the primary addresses of a node are always those of its Node object"
_ALL_ADDRESSES = (
    "kube-proxy opens NodePorts on every address of the node unless told otherwise, so that this does, too; svcproxy's "
    "own default, primary (the Node object's addresses), is safer"
)
_LIBERAL = (
    "kube-proxy leaves nf_conntrack_tcp_be_liberal at 0, svcproxy sets it to 1, for fewer connections are reset then; "
    "dataplane.conntrack.tcp_be_liberal: false leaves it alone"
)
_NO_DETECTION = (
    "kube-proxy does not know what is a pod without it; svcproxy takes the podCIDRs of the Node object "
    "(detect_local_mode NodeCIDR). Where the CNI does not use those, set dataplane.cluster_cidrs"
)
_SERVER = (
    "an address of API servers that works without Services, which a node needs to start; svcproxy goes to these alone. "
    "Name several if there are several, or one that fails over"
)
