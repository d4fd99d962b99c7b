# SPDX-License-Identifier: Apache-2.0
"""Tables of the comparison: figures, ratios, and whether they are what is wanted."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.dns.traffic import Outcome


@dataclass(frozen=True)
class Wanted:
    """A figure that is at most, or at least, something."""

    what: str
    bound: float
    at_least: bool = False

    def judge(self, value: float, unit: str = "") -> str:
        met = value >= self.bound if self.at_least else value <= self.bound
        sign = "≥" if self.at_least else "≤"
        return f"  {self.what}: {value:.3g}{unit}   wanted {sign} {self.bound:.3g}{unit}: {'met' if met else 'MISSED'}"


def headline(name: str, text: str) -> None:
    print(f"\n{name}: {text}; load average {os.getloadavg()[0]:.1f}", flush=True)


def costs(outcomes: Mapping[str, Sequence[Outcome]], wanted: Mapping[str, float]) -> None:
    """By server: the round with the least CPU for a query. `wanted`: by peer, the most that svcproxy may cost of it."""
    print(f"  {'':10} {'µs CPU a query':>15} {'all rounds':>15} {'queries/s':>10} {'core':>6} {'lost':>6}")
    least = {}
    for name, rounds in outcomes.items():
        best = min(rounds, key=lambda each: each.cost)
        least[name] = best.cost
        spread = f"{best.cost * 1e6:.1f} to {max(each.cost for each in rounds) * 1e6:.1f}"
        lost = sum(each.lost for each in rounds)
        print(f"  {name:10} {best.cost * 1e6:15.2f} {spread:>15} {best.rate:10.0f} {best.busy:6.0%} {lost:6}")
    for peer, bound in wanted.items():
        print(Wanted(f"svcproxy to {peer}", bound).judge(least["svcproxy"] / least[peer]), flush=True)
