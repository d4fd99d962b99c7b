# SPDX-License-Identifier: Apache-2.0
"""Jittered exponential back-off with bounds. Pure: it says how long to wait, the caller waits.

The n-th wait after a reset lies in `[(1 - jitter) * b, b]`, where `b = min(maximum, initial * factor ** n)`. The jitter
only shortens, so `maximum` is a bound in the strict sense, and a crowd that failed together does not return together.
"""

import random
from collections.abc import Callable


class Backoff:
    """The waits between attempts at one thing. One owner."""

    __slots__ = ("_base", "_factor", "_initial", "_jitter", "_maximum", "_random")

    def __init__(
        self,
        initial: float,
        maximum: float,
        factor: float = 2.0,
        jitter: float = 0.5,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Seconds for `initial` and `maximum`; `jitter` is the share of a wait that chance may take off, 0 to 1.

        `random` returns numbers in [0, 1). Raises `ValueError` for bounds that make no sense.
        """
        if not 0 < initial <= maximum:
            raise ValueError(f"back-off needs 0 < initial <= maximum, not {initial} and {maximum}")
        if factor < 1 or not 0 <= jitter <= 1:
            raise ValueError(f"back-off needs factor >= 1 and 0 <= jitter <= 1, not {factor} and {jitter}")
        self._initial = initial
        self._maximum = maximum
        self._factor = factor
        self._jitter = jitter
        self._random = random
        self._base = initial

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        base = self._base
        self._base = min(self._maximum, base * self._factor)
        return base * (1 - self._jitter * self._random())

    def reset(self) -> None:
        """There was progress: the next wait is a first one."""
        self._base = self._initial
