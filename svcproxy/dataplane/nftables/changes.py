# SPDX-License-Identifier: Apache-2.0
"""Operations carried out in the kernel. Blocks while it works; one thread at a time.

What the kernel refuses is blamed on frontends: their operations are left out and all others go on. A frontend that is
blamed is settled on its own, by what the kernel really has of it.
"""

import errno
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from svcproxy.dataplane.nftables.adoption import Place, compare
from svcproxy.dataplane.nftables.answers import Elements
from svcproxy.dataplane.nftables.batches import Batch, at_once, compose, cut
from svcproxy.dataplane.nftables.elements import decode, encode
from svcproxy.dataplane.nftables.operations import AddElement, Data, EnsureChain, Operation, Phases, frontend_of
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import FrontendKey
from svcproxy.model.meta import Family

SETTLE_ATTEMPTS = 3
"""Times a frontend is compared with the kernel and put right before it is refused until the next resync."""
ROUNDS_MAX = 200
"""Times a part of a phase is tried again, smaller or without what the kernel refused of it."""

SHRINK_DELAY = 0.001
"""Seconds between flip and shrink: a packet that has read the old verdict finishes with the old slots."""

_TOO_LARGE = frozenset((errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM))
"""Refusals of a batch as a whole that a smaller one may not meet."""


@dataclass(slots=True)
class Totals:
    """What was done since the start."""

    batches: int = 0
    """Put in force."""
    operations: int = 0
    """In them."""
    rejections: int = 0
    """Batches that the kernel refused."""
    settled: int = 0
    """Frontends put right on their own after a refusal."""


class Changes:
    """Carries operations out, and knows which frontends the kernel refuses."""

    def __init__(
        self,
        kernel: Kernel,
        families: Collection[Family],
        wanted: Callable[[FrontendKey], Iterable[AddElement]],
        removed: Callable[[Elements], None],
        totals: Totals,
    ) -> None:
        """`families`: those that have tables; `wanted`: the elements that a frontend shall have.

        `removed` is called with the elements of counted sets that went.
        """
        self._kernel = kernel
        self._families = families
        self._wanted = wanted
        self._removed = removed
        self._doubtful: defaultdict[FrontendKey, set[Place]] = defaultdict(set)
        """Of refused frontends: where the kernel may not have what it should."""
        self.refused: dict[FrontendKey, str] = {}
        """Frontends not entirely in force, and why."""
        self.totals = totals

    def run(self, operations: Sequence[Operation]) -> None:
        """Carry a phase out, but for frontends that are refused, already or now: `settle` them after the last phase.

        An operation for no frontend in particular that the kernel refuses is one that it needs no more. Raises
        `DataplaneLost` when nothing can be changed at all.
        """
        if self.refused or len(self._families) < len(Family):
            operations = [operation for operation in operations if self._possible(operation)]
        for part in cut(operations):
            self._run(part)

    def advance(self, phases: Phases, surplus: Sequence[Operation] = ()) -> None:
        """What was surplus before, then grow and flip: as one where packets cannot tell."""
        if at_once(phases.grow):
            self.run((*surplus, *phases.grow, *phases.flip))
        else:
            self.run((*surplus, *phases.grow))
            self.run(phases.flip)

    def carry_out(self, phases: Phases) -> None:
        """All phases, with the pause before the last."""
        self.advance(phases)
        if phases.flip and phases.shrink:
            time.sleep(SHRINK_DELAY)
        self.run(phases.shrink)

    def settle(self) -> None:
        """Put the refused frontends right, by what the kernel has of them; those for which that fails stay refused."""
        for key in list(self.refused):
            if key.family in self._families:
                self._settle(key)

    def forget(self) -> None:
        """Refuse nothing: the caller knows anew what the kernel has."""
        self.refused.clear()
        self._doubtful.clear()

    def _possible(self, operation: Operation) -> bool:
        key = frontend_of(operation)
        if operation.family not in self._families:
            if key is not None:
                self.refused[key] = f"the kernel has no nf_tables for {operation.family.label}"
            return False
        if key is None or key not in self.refused:
            return True
        self._doubt(key, operation)
        return False

    def _run(self, operations: Sequence[Operation]) -> None:
        waiting = [operations]
        for _ in range(ROUNDS_MAX):
            if not waiting:
                return
            part = waiting.pop()
            batch = compose(part)
            outcome = self._kernel.commit(batch.requests)
            if isinstance(outcome, Committed):
                self.totals.batches += 1
                self.totals.operations += len(part)
                for each in outcome.removed:
                    self._removed(each)
                continue
            self.totals.rejections += 1
            waiting += self._after(outcome.failures, part, batch)
        raise DataplaneLost(f"the kernel refused {ROUNDS_MAX} batches in a row")

    def _after(
        self, failures: Sequence[Failure], operations: Sequence[Operation], batch: Batch
    ) -> list[Sequence[Operation]]:
        """What is to be tried instead of a batch that was refused, last part first."""
        general = next((failure for failure in failures if failure.element is None), None)
        if general is not None:
            if general.index is not None or general.errno not in _TOO_LARGE:
                raise DataplaneLost(f"nf_tables: {general}")
            parts = list(cut(operations, (len(operations) + 1) // 2))
            if len(parts) > 1:
                return parts[::-1]
            blamed = list(operations)
            reason = str(general)
        else:
            blamed = []
            reason = str(failures[0])
            for failure in failures:
                assert failure.index is not None
                blamed += batch.blamed(failure.index, failure.element)
        unneeded = {id(operation) for operation in blamed}
        for operation in blamed:
            key = frontend_of(operation)
            if key is not None:
                self.refused.setdefault(key, reason)
        rest = []
        for operation in operations:
            key = frontend_of(operation)
            if key is not None and key in self.refused:
                self._doubt(key, operation)
            elif id(operation) not in unneeded:
                rest.append(operation)
        return [rest] if rest else []

    def _doubt(self, key: FrontendKey, operation: Operation) -> None:
        if not isinstance(operation, EnsureChain):
            self._doubtful[key].add((operation.family, operation.set, operation.key))

    def _settle(self, key: FrontendKey) -> None:
        for _ in range(SETTLE_ATTEMPTS):
            wanted = {(each.family, each.set, each.key): each.data for each in self._wanted(key)}
            held = self._read(wanted.keys() | self._doubtful[key])
            del self.refused[key]
            self.carry_out(compare(held, wanted))
            if key not in self.refused:
                self._doubtful.pop(key, None)
                self.totals.settled += 1
                return

    def _read(self, places: Iterable[Place]) -> dict[Place, Data]:
        held: dict[Place, Data] = {}
        for family, name, key in places:
            for asked in encode(name, key):
                stored = self._kernel.element(TABLES[family], name.value, asked)
                if stored is not None:
                    held.update(
                        ((family, name, found), data) for found, data in decode(family, name, (stored.element,))
                    )
        return held
