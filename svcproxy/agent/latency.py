# SPDX-License-Identifier: Apache-2.0
"""How long changes take from the API event to each stage of the agent. Pure; times are monotonic seconds.

Changes are numbered as they are derived; a change that concerns workers carries a feed revision. Acknowledgements are
cumulative: a worker that acknowledges a revision has taken every earlier one. Everything is bounded: the newest changes
and the newest samples are kept.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SAMPLES_KEPT = 4096
"""Samples that the quantiles of one stage are taken over."""
CHANGES_KEPT = 4096
"""Changes whose acknowledgement can still be measured."""
WORKERS_KEPT = 64
"""Workers with an acknowledgement series; one more takes the place of the longest silent one."""

Trigger = tuple[str, float]
"""Kind of the Service, and the moment when the change happened that led to one of its slices."""

FRONTENDS = "frontends"
DATAPLANE = "dataplane"


def ack_stage(worker: str) -> str:
    """The name of the stage "acknowledged by this worker"."""
    return f"ack {worker}"


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A summary of durations, in seconds."""

    count: int
    p50: float
    p99: float
    last: float


class Samples:
    """Durations: the number of all, and the newest `SAMPLES_KEPT`."""

    __slots__ = ("_newest", "count")

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=SAMPLES_KEPT)
        self.count = 0

    def add(self, seconds: float) -> None:
        """Take one in."""
        self._newest.append(seconds)
        self.count += 1

    def quantiles(self) -> Quantiles:
        """The summary by nearest rank; there must be a sample. Sorts: for status, not for every change."""
        ordered = sorted(self._newest)
        last = len(ordered) - 1
        return Quantiles(self.count, ordered[round(last * 0.5)], ordered[round(last * 0.99)], self._newest[-1])


@dataclass(slots=True)
class _Change:
    number: int
    read_at: float
    programs: bool
    revision: int | None
    triggers: Sequence[Trigger]
    programmed: bool = False


class ChangeLog:
    """Follows changes through the stages. `observe(stage, seconds)` is called once for each change and stage, and
    `observe_names(kind, seconds)` once for each trigger and worker that has acknowledged it."""

    def __init__(
        self,
        observe: Callable[[str, float], None],
        observe_names: Callable[[str, float], None] = lambda kind, seconds: None,  # noqa: ARG005
    ) -> None:
        self._observe = observe
        self._observe_names = observe_names
        self._changes: deque[_Change] = deque(maxlen=CHANGES_KEPT)
        self._count = 0
        self._workers: dict[str, None] = {}
        """The one silent for longest first."""
        self._samples: dict[str, Samples] = {}

    def untimed(self) -> int:
        """A change that is part of a first list, and of no interest as one change; returns its number."""
        self._count += 1
        return self._count

    def derived(
        self, read_at: float, now: float, *, programs: bool, revision: int | None, triggers: Sequence[Trigger] = ()
    ) -> int:
        """A change whose event was read at `read_at` has become frontends and records; returns its number.

        `programs`: it goes to the data plane. `revision`: the feed revision that carries it, if one does. `triggers`:
        those of the slices in it, of which there are as many as objects in a change.
        """
        self._count += 1
        self._changes.append(_Change(self._count, read_at, programs, revision, triggers))
        self._sample(FRONTENDS, now - read_at)
        return self._count

    def programmed(self, number: int, now: float) -> None:
        """The data plane holds change `number` and every earlier one that it had not reached."""
        for change in reversed(self._changes):
            if change.number > number or not change.programs:
                continue
            if change.programmed:
                return
            change.programmed = True
            self._sample(DATAPLANE, now - change.read_at)

    def acknowledged(self, worker: str, after: int, revision: int, now: float) -> None:
        """`worker` has taken everything up to `revision`, and had everything up to `after` before."""
        self._workers.pop(worker, None)
        if len(self._workers) >= WORKERS_KEPT:
            silent = next(iter(self._workers))
            del self._workers[silent]
            self._samples.pop(ack_stage(silent), None)
        self._workers[worker] = None
        for change in reversed(self._changes):
            if change.revision is None or change.revision > revision:
                continue
            if change.revision <= after:
                return
            self._sample(ack_stage(worker), now - change.read_at)
            for kind, happened in change.triggers:
                self._observe_names(kind, now - happened)

    def summaries(self) -> dict[str, Quantiles]:
        """By stage, in the order in which a change passes them."""
        return {stage: self._samples[stage].quantiles() for stage in sorted(self._samples, key=_stage_order)}

    def _sample(self, stage: str, seconds: float) -> None:
        self._observe(stage, seconds)
        if (samples := self._samples.get(stage)) is None:
            samples = self._samples[stage] = Samples()
        samples.add(seconds)


def _stage_order(stage: str) -> tuple[int, str]:
    return {FRONTENDS: 0, DATAPLANE: 1}.get(stage, 2), stage
