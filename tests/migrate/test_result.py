# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: SIM905
"""What is printed is a configuration that svcproxy takes, whatever it was made from."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.migrate.corefile_plugins import OPTIONS, PLUGINS
from svcproxy.migrate.kube_proxy_fields import FIELDS
from svcproxy.migrate.result import as_json
from tests.migrate.world import config_of, kube_proxy, made

KNOWN = """
. 0 1 30 5s 1h 192.0.2.1 [::1]:53 /etc/resolv.conf cluster.local in-addr.arpa 10.0.0.0/8 success denial verified random
sequential 99999999 -1 tls://192.0.2.1 {$X}
""".split()
TEXT = st.text(st.characters(exclude_characters='"\\\r{}', codec="utf-8"), max_size=6)
WORDS = st.one_of(st.sampled_from(KNOWN), TEXT.map(lambda text: f'"{text}"'))
ARGS = st.lists(WORDS, max_size=3).map(" ".join)


@st.composite
def directives(draw: st.DrawFn) -> str:
    plugin = draw(st.sampled_from([*OPTIONS, *OPTIONS, *(each.name for each in PLUGINS)]))
    names = [each.name for each in OPTIONS.get(plugin, ())] or ["x"]
    options = draw(st.lists(st.tuples(st.sampled_from(names), ARGS), max_size=4))
    block = "".join(f"  {name} {args}\n" for name, args in options)
    return f" {plugin} {draw(ARGS)}" + (f" {{\n{block} }}\n" if block else "\n")


BLOCKS = st.tuples(
    st.sampled_from([".:53", "corp.example", "10.0.0.0/8", "cluster.local:53", "x.cluster.local", '"a b"']),
    st.lists(directives(), max_size=4).map("".join),
).map(lambda pair: f"{pair[0]} {{\n{pair[1]}}}\n")


@given(st.lists(BLOCKS, max_size=3).map("".join), st.lists(BLOCKS, max_size=2).map("".join))
def test_any_corefile_becomes_a_valid_configuration(corefile: str, cache: str) -> None:
    """`made` holds the text against svcproxy's own reader."""
    made(corefile=corefile, node_local_dns=cache)


VALUES = st.one_of(
    st.sampled_from(
        ["", "0s", "1h", "10.0.0.0/8", "all", "ClusterCIDR", "BridgeInterface", "InterfaceNamePrefix", "ipvs"]
    ),
    st.sampled_from(
        ["127.0.0.1:10249", "0.0.0.0:10256", "::", "nftables", "lo", -1, 0, 7, 1 << 40, True, None, ["primary"]]
    ),
    st.text(max_size=5),
)


@given(st.dictionaries(st.sampled_from([each.path for each in FIELDS[2:]]), VALUES, max_size=8))
def test_any_configuration_of_kube_proxy_becomes_a_valid_one(values: dict[str, Any]) -> None:
    fields: dict[str, Any] = {}
    for path, value in values.items():
        at = fields
        *sections, name = path.split(".")
        for section in sections:
            at = at.setdefault(section, {})
        at[name] = value
    kube_proxy(**fields)


def test_words_from_outside_never_leave_their_comment() -> None:
    found = made(
        corefile='. {\n rewrite "x\nadmin: {health_listen: null}" "\u2028dns: 7\x85"\n forward . 192.0.2.1\n}\n'
    )
    assert config_of(found.text).admin.health_listen is not None
    assert all(line.startswith("#") for line in found.text.split("\n\n")[0].splitlines())


def test_what_programs_get_is_what_people_get() -> None:
    found = made(corefile=". {\n kubernetes cluster.local\n forward . 192.0.2.1\n rewrite name a b\n}\n")
    document = as_json(found.inputs, found.draft)
    assert config_of(found.text) == config_of(json.dumps(document["config"]))
    [remark] = [each for each in document["remarks"] if each["setting"] == "rewrite"]
    assert (remark["treatment"], remark["line"], remark["value"]) == ("none", 4, "rewrite name a b")
    assert {each["setting"] for each in document["remarks"] if each["key"]} >= {"kubernetes", "forward"}
