# SPDX-License-Identifier: Apache-2.0
"""`docs/reference/api.md` says what the API is: every path, every answer, every key."""

import re
from pathlib import Path

import msgspec

from svcproxy import api
from svcproxy.admin.api import StatusApi
from svcproxy.admin.metrics import AgentMetrics
from svcproxy.testing.admin import example_state

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
ANSWERS = {each.__name__: each for each in api.Answer.__subclasses__()}


def test_every_path_is_listed() -> None:
    state = example_state()
    listed = set(re.findall(r"^\| `(/v1/[^`]*)`", REFERENCE, re.MULTILINE))
    assert listed == set(StatusApi(state, AgentMetrics(state)).routes())


def test_every_key_of_every_answer_is_listed() -> None:
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    listed = {name: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE) for name, body in sections}
    own = {name: each for name, each in ANSWERS.items() if each.__module__ == api.__name__}
    actual = {name: [field.encode_name for field in msgspec.structs.fields(each)] for name, each in own.items()}
    assert listed == actual


def test_keys_are_in_camel_case() -> None:
    keys = [field.encode_name for each in ANSWERS.values() for field in msgspec.structs.fields(each)]
    assert all(re.fullmatch(r"[a-z][a-z0-9]*([A-Z]+[a-z0-9]*)*", key) for key in keys)
