# SPDX-License-Identifier: Apache-2.0
"""What is tried out is all that the layout uses."""

from typing import get_args

from svcproxy.dataplane.nftables import layout
from svcproxy.dataplane.nftables.features import FEATURES
from svcproxy.dataplane.nftables.layout import SETS, FieldType, SetSpec
from svcproxy.dataplane.nftables.operations import SetName

PLAIN = {layout.FromInterface, layout.GoTo, layout.Jump}
"""In every kernel that has nf_tables."""


def test_every_statement_of_the_layout_is_tried() -> None:
    tried = {type(statement) for feature in FEATURES for rule in feature.rules for statement in rule}
    assert tried | PLAIN == set(get_args(layout.Statement))


def kind(spec: SetSpec) -> tuple[bool, bool, bool, bool, bool]:
    """What of a set a kernel may not have."""
    concatenated, timed = len(spec.key) > 1, spec.dynamic_size is not None
    return concatenated, bool(spec.data), spec.verdicts and spec.counter, FieldType.PREFIX in spec.key, timed


def test_every_kind_of_set_is_tried() -> None:
    tried = {kind(SETS[name]) for feature in FEATURES for name in feature.sets}
    plain = {kind(SETS[SetName.NODE_IPS]), kind(SETS[SetName.NEAR])}
    assert {kind(spec) for spec in SETS.values()} - plain <= tried
