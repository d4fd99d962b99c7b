# SPDX-License-Identifier: Apache-2.0
"""Names and metadata that every kind shares, and the two enumerations that every layer speaks."""

from enum import IntEnum, StrEnum
from typing import Annotated

import msgspec

PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]
"""A port; 0 means none was given."""


class Protocol(StrEnum):
    """Transport protocols a Service port can have (core/v1 Protocol)."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Family(IntEnum):
    """IP families, by their version number."""

    IPV4 = 4
    IPV6 = 6

    @property
    def label(self) -> str:
        """As Kubernetes spells it: `IPv4`, `IPv6`."""
        return f"IPv{self.value}"


def family_of(ip: str) -> Family:
    """The family of an address or CIDR in text form."""
    return Family.IPV6 if ":" in ip else Family.IPV4


class NamespacedName(msgspec.Struct, frozen=True, gc=False, order=True, array_like=True):
    """The key of an object; cluster-scoped objects have the empty namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


API_SERVER = NamespacedName("default", "kubernetes")
"""The Service of the API server itself."""


class ObjectMeta(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """The metadata kept of every object. Kinds that use labels or annotations extend it by just those."""

    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: str | None = None
    """RFC 3339, second resolution."""
    deletion_timestamp: str | None = None

    @property
    def key(self) -> NamespacedName:
        """The object's key."""
        return NamespacedName(self.namespace, self.name)
