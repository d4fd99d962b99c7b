# SPDX-License-Identifier: Apache-2.0
"""The acceptance cases of `tests.netns.cases` in both families, each for TCP and UDP, on svcproxy's nf_tables."""

import pytest

from svcproxy.model.meta import Family
from tests.netns.cases import BOOK
from tests.netns.nftables_stage import nftables
from tests.netns.stage import play
from tests.netns.world import World

pytestmark = pytest.mark.netns

NOT_YET = {
    "case_27_another_proxy_s_service": "Services of other proxies are not told from addresses of no Service",
}


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(strict=True, reason=NOT_YET[name])] if name in NOT_YET else []


@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in BOOK.cases])
async def test_case(name: str, family: Family) -> None:
    case = BOOK.cases[name]
    with World() as world:
        async with nftables(world, case.settings) as stage:
            await play(stage, case, family)
