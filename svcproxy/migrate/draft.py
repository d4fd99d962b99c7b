# SPDX-License-Identifier: Apache-2.0
"""A configuration in the making, and what there is to say about where it comes from. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

VALUE_SHOWN_MAX = 100
"""Characters of a value that a remark shows."""


class Source(StrEnum):
    """Whose settings they are."""

    KUBE_PROXY = "kube-proxy"
    COREDNS = "CoreDNS"
    NODE_LOCAL_DNS = "NodeLocal DNSCache"
    KUBE_DNS = "kube-dns ConfigMap"
    RESULT = "svcproxy"


class Treatment(StrEnum):
    """What becomes of a setting."""

    SAME = "same"
    """It has an equivalent, and that is set."""
    DIFFERS = "differs"
    """svcproxy does something else, which may matter."""
    NEEDLESS = "needless"
    """svcproxy has no such setting because it has no such problem; nothing is lost."""
    NONE = "none"
    """svcproxy cannot do it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a setting stands."""

    source: Source
    setting: str
    """Its name, such as `iptables.syncPeriod`, `cache.prefetch` or `--cluster-cidr`."""
    file: str = ""
    line: int = 0
    """1-based; 0 where there is none."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return f"{self.source} {self.setting}" + (f" ({where})" if where else "")


@dataclass(frozen=True, slots=True)
class Remark:
    """What becomes of one setting."""

    place: Place
    treatment: Treatment
    text: str
    """For people; empty if there is nothing to add."""
    value: str = ""
    """What it was set to, as it is written."""
    key: str = ""
    """The key of the configuration that it is about; empty if there is none."""


@dataclass(slots=True)
class Draft:
    """Values by dotted key, and remarks in the order in which they were made."""

    values: dict[str, Any] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    def say(self, place: Place, treatment: Treatment, text: str, value: object = "", key: str = "") -> None:
        """Remark on a setting."""
        shown = value if isinstance(value, str) else spelled(value)
        if len(shown) > VALUE_SHOWN_MAX:
            shown = f"{shown[:VALUE_SHOWN_MAX]}…"
        self.remarks.append(Remark(place, treatment, text, shown, key))

    def set(
        self, key: str, value: Any, place: Place, text: str = "", *, was: object = "", differs: bool = False
    ) -> None:
        """Set a key, and say where it comes from. An earlier value gives way, which is remarked on.

        `was`: how the value was written; `differs`: whether `text` tells of a difference.
        """
        if key in self.values and self.values[key] != value:
            lost = f"pods ask the nodes' cache first, so that {place.source}'s {place.setting} counts instead"
            self.remarks = [
                Remark(each.place, Treatment.DIFFERS, lost, each.value)
                if each.key == key and each.place.source is not place.source
                else each
                for each in self.remarks
            ]
        self.values[key] = value
        self.say(place, Treatment.DIFFERS if differs else Treatment.SAME, text, was, key)

    def unset(self, key: str, treatment: Treatment, text: str) -> None:
        """Leave a key at its default after all; what was to set it gets the reason."""
        self.values.pop(key, None)
        self.remarks = [
            Remark(each.place, treatment, text, each.value) if each.key == key else each for each in self.remarks
        ]

    def about(self, key: str) -> Iterator[Remark]:
        """The remarks on a key."""
        return (each for each in self.remarks if each.key == key)


def spelled(value: object) -> str:
    """A value as YAML writes it in one line, for people."""
    match value:
        case bool():
            return str(value).lower()
        case None:
            return "null"
        case list() | tuple():
            return f"[{', '.join(map(spelled, value))}]"
        case dict():
            return "{" + ", ".join(f"{key}: {spelled(each)}" for key, each in value.items()) + "}"
        case _:
            return str(value)
