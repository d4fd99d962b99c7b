# SPDX-License-Identifier: Apache-2.0
"""Who else serves, or served, Services on this node, told from the traces it leaves. Pure.

Only what handles Services counts: kube-router's and k3s's network policies, for one, have KUBE-ROUTER-* chains too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from svcproxy.api import Foreign
from svcproxy.dataplane.nftables.answers import Content, Elements, ObjectState, TableState
from svcproxy.dataplane.nftables.kube_proxy import IPTABLES_TABLES, TABLE, betrays_ipvs, betrays_kube_proxy

CHAINS_NAMED: Final = 3
"""Chains that evidence names; of the others it gives the number."""

KUBE_PROXY_NFTABLES: Final = "kube-proxy (nftables)"
KUBE_PROXY_IPTABLES_NFT: Final = "kube-proxy (iptables-nft)"
KUBE_PROXY_IPTABLES_LEGACY: Final = "kube-proxy (iptables-legacy)"
KUBE_PROXY_IPVS: Final = "kube-proxy (ipvs)"
KUBE_PROXY: Final = "kube-proxy"
"""It answers, and no rule of its own is seen."""
KUBE_ROUTER: Final = "kube-router"
CILIUM: Final = "Cilium"
CALICO: Final = "Calico eBPF"
IPVS: Final = "IPVS"
"""Virtual servers, nobody knows whose."""
IPTABLES_LEGACY: Final = "iptables-legacy"
"""Rules that cannot be read: they may be anybody's."""

_KUBE_ROUTER_CHAINS: Final = frozenset(("KUBE-ROUTER-SERVICES", "KUBE-ROUTER-HAIRPIN"))
IPVS_INTERFACE: Final = "kube-ipvs0"
"""The interface that holds the addresses of Services in kube-proxy's ipvs mode."""
_KUBE_ROUTER_INTERFACE: Final = "kube-dummy-if"
_CILIUM_INTERFACE: Final = "cilium_host"
_CALICO_INTERFACES: Final = ("bpfin.cali", "bpfout.cali")

Chains = Mapping[str, tuple[str, ...]]
"""Chains of each table; the table's name is as people write it, such as `ip nat`."""


@dataclass(frozen=True, slots=True)
class Traces:
    """What was seen in one network namespace."""

    tables: tuple[str, ...] = ()
    """nftables tables called `kube-proxy`, as `ip kube-proxy`."""
    nft_chains: Chains = field(default_factory=dict)
    """Of the tables that iptables-nft uses."""
    legacy_chains: Chains = field(default_factory=dict)
    """Of iptables-legacy."""
    legacy_removable: bool = False
    """Whether its programs are installed."""
    legacy_unread: tuple[str, ...] = ()
    """Tables of iptables-legacy that could not be read, each with the reason."""
    interfaces: frozenset[str] = frozenset()
    virtual_servers: int = 0
    """Of IPVS."""
    pinned: tuple[str, ...] = ()
    """Cilium's pinned maps of Services."""
    kube_proxy: bool | None = None
    """Whether a kube-proxy is alive; None if that could not be found out."""
    kube_proxy_evidence: str = ""
    """What says so, if it is."""


def recognise(traces: Traces) -> tuple[Foreign, ...]:
    """The implementations of Services that left these traces, in a fixed order.

    What is `alive` may take connections or bring its rules back; what is not is left over.
    """
    found: list[Foreign] = []

    def kube_proxy(implementation: str, evidence: tuple[str, ...], *, removable: bool) -> None:
        words = (*evidence, traces.kube_proxy_evidence) if traces.kube_proxy_evidence else evidence
        found.append(Foreign(implementation, words, traces.kube_proxy, removable))

    nft, legacy = _evidence(traces.nft_chains, ""), _evidence(traces.legacy_chains, "iptables-legacy: ")
    by_ipvs = _of_ipvs(traces)
    if traces.tables:
        tables = tuple(f"table {table}" for table in traces.tables)
        kube_proxy(KUBE_PROXY_NFTABLES, tables, removable=True)
    if by_ipvs:
        kube_proxy(KUBE_PROXY_IPVS, (*by_ipvs, *nft, *legacy), removable=False)
    else:
        if nft:
            kube_proxy(KUBE_PROXY_IPTABLES_NFT, nft, removable=True)
        if legacy:
            kube_proxy(KUBE_PROXY_IPTABLES_LEGACY, legacy, removable=traces.legacy_removable)
    if traces.legacy_unread:
        unread = tuple(f"table {each}" for each in traces.legacy_unread)
        found.append(Foreign(IPTABLES_LEGACY, unread, None, removable=False))
    if traces.kube_proxy and not any(each.alive for each in found):
        kube_proxy(KUBE_PROXY, (), removable=False)
    found += _others(traces, ours_known=bool(by_ipvs))
    return tuple(found)


def shows_kube_proxy(content: Content) -> bool:
    """Whether a change that somebody else made (`transaction.Watch`) is one that only a live kube-proxy makes."""
    match content:
        case TableState(table=table, removed=False) | Elements(table=table, removed=False):
            return table.name == TABLE
        case ObjectState(table=table, name=name, removed=False):
            return table.name == TABLE or (table.name in IPTABLES_TABLES and betrays_kube_proxy(name))
        case _:
            return False


def _others(traces: Traces, *, ours_known: bool) -> list[Foreign]:
    """All but kube-proxy. `ours_known`: IPVS is kube-proxy's."""
    found: list[Foreign] = []
    router = _chains_among(traces, _KUBE_ROUTER_CHAINS)
    if _KUBE_ROUTER_INTERFACE in traces.interfaces:
        router = (*router, f"interface {_KUBE_ROUTER_INTERFACE}")
    if router:
        found.append(Foreign(KUBE_ROUTER, router, None, removable=False))
    elif traces.virtual_servers and not ours_known:
        evidence = f"{traces.virtual_servers} virtual servers in /proc/net/ip_vs"
        found.append(Foreign(IPVS, (evidence,), None, removable=False))
    cilium = tuple(f"pinned map {path}" for path in traces.pinned)
    if _CILIUM_INTERFACE in traces.interfaces:
        cilium = (f"interface {_CILIUM_INTERFACE}", *cilium)
    if cilium:
        found.append(Foreign(CILIUM, cilium, None, removable=False))
    calico = tuple(f"interface {name}" for name in _CALICO_INTERFACES if name in traces.interfaces)
    if calico:
        found.append(Foreign(CALICO, calico, None, removable=False))
    return found


def _of_ipvs(traces: Traces) -> tuple[str, ...]:
    """What says that a kube-proxy is or was here in ipvs mode."""
    chains = (*traces.nft_chains.values(), *traces.legacy_chains.values())
    signs = (f"interface {IPVS_INTERFACE}",) if IPVS_INTERFACE in traces.interfaces else ()
    if not signs and not any(betrays_ipvs(chain) for each in chains for chain in each):
        return ()
    servers = (f"{traces.virtual_servers} virtual servers in /proc/net/ip_vs",) if traces.virtual_servers else ()
    return (*signs, *servers)


def _evidence(chains: Chains, prefix: str) -> tuple[str, ...]:
    """A line for each table that has chains of kube-proxy."""
    lines: list[str] = []
    for table, names in sorted(chains.items()):
        found = sorted(filter(betrays_kube_proxy, names))
        if found:
            rest = f" and {len(found) - CHAINS_NAMED} more" if len(found) > CHAINS_NAMED else ""
            lines.append(f"{prefix}table {table}: chains {', '.join(found[:CHAINS_NAMED])}{rest}")
    return tuple(lines)


def _chains_among(traces: Traces, wanted: frozenset[str]) -> tuple[str, ...]:
    everywhere = (*traces.nft_chains.items(), *traces.legacy_chains.items())
    return tuple(
        dict.fromkeys(
            f"table {table}: chain {name}" for table, names in everywhere for name in sorted(wanted.intersection(names))
        )
    )
