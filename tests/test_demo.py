# SPDX-License-Identifier: Apache-2.0
"""The demo, as a user without any privilege runs it."""

import os
import subprocess
import sys


def test_the_demo_needs_no_privileges_and_loses_no_request() -> None:
    """uid 65534 without capabilities: in a user namespace, where the interpreter stays readable to its owner."""
    namespace = ["unshare", "--user", "--map-user=65534", "--map-group=65534"] if os.geteuid() == 0 else []
    check = "import os; caps = open('/proc/self/status').read().partition('CapEff:')[2].split()[0]; "
    who = [*namespace, sys.executable, "-c", check + "assert int(caps, 16) == 0, caps; print(os.geteuid())"]
    uid = subprocess.run(who, capture_output=True, text=True, check=True).stdout.strip()
    assert uid != "0"
    ran = subprocess.run(
        [*namespace, sys.executable, "-m", "svcproxy", "demo"], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ", 0 failed, 10 Pods answered" in ran.stdout
    assert "A  127.96.0.10" in ran.stdout
