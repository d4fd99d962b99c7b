# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel what it can do, by doing it: never for its version.

All happens in a table of its own, in the network namespace of the calling thread, within some tens of milliseconds,
most of which the kernel waits for its own. The table goes with the socket that owns it, however the process ends. Where
tables cannot have owners, a process that was killed may leave one: it has no effect, and `svcproxy cleanup` removes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svcproxy.api import Probe
from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.features import FEATURES, NAT, requests
from svcproxy.dataplane.nftables.messages import Request, Table, TableFlag
from svcproxy.dataplane.nftables.operations import FixedChain
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.errors import DataplaneLost
from svcproxy.model.meta import Family

TABLE_PREFIX: Final = "svcproxy-probe-"
"""The number of the socket follows, which nobody else in the namespace has at the same time."""

NETLINK, NET_ADMIN, TABLES, OWNER, PERSIST = "netlink", "net-admin", "tables", "owner", "persist"

_SOCKET: Final = "the socket to nf_tables"
_FLAGS: Final = (
    (OWNER, TableFlag.OWNER, "tables that no other program can change"),
    (PERSIST, TableFlag.PERSIST, "owned tables that outlive their owner"),
)
_USER_SPACE: Final = "nothing is served by nftables; `--dataplane auto` takes userspace"
_ONE_FAMILY: Final = "{} is not served by nftables; `--dataplane auto` takes userspace if no family is".format
_UNOWNED: Final = "tables that other programs can change; changes are watched and undone"


@dataclass(frozen=True, slots=True)
class Probes:
    """What a kernel can do."""

    results: tuple[Probe, ...]
    """What was tried, in order. What hangs on something that does not work is not tried."""
    flags: TableFlag
    """What the tables are made with: OWNER and PERSIST where both work, else nothing."""
    families: frozenset[Family]
    """Those that nftables can serve. Empty: use another data plane."""


def probe(override: Mapping[str, bool] | None = None) -> Probes:
    """Try everything.

    `override`: outcomes by name (`owner`, `nat-ipv6`; `nat` for both families) that are taken for granted, to see what
    follows on a kernel without a feature.
    """
    return _Run(override or {}).probe()


class _Run:
    """One look at a kernel."""

    def __init__(self, override: Mapping[str, bool]) -> None:
        self._override = override
        self._results: list[Probe] = []

    def probe(self) -> Probes:
        """Everything, in order."""
        flags, families = TableFlag.NONE, frozenset[Family]()
        try:
            kernel = Kernel()
        except OSError as exc:
            self._note(NETLINK, _SOCKET, str(exc), _USER_SPACE)
        else:
            with kernel:
                if self._note(NETLINK, _SOCKET, "", _USER_SPACE) and self._privileged(kernel):
                    usable = [family for family in Family if self._tables(kernel, family)]
                    flags = self._flags(kernel, usable)
                    families = frozenset(family for family in usable if self._features(kernel, family, flags))
        return Probes(tuple(self._results), flags, families)

    def _privileged(self, kernel: Kernel) -> bool:
        """Whether this process may change rules."""
        error = _making(kernel, Family.IPV4)
        denied = error if error.startswith(("EPERM", "EACCES")) else ""
        return self._note(NET_ADMIN, "the capability to change rules", denied, _USER_SPACE)

    def _tables(self, kernel: Kernel, family: Family) -> bool:
        """Whether the family has tables at all."""
        error = _making(kernel, family)
        return self._note(f"{TABLES}-{family.label.lower()}", "tables", error, _ONE_FAMILY(family.label))

    def _flags(self, kernel: Kernel, usable: Sequence[Family]) -> TableFlag:
        """What the tables can be protected with: all or nothing, for an owned table must not go with its owner."""
        flags = TableFlag.NONE
        for family in usable[:1]:
            for name, flag, purpose in _FLAGS:
                flags |= flag
                if not self._note(name, purpose, _making(kernel, family, flags), _UNOWNED):
                    return TableFlag.NONE
        return flags

    def _features(self, kernel: Kernel, family: Family, flags: TableFlag) -> bool:
        """Whether all features work in this family."""
        table, works = _table(kernel, family), True
        made = [nft.new_table(table, flags & TableFlag.OWNER), nft.new_chain(table, FixedChain.REJECT.value)]
        failed = _error(kernel, made)
        try:
            for feature in FEATURES:
                name = f"{feature.name}-{family.label.lower()}"
                error = failed or _error(kernel, requests(feature, table))
                works &= self._note(name, feature.purpose, error, _ONE_FAMILY(family.label))
                if feature is NAT and not works:
                    break  # the others need its chains
        finally:
            _error(kernel, [nft.delete_table(table)])
        return works

    def _note(self, name: str, purpose: str, error: str, fallback: str) -> bool:
        """Whether it works, after all."""
        taken = self._override.get(name, self._override.get(name.rpartition("-ipv")[0]))
        if taken is not None:
            error = "" if taken else "taken for granted that it does not work"
        self._results.append(Probe(name, not error, error or purpose, fallback if error else ""))
        return not error


def _table(kernel: Kernel, family: Family) -> Table:
    return Table(family, f"{TABLE_PREFIX}{kernel.port}")


def _making(kernel: Kernel, family: Family, flags: TableFlag = TableFlag.NONE) -> str:
    """Why such a table cannot be made; empty if it can. It is gone again when it has been made."""
    table = _table(kernel, family)
    return _error(kernel, [nft.new_table(table, flags), nft.delete_table(table)])


def _error(kernel: Kernel, batch: Sequence[Request]) -> str:
    """Why the kernel does not do this; empty if it did."""
    try:
        outcome = kernel.commit(batch)
    except DataplaneLost as exc:
        return exc.cause
    return "" if isinstance(outcome, Committed) else str(outcome.failures[0])
