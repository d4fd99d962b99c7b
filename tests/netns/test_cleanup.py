# SPDX-License-Identifier: Apache-2.0
"""`svcproxy cleanup` on a node that has been used."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.cli import main
from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.messages import Table, TableFlag
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.model.meta import Family
from svcproxy.process import sysctls
from svcproxy.process.instance import RunDirectory
from tests.dataplane.nftables.captured import IPV4, IPV6
from tests.netns import kube_proxy_rules as rules
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

OWNED = TableFlag.OWNER | TableFlag.PERSIST
TABLES = tuple(Table(family, "svcproxy") for family in Family)


Said = tuple[int, list[str], list[str]]
"""Exit code, and the lines of standard output and standard error."""


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


class Operator:
    """Runs the verb on a node and reads what it says."""

    def __init__(self, node: Namespace, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._node = node
        self._capsys = capsys
        self.run_dir = run_dir
        self.state_dir = run_dir.with_name("state")

    def cleanup(self, *flags: str) -> Said:
        with self._node.entered():
            code = main(["cleanup", "--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir), *flags])
        said = self._capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()


@pytest.fixture
def operator(node: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(node, tmp_path / "run", capsys)


NOTHING: Said = (0, ["nothing to remove"], [])
BOTH: Said = (0, ["removed nftables table ip svcproxy", "removed nftables table ip6 svcproxy"], [])


def test_on_a_fresh_node_there_is_nothing_to_remove(node: Namespace, operator: Operator) -> None:
    assert operator.cleanup("--kube-proxy") == NOTHING
    assert not operator.run_dir.exists()


def test_both_tables_go_with_all_that_is_in_them(node: Namespace, operator: Operator) -> None:
    with node.entered(), Kernel() as kernel:
        assert kernel.commit([*IPV4, *IPV6]) == Committed()
    assert operator.cleanup() == BOTH
    assert operator.cleanup() == NOTHING
    assert node.run("nft", "list", "ruleset") == ""


@pytest.mark.parametrize("flags", [TableFlag.NONE, TableFlag.DORMANT, OWNED])
def test_tables_of_whatever_kind_go(node: Namespace, operator: Operator, flags: TableFlag) -> None:
    """Of another schema, asleep, or without the owner that they had."""
    with node.entered(), Kernel() as kernel:
        assert kernel.commit([nft.new_table(table, flags, "schema 99") for table in TABLES]) == Committed()
    assert operator.cleanup() == BOTH
    assert node.run("nft", "list", "ruleset") == ""


def test_others_tables_stay(node: Namespace, operator: Operator) -> None:
    node.run("nft", "add table ip svcproxy-probe-77; add table inet svcproxy; add table ip kube-proxy")
    node.run("nft", "add table ip svcproxy2; add table ip svcproxy")
    said = ["removed nftables table ip svcproxy-probe-77", "removed nftables table ip svcproxy"]
    assert operator.cleanup() == (0, said, [])
    assert node.run("nft", "list", "tables").splitlines() == [
        "table inet svcproxy",
        "table ip kube-proxy",
        "table ip svcproxy2",
    ]


def test_a_table_in_use_stays_and_its_owner_is_named(node: Namespace, operator: Operator) -> None:
    probe = Table(Family.IPV4, "svcproxy-probe-1")
    with node.entered():
        owner = Kernel()
    with owner:
        made = [nft.new_table(TABLES[0], OWNED), nft.new_table(TABLES[1]), nft.new_table(probe, TableFlag.OWNER)]
        assert owner.commit(made) == Committed()
        code, removed, (refusal,) = operator.cleanup()
    assert (code, removed) == (1, ["removed nftables table ip6 svcproxy"])
    assert refusal.startswith(
        f"svcproxy: not removed: nftables table ip svcproxy: it belongs to process {os.getpid()} ("
    )
    assert refusal.endswith("); stop that first")
    assert operator.cleanup() == (0, ["removed nftables table ip svcproxy"], [])


def test_kube_proxys_rules_go_when_told_to(node: Namespace, operator: Operator) -> None:
    node.run("nft", "-f", "-", text=rules.nft(Family.IPV4))
    node.run("iptables-nft-restore", "--noflush", text=rules.iptables(Family.IPV4))
    assert operator.cleanup() == NOTHING
    code, removed, errors = operator.cleanup("--kube-proxy")
    assert (code, errors) == (0, [])
    assert removed == [
        "removed nftables table ip kube-proxy",
        "removed iptables-nft table ip nat: 3 rules and 10 chains of kube-proxy",
        "removed iptables-nft table ip filter: 9 rules and 6 chains of kube-proxy",
        "removed iptables-nft table ip mangle: 1 chain of kube-proxy",
    ]
    assert operator.cleanup("--kube-proxy") == NOTHING


def test_what_is_kept_for_others_is_said(node: Namespace, operator: Operator) -> None:
    node.run("iptables-nft-restore", "--noflush", text=rules.iptables(Family.IPV4))
    node.run("iptables-nft", "-P", "FORWARD", "DROP")
    code, _, (kept,) = operator.cleanup("--kube-proxy")
    assert code == 0
    assert kept.startswith("svcproxy: kept iptables-nft table ip filter: chain KUBE-FORWARD: ")


def test_a_live_kube_proxy_is_left_alone_unless_forced(node: Namespace, operator: Operator, tmp_path: Path) -> None:
    node.run("nft", "add table ip kube-proxy")
    with rules.live(node, tmp_path) as pid:
        refusal = f"it is alive (process {pid} is called kube-proxy): stop it first"
        assert operator.cleanup("--kube-proxy") == (1, [], [f"svcproxy: not removed: rules of kube-proxy: {refusal}"])
        assert operator.cleanup("--kube-proxy", "--force") == (0, ["removed nftables table ip kube-proxy"], [])


def test_a_live_instance_is_left_alone_unless_forced(node: Namespace, operator: Operator) -> None:
    node.run("nft", "add table ip svcproxy")
    instance = RunDirectory(operator.run_dir).open_instance("7-100")
    refusal = (
        f"svcproxy: instance 7-100 runs under {operator.run_dir}: stop it first; use --force to go on all the same"
    )
    assert operator.cleanup() == (1, [], [refusal])
    assert operator.cleanup("--force") == (0, ["removed nftables table ip svcproxy"], [])
    instance.close()
    assert operator.cleanup() == NOTHING


def test_what_dead_instances_left_goes(node: Namespace, operator: Operator) -> None:
    """Of the agent and of workers; what the live ones have stays."""
    worker = operator.run_dir / "dns-0"
    script = (
        "import os, sys; from pathlib import Path; from svcproxy.process.instance import RunDirectory;"
        "opened = [RunDirectory(Path(each)).open_instance('dead') for each in sys.argv[1:]];"
        "opened[0].make_current(); os._exit(9)"
    )
    died = subprocess.run([sys.executable, "-c", script, operator.run_dir, worker], check=False)
    assert died.returncode == 9
    live = RunDirectory(operator.run_dir / "dns-1").open_instance("live")
    said = [f"removed directory of the dead instance dead in {each}" for each in (operator.run_dir, worker)]
    assert operator.cleanup() == (0, said, [])
    assert operator.cleanup() == NOTHING
    assert live.paths.path.is_dir()
    assert sorted(each.name for each in operator.run_dir.iterdir()) == ["dns-0", "dns-1", "instances"]
    live.close()


def test_kernel_parameters_are_taken_back(node: Namespace, operator: Operator) -> None:
    """Those that nobody else has set since, and not while an instance runs."""
    operator.state_dir.mkdir()
    names = ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream")
    with node.entered():
        before, _ = (int((sysctls.ROOT / name).read_text()) for name in names)
        wanted = [sysctls.Wanted(name, 77) for name in names]
        sysctls.apply(wanted, operator.state_dir / sysctls.FILE_NAME)
        (sysctls.ROOT / names[1]).write_text("78")
    instance = RunDirectory(operator.run_dir).open_instance("7-100")
    assert operator.cleanup("--force") == NOTHING
    instance.close()
    assert operator.cleanup() == (
        0,
        [f"removed setting of net.netfilter.{names[0]}: it is {before} again"],
        [f"svcproxy: kept setting of net.netfilter.{names[1]}: somebody else has made 78 of it since"],
    )
    assert operator.cleanup() == NOTHING


def test_a_damaged_note_of_kernel_parameters_is_named(node: Namespace, operator: Operator) -> None:
    operator.state_dir.mkdir()
    (operator.state_dir / sysctls.FILE_NAME).write_text("{")
    code, removed, (refusal,) = operator.cleanup()
    assert (code, removed) == (1, [])
    place = operator.state_dir / sysctls.FILE_NAME
    assert refusal.startswith(f"svcproxy: not removed: settings of kernel parameters: {place}: ")


def test_without_privileges_nothing_is_removed_and_the_reason_given(node: Namespace, tmp_path: Path) -> None:
    node.run("nft", "add table ip svcproxy")
    command = [sys.executable, "-m", "svcproxy", "cleanup", "--run-dir", str(tmp_path), "--state-dir", str(tmp_path)]
    with node.entered():
        finished = subprocess.run(
            ["setpriv", "--bounding-set", "-all", *command], capture_output=True, text=True, check=False
        )
    refusal = "svcproxy: not removed: rules of nftables: that needs CAP_NET_ADMIN\n"
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", refusal)
