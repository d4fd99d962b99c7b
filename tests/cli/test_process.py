# SPDX-License-Identifier: Apache-2.0
"""The command line as a process: exit codes, what a probe loads, and a reader that leaves early."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "aiohttp",
    "asyncio",
    "dnslib",
    "kubernetes_asyncio",
    "prometheus_client",
    "pyroute2",
    "rich",
    "uvloop",
    "yaml",
)
"""What a probe must not pay for."""


def svcproxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svcproxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["version"], 0, id="success"),
        pytest.param(["status", "--run-dir", "/nonexistent"], 1, id="no instance"),
        pytest.param(["nonsense"], 2, id="usage"),
        pytest.param(["check-config", "--config", "/nonexistent"], 2, id="no such configuration"),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    finished = svcproxy(*arguments)
    assert finished.returncode == code
    assert bool(finished.stdout) is (code == 0)
    assert "Traceback" not in finished.stderr


def test_a_probe_loads_nothing_heavy(served: Path) -> None:
    script = (
        "import sys; from svcproxy.cli import main; "
        f"code = main(['status', '--run-dir', {str(served)!r}, '--probe', 'readyz']); "
        f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert finished.stdout == "0 []\n"


def test_a_reader_that_leaves_early_is_no_error(served: Path) -> None:
    command = [sys.executable, "-m", "svcproxy", "status", "-o", "json", "--run-dir", str(served)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1
