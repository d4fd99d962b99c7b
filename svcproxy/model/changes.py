# SPDX-License-Identifier: Apache-2.0
"""The delta that travels from a source of objects to the store."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from svcproxy.model.meta import NamespacedName
from svcproxy.model.namespace import Namespace
from svcproxy.model.node import Node
from svcproxy.model.pod import Pod
from svcproxy.model.service import Service
from svcproxy.model.service_cidr import ServiceCIDR
from svcproxy.model.slice import EndpointSlice

T = TypeVar("T", Service, EndpointSlice, Node, Namespace, Pod, ServiceCIDR)


@dataclass(frozen=True, slots=True)
class Changes(Generic[T]):
    """Objects of one kind that appeared or changed, and keys of those that went. No key is in both."""

    kind: type[T]
    applied: tuple[T, ...] = ()
    removed: tuple[NamespacedName, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.applied or self.removed)

    @classmethod
    def of(cls, kind: type[T], applied: Iterable[T] = (), removed: Iterable[NamespacedName] = ()) -> "Changes[T]":
        """Changes from any iterables."""
        return cls(kind, tuple(applied), tuple(removed))
