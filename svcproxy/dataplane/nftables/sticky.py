# SPDX-License-Identifier: Apache-2.0
"""Clients' memories of backends that are gone: found and deleted, so that the clients stick again. Blocks."""

import errno
import sys
from collections.abc import Collection, Iterable

from svcproxy.dataplane.nftables.batches import ELEMENTS_PER_REQUEST
from svcproxy.dataplane.nftables.messages import Element, delete_elements
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.errors import DataplaneLost
from svcproxy.model.meta import Family

ROUNDS_MAX = 100
"""Elements of one request that may expire before they are deleted."""

Found = dict[Family, list[Element]]


def find(kernel: Kernel, families: Iterable[Family], ids: Collection[int]) -> Found:
    """What clients remember of backends with these ids. O(clients with affinity)."""
    marks = {number.to_bytes(4, sys.byteorder) for number in ids}
    return {
        family: [
            each.element for each in kernel.elements(TABLES[family], SetName.AFF) or () if each.element.data in marks
        ]
        for family in families
    }


def delete(kernel: Kernel, found: Found) -> None:
    """Delete it; what has expired meanwhile is passed over. Raises `DataplaneLost`."""
    for family, elements in found.items():
        for start in range(0, len(elements), ELEMENTS_PER_REQUEST):
            _delete(kernel, family, elements[start : start + ELEMENTS_PER_REQUEST])


def _delete(kernel: Kernel, family: Family, elements: list[Element]) -> None:
    for _ in range(ROUNDS_MAX):
        outcome = kernel.commit([*delete_elements(TABLES[family], SetName.AFF, elements)])
        if isinstance(outcome, Committed):
            return
        failure = outcome.failures[0]
        if failure.errno != errno.ENOENT or failure.element is None:
            raise DataplaneLost(f"map {SetName.AFF}: {failure}")
        del elements[failure.element]
        if not elements:
            return
