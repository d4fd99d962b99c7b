# SPDX-License-Identifier: Apache-2.0
"""Walking collections in steps: order, completeness, and room for others."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.admin.paging import STEP, page, steps


@given(items=st.lists(st.text(max_size=3), unique=True), limit=st.integers(1, 7))
def test_pages_put_together_are_the_sorted_whole(items: list[str], limit: int) -> None:
    async def walk() -> list[str]:
        seen: list[str] = []
        more = True
        while more:
            found = await page(items, lambda item: item, after=seen[-1] if seen else None, limit=limit)
            assert len(found.items) <= limit
            seen += found.items
            more = found.more
        return seen

    assert asyncio.run(walk()) == sorted(items)


async def test_items_without_a_key_are_left_out() -> None:
    found = await page([3, 1, 2, 4], lambda item: item if item % 2 else None, after=None, limit=5)
    assert found.items == (1, 3)
    assert not found.more


async def test_others_run_between_two_steps_and_may_change_the_collection() -> None:
    items = dict.fromkeys(range(3 * STEP))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            items[-turns] = None
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(other(), name="other")
        seen = [item async for batch in steps(items) for item in batch]
        running.cancel()
    assert seen == list(range(3 * STEP))
    assert turns == 2
