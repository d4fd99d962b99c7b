# SPDX-License-Identifier: Apache-2.0
"""Intercepted addresses on a real kernel: they stand while a worker answers, go by themselves when nobody is left."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.cli import main
from svcproxy.model.meta import Family
from tests.netns.interception import (
    CLUSTER_IP,
    INTERCEPTED,
    OURS,
    RESOLVER,
    Site,
    ask,
    eventually,
    kill,
    site,
)

pytestmark = pytest.mark.netns

NET_BIND_SERVICE = f"{1 << 10:016x}"
TRACKING = "table inet tracking { chain seen { type filter hook prerouting priority 0; ct state new accept; }; }"
"""Has the kernel track every flow."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    """A node where all addresses stand, its processes started by `svcproxy run`, whose log is `run.log`."""
    with site(tmp_path) as made:
        yield made


def started(made: Site, verb: str = "run", instance: str = "") -> subprocess.Popen[bytes]:
    process = made.start(verb, instance)
    eventually(made.stands, "the addresses stand")
    return process


def test_the_worker_answers_everyone_and_holds_no_privileges(served: Site) -> None:
    """Pods and processes of the node, both transports and families, from the address that was asked."""
    supervisor = started(served)
    for place in (served.pod, served.node):
        for address in INTERCEPTED:
            for tcp in (False, True):
                assert ask(place, address, tcp=tcp) == OURS
    (worker,) = served.children(supervisor, "dns")
    status = Path(f"/proc/{worker}/status").read_text()
    rights = {line.split()[1] for line in status.splitlines() if line.startswith(("CapPrm", "CapEff", "CapBnd"))}
    assert rights == {NET_BIND_SERVICE}


def test_nothing_is_tracked_as_long_as_it_is_intercepted(served: Site) -> None:
    served.node.run("nft", "-f", "-", text=TRACKING)
    started(served)
    for place in (served.pod, served.node):
        for address in INTERCEPTED:
            assert ask(place, address) == ask(place, address, tcp=True) == OURS
    assert served.tracked() == []
    with served.node.entered():
        served.node.run("nft", "delete table ip svcproxy-dns; delete table ip6 svcproxy-dns")
    assert ask(served.pod, CLUSTER_IP[Family.IPV4]) == OURS
    assert served.tracked() != [], "connection tracking is at work"


def test_no_address_becomes_a_source_of_other_traffic(served: Site) -> None:
    started(served)
    for target in ("10.1.1.2", "fd01:1::2", "192.0.2.1"):
        (route,) = json.loads(served.node.run("ip", "-json", "route", "get", target, "oif", "veth1"))
        assert route["prefsrc"] not in INTERCEPTED
    shown = json.loads(served.node.run("ip", "-json", "address", "show", "dev", "lo"))[0]["addr_info"]
    leases = [each for each in shown if each["local"] in INTERCEPTED]
    assert all(each["deprecated"] and each["valid_life_time"] <= 3 for each in leases)
    assert {each["scope"] for each in leases if each["family"] == "inet"} == {"host"}


def test_with_everything_killed_the_addresses_expire_and_the_rules_match_nothing(served: Site) -> None:
    supervisor = started(served)
    kill(supervisor)
    eventually(lambda: not served.standing(), "they are gone")
    assert served.tables() == ["table ip svcproxy-dns", "table ip6 svcproxy-dns"]
    served.node.run("nft", "-f", "-", text=TRACKING)
    assert ask(served.pod, CLUSTER_IP[Family.IPV4]) is None
    assert [line for line in served.tracked() if CLUSTER_IP[Family.IPV4] in line], "what is sent there is tracked again"


def test_a_worker_that_hangs_lets_them_expire_and_is_replaced(served: Site) -> None:
    supervisor = started(served)
    (worker,) = served.children(supervisor, "dns")
    os.kill(worker, signal.SIGSTOP)
    eventually(lambda: not served.standing(), "they are gone")
    eventually(lambda: served.children(supervisor, "dns") not in ([worker], []), "another worker is started")
    eventually(served.stands, "they stand again")
    assert ask(served.pod, CLUSTER_IP[Family.IPV4]) == OURS
    assert "role hangs, killing it" in served.log("run")


def test_they_stand_without_an_agent(served: Site) -> None:
    supervisor = started(served)
    (agent,) = served.children(supervisor, "agent")
    os.kill(agent, signal.SIGSTOP)
    eventually(lambda: served.readiness().get("stale") is True, "the worker notices")
    kept = [served.stands() for _ in range(5) if not signal.sigtimedwait([], 1.0)]  # longer than an address lasts
    assert all(kept)
    assert ask(served.pod, CLUSTER_IP[Family.IPV4]) == OURS


def test_a_worker_that_knows_no_names_has_none_of_them(served: Site) -> None:
    served.start("dns")
    eventually(lambda: ask(served.node, "127.0.0.1", port=9053) is None and bool(served.readiness()), "it runs")
    eventually(lambda: "answering" in served.log("dns"), "it answers, with SERVFAIL")
    assert served.standing() == set()
    assert any("no complete set of names" in reason for reason in served.readiness()["reasons"])
    served.start("agent")
    eventually(served.stands, "they stand once it knows names")


def test_stopped_in_order_everything_is_gone_when_it_ends(served: Site) -> None:
    supervisor = started(served)
    supervisor.terminate()
    assert supervisor.wait(30) == 0
    assert served.standing() == set()
    assert served.tables() == []


def test_a_successor_inherits_them_without_a_gap(served: Site) -> None:
    served.start("agent")
    old = started(served, "dns", "old")
    served.start("dns", "new")
    met = set()

    def new_serves() -> bool:
        met.add(ask(served.pod, CLUSTER_IP[Family.IPV4], patience=RESOLVER))
        return bool(served.readiness("dns-0", "new").get("ready"))

    eventually(new_serves, "the new instance serves")
    old.terminate()
    assert old.wait(30) == 0
    for _ in range(5):
        signal.sigtimedwait([], 1.0)  # longer than an address lasts
        met.add(ask(served.pod, CLUSTER_IP[Family.IPV4], patience=RESOLVER))
    assert met == {OURS}
    assert served.stands()
    assert served.tables() == ["table ip svcproxy-dns", "table ip6 svcproxy-dns"]


def test_one_of_several_workers_that_hangs_is_replaced_while_they_stand(tmp_path: Path) -> None:
    with site(tmp_path, dns={"workers": 2}) as made:
        supervisor = started(made)
        hung, other = made.children(supervisor, "dns")
        os.kill(hung, signal.SIGSTOP)
        eventually(lambda: hung not in made.children(supervisor, "dns"), "it is killed")
        assert made.stands()
        eventually(lambda: len(made.children(supervisor, "dns")) == 2, "it is replaced")
        assert other in made.children(supervisor, "dns")


def test_rules_that_somebody_removes_come_back(served: Site) -> None:
    started(served)
    for damage in ("flush ruleset", "flush chain ip svcproxy-dns output", "flush set ip6 svcproxy-dns queries"):
        before = served.node.run("nft", "list", "ruleset")
        served.node.run("nft", damage)
        eventually(lambda: served.node.run("nft", "list", "ruleset") == before, damage)  # noqa: B023  # awaited here


def test_addresses_that_somebody_else_has_are_left_alone(served: Site) -> None:
    """On another interface, as with kube-proxy's IPVS mode, or for good on this one."""
    ipv4, ipv6 = CLUSTER_IP.values()
    served.node.ip("address", "add", f"{ipv4}/32", "dev", "veth2")
    served.node.ip("address", "add", f"{ipv6}/128", "dev", "lo", "nodad")
    served.start("run")
    eventually(lambda: "169.254.20.10" in served.standing(), "the third one stands")
    for address, place in ((ipv4, "veth2"), (ipv6, "lo")):
        said = f'address={address} cause="it stands on {place} already, and not for svcproxy"'
        eventually(lambda: said in served.log("run"), said)  # noqa: B023  # awaited here
        assert served.log("run").count(said) == 1
    lifetimes = json.loads(served.node.run("ip", "-json", "-6", "address", "show", "dev", "lo"))[0]["addr_info"]
    (kept,) = (each for each in lifetimes if each["local"] == ipv6)
    assert kept["valid_life_time"] == 0xFFFFFFFF
    served.node.ip("address", "delete", f"{ipv6}/128", "dev", "lo")
    eventually(lambda: ipv6 in served.standing(), "it is taken once it is free")


def test_without_net_admin_the_worker_serves_and_the_reason_is_told_once(served: Site) -> None:
    served.start("agent")
    served.start("dns", prefix=("setpriv", "--bounding-set", "-net_admin"))
    eventually(lambda: served.readiness().get("ready") is True, "the worker is ready")
    told = f'msg="not intercepting" address={INTERCEPTED[0]} cause="that needs CAP_NET_ADMIN"'
    eventually(lambda: told in served.log("dns"), "the supervisor tells")
    assert ask(served.node, "127.0.0.1", port=9053) == OURS
    signal.sigtimedwait([], 2.5)  # two turns
    assert served.log("dns").count(told) == 1
    assert f"{INTERCEPTED[0]} is not intercepted: it is not on this node" in served.readiness()["reasons"]
    assert f'svcproxy_dns_intercepting{{address="{INTERCEPTED[0]}"}} 0.0' in served.metrics()


def test_status_and_metrics_say_that_they_stand(served: Site) -> None:
    started(served)
    eventually(lambda: served.readiness().get("reasons") == [], "nothing is amiss")
    said = {f'svcproxy_dns_intercepting{{address="{address}"}} 1.0' for address in INTERCEPTED}
    assert said <= set(served.metrics())


def test_cleanup_removes_what_a_killed_node_has_left(served: Site, capsys: pytest.CaptureFixture[str]) -> None:
    supervisor = started(served)

    def cleanup(*flags: str) -> tuple[int, list[str], str]:
        directories = ("--run-dir", str(served.run_dir), "--state-dir", str(served.directory / "state"))
        with served.node.entered():
            code = main(["cleanup", *directories, *flags])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    (agent,) = served.children(supervisor, "agent")
    assert cleanup()[0] != 0
    code, _, errors = cleanup()
    assert "runs" in errors
    kill(supervisor)
    eventually(lambda: not Path(f"/proc/{agent}").exists(), "the agent is gone")
    code, said, errors = cleanup()
    assert (code, errors) == (0, "")
    assert {f"removed nftables table {family} svcproxy-dns" for family in ("ip", "ip6")} <= set(said)
    assert served.standing() == set()
    assert served.tables() == []
    assert cleanup() == (0, ["nothing to remove"], "")
