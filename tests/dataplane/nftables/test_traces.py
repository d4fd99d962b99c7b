# SPDX-License-Identifier: Apache-2.0
"""Who left which traces."""

import pytest

from svcproxy.api import Foreign
from svcproxy.dataplane.nftables.answers import Content, Elements, ObjectState, TableState
from svcproxy.dataplane.nftables.messages import Kind, Table, TableFlag
from svcproxy.dataplane.nftables.traces import Traces, recognise, shows_kube_proxy
from svcproxy.model.meta import Family

SERVICES = {"ip nat": ("KUBE-SERVICES",)}


@pytest.mark.parametrize(
    ("traces", "found"),
    [
        pytest.param(Traces(), (), id="nobody"),
        pytest.param(
            Traces(tables=("ip kube-proxy",), kube_proxy=False),
            (Foreign("kube-proxy (nftables)", ("table ip kube-proxy",), False, True),),
            id="left over",
        ),
        pytest.param(
            Traces(nft_chains=SERVICES, kube_proxy=True, kube_proxy_evidence="it answers"),
            (Foreign("kube-proxy (iptables-nft)", ("table ip nat: chains KUBE-SERVICES", "it answers"), True, True),),
            id="alive",
        ),
        pytest.param(
            Traces(kube_proxy=True, kube_proxy_evidence="it answers", interfaces=frozenset(["cilium_host"])),
            (
                Foreign("kube-proxy", ("it answers",), True, False),
                Foreign("Cilium", ("interface cilium_host",), None, False),
            ),
            id="alive without rules, beside another",
        ),
        pytest.param(
            Traces(legacy_chains=SERVICES, legacy_removable=False),
            (
                Foreign(
                    "kube-proxy (iptables-legacy)",
                    ("iptables-legacy: table ip nat: chains KUBE-SERVICES",),
                    None,
                    False,
                ),
            ),
            id="legacy without its programs",
        ),
        pytest.param(
            Traces(legacy_unread=("ip nat: Operation not permitted",)),
            (Foreign("iptables-legacy", ("table ip nat: Operation not permitted",), None, False),),
            id="legacy that cannot be read",
        ),
        pytest.param(
            Traces(virtual_servers=4, nft_chains={"ip nat": ("KUBE-SERVICES", "KUBE-NODE-PORT")}),
            (
                Foreign(
                    "kube-proxy (ipvs)",
                    ("4 virtual servers in /proc/net/ip_vs", "table ip nat: chains KUBE-NODE-PORT, KUBE-SERVICES"),
                    None,
                    False,
                ),
            ),
            id="ipvs mode, the interface gone",
        ),
        pytest.param(
            Traces(virtual_servers=4, nft_chains={"ip filter": ("KUBE-ROUTER-SERVICES", "KUBE-ROUTER-INPUT")}),
            (Foreign("kube-router", ("table ip filter: chain KUBE-ROUTER-SERVICES",), None, False),),
            id="kube-router",
        ),
        pytest.param(
            Traces(nft_chains={"ip filter": ("KUBE-ROUTER-INPUT", "KUBE-POD-FW-A")}), (), id="network policies alone"
        ),
        pytest.param(
            Traces(virtual_servers=4),
            (Foreign("IPVS", ("4 virtual servers in /proc/net/ip_vs",), None, False),),
            id="somebody's IPVS",
        ),
        pytest.param(
            Traces(pinned=("/sys/fs/bpf/tc/globals/cilium_lb4_services_v2",)),
            (Foreign("Cilium", ("pinned map /sys/fs/bpf/tc/globals/cilium_lb4_services_v2",), None, False),),
            id="Cilium's maps",
        ),
    ],
)
def test_who_it_was(traces: Traces, found: tuple[Foreign, ...]) -> None:
    assert recognise(traces) == found


NAT, OWN, KUBE_PROXY = (Table(Family.IPV4, name) for name in ("nat", "svcproxy", "kube-proxy"))


def chain(table: Table, name: str, *, removed: bool = False) -> ObjectState:
    return ObjectState(removed, Kind.NEW_CHAIN, table, name, 1, 0)


@pytest.mark.parametrize(
    ("content", "shows"),
    [
        pytest.param(TableState(False, KUBE_PROXY, TableFlag.NONE, 0, 0, ""), True, id="its table comes"),
        pytest.param(TableState(True, KUBE_PROXY, TableFlag.NONE, 0, 0, ""), False, id="its table goes"),
        pytest.param(Elements(False, KUBE_PROXY, "service-ips", ()), True, id="an element of its table"),
        pytest.param(Elements(True, KUBE_PROXY, "service-ips", ()), False, id="an element of its table goes"),
        pytest.param(chain(NAT, "KUBE-SERVICES"), True, id="a chain"),
        pytest.param(chain(NAT, "KUBE-SERVICES", removed=True), False, id="a chain goes"),
        pytest.param(chain(NAT, "KUBE-MARK-MASQ"), False, id="an old kubelet's chain"),
        pytest.param(chain(OWN, "KUBE-SERVICES"), False, id="another table"),
    ],
)
def test_a_change_that_only_a_live_kube_proxy_makes(content: Content, shows: bool) -> None:
    assert shows_kube_proxy(content) is shows
