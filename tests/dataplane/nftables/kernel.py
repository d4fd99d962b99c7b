# SPDX-License-Identifier: Apache-2.0
"""A kernel of dictionaries: executes operations one by one, and the rules of the layout on packets."""

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import assert_never

from svcproxy.dataplane.nftables import layout
from svcproxy.dataplane.nftables.layout import FieldType, Load, Operand, Random, Rule, Statement
from svcproxy.dataplane.nftables.operations import (
    AddElement,
    BackendChain,
    Chain,
    Data,
    DeleteElement,
    Drop,
    EnsureChain,
    Field,
    FixedChain,
    Goto,
    Key,
    Operation,
    ReplaceElement,
    SetName,
)
from svcproxy.frontends.keys import Backend
from svcproxy.model.meta import Family, Protocol, family_of


@dataclass(slots=True)
class Packet:
    """The first packet of a flow. `ip`, `port` are what it is addressed to."""

    source: str
    ip: str
    protocol: Protocol
    port: int
    interface: str = "eth0"
    """Where it came in; empty if the node itself sends it."""
    mark: int = 0
    backend: Backend | None = None
    """Where it was sent."""


class Refused(Exception):
    """An ICMP error."""


class Dropped(Exception):
    """Silence."""


class Sent(Exception):
    """The destination is decided."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.backend = backend


class Masqueraded(Exception):
    """The source is rewritten."""


class Lost(AssertionError):
    """A chain ended without a verdict."""


class Reached(Exception):
    """A backend chain, when that is where the packet should be watched."""

    def __init__(self, chain: BackendChain) -> None:
        super().__init__(chain.name)
        self.chain = chain


Draw = Callable[[Random], int]


@dataclass
class Kernel:
    """Both tables."""

    surroundings: layout.Surroundings
    node_addresses: frozenset[str] = frozenset()
    sets: defaultdict[tuple[Family, SetName], dict[Key, Data]] = field(default_factory=lambda: defaultdict(dict))
    chains: set[tuple[Family, BackendChain]] = field(default_factory=set)
    missed: list[tuple[SetName, Key]] = field(default_factory=list)
    """Look-ups of `ep` and `pick` that found nothing."""

    def __post_init__(self) -> None:
        self._rules = {family: layout.ruleset(self.surroundings, family) for family in Family}
        self.run(layout.surrounding_elements(self.surroundings))

    def run(self, operations: Iterable[Operation]) -> None:
        """Execute in order."""
        for operation in operations:
            self.execute(operation)

    def execute(self, operation: Operation) -> None:
        """As strict as the kernel, and about types stricter."""
        if isinstance(operation, EnsureChain):
            self.chains.add((operation.family, operation.chain))
            return
        spec, elements = layout.SETS[operation.set], self.sets[operation.family, operation.set]
        _check_key(operation.family, spec.key, operation.key)
        if isinstance(operation, AddElement):
            assert operation.key not in elements, operation
        else:
            assert operation.key in elements, operation
        if isinstance(operation, DeleteElement):
            del elements[operation.key]
            return
        assert isinstance(operation, AddElement | ReplaceElement)
        data = operation.data
        if spec.verdicts:
            assert isinstance(data, Goto | Drop)
            if isinstance(data, Goto) and isinstance(data.chain, BackendChain):
                assert (operation.family, data.chain) in self.chains, operation
        elif spec.data:
            assert isinstance(data, tuple)
            _check_key(operation.family, spec.data, data)
        else:
            assert data is None
        if spec.interval:
            for key in elements:
                overlap = ipaddress.ip_network(str(key[-1])).overlaps(ipaddress.ip_network(str(operation.key[-1])))
                assert key[:-1] != operation.key[:-1] or not overlap, operation
        elements[operation.key] = data

    # Packets

    def verdict(self, packet: Packet) -> BackendChain | type[Refused] | type[Dropped] | None:
        """What dispatch does with a packet; None if it lets it pass."""
        try:
            self._go(FixedChain.PREROUTING, packet, _no_draw, watched=True)
        except Reached as reached:
            return reached.chain
        except (Refused, Dropped) as end:
            return type(end)
        return None

    def backends(self, chain: BackendChain, packet: Packet) -> Iterator[Backend]:
        """Where a chain sends the packets of a new client, for each slot."""
        for slot in range(chain.size):
            self.sets[family_of(packet.ip), SetName.AFF].clear()
            yield self.send(chain, packet, slot)

    def send(self, chain: BackendChain, packet: Packet, slot: int) -> Backend:
        """Where a chain sends a packet when `slot` is drawn."""
        packet.mark, packet.backend = 0, None
        try:
            self._go(chain, packet, lambda random: random.base + min(slot, random.size - 1), watched=False)
        except Sent as sent:
            assert packet.mark == 0
            return sent.backend
        raise Lost(chain)

    def masquerades(self, packet: Packet, backend: Backend) -> bool:
        """Whether the source is rewritten when the packet was sent to a backend."""
        packet.backend = backend
        try:
            self._go(FixedChain.POSTROUTING, packet, _no_draw, watched=True)
        except Masqueraded:
            return True
        return False

    def _go(self, chain: Chain, packet: Packet, draw: Draw, *, watched: bool) -> None:
        family = family_of(packet.ip)
        if isinstance(chain, BackendChain):
            assert (family, chain) in self.chains
            if watched:
                raise Reached(chain)
            rules: tuple[Rule, ...] = layout.rules_of(chain)
        else:
            rules = self._rules[family][chain]
        for rule in rules:
            for statement in rule:
                if not self._do(statement, packet, draw, family):
                    break

    def _do(self, statement: Statement, packet: Packet, draw: Draw, family: Family) -> bool:  # noqa: C901
        match statement:
            case layout.InSet(name, operands, present):
                return self._find(family, name, self._load(operands, packet, draw)) is present
            case layout.LocalSource():
                return packet.source in self.node_addresses
            case layout.FromInterface(name, present):
                named = packet.interface.startswith(name[:-1]) if name.endswith("*") else packet.interface == name
                return named is present
            case layout.Translated():
                return packet.backend is not None
            case layout.Transport():
                return True
            case layout.VerdictOf(name, operands):
                verdict = self.sets[family, name].get(self._load(operands, packet, draw))
                if isinstance(verdict, Goto):
                    self._go(verdict.chain, packet, draw, watched=True)
                    raise Lost(verdict.chain)
                if isinstance(verdict, Drop):
                    raise Dropped
                return False
            case layout.SetMark(random):
                packet.mark = draw(random)
            case layout.SetMarkFrom(name, operands):
                data = self._get(family, name, self._load(operands, packet, draw))
                if data is None:
                    return False
                packet.mark = int(data[0])
            case layout.OrMark(bits):
                packet.mark |= bits
            case layout.Remember(name, operands, _):
                self.sets[family, name].setdefault(self._load(operands, packet, draw), (packet.mark,))
            case layout.SendTo(name, operands, clear_mark):
                data = self._get(family, name, self._load(operands, packet, draw))
                if data is None:
                    return False
                packet.mark = 0 if clear_mark else packet.mark
                raise Sent(Backend(str(data[0]), int(data[1])))
            case layout.Masquerade():
                raise Masqueraded
            case layout.GoTo(chain) | layout.Jump(chain):
                self._go(chain, packet, draw, watched=True)
            case layout.Refuse():
                raise Refused
            case layout.Discard():
                raise Dropped
            case _:
                assert_never(statement)
        return True

    def _find(self, family: Family, name: SetName, key: Key) -> bool:
        elements = self.sets[family, name]
        if not layout.SETS[name].interval:
            return key in elements
        source = ipaddress.ip_address(str(key[-1]))
        return any(each[:-1] == key[:-1] and source in ipaddress.ip_network(str(each[-1])) for each in elements)

    def _get(self, family: Family, name: SetName, key: Key) -> Key | None:
        data = self.sets[family, name].get(key)
        if data is None:
            if name is not SetName.AFF:
                self.missed.append((name, key))
            return None
        assert isinstance(data, tuple)
        return data

    def _load(self, operands: tuple[Operand, ...], packet: Packet, draw: Draw) -> Key:
        return tuple(self._operand(operand, packet, draw) for operand in operands)

    def _operand(self, operand: Operand, packet: Packet, draw: Draw) -> Field:
        if isinstance(operand, Random):
            return draw(operand)
        values: dict[Load, Field] = {
            Load.DADDR: packet.backend.ip if packet.backend is not None else packet.ip,
            Load.SADDR: packet.source,
            Load.PROTOCOL: packet.protocol,
            Load.DPORT: packet.backend.port if packet.backend is not None else packet.port,
            Load.MARK: packet.mark,
            Load.SERVICE_PORT: packet.mark & layout.PORT_MASK,
            Load.SERVICE_PORT_AGAIN: packet.mark & layout.PORT_MASK | layout.LOCAL_BIT,
            Load.ORIGINAL_DADDR: packet.ip,
            Load.ORIGINAL_DPORT: packet.port,
        }
        return values[operand]


def _no_draw(random: Random) -> int:
    raise AssertionError(random)


def _check_key(family: Family, types: tuple[FieldType, ...], key: Key) -> None:
    assert len(types) == len(key), key
    for kind, value in zip(types, key, strict=True):
        match kind:
            case FieldType.ADDRESS | FieldType.PREFIX:
                assert isinstance(value, str)
                assert family_of(value) is family
                assert ("/" in value) is (kind is FieldType.PREFIX)
            case FieldType.PROTOCOL:
                assert isinstance(value, Protocol)
            case FieldType.PORT:
                assert isinstance(value, int)
                assert 0 <= value < 1 << 16
            case FieldType.MARK:
                assert isinstance(value, int)
                assert 0 <= value < 1 << 32
            case _:
                assert_never(kind)
