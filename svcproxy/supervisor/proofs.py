# SPDX-License-Identifier: Apache-2.0
"""What workers have proven, and which of them have fallen silent. Performs no I/O: `now` is monotonic seconds.

One worker that answers at an address is enough for it to stand: they share the sockets, and a hung one among them is
found by its own silence. A worker that never said anything is starting, and left alone.
"""

from collections.abc import Sequence

from svcproxy.process.proof import Proof, decode

SILENCE_MAX = 5.0
"""Seconds without a word after which a worker that has said something counts as hung: resolvers wait as long."""


class Provers:
    """The workers of one role, by number."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._heard_at: dict[int, float] = {}
        """When each that lives said something last."""
        self._last: dict[int, Proof] = {}
        """What each said last, until it is started again."""
        self._answered: set[str] = set()

    @property
    def succeeded(self) -> bool:
        """Whether another instance serves the node, as far as some worker knows."""
        return any(proof.stands_by for proof in self._last.values())

    def started(self, worker: int) -> None:
        """A new process, which has said nothing yet."""
        self._heard_at.pop(worker, None)
        self._last.pop(worker, None)

    def ended(self, worker: int) -> None:
        """Its process has ended."""
        self._heard_at.pop(worker, None)

    def heard(self, worker: int, octets: bytes, now: float) -> None:
        """What has come out of its pipe."""
        for octet in octets:
            self._last[worker] = proof = decode(octet, self._addresses)
            self._answered |= proof.answered
            self._heard_at[worker] = now

    def take(self) -> frozenset[str]:
        """The addresses at which somebody was answered since this was asked last."""
        answered, self._answered = frozenset(self._answered), set()
        return answered

    def hung(self, now: float) -> tuple[int, ...]:
        """Workers that have fallen silent. Each is named once until it is heard again."""
        silent = tuple(worker for worker, at in self._heard_at.items() if now - at >= SILENCE_MAX)
        for worker in silent:
            del self._heard_at[worker]
        return silent
