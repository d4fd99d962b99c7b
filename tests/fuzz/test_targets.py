# SPDX-License-Identifier: Apache-2.0
"""The fuzzers' seeds pass, so that a crash is a finding. What fuzzing has found is a row here."""

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        target.check(seed)
