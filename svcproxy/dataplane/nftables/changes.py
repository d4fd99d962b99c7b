# SPDX-License-Identifier: Apache-2.0
"""Operations carried out in the kernel. Blocks while it works; one thread at a time.

What the kernel refuses is blamed on frontends: their operations are left out and all others go on. A frontend that is
blamed is settled on its own, by what the kernel really has of it.
"""

import errno
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from svcproxy.dataplane.nftables.adoption import Place, compare
from svcproxy.dataplane.nftables.answers import Elements
from svcproxy.dataplane.nftables.batches import (
    ELEMENTS_PER_REQUEST,
    ELEMENTS_PER_SUSPECT,
    Batch,
    at_once,
    compose,
    cut,
)
from svcproxy.dataplane.nftables.elements import decode, encode
from svcproxy.dataplane.nftables.operations import (
    AddElement,
    Data,
    DeleteElement,
    EnsureChain,
    Operation,
    Phases,
    frontend_of,
)
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import FrontendKey
from svcproxy.model.meta import Family

log = logging.getLogger(__name__)

SETTLE_ATTEMPTS = 3
"""Times a frontend is compared with the kernel and put right before it is refused until its next change or resync."""
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
        """`families`: those that have tables, others' operations are passed over.

        `wanted`: the elements that a frontend shall have. `removed` is called with the elements of counted sets that
        went.
        """
        self._kernel = kernel
        self._families = families
        self._wanted = wanted
        self._removed = removed
        self._doubtful: defaultdict[FrontendKey, set[Place]] = defaultdict(set)
        """Of refused frontends: where the kernel may not have what it should."""
        self._unsettled: set[FrontendKey] = set()
        """Of them, those of which operations were left out since they were compared with the kernel."""
        self._lacking: dict[Place, AddElement] = {}
        """What frontends share and the kernel refused."""
        self.refused: dict[FrontendKey, str] = {}
        """Frontends not entirely in force, and why."""
        self.totals = totals

    def run(self, operations: Sequence[Operation]) -> None:
        """Carry a phase out, but for frontends that are refused, already or now: `settle` them after the last phase.

        What frontends share is passed over if it is there already, or gone, and otherwise tried again by `retry`.
        Raises `DataplaneLost` when nothing can be changed at all.
        """
        if self.refused or self._lacking or len(self._families) < len(Family):
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

    @property
    def unsettled(self) -> bool:
        """Whether there is something to `settle`."""
        return bool(self._unsettled)

    def settle(self) -> None:
        """Put frontends right that were refused something, by what the kernel has of them, or leave them refused."""
        for key in list(self._unsettled):
            self._settle(key)

    def retry(self) -> None:
        """Try again what the kernel refused earlier."""
        lacking, self._lacking = self._lacking, {}
        self.run(list(lacking.values()))
        self._unsettled.update(self.refused)
        self.settle()

    def forget(self) -> None:
        """Refuse nothing: the caller knows anew what the kernel has."""
        self.refused.clear()
        self._doubtful.clear()
        self._unsettled.clear()
        self._lacking.clear()

    def _possible(self, operation: Operation) -> bool:
        if operation.family not in self._families:
            return False
        key = frontend_of(operation)
        if key is not None and key in self.refused:
            self._doubt(key, operation)
            return False
        if key is None and isinstance(operation, DeleteElement):
            self._lacking.pop((operation.family, operation.set, operation.key), None)
        return True

    def _run(self, operations: Sequence[Operation]) -> None:
        waiting = [operations]
        elements = ELEMENTS_PER_REQUEST
        for _ in range(ROUNDS_MAX):
            if not waiting:
                return
            part = waiting.pop()
            batch = compose(part, elements)
            outcome = self._kernel.commit(batch.requests)
            if isinstance(outcome, Committed):
                self.totals.batches += 1
                self.totals.operations += len(part)
                for each in outcome.removed:
                    self._removed(each)
                continue
            self.totals.rejections += 1
            elements = ELEMENTS_PER_SUSPECT
            waiting += self._after(outcome.failures, part, batch)
        if waiting:
            raise DataplaneLost(f"{ROUNDS_MAX} batches were not enough, so many of them did the kernel refuse")

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
            blamed = [(operation, general) for operation in operations]
        else:
            blamed = [
                (operation, failure)
                for failure in failures
                if failure.index is not None
                for operation in batch.blamed(failure.index, failure.element)
            ]
        passed_over = {id(operation) for operation, _ in blamed}
        for operation, failure in blamed:
            self._blame(operation, failure)
        rest = []
        for operation in operations:
            key = frontend_of(operation)
            if key is not None and key in self.refused:
                self._doubt(key, operation)
            elif id(operation) not in passed_over:
                rest.append(operation)
        return [rest] if rest else []

    def _blame(self, operation: Operation, failure: Failure) -> None:
        key = frontend_of(operation)
        if key is not None:
            self.refused.setdefault(key, str(failure))
        elif isinstance(operation, EnsureChain):
            raise DataplaneLost(f"chain {operation.chain.name}: {failure}")
        elif isinstance(operation, AddElement) and failure.errno != errno.EEXIST:
            self._lacking[operation.family, operation.set, operation.key] = operation
            log.warning(
                "element refused, tried again by the next resync",
                extra={"set": operation.set, "key": " ".join(map(str, operation.key)), "cause": str(failure)},
            )

    def _doubt(self, key: FrontendKey, operation: Operation) -> None:
        if not isinstance(operation, EnsureChain):
            self._doubtful[key].add((operation.family, operation.set, operation.key))
            self._unsettled.add(key)

    def _settle(self, key: FrontendKey) -> None:
        for _ in range(SETTLE_ATTEMPTS):
            wanted = {(each.family, each.set, each.key): each.data for each in self._wanted(key)}
            held = self._read(wanted.keys() | self._doubtful[key])
            self.refused.pop(key, None)
            self.carry_out(compare(held, wanted))
            self._unsettled.discard(key)
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
