# SPDX-License-Identifier: Apache-2.0
"""What `render` asks of the kernel: values, independent of how netlink spells them. Pure.

An element's key and data are tuples whose fields are those that `layout.SETS` declares for its set, in that order:
addresses and prefixes as canonical text, protocols as `Protocol`, ports and marks as numbers in host byte order.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from svcproxy.frontends.keys import Address, FrontendKey, NodePort, Scope
from svcproxy.model.meta import Family, Protocol

Field = str | int
"""One field of a key or of data."""
Key = tuple[Field, ...]


class Form(StrEnum):
    """What a frontend's elements begin with; each form has sets and chains of its own."""

    ADDRESS = "address"
    """IP address, protocol, port: `Address`."""
    NODE_PORT = "node-port"
    """Protocol, port: `NodePort`."""


class SetName(StrEnum):
    """The sets and maps of a table; `layout.SETS` describes each."""

    CLASS = "class"
    NP_CLASS = "npclass"
    ADMITTED = "admitted"
    NP_ADMITTED = "npadmitted"
    NEAR = "near"
    NP_NEAR = "npnear"
    FAR = "far"
    NP_FAR = "npfar"
    EP = "ep"
    NP_EP = "npep"
    PICK = "pick"
    NP_PICK = "nppick"
    SRC_OK = "srcok"
    NP_SRC_OK = "npsrcok"
    MASQ = "masq"
    NP_MASQ = "npmasq"
    MASQ_NODE = "masqnode"
    NP_MASQ_NODE = "npmasqnode"
    AFF = "aff"
    NODE_IPS = "nodeips"
    CLUSTER_IPS = "clusterips"
    HAIRPIN = "hairpin"
    SVC_CIDR = "svccidr"
    POD_CIDR = "podcidr"


class FixedChain(StrEnum):
    """Chains that every table has; `layout.ruleset` has their rules."""

    PREROUTING = "prerouting"
    OUTPUT = "output"
    POSTROUTING = "postrouting"
    DISPATCH = "dispatch"
    FIREWALL = "firewall"
    NP_FIREWALL = "npfirewall"
    SPLIT = "split"
    NP_SPLIT = "npsplit"
    REJECT = "reject"


class BackendChain(msgspec.Struct, frozen=True, gc=False):
    """A chain that sends to one of `size` backends. There is one per value in use, whoever uses it."""

    form: Form
    scope: Scope
    """Which slots it draws from."""
    size: int
    """How many slots there are, at least one."""
    affinity_timeout: int | None = None
    """Seconds a client keeps its backend; None draws afresh for each flow."""

    @property
    def name(self) -> str:
        """`n3`, `local-n3`, `np-n3`; with affinity `a3-10800`."""
        prefix = ("np-" if self.form is Form.NODE_PORT else "") + ("local-" if self.scope is Scope.LOCAL else "")
        if self.affinity_timeout is None:
            return f"{prefix}n{self.size}"
        return f"{prefix}a{self.size}-{self.affinity_timeout}"


Chain = FixedChain | BackendChain


def chain_name(chain: Chain) -> str:
    """The name in the kernel."""
    return chain.name if isinstance(chain, BackendChain) else chain.value


_backend_chain = re.compile(r"(np-)?(local-)?(?:n([1-9][0-9]{0,8})|a([1-9][0-9]{0,8})-([1-9][0-9]{0,8}))").fullmatch


_fixed_chains: dict[str, Chain] = {chain.value: chain for chain in FixedChain}


def chain_of(name: str) -> Chain | None:
    """The chain of that name; None if it is none of ours."""
    matched = _backend_chain(name)
    if matched is None:
        return _fixed_chains.get(name)
    node_port, local, size, affine_size, timeout = matched.groups()
    return BackendChain(
        Form.NODE_PORT if node_port else Form.ADDRESS,
        Scope.LOCAL if local else Scope.CLUSTER,
        int(size or affine_size),
        int(timeout) if timeout else None,
    )


class Goto(msgspec.Struct, frozen=True, gc=False):
    """The verdict that goes on in another chain and does not come back."""

    chain: Chain


class Drop(msgspec.Struct, frozen=True, gc=False):
    """The verdict of silence."""


DROP = Drop()
Verdict = Goto | Drop
Data = Key | Verdict | None
"""What a key stands for; None in a set that is not a map."""


class AddElement(msgspec.Struct, frozen=True, gc=False):
    """Add an element whose key is not there."""

    family: Family
    set: SetName
    key: Key
    data: Data = None


class ReplaceElement(msgspec.Struct, frozen=True, gc=False):
    """Give a key that is there other data: delete and add, in one batch."""

    family: Family
    set: SetName
    key: Key
    data: Data


class DeleteElement(msgspec.Struct, frozen=True, gc=False):
    """Delete an element that is there."""

    family: Family
    set: SetName
    key: Key


class EnsureChain(msgspec.Struct, frozen=True, gc=False):
    """Create a chain and its rules (`layout.rules_of`) unless it is there; it comes before what refers to it."""

    family: Family
    chain: BackendChain


Operation = AddElement | ReplaceElement | DeleteElement | EnsureChain


@dataclass(frozen=True, slots=True)
class Phases:
    """What one delta asks for. A phase is complete in the kernel before the next begins, or see `batches.at_once`.

    Between flip and shrink lies a millisecond at least: a packet that read the old verdict finishes with the old slots.
    A phase may be cut into batches anywhere but between the operations of one frontend; operations outside frontends
    (`frontend_of` is None) may be cut anywhere.
    """

    grow: tuple[Operation, ...] = ()
    """Chains, slots and whatever else nothing refers to yet; slots that get another backend."""
    flip: tuple[Operation, ...] = ()
    """Verdicts, and the source ranges of frontends that keep having some."""
    shrink: tuple[Operation, ...] = ()
    """What nothing refers to any more."""

    def __bool__(self) -> bool:
        return bool(self.grow or self.flip or self.shrink)

    def in_order(self) -> tuple[tuple[Operation, ...], ...]:
        """Grow, flip, shrink."""
        return self.grow, self.flip, self.shrink


class FormSets(msgspec.Struct, frozen=True):
    """The sets of one form of frontend. Every key begins with the frontend."""

    verdict: SetName
    admitted: SetName
    near: SetName
    far: SetName
    ep: SetName
    pick: SetName
    src_ok: SetName
    masq: SetName
    masq_node: SetName


SETS_OF = {
    Form.ADDRESS: FormSets(
        verdict=SetName.CLASS,
        admitted=SetName.ADMITTED,
        near=SetName.NEAR,
        far=SetName.FAR,
        ep=SetName.EP,
        pick=SetName.PICK,
        src_ok=SetName.SRC_OK,
        masq=SetName.MASQ,
        masq_node=SetName.MASQ_NODE,
    ),
    Form.NODE_PORT: FormSets(
        verdict=SetName.NP_CLASS,
        admitted=SetName.NP_ADMITTED,
        near=SetName.NP_NEAR,
        far=SetName.NP_FAR,
        ep=SetName.NP_EP,
        pick=SetName.NP_PICK,
        src_ok=SetName.NP_SRC_OK,
        masq=SetName.NP_MASQ,
        masq_node=SetName.NP_MASQ_NODE,
    ),
}
FORM_OF = {name: form for form, sets in SETS_OF.items() for name in msgspec.structs.astuple(sets)}
"""The form of the frontends that a set is about; shared sets are absent."""


def is_foreign(key: Key) -> bool:
    """Whether an element of a set of frontends is none that a frontend has: see `elements.decode`."""
    return len(key) == 1


PREFIX_FIELDS = {Form.ADDRESS: 3, Form.NODE_PORT: 2}
"""How many fields of a key are the frontend."""


def form_of(key: FrontendKey) -> Form:
    """The form of a frontend."""
    return Form.NODE_PORT if isinstance(key, NodePort) else Form.ADDRESS


def prefix_of(key: FrontendKey) -> Key:
    """What every key of the frontend's elements begins with; its family is that of the table."""
    return (key.protocol, key.port) if isinstance(key, NodePort) else (key.ip, key.protocol, key.port)


def frontend_of(operation: Operation) -> FrontendKey | None:
    """The frontend an operation is for; None for chains and for sets that frontends share."""
    return None if isinstance(operation, EnsureChain) else frontend_at(operation.family, operation.set, operation.key)


def frontends_of(operations: Iterable[Operation]) -> set[FrontendKey]:
    """The frontends that operations are for."""
    prefixes = {
        (operation.family, form, operation.key[: PREFIX_FIELDS[form]])
        for operation in operations
        if not isinstance(operation, EnsureChain)
        and (form := FORM_OF.get(operation.set)) is not None
        and not is_foreign(operation.key)
    }
    return {_frontend(family, form, prefix) for family, form, prefix in prefixes}


def frontend_at(family: Family, name: SetName, key: Key) -> FrontendKey | None:
    """The frontend that an element belongs to; None in sets that frontends share, and for what no frontend has."""
    form = FORM_OF.get(name)
    if form is None or is_foreign(key):
        return None
    return _frontend(family, form, key)


def _frontend(family: Family, form: Form, key: Key) -> FrontendKey:
    if form is Form.ADDRESS:
        ip, protocol, port = key[:3]
        return Address(str(ip), Protocol(str(protocol)), int(port))
    protocol, port = key[:2]
    return NodePort(family, Protocol(str(protocol)), int(port))
