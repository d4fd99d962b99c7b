# SPDX-License-Identifier: Apache-2.0
"""Every acceptance case is tested under its number: in the id of a row, or in the name of a test."""

import re
from pathlib import Path
from typing import Final

import pytest

CASES: Final = {"A": 76, "M": 32, "B": 20}
"""How many there are of each kind: CoreDNS' answers, messages and time, and where CoreDNS is surpassed."""
ELSEWHERE: Final = {"M30", "M31"}
"""Ending is the role's, see `tests.workers`; nobody searches for others (autopath)."""
_ID = re.compile(r'id="([ABM]\d+)\b')
_NAME = re.compile(r"def test_((?:[abm]\d+_)+)")


def numbers() -> set[str]:
    """Those that tests of this folder have."""
    found = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        text = path.read_text()
        found |= set(_ID.findall(text))
        found |= {each.upper() for name in _NAME.findall(text) for each in name.split("_") if each}
    return found


@pytest.mark.parametrize(("kind", "count"), CASES.items())
def test_every_case_has_a_test(kind: str, count: int) -> None:
    assert {f"{kind}{number}" for number in range(1, count + 1)} - ELSEWHERE - numbers() == set()
