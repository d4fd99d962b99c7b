# SPDX-License-Identifier: Apache-2.0
"""The tables themselves: found, claimed or made, and read. Blocks while the kernel works."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from svcproxy.dataplane.nftables import tables
from svcproxy.dataplane.nftables.adoption import Contents, Place
from svcproxy.dataplane.nftables.answers import TableState
from svcproxy.dataplane.nftables.elements import decode
from svcproxy.dataplane.nftables.layout import SCHEMA, SETS, Surroundings
from svcproxy.dataplane.nftables.messages import Request, TableFlag, delete_table, new_table
from svcproxy.dataplane.nftables.operations import BackendChain, Data, chain_of
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Kernel, Rejected
from svcproxy.errors import DataplaneLost
from svcproxy.model.meta import Family

log = logging.getLogger(__name__)

OWNED = TableFlag.OWNER | TableFlag.PERSIST
"""Nobody but the process that claimed the table changes it, and it stays when that process is gone."""


class TableTaken(DataplaneLost):
    """Another live process owns a table."""


@dataclass(frozen=True, slots=True)
class Established:
    """The tables are there, of this schema, with the rules they shall have."""

    chains: frozenset[tuple[Family, BackendChain]]
    """Backend chains that are there."""
    owned: bool
    """Whether nobody else can change any of them."""


def establish(kernel: Kernel, families: Iterable[Family], flags: TableFlag, surroundings: Surroundings) -> Established:
    """Make the tables, or take over those that are there with all that is in them.

    `flags` are for new tables; one without an owner that was not made to be claimed stays so. All rules are written
    anew, in one batch for each family, so that no packet meets a chain without them. A table of another schema is
    replaced. Raises `TableTaken`, and `DataplaneLost` for whatever else the kernel refuses.
    """
    chains: set[tuple[Family, BackendChain]] = set()
    owned = True
    for family in families:
        found = _find(kernel, family)
        kept = _flags(found, flags)
        if found is not None and tables.schema_of(found.comment) != SCHEMA:
            log.warning("table of another version is replaced", extra={"family": family.label, "was": found.comment})
            _commit(kernel, family, (new_table(TABLES[family], kept),))
            replaced: tuple[Request, ...] = (delete_table(TABLES[family]),)
            found, kept = None, flags
        else:
            replaced = ()
        listed = kernel.chains(TABLES[family]) if found is not None else ()
        held = [chain for each in listed if isinstance(chain := chain_of(each.name), BackendChain)]
        rules = (
            *tables.rules(family, surroundings),
            *(each for it in held for each in tables.backend_chain(family, it)),
        )
        _commit(kernel, family, (*replaced, *tables.create(family, kept), *rules))
        chains.update((family, chain) for chain in held)
        owned &= TableFlag.OWNER in kept
    return Established(frozenset(chains), owned)


def read(kernel: Kernel, families: Iterable[Family]) -> Contents:
    """Every element that the agent keeps. O(table). Raises `DataplaneLost` if a set is gone or holds what it cannot."""
    held: dict[Place, Data] = {}
    for family in families:
        for name, spec in SETS.items():
            if spec.dynamic_size is not None:
                continue
            stored = kernel.elements(TABLES[family], name.value)
            if stored is None:
                raise DataplaneLost(f"no set {name} in table {family.label} {TABLES[family].name}")
            try:
                held.update(
                    ((family, name, key), data) for key, data in decode(family, name, (it.element for it in stored))
                )
            except ValueError as exc:
                raise DataplaneLost(f"set {name} of table {family.label} {TABLES[family].name}: {exc}") from exc
    return held


def process_name(pid: int) -> str:
    """A process as people know it: `nft (process 4711)`."""
    with suppress(OSError):
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
    return f"process {pid}"


def _find(kernel: Kernel, family: Family) -> TableState | None:
    table = TABLES[family]
    found = next((each for each in kernel.tables(family) if each.table == table), None)
    if found is not None and found.owner not in (0, kernel.port):
        raise TableTaken(f"table {family.label} {table.name} belongs to {process_name(found.owner)}")
    return found


def _flags(found: TableState | None, wanted: TableFlag) -> TableFlag:
    """What the table can have: only one that was made to outlive its owner can be claimed."""
    if found is None:
        return wanted
    claimable = TableFlag.PERSIST in found.flags and TableFlag.OWNER in wanted
    return found.flags | TableFlag.OWNER if claimable else found.flags


def _commit(kernel: Kernel, family: Family, requests: Sequence[Request]) -> None:
    outcome = kernel.commit(requests)
    if isinstance(outcome, Rejected):
        failure = outcome.failures[0]
        what = f"{requests[failure.index].kind.name}: " if failure.index is not None else ""
        raise DataplaneLost(f"table {family.label} {TABLES[family].name}: {what}{failure}")
