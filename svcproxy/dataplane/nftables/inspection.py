# SPDX-License-Identifier: Apache-2.0
"""What the kernel would do with a new connection, read from its tables element by element. Blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

from svcproxy.dataplane.nftables.elements import decode, encode
from svcproxy.dataplane.nftables.layout import DESTINATION, SLOT_BASE, firewall, split
from svcproxy.dataplane.nftables.operations import (
    SETS_OF,
    BackendChain,
    Data,
    Drop,
    FixedChain,
    Form,
    FormSets,
    Goto,
    Key,
    SetName,
    chain_name,
)
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.frontends.addresses import host_network
from svcproxy.frontends.keys import Backend
from svcproxy.model.meta import Protocol, family_of

SLOTS_READ = 256
"""Slots of one chain that are looked into."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A connection's way through the tables."""

    path: tuple[str, ...]
    """Look-ups and what they gave, in order."""
    verdict: str
    """`forward`, `reject`, `drop`, `filtered` or `not-ours`."""
    backends: tuple[Backend, ...] = ()
    """Those of the first `SLOTS_READ` slots, in their order."""
    slots: int = 0
    missing: tuple[int, ...] = ()
    """Slots that hold nothing: such a connection goes to the first slot."""


class _Walk:
    def __init__(self, kernel: Kernel, ip: str, protocol: Protocol, port: int, source: str | None, near: bool) -> None:
        self._kernel = kernel
        self._ip, self._protocol, self._port = ip, protocol, port
        self._family = family_of(ip)
        self._source = source
        self._near = near
        self.path: list[str] = []

    def seen(self) -> Seen:
        for form in Form:
            if form is Form.NODE_PORT and not self._has(SetName.NODE_IPS, (self._ip,)):
                continue
            prefix: Key = (self._ip, self._protocol, self._port)[-len(DESTINATION[form]) :]
            verdict = self._get(SETS_OF[form].verdict, prefix)
            if verdict is not None:
                return self._follow(form, prefix, verdict)
        if self._has(SetName.CLUSTER_IPS, (self._ip,)):
            return self._end("reject")
        if self._has(SetName.SVC_CIDR, (host_network(self._ip),)):
            return self._end("drop")
        return self._end("not-ours")

    def _follow(self, form: Form, prefix: Key, verdict: Data) -> Seen:
        sets = SETS_OF[form]
        while True:
            match verdict:
                case Goto(BackendChain() as chain):
                    return self._slots(sets, prefix, chain)
                case Goto(FixedChain.REJECT):
                    return self._end("reject")
                case Goto(chain) if chain is firewall(form):
                    if self._source is not None and not self._has(sets.src_ok, (*prefix, host_network(self._source))):
                        return self._end("filtered")
                    verdict = self._get(sets.admitted, prefix)
                case Goto(chain) if chain is split(form):
                    verdict = self._get(sets.near if self._near else sets.far, prefix)
                case Drop():
                    return self._end("drop")
                case _:
                    return self._end("not-ours")

    def _slots(self, sets: FormSets, prefix: Key, chain: BackendChain) -> Seen:
        found: list[Backend] = []
        missing = []
        base = SLOT_BASE[chain.scope]
        for slot in range(min(chain.size, SLOTS_READ)):
            mark = base + slot
            if chain.affinity_timeout is not None:
                picked = self._read(sets.pick, (*prefix, mark))
                mark = int(picked[0]) | base if isinstance(picked, tuple) else -1
            data = self._read(sets.ep, (*prefix, mark)) if mark >= 0 else None
            if isinstance(data, tuple):
                found.append(Backend(str(data[0]), int(data[1])))
            else:
                missing.append(slot)
        self.path.append(f"{chain.name}: {len(found)} backends")
        return Seen(tuple(self.path), "forward", tuple(found), chain.size, tuple(missing))

    def _end(self, verdict: str) -> Seen:
        return Seen(tuple(self.path), verdict)

    def _get(self, name: SetName, key: Key) -> Data:
        data = self._read(name, key)
        if isinstance(data, Goto):
            self.path.append(f"{name}: goto {chain_name(data.chain)}")
        else:
            self.path.append(f"{name}: {'drop' if isinstance(data, Drop) else 'nothing'}")
        return data

    def _has(self, name: SetName, key: Key) -> bool:
        there = any(True for _ in self._stored(name, key))
        self.path.append(f"{name}: {'yes' if there else 'no'}")
        return there

    def _read(self, name: SetName, key: Key) -> Data:
        return next((data for _, data in self._stored(name, key)), None)

    def _stored(self, name: SetName, key: Key) -> Iterator[tuple[Key, Data]]:
        stored = self._kernel.element(TABLES[self._family], name.value, encode(name, key)[0])
        if stored is not None:
            yield from decode(self._family, name, (stored.element,))


def inspect(kernel: Kernel, ip: str, protocol: Protocol, port: int, source: str | None, *, near: bool) -> Seen:
    """Follow a new connection to a canonical address through the tables.

    `source`: None is admitted by every firewall; `near`: whether it is a pod's or this node's, which the kernel may
    tell by more than the address. Raises `DataplaneLost`.
    """
    return _Walk(kernel, ip, protocol, port, source, near).seen()
