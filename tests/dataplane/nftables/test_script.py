# SPDX-License-Identifier: Apache-2.0
"""The script as text. What it does in a kernel is in tests/netns."""

import re
from dataclasses import replace

from svcproxy.dataplane.nftables import layout
from svcproxy.dataplane.nftables.affinity import TIMEOUTS_MAX
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.script import COMMENT, script
from svcproxy.dataplane.nftables.tables import schema_of
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKind, Scope, ServicePortName
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Family, Protocol


def table(*names: str, affinity: bool = False) -> FrontendTable:
    """A ClusterIP with two backends for each Service."""
    made = FrontendTable()
    for name in names:
        number = int(re.sub(r"\D", "", name))
        key = Address(f"10.96.0.{number}", Protocol.TCP, 80)
        port = ServicePortName("ns", name, "http", Protocol.TCP)
        frontend = Frontend(key, port, FrontendKind.CLUSTER_IP, affinity_timeout=number if affinity else None)
        made.frontends[key] = frontend
        made.backends[frontend.backend_set(Scope.CLUSTER)] = {Backend(f"10.244.0.{each}", 8080) for each in (7, 5)}
    return made


def test_equal_tables_give_equal_scripts() -> None:
    names = [f"s{number}" for number in range(1, 9)]
    assert script(table(*names, affinity=True), Surroundings()) == script(
        table(*reversed(names), affinity=True), Surroundings()
    )


def test_the_table_is_only_read() -> None:
    given = table("s1", "s2")
    before = given.copy()
    script(given, Surroundings())
    assert given == before


def test_both_families_have_every_set_and_chain() -> None:
    for part in re.split(r"^delete table ", script(FrontendTable(), Surroundings()), flags=re.MULTILINE)[1:]:
        assert re.findall(r"^\t(?:set|map) (\w+) ", part, re.MULTILINE) == list(layout.SETS)
        chains = {str(chain) for chain in layout.ruleset(Surroundings(), Family.IPV4)} - {"reject"} | {"refuse"}
        assert set(re.findall(r"^\tchain (\w+) ", part, re.MULTILINE)) == chains


def test_a_name_stays_in_its_comment() -> None:
    text = script(table("s1\n} flush ruleset\u2028\r"), Surroundings())
    assert "  # ns/s1?} flush ruleset??:http/TCP\n" in text


def test_what_is_served_otherwise_than_asked_for_is_said() -> None:
    text = script(table(*(f"s{number}" for number in range(1, TIMEOUTS_MAX + 2)), affinity=True), Surroundings())
    assert re.findall(r"^# 10\.96\.0\.(\d+):80/TCP: affinity for (\d+) s: ", text, re.MULTILINE) == [("9", "8")]


def test_the_agent_knows_the_tables_for_not_its_own() -> None:
    assert f'comment "{COMMENT}"' in script(FrontendTable(), Surroundings())
    assert schema_of(COMMENT) is None


def test_masquerade_all_asks_for_no_source() -> None:
    surroundings = Surroundings(pod_cidrs=("10.244.0.0/16",))
    rule = "ct status dnat ct original ip daddr @clusterips {}masquerade fully-random\n"
    assert rule.format("ip saddr != @podcidr ") in script(FrontendTable(), surroundings)
    assert rule.format("") in script(FrontendTable(), replace(surroundings, masquerade_all=True))
