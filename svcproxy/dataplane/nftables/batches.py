# SPDX-License-Identifier: Apache-2.0
"""Operations as batches of requests, and which operation a refusal of the kernel is about. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.elements import encode
from svcproxy.dataplane.nftables.layout import SETS
from svcproxy.dataplane.nftables.messages import Element, Request
from svcproxy.dataplane.nftables.operations import (
    AddElement,
    EnsureChain,
    Operation,
    ReplaceElement,
    SetName,
    frontend_of,
)
from svcproxy.dataplane.nftables.tables import TABLES, backend_chain
from svcproxy.model.meta import Family

OPERATIONS_PER_BATCH = 5_000
"""Others who change nftables wait for a batch; one of this size takes the kernel some ten milliseconds."""
ELEMENTS_PER_REQUEST = 500
"""The longest element takes 130 octets, a list of them 64 KiB at most."""
ELEMENTS_PER_SUSPECT = 10
"""The kernel names one element of each request that it refuses: smaller requests let it name more at once."""

_Sourced = list[tuple[Element, Operation]]
_Groups = dict[tuple[Family, SetName], _Sourced]


@dataclass(frozen=True, slots=True)
class Batch:
    """What is in force as a whole or not at all."""

    requests: tuple[Request, ...]
    origins: tuple[tuple[Operation, ...], ...]
    """For each request the operation that each of its elements, or all of it, is for."""

    def blamed(self, index: int, element: int | None) -> tuple[Operation, ...]:
        """The operations that a refusal of a request, or of an element of it, is about."""
        origins = self.origins[index]
        return origins if element is None or element >= len(origins) else (origins[element],)


def cut(operations: Sequence[Operation], size: int = OPERATIONS_PER_BATCH) -> Iterator[Sequence[Operation]]:
    """Parts of about that many operations; neighbours that are for one frontend stay together."""
    start = 0
    while len(operations) - start > size:
        end = start + size
        while end < len(operations) and _together(operations[end - 1], operations[end]):
            end += 1
        yield operations[start:end]
        start = end
    if start < len(operations):
        yield operations[start:]


def compose(operations: Iterable[Operation], elements: int = ELEMENTS_PER_REQUEST) -> Batch:
    """One batch: chains, then what goes, then what comes. `elements`: in one request, at most."""
    requests: list[Request] = []
    origins: list[tuple[Operation, ...]] = []
    going: _Groups = defaultdict(list)
    coming: _Groups = defaultdict(list)
    for operation in operations:
        if isinstance(operation, EnsureChain):
            made = tuple(backend_chain(operation.family, operation.chain))
            requests += made
            origins += [(operation,)] * len(made)
            continue
        place = operation.family, operation.set
        if not isinstance(operation, AddElement):
            going[place] += ((each, operation) for each in encode(operation.set, operation.key))
        if isinstance(operation, AddElement | ReplaceElement):
            coming[place] += ((each, operation) for each in encode(operation.set, operation.key, operation.data))
    for (family, name), sourced in going.items():
        counted = SETS[name].counter
        for part, sources in _parts(sourced, elements):
            requests += nft.delete_elements(TABLES[family], name.value, part, echo=counted)
            origins.append(sources)
    for (family, name), sourced in coming.items():
        for part, sources in _parts(sourced, elements):
            requests += nft.new_elements(TABLES[family], name.value, part)
            origins.append(sources)
    assert len(requests) == len(origins)
    return Batch(tuple(requests), tuple(origins))


def _parts(sourced: _Sourced, size: int) -> Iterator[tuple[list[Element], tuple[Operation, ...]]]:
    for start in range(0, len(sourced), size):
        part = sourced[start : start + size]
        yield [element for element, _ in part], tuple(operation for _, operation in part)


def _together(left: Operation, right: Operation) -> bool:
    frontend = frontend_of(left)
    return frontend is not None and frontend == frontend_of(right)
