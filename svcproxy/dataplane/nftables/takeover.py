# SPDX-License-Identifier: Apache-2.0
"""Removes what a kube-proxy left, once another data plane's rules are in force.

Established connections stay: their translation, of destination and of source, is in conntrack, and rules of NAT decide
the first packet only. New ones meet our chains first, for their priority is one lower than kube-proxy's. Each table
changes in one step; only one of tens of thousands of chains takes several: first nothing leads to them any more.
"""

import errno
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from svcproxy.api import Foreign
from svcproxy.dataplane.nftables import kube_proxy, legacy, messages, traces
from svcproxy.dataplane.nftables.kube_proxy import Jump, Removal
from svcproxy.dataplane.nftables.messages import Request, Table
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.errors import DecodeError
from svcproxy.model.meta import Family

ATTEMPTS: Final = 5
"""How often a table is read and changed anew, because somebody else changed it in between."""

_KEYWORDS: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_NF_DROP: Final = 0
_CHANGED: Final = frozenset((errno.ENOENT, errno.EBUSY))
"""A rule or chain is gone already, or somebody leads to it now."""
_BY_HAND: Final = "run `kube-proxy --cleanup` of its own version on this node"
_IPVS_BY_HAND: Final = (
    f"not removed by svcproxy; {_BY_HAND}, or `ipvsadm --clear`, `ip link delete {traces.IPVS_INTERFACE}` "
    "and, when no rule refers to them any more, `ipset destroy` for each set KUBE-*"
)


class Fate(StrEnum):
    """What became of a thing."""

    REMOVED = "removed"
    KEPT = "kept"
    """On purpose."""
    FAILED = "failed"
    """Still there, and should not be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing, and what became of it."""

    fate: Fate
    what: str
    reason: str = ""
    """Why it is still there, and what a person can do."""

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}" if self.reason else self.what


def remove_kube_proxy(kernel: Kernel, found: Iterable[Foreign]) -> Iterator[Outcome]:
    """Remove what `foreign.detect` found of kube-proxy; everything else it found is passed over.

    A kube-proxy that is alive brings it back. Once more is harmless. Raises `DataplaneLost`.
    """
    for each in found:
        match each.implementation:
            case traces.KUBE_PROXY_NFTABLES:
                yield from _tables(kernel)
            case traces.KUBE_PROXY_IPTABLES_NFT:
                yield from _iptables_nft(kernel)
            case traces.KUBE_PROXY_IPTABLES_LEGACY:
                yield from _iptables_legacy()
            case traces.KUBE_PROXY_IPVS:
                yield Outcome(Fate.FAILED, each.implementation, _IPVS_BY_HAND)
            case _:
                pass


def _tables(kernel: Kernel) -> Iterator[Outcome]:
    for family, keyword in _KEYWORDS.items():
        outcome = kernel.commit([messages.delete_table(Table(family, kube_proxy.TABLE))])
        what = f"nftables table {keyword} {kube_proxy.TABLE}"
        if isinstance(outcome, Committed):
            yield Outcome(Fate.REMOVED, what)
        elif outcome.failures[0].errno != errno.ENOENT:
            yield Outcome(Fate.FAILED, what, str(outcome.failures[0]))


def _iptables_nft(kernel: Kernel) -> Iterator[Outcome]:
    for family, keyword in _KEYWORDS.items():
        for name in kube_proxy.IPTABLES_TABLES:
            yield from _iptables_nft_table(kernel, Table(family, name), f"iptables-nft table {keyword} {name}")


def _iptables_nft_table(kernel: Kernel, table: Table, place: str) -> Iterator[Outcome]:
    failure = ""
    for _ in range(ATTEMPTS):
        wanted = _in_kernel(kernel, table)
        if not wanted:
            yield from _kept(place, wanted)
            return
        loaded = kernel.load(_requests(table, wanted))
        if not loaded.failures:
            yield _removed(place, wanted)
            yield from _kept(place, wanted)
            return
        failure = str(loaded.failures[0])
        if loaded.failures[0].errno not in _CHANGED:
            break
    yield Outcome(Fate.FAILED, f"{place}: chains of kube-proxy", failure)


def _in_kernel(kernel: Kernel, table: Table) -> Removal[int]:
    chains = kernel.chains(table)
    if not any(kube_proxy.of_kube_proxy(each.name) for each in chains):
        return Removal((), (), ())
    return kube_proxy.removal(
        {each.name for each in chains},
        [Jump(each.name, each.leads_to, each.handle) for each in kernel.rules(table) if each.leads_to],
        forward_drops=any(each.name == "FORWARD" and each.policy == _NF_DROP for each in chains),
    )


def _requests(table: Table, wanted: Removal[int]) -> list[Request]:
    return [
        *(messages.delete_rule(table, jump.chain, jump.rule) for jump in wanted.jumps),
        *(messages.flush_chain(table, chain) for chain in wanted.chains),
        *(messages.delete_chain(table, chain) for chain in wanted.chains),
    ]


def _iptables_legacy() -> Iterator[Outcome]:
    for family, keyword in _KEYWORDS.items():
        for name in sorted(set(legacy.tables(family)).intersection(kube_proxy.IPTABLES_TABLES)):
            place = f"iptables-legacy table {keyword} {name}"
            try:
                if any(map(kube_proxy.of_kube_proxy, legacy.chains(family, name))):
                    yield from _iptables_legacy_table(family, name, place)
            except subprocess.CalledProcessError as exc:
                yield Outcome(Fate.FAILED, f"{place}: chains of kube-proxy", f"{exc}: {exc.stderr.strip()}")
            except (OSError, subprocess.SubprocessError, DecodeError) as exc:
                yield Outcome(Fate.FAILED, f"{place}: chains of kube-proxy", str(exc))


def _iptables_legacy_table(family: Family, name: str, place: str) -> Iterator[Outcome]:
    if not legacy.installed(family):
        program = legacy.command(family)
        reason = f"{program}-save and {program}-restore are not here; {_BY_HAND}, or svcproxy cleanup where they are"
        yield Outcome(Fate.FAILED, f"{place}: chains of kube-proxy", reason)
        return
    saved = kube_proxy.read_saved(legacy.save(family, name))
    wanted = kube_proxy.removal(saved.chains, saved.jumps, forward_drops=saved.forward_drops)
    if wanted:
        legacy.restore(family, kube_proxy.restore_script(name, wanted))
        yield _removed(place, wanted)
    yield from _kept(place, wanted)


def _removed(place: str, wanted: Removal[int] | Removal[str]) -> Outcome:
    counts = [(len(wanted.jumps), "rule"), (len(wanted.chains), "chain")]
    words = " and ".join(f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count)
    return Outcome(Fate.REMOVED, f"{place}: {words} of kube-proxy")


def _kept(place: str, wanted: Removal[int] | Removal[str]) -> Iterator[Outcome]:
    for chain in wanted.kept:
        why = (
            "FORWARD drops what no rule accepts, and this chain accepts established connections; "
            "accept them elsewhere, then remove it by hand"
            if chain == kube_proxy.FORWARD
            else "other rules lead to it, or need what it does"
        )
        yield Outcome(Fate.KEPT, f"{place}: chain {chain}", why)
