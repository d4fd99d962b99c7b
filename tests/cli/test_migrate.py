# SPDX-License-Identifier: Apache-2.0
"""`svcproxy migrate` from files: what it prints, word by word (golden/), and how it exits."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from svcproxy.cli import main
from tests.cli.test_process import HEAVY
from tests.cli.test_verbs import check

FILES = Path(__file__).parents[1] / "migrate" / "files"
ALL = [
    *("--kube-proxy", "kube-proxy.yaml", "--corefile", "Corefile", "--node-local-dns", "node-local-dns.yaml"),
    *("--kube-dns", "kube-dns.yaml", "--env", "SECOND_RESOLVER=10.2.0.53"),
]


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """File names are told as they are given: short ones."""
    monkeypatch.chdir(FILES)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("migrate.yaml", ALL, id="everything"),
        pytest.param("migrate.json", [*ALL, "-o", "json"], id="everything as JSON"),
        pytest.param("migrate-coredns.yaml", ["--corefile", "Corefile"], id="CoreDNS alone"),
    ],
)
def test_output(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    check(name, captured.out)


def test_check_config_takes_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "config.yaml"
    assert main(["migrate", *ALL, "--write", str(written)]) == 0
    assert main(["check-config", "--config", str(written)]) == 0
    assert capsys.readouterr().out == f"{written}: ok\n"


def test_the_configuration_in_json_is_one_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", *ALL, "-o", "json"]) == 0
    written = tmp_path / "config.json"
    written.write_text(json.dumps(json.loads(capsys.readouterr().out)["config"]))
    assert main(["check-config", "--config", str(written)]) == 0


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b". {\n forward . 192.0.2.1\n}\n")))
    assert main(["migrate", "--corefile", "-"]) == 0
    assert "upstreams: [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--corefile", "nothing"], "--corefile: nothing cannot be read: No such file or directory", id="no file"
        ),
        pytest.param(["--corefile", "Corefile", "--env", "X"], "--env: 'X' is not NAME=VALUE", id="variable"),
        pytest.param(
            ["--kube-proxy", "Corefile"], "Corefile: holds nothing of kube-proxy", id="a Corefile is no kube-proxy"
        ),
        pytest.param(["--kube-dns", "Corefile"], "Corefile: expected a ConfigMap or a Service", id="nor a ConfigMap"),
        pytest.param(
            ["--corefile", "kube-proxy.yaml"], "kube-proxy.yaml: holds nothing of corefile", id="wrong objects"
        ),
        pytest.param(
            ["--corefile", "Corefile", "--write", "/nothing/here"],
            "--write: /nothing/here cannot be written: No such file or directory",
            id="nowhere to write",
        ),
        pytest.param(["--api-server", "x"], "--api-server: ", id="API server"),
    ],
)
def test_an_unusable_argument_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_files_are_read_without_what_only_a_cluster_needs() -> None:
    heavy = set(HEAVY) - {"yaml"}
    script = (
        "import sys; from svcproxy.cli import main; main(['migrate', '--corefile', 'Corefile', '-w', '/dev/null']); "
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert finished.stdout == "[]\n"
