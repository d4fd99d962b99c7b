# SPDX-License-Identifier: Apache-2.0
"""What kube-proxy leaves in iptables tables, by name, and what of it can go without harm to anybody else. Pure.

Names are those of pkg/proxy/iptables and pkg/proxy/ipvs of Kubernetes. The kubelet's are not among them:
KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY, KUBE-FIREWALL, KUBE-MARK-DROP. Kubelets before 1.28 also make KUBE-MARK-MASQ
and KUBE-POSTROUTING, and make them again: these two go with the rest, and alone are no trace of kube-proxy.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

TABLE: Final = "kube-proxy"
"""Name of the tables of nftables mode, in the families ip and ip6, in all versions."""
IPTABLES_TABLES: Final = ("nat", "filter", "mangle")
"""The tables of iptables that kube-proxy has chains in."""

MARK_MASQUERADE: Final = "KUBE-MARK-MASQ"
POSTROUTING: Final = "KUBE-POSTROUTING"
FORWARD: Final = "KUBE-FORWARD"

_ENTRIES: Final = frozenset(
    {
        FORWARD,
        POSTROUTING,
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-PROXY-FIREWALL",
        "KUBE-SERVICES",
    }
)
"""Chains that kube-proxy enters from the built-in chains."""
_IPVS: Final = frozenset(
    {
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-LOAD-BALANCER",
        "KUBE-NODE-PORT",
        "KUBE-SOURCE-RANGES-FIREWALL",
    }
)
"""Chains of ipvs mode alone."""
_SERVICES: Final = re.compile(r"KUBE-(SVC|SVL|SEP|EXT|FW|XLB)-[A-Z2-7]{16}")
"""Chains of one Service port or endpoint: a hash in base 32."""
_CANARY: Final = "KUBE-PROXY-CANARY"

T = TypeVar("T", int, str)


def of_kube_proxy(chain: str) -> bool:
    """Whether the chain is kube-proxy's in iptables mode."""
    return chain in _ENTRIES or chain in (MARK_MASQUERADE, _CANARY) or _SERVICES.fullmatch(chain) is not None


def betrays_kube_proxy(chain: str) -> bool:
    """Whether the chain says that kube-proxy is or was here, in iptables mode or ipvs mode."""
    return chain in _IPVS or (of_kube_proxy(chain) and chain not in (MARK_MASQUERADE, POSTROUTING, FORWARD))


def betrays_ipvs(chain: str) -> bool:
    """Whether the chain says that it is ipvs mode."""
    return chain in _IPVS


@dataclass(frozen=True, slots=True)
class Jump(Generic[T]):
    """A rule that leads from one chain to another."""

    chain: str
    target: str
    rule: T
    """What names the rule in its chain: a handle, or its words."""


@dataclass(frozen=True, slots=True)
class Removal(Generic[T]):
    """What goes from one table, in this order."""

    jumps: tuple[Jump[T], ...]
    """Rules of other people's chains that lead into kube-proxy's."""
    chains: tuple[str, ...]
    """Emptied, then removed: they lead to one another only."""
    kept: tuple[str, ...]
    """kube-proxy's chains that stay, for others depend on them."""

    def __bool__(self) -> bool:
        return bool(self.jumps or self.chains)


def removal(chains: Collection[str], jumps: Iterable[Jump[T]], *, forward_drops: bool = False) -> Removal[T]:
    """What of a table's chains is kube-proxy's and can go.

    A chain that somebody else's rule leads to stays, with all that it leads to; where that marks packets to be
    masqueraded, so does what masquerades them. Where FORWARD drops what no rule accepts (`forward_drops`), KUBE-FORWARD
    stays: it may be what lets established connections through.
    """
    listed = list(jumps)
    own = {chain for chain in chains if of_kube_proxy(chain)}
    entering = [jump for jump in listed if jump.target in own and jump.chain not in own]
    keep = {jump.target for jump in entering if jump.target not in _ENTRIES}
    if forward_drops and FORWARD in own:
        keep.add(FORWARD)
    pending = list(keep)
    while pending:
        chain = pending.pop()
        led_to = {jump.target for jump in listed if jump.chain == chain and jump.target in own}
        if chain == MARK_MASQUERADE and POSTROUTING in own:
            led_to.add(POSTROUTING)
        pending += led_to - keep
        keep |= led_to
    return Removal(
        jumps=tuple(jump for jump in entering if jump.target not in keep),
        chains=tuple(sorted(own - keep)),
        kept=tuple(sorted(keep)),
    )


@dataclass(frozen=True, slots=True)
class SavedTable:
    """A table as iptables-save(8) writes it, as far as it matters here."""

    chains: frozenset[str]
    jumps: tuple[Jump[str], ...]
    forward_drops: bool


_QUOTED: Final = re.compile(r'"(?:\\.|[^"\\])*"')
_TARGET: Final = re.compile(r" -[jg] (\S+)")


def read_saved(text: str) -> SavedTable:
    """Read what `iptables-save -t TABLE` prints. Lines that are neither chains nor rules are passed over."""
    chains: set[str] = set()
    jumps: list[Jump[str]] = []
    forward_drops = False
    for line in text.splitlines():
        words = line.split(" ", 2)
        if line.startswith(":") and len(words) > 1:
            chains.add(words[0][1:])
            forward_drops |= words[:2] == [":FORWARD", "DROP"]
        elif words[0] == "-A" and len(words) == 3 and (target := _TARGET.search(_QUOTED.sub('""', " " + words[2]))):
            jumps.append(Jump(words[1], target[1], words[2]))
    return SavedTable(frozenset(chains), tuple(jumps), forward_drops)


def restore_script(table: str, wanted: Removal[str]) -> str:
    """What `iptables-restore --noflush` is to read: in force as a whole or not at all."""
    return "\n".join(_restore_lines(table, wanted)) + "\n"


def _restore_lines(table: str, wanted: Removal[str]) -> Iterator[str]:
    yield f"*{table}"
    for chain in wanted.chains:
        yield f":{chain} - [0:0]"  # empties it
    for jump in wanted.jumps:
        yield f"-D {jump.chain} {jump.rule}"
    for chain in wanted.chains:
        yield f"-X {chain}"
    yield "COMMIT"
