# SPDX-License-Identifier: Apache-2.0
"""How a worker proves to its supervisor that it answers: an octet through a pipe, now and then. Pure.

Bit N says that a question was answered at the Nth of the addresses to be proven, the highest bit that another instance
serves the node. An octet without bits says that the worker lives and proves nothing yet.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

CHANNEL_VARIABLE = "SVCPROXY_PROOF"
"""Tells a worker the descriptor of its end of the pipe, and the addresses to be proven: `3 10.96.0.10 fd96::a`."""
ADDRESSES_MAX = 7
PROOF_INTERVAL = 0.5
"""Seconds between two octets of a worker that is well."""

_STANDS_BY = 0x80


@dataclass(frozen=True, slots=True)
class Proof:
    """What one octet says."""

    answered: frozenset[str] = frozenset()
    stands_by: bool = False


def encode(proof: Proof, addresses: Sequence[str]) -> bytes:
    """The octet, for these addresses to be proven; others than these are left out."""
    bits = sum(1 << number for number, address in enumerate(addresses) if address in proof.answered)
    return bytes((bits | (_STANDS_BY if proof.stands_by else 0),))


def decode(octet: int, addresses: Sequence[str]) -> Proof:
    """What an octet says. Bits without an address say nothing."""
    answered = frozenset(address for number, address in enumerate(addresses) if octet >> number & 1)
    return Proof(answered, bool(octet & _STANDS_BY))


def channel(descriptor: int, addresses: Collection[str]) -> dict[str, str]:
    """What a worker's environment says of its channel."""
    return {CHANNEL_VARIABLE: " ".join((str(descriptor), *addresses))}


def read_channel(environment: Mapping[str, str]) -> tuple[int, tuple[str, ...]] | None:
    """Descriptor and addresses; None for a worker without a supervisor that wants proof. Raises ValueError."""
    words = environment.get(CHANNEL_VARIABLE, "").split()
    return (int(words[0]), tuple(words[1:])) if words else None
