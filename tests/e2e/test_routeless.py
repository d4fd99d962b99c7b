# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_api_server_is_reached_without_any_route_to_service_addresses() -> None:
    """See routeless.py, which runs in a network namespace of its own (needs root)."""
    ran = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "tests.e2e.routeless"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'dns'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "served without a route" in ran.stdout
