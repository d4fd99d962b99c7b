# SPDX-License-Identifier: Apache-2.0
"""No connection fails or has to send its SYN again while endpoints come and go.

`bench/nftables/churn.py` does the same for longer.
"""

import pytest

from svcproxy.model.meta import Family
from tests.netns.churn import RATES, Pattern, churn

pytestmark = pytest.mark.netns

CONNECTIONS = 5_000
AT_ONCE = 16
DELTAS_MIN = 10
"""Dozens on a busy machine, hundreds elsewhere."""


@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
@pytest.mark.parametrize("pattern", [pytest.param(Pattern.RANDOM, id="t21"), pytest.param(Pattern.SCALE, id="t22")])
async def test_no_connection_notices(pattern: Pattern, family: Family) -> None:
    report = await churn(pattern, family, CONNECTIONS, at_once=AT_ONCE, rate=RATES[pattern])
    assert report.result.failures == {}
    assert report.syn_retransmits == 0
    assert sum(report.result.served.values()) == CONNECTIONS
    assert len(report.result.served) > 1
    assert report.deltas >= DELTAS_MIN
