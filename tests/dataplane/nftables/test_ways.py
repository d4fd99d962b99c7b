# SPDX-License-Identifier: Apache-2.0
"""The numbers of verdicts, and the maps from number to chain."""

import pytest

from svcproxy.dataplane.nftables import layout, ways
from svcproxy.dataplane.nftables.expressions import goto
from svcproxy.dataplane.nftables.messages import Element
from svcproxy.dataplane.nftables.operations import DROP, SETS_OF, BackendChain, FixedChain, Form, Goto, Verdict
from svcproxy.dataplane.nftables.render import BACKENDS_WITH_AFFINITY_MAX
from svcproxy.frontends.keys import Scope
from svcproxy.model.meta import Family

VERDICTS: list[Verdict] = [
    DROP,
    *(Goto(chain) for chain in FixedChain),
    *(
        Goto(BackendChain(Form.ADDRESS, scope, size, timeout))
        for scope in Scope
        for size, timeout in (
            (1, None),
            ((1 << 29) - 1, None),
            (1, 1),
            (1, layout.AFFINITY_TIMEOUT_MAX),
            (BACKENDS_WITH_AFFINITY_MAX, 1),
            (BACKENDS_WITH_AFFINITY_MAX, layout.AFFINITY_TIMEOUT_MAX),
        )
    ),
]


def test_numbers_are_distinct_and_lead_back() -> None:
    numbers = [ways.number_of(verdict) for verdict in VERDICTS]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 << 32 for number in numbers)
    assert [ways.verdict_of(Form.ADDRESS, number) for number in numbers] == VERDICTS


@pytest.mark.parametrize(
    "number", [0, 1 << 31, layout.LOCAL_BIT, (1 << 29) + 100, layout.LOCAL_BIT | (1 << 29) + 1], ids=hex
)
def test_other_numbers_lead_nowhere(number: int) -> None:
    assert ways.verdict_of(Form.ADDRESS, number) is None


def test_no_map_of_ways_leads_back_to_itself() -> None:
    """The kernel refuses loops, and counts the ways of a detour for each way to it."""
    surroundings = layout.Surroundings(pod_interfaces=("cali*",), pod_cidrs=("10.244.0.0/16",))
    for family_rules in (layout.ruleset(surroundings, family) for family in Family):
        for form, sets in SETS_OF.items():
            behind = {
                ways.WAYS[sets.verdict]: {*looked_up(family_rules[layout.firewall(form)])},
                ways.WAYS[sets.admitted]: {*looked_up(family_rules[layout.split(form)])},
            }
            assert behind[ways.WAYS[sets.verdict]] == {ways.WAYS[sets.admitted]}
            assert behind[ways.WAYS[sets.admitted]] == {ways.WAYS[sets.near]}


def looked_up(rules: tuple[layout.Rule, ...]) -> list[str]:
    return [ways.WAYS[each.map] for rule in rules for each in rule if isinstance(each, layout.VerdictOf)]


def test_a_way_that_leads_elsewhere_is_wrong() -> None:
    right = ways.way(Goto(FixedChain.REJECT))
    elsewhere = Element(right.key, goto("n3"))
    unknown = Element(bytes(4), goto("mine"))
    assert ways.wrong(Form.ADDRESS, [right, elsewhere, unknown, Element(b"", goto("mine"))])[:2] == [elsewhere, unknown]
    assert ways.wrong(Form.ADDRESS, [right]) == []
