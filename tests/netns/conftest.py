# SPDX-License-Identifier: Apache-2.0
"""What several tests stand on."""

from collections.abc import Iterator

import pytest

from tests.netns.routed import Routed


@pytest.fixture
def routed() -> Iterator[Routed]:
    with Routed() as made:
        yield made
