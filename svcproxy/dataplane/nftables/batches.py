# SPDX-License-Identifier: Apache-2.0
"""Operations as batches of requests, and which operation a refusal of the kernel is about. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from svcproxy.dataplane.nftables import elements
from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.layout import SETS
from svcproxy.dataplane.nftables.messages import Request
from svcproxy.dataplane.nftables.operations import (
    AddElement,
    DeleteElement,
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


_RANGED = frozenset(name for name, spec in SETS.items() if spec.interval)


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


def at_once(grow: Iterable[Operation]) -> bool:
    """Whether what nothing refers to yet may come in one batch with what refers to it.

    Elements of a batch take effect at one instant. But packets on their way keep the rules with which they began, and
    find new chains empty; and ranges take effect a moment after all else.
    """
    return not any(isinstance(each, EnsureChain) or each.set in _RANGED for each in grow)


def compose(operations: Iterable[Operation], size: int = ELEMENTS_PER_REQUEST) -> Batch:
    """One batch: chains, then what goes, then what comes. `size`: elements in one request, at most."""
    requests: list[Request] = []
    origins: list[tuple[Operation, ...]] = []
    going: defaultdict[_Place, list[ReplaceElement | DeleteElement]] = defaultdict(list)
    coming: defaultdict[_Place, list[AddElement | ReplaceElement]] = defaultdict(list)
    for operation in operations:
        if isinstance(operation, EnsureChain):
            made = tuple(backend_chain(operation.family, operation.chain))
            requests += made
            origins += [(operation,)] * len(made)
            continue
        place = operation.family, operation.set
        if not isinstance(operation, AddElement):
            going[place].append(operation)
        if not isinstance(operation, DeleteElement):
            coming[place].append(operation)
    for (family, name), removals in going.items():
        for contents, sources in _parts(size, *_taken_out(name, removals)):
            requests += nft.delete_contents(TABLES[family], name, contents, echo=SETS[name].counter)
            origins.append(sources)
    for (family, name), additions in coming.items():
        for contents, sources in _parts(size, *_put_in(name, additions)):
            requests += nft.new_contents(TABLES[family], name, contents)
            origins.append(sources)
    assert len(requests) == len(origins)
    return Batch(tuple(requests), tuple(origins))


_Place = tuple[Family, SetName]
_Sourced = tuple[Sequence[bytes], Sequence[Operation]]
"""Elements, and the operation that each is for."""


def _taken_out(name: SetName, removals: Sequence[ReplaceElement | DeleteElement]) -> _Sourced:
    if name not in _RANGED:
        return elements.keys(name, removals), removals
    found = [(nft.content(each), one) for one in removals for each in elements.encode(name, one.key)]
    return [octets for octets, _ in found], [one for _, one in found]


def _put_in(name: SetName, additions: Sequence[AddElement | ReplaceElement]) -> _Sourced:
    if name not in _RANGED:
        return elements.contents(name, additions), additions
    found = [(nft.content(each), one) for one in additions for each in elements.encode(name, one.key, one.data)]
    return [octets for octets, _ in found], [one for _, one in found]


def _parts(
    size: int, contents: Sequence[bytes], sources: Sequence[Operation]
) -> Iterator[tuple[Sequence[bytes], tuple[Operation, ...]]]:
    for start in range(0, len(contents), size):
        yield contents[start : start + size], tuple(sources[start : start + size])


def _together(left: Operation, right: Operation) -> bool:
    frontend = frontend_of(left)
    return frontend is not None and frontend == frontend_of(right)
