# SPDX-License-Identifier: Apache-2.0
"""Checks are run within their time, and none stops another; what they find is shown."""

import argparse
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from svcproxy.client.console import Console
from svcproxy.config import Config
from svcproxy.preflight import cluster, host, kernel, ports, resolvers, verb
from svcproxy.preflight.checks import Check, Finding, Result, Verdict, failure, ok, run_all, warning
from tests.cli.test_verbs import check

CONFIG = Config(node_name="n1")


def broken(_: Config) -> Finding:
    raise RuntimeError("boom")


def test_one_that_fails_and_one_that_hangs_stop_no_other() -> None:
    never = threading.Event()

    def hanging(_: Config) -> Finding:
        never.wait()
        return ok("")

    checks = [Check("broken", broken), Check("hanging", hanging, timeout=0.01), Check("fine", lambda _: ok("all well"))]
    found = run_all(checks, CONFIG)
    never.set()
    assert found == [
        Result(
            "broken",
            Verdict.FAILURE,
            "the check itself failed: RuntimeError: boom",
            "report this, with the output of `svcproxy version`",
        ),
        Result(
            "hanging",
            Verdict.FAILURE,
            "no answer within 0.01 s",
            "something on the node hangs: see its logs, then try again",
        ),
        Result("fine", Verdict.OK, "all well"),
    ]


RESULTS = [
    Result("kernel", Verdict.OK, "Linux 6.1.0"),
    Result("other-proxies", Verdict.WARNING, "at work: kube-proxy\x1b[31m (process 7)", "the agent waits"),
    Result("dns-ports", Verdict.FAILURE, "10.96.0.10:53/udp taken by dnsmasq (pid 9)", "stop it"),
]


def shown(monkeypatch: pytest.MonkeyPatch, output: str, *results: Finding) -> int:
    """The exit code of the verb with these results; its configuration is that of no file."""
    checks = [Check(f"check-{number}", lambda _, each=each: each) for number, each in enumerate(results)]  # type: ignore[misc]
    monkeypatch.setattr(verb, "_checks", lambda _: checks)
    return verb.run(argparse.Namespace(role="all", output=output))


@pytest.mark.parametrize(
    ("results", "code"),
    [
        pytest.param([ok("x")], 0, id="ok"),
        pytest.param([ok("x"), warning("x", "y")], 0, id="a warning"),
        pytest.param([warning("x", "y"), failure("x", "y"), ok("x")], 1, id="a failure"),
    ],
)
def test_failures_alone_make_it_exit_with_1(
    results: list[Finding], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(monkeypatch, "text", *results) == code
    assert capsys.readouterr().out.count("\n") >= len(results)


def test_what_people_see(capsys: pytest.CaptureFixture[str]) -> None:
    verb.show(Console(sys.stdout, terminal=False), RESULTS)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    check("preflight.txt", text)


def test_what_programs_see(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown(monkeypatch, "json", warning("found", "advice"))
    document = json.loads(capsys.readouterr().out)
    assert document["checks"][1] == {"name": "check-0", "verdict": "warning", "found": "found", "advice": "advice"}
    assert document["counts"] == {"ok": 1, "warning": 1, "failure": 0}


def svcproxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svcproxy", "preflight", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_bad_configuration_is_a_failure_beside_the_others(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("dns: {ttl: -1}\n")
    finished = svcproxy("--role", "dns", "--config", str(bad), "-o", "json")
    assert finished.returncode == 1
    checks = {each["name"]: each for each in json.loads(finished.stdout)["checks"]}
    assert checks["configuration"]["verdict"] == "failure"
    assert f"{bad}:1: dns.ttl" in checks["configuration"]["found"]
    assert "resolvers" in checks


def test_each_role_has_its_checks_and_loads_no_more(tmp_path: Path) -> None:
    manifests = ["--manifests", str(tmp_path), "--run-dir", str(tmp_path), "--state-dir", str(tmp_path)]
    found = {}
    for role in ("agent", "dns", "all"):
        document = json.loads(svcproxy("--role", role, *manifests, "-o", "json").stdout)
        found[role] = [each["name"] for each in document["checks"]]
    assert {"nftables", "rbac", "state-directory"} <= set(found["agent"])
    assert {"dns-ports", "resolvers"} <= set(found["dns"])
    assert set(found["agent"]) & set(found["dns"]) == {"configuration", "run-directory"}
    assert sorted(found["all"]) == sorted({*found["agent"], *found["dns"]})
    config = tmp_path / "config.yaml"
    config.write_text("dns: {enabled: false}")
    without = json.loads(svcproxy("--config", str(config), *manifests, "-o", "json").stdout)
    assert [each["name"] for each in without["checks"]] == found["agent"]
    script = (
        "import sys; from svcproxy.cli import main; main(['preflight', '--role', 'dns', '-o', 'json']); "
        "print(sorted({'aiohttp', 'kubernetes_asyncio', 'pyroute2', 'uvloop'} & set(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stderr == "[]\n"


def test_the_reference_has_a_line_for_every_check() -> None:
    checks = [each for module in (kernel, host, ports, cluster, resolvers) for each in module.CHECKS]
    text = (Path(__file__).parents[2] / "docs" / "reference" / "preflight.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (agent|dns|both) \|", text, re.MULTILINE))
    assert set(rows) == {*(each.name for each in checks), "configuration"}
    for each in checks:
        assert rows[each.name] == ("both" if len(each.roles) == 2 else next(iter(each.roles)).value)
