# SPDX-License-Identifier: Apache-2.0
"""Clients' memories of backends that are gone: found and deleted, so that the clients stick again. Blocks."""

import errno
import sys
from collections.abc import Collection, Iterable, Mapping

from svcproxy.dataplane.nftables.batches import ELEMENTS_PER_REQUEST
from svcproxy.dataplane.nftables.messages import Element, delete_elements
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.errors import DataplaneLost
from svcproxy.model.meta import Family

Memories = Mapping[Family, list[Element]]


def read(kernel: Kernel, families: Iterable[Family]) -> Memories:
    """What clients remember. O(clients with affinity)."""
    return {
        family: [each.element for each in kernel.elements(TABLES[family], SetName.AFF, complete=False) or ()]
        for family in families
    }


def stale(memories: Memories, ids: Mapping[Family, Collection[int]]) -> Memories:
    """Those of backends that have none of the ids."""
    words = {family: {each.to_bytes(4, sys.byteorder) for each in ids[family]} for family in memories}
    return {family: [each for each in known if each.data not in words[family]] for family, known in memories.items()}


def delete(kernel: Kernel, memories: Memories) -> None:
    """Delete them; what has expired meanwhile is passed over. Raises `DataplaneLost`."""
    for family, elements in memories.items():
        for start in range(0, len(elements), ELEMENTS_PER_REQUEST):
            _delete(kernel, family, elements[start : start + ELEMENTS_PER_REQUEST])


def _delete(kernel: Kernel, family: Family, elements: list[Element]) -> None:
    while elements:
        outcome = kernel.commit([*delete_elements(TABLES[family], SetName.AFF, elements)])
        if isinstance(outcome, Committed):
            return
        failure = outcome.failures[0]
        if failure.errno != errno.ENOENT or failure.element is None:
            raise DataplaneLost(f"map {SetName.AFF}: {failure}")
        del elements[failure.element]
