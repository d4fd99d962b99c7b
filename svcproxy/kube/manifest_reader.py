# SPDX-License-Identifier: Apache-2.0
"""Contents of manifest files in, changes of objects out. Pure.

What a file held stays in force as long as it cannot be said that it is gone: a bad document keeps the last good version
of its object, and a file with a document that names no object, such as one that is written only in part, keeps all of
its objects. A namespace that is mentioned exists, whether or not a manifest says so.

The work of one `apply` is in proportion to the files that it names.
"""

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Any

from svcproxy.document import capped, read
from svcproxy.errors import Problem
from svcproxy.kube.manifest_objects import Bad, Good, Ignored, items
from svcproxy.kube.source import InvalidObject
from svcproxy.model import (
    Changes,
    EndpointSlice,
    Namespace,
    NamespacedName,
    Node,
    Object,
    ObjectMeta,
    Pod,
    Service,
    ServiceCIDR,
)

ObjectType = type[Service] | type[EndpointSlice] | type[Node] | type[Namespace] | type[Pod] | type[ServiceCIDR]
KIND_TYPES: tuple[ObjectType, ...] = (Namespace, Node, ServiceCIDR, Service, EndpointSlice, Pod)
"""In the order in which their changes are told."""

REPORTS_MAX = 200
"""Bad objects of one file that are told one by one; the others are counted in one more report."""
IGNORED_MAX = 1000
"""Unused kinds that are told of."""

_ObjectId = tuple[type[Object], NamespacedName]


class Gone(Enum):
    """In place of the contents of a file that no longer exists."""

    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of the contents of a file that could not be read; its objects stay in force."""

    reason: str


Contents = bytes | Unreadable | Gone


@dataclass(slots=True)
class Update:
    """What an `apply` found out."""

    changes: list[Changes[Any]] = field(default_factory=list)
    """At most one per kind."""
    invalid: list[InvalidObject] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Kinds met for the first time and not used, such as `apps/v1 Deployment`."""


@dataclass(slots=True)
class _File:
    digest: bytes = b""
    """Of the contents read last, so that a file that was only touched costs no parsing."""
    objects: dict[_ObjectId, Good] = field(default_factory=dict)


class ManifestReader:
    """The objects of a set of files, by the names of the files."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._owners: dict[_ObjectId, list[str]] = {}
        """Files that hold the object, sorted: the first one counts."""
        self._effective: dict[_ObjectId, Object] = {}
        self._mentions: Counter[str] = Counter()
        """Objects in force by namespace."""
        self._ignored: set[str] = set()

    @property
    def files(self) -> frozenset[str]:
        """Names of the files that exist as far as it was told."""
        return frozenset(self._files)

    def apply(self, contents: Mapping[str, Contents]) -> Update:
        """Take in what changed: files not named stay as they were. Raises nothing, whatever the contents."""
        update = Update()
        touched: set[_ObjectId] = set()
        shadowed: dict[_ObjectId, list[str]] = {}
        for name in sorted(contents):
            before = self._files.get(name, _File())
            after = self._read(name, contents[name], before, update)
            if after is None:
                self._files.pop(name, None)
            else:
                self._files[name] = after
            new = after.objects if after is not None else {}
            for id_ in before.objects.keys() - new.keys():
                self._disown(id_, name)
            for id_ in new.keys() - before.objects.keys():
                insort(self._owners.setdefault(id_, []), name)
                if len(self._owners[id_]) > 1:
                    shadowed.setdefault(id_, []).append(name)
            touched |= before.objects.keys() | new.keys()
        self._report_shadowed(shadowed, update)
        self._settle(touched, update)
        return update

    def _disown(self, id_: _ObjectId, name: str) -> None:
        owners = self._owners[id_]
        owners.remove(name)
        if not owners:
            del self._owners[id_]

    def _read(self, name: str, contents: Contents, before: _File, update: Update) -> _File | None:
        """The file as it is from now on, None if it is gone."""
        if isinstance(contents, Gone):
            return None
        if isinstance(contents, Unreadable):
            update.invalid.append(InvalidObject("", "", str(Problem(contents.reason, name))))
            return _File(b"", before.objects)
        digest = blake2b(contents, digest_size=16).digest()
        if digest == before.digest:
            return before
        good: dict[_ObjectId, Good] = {}
        bad: list[Bad] = []
        if not contents.strip():
            empty = Bad(None, None, (Problem("empty; remove the file to remove its objects", name),))
            self._take(empty, name, good, bad, update)
        for document in read(contents, name):
            for item in items(document):
                self._take(item, name, good, bad, update)
        return _File(digest, _kept(before, good, bad))

    def _take(
        self, item: Good | Bad | Ignored, name: str, good: dict[_ObjectId, Good], bad: list[Bad], update: Update
    ) -> None:
        match item:
            case Good(obj, line):
                first = good.setdefault((type(obj), obj.key), item)
                if first is not item:
                    problem = Problem(f"defined before on line {first.line}; this one is left out", name, line)
                    update.invalid.append(InvalidObject(type(obj).__name__, str(obj.key), str(problem)))
            case Bad():
                bad.append(item)
                if len(bad) <= REPORTS_MAX:
                    update.invalid.append(_report(item))
                elif len(bad) == REPORTS_MAX + 1:
                    update.invalid.append(InvalidObject("", "", str(Problem("further bad objects, not listed", name))))
            case Ignored(kind):
                if kind not in self._ignored and len(self._ignored) < IGNORED_MAX:
                    self._ignored.add(kind)
                    update.ignored.append(kind)

    def _report_shadowed(self, shadowed: Mapping[_ObjectId, list[str]], update: Update) -> None:
        """Tell of objects that several files define, where that is new."""
        for (kind, key), names in shadowed.items():
            first, *others = self._owners.get((kind, key), [""])
            left_out = others if first in names else [name for name in names if name in others]
            for name in left_out:
                line = self._files[name].objects[kind, key].line
                problem = Problem(f"defined in {first} too; this one is left out", name, line)
                update.invalid.append(InvalidObject(kind.__name__, str(key), str(problem)))

    def _settle(self, touched: set[_ObjectId], update: Update) -> None:
        """Bring what is in force in line with the files, and tell the differences."""
        applied: dict[type[Object], list[Object]] = {}
        removed: dict[type[Object], list[NamespacedName]] = {}
        namespaces = {id_ for id_ in touched if id_[0] is Namespace}
        for id_ in sorted(touched - namespaces, key=_order):
            owners = self._owners.get(id_)
            new = self._files[owners[0]].objects[id_].object if owners else None
            if (new is None) != (id_ not in self._effective) and id_[1].namespace:
                self._mentions[id_[1].namespace] += -1 if new is None else 1
                namespaces.add((Namespace, NamespacedName("", id_[1].namespace)))
            self._set(id_, new, applied, removed)
        for id_ in sorted(namespaces, key=_order):
            self._set(id_, self._namespace(id_), applied, removed)
        for kind in KIND_TYPES:
            if kind in applied or kind in removed:
                update.changes.append(Changes(kind, tuple(applied.get(kind, ())), tuple(removed.get(kind, ()))))

    def _namespace(self, id_: _ObjectId) -> Object | None:
        if owners := self._owners.get(id_):
            return self._files[owners[0]].objects[id_].object
        name = id_[1].name
        if self._mentions[name] > 0:
            return Namespace(ObjectMeta(name))
        del self._mentions[name]
        return None

    def _set(
        self,
        id_: _ObjectId,
        new: Object | None,
        applied: dict[type[Object], list[Object]],
        removed: dict[type[Object], list[NamespacedName]],
    ) -> None:
        old = self._effective.get(id_)
        if new is not None and new != old:
            self._effective[id_] = new
            applied.setdefault(id_[0], []).append(new)
        elif new is None and old is not None:
            del self._effective[id_]
            removed.setdefault(id_[0], []).append(id_[1])


def _order(id_: _ObjectId) -> tuple[str, NamespacedName]:
    return id_[0].__name__, id_[1]


def _kept(before: _File, good: dict[_ObjectId, Good], bad: list[Bad]) -> dict[_ObjectId, Good]:
    """The objects of a file: the good ones, and last good versions of those of which it is not said that they went."""
    if any(item.kind is None or item.key is None for item in bad):
        return {**before.objects, **good}
    last = {(item.kind, item.key) for item in bad}
    return {**{id_: placed for id_, placed in before.objects.items() if id_ in last}, **good}


def _report(item: Bad) -> InvalidObject:
    problems = capped(list(item.problems), "")
    kind = item.kind.__name__ if item.kind is not None else ""
    return InvalidObject(kind, str(item.key) if item.key is not None else "", "; ".join(map(str, problems)))
