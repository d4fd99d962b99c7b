# SPDX-License-Identifier: Apache-2.0
"""`supervisor.json`: written in one step, believed while its writer lives, removed by nobody else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svcproxy.process.identity import identity
from svcproxy.process.supervision import RoleState, RoleStatus, read_status, remove_status, write_status

ROLES = (RoleStatus("agent", RoleState.BACKOFF, None, 3, True, "exit code 1", 1000.5),)
WRITE = """
import sys
from pathlib import Path
from svcproxy.process.supervision import write_status
write_status(Path(sys.argv[1]), ())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "supervisor.json"


def test_what_is_written_is_read(path: Path) -> None:
    write_status(path, ROLES)
    write_status(path, ROLES)
    assert read_status(path) == ROLES
    assert list(path.parent.iterdir()) == [path]
    remove_status(path)
    remove_status(path)
    assert read_status(path) == ()
    assert not path.exists()


def test_the_dead_are_not_believed_and_their_file_is_not_ours(path: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE, path], check=True)
    assert read_status(path) == ()
    remove_status(path)
    assert path.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="another shape"),
        pytest.param(b'{"supervisor": "me", "roles": []}', id="no identity"),
        pytest.param(b'{"supervisor": "999999999-1", "roles": []}', id="no such process"),
        pytest.param(f'{{"supervisor": "{os.getpid()}-1", "roles": []}}'.encode(), id="a pid that was reused"),
        pytest.param(b"\xff", id="not text"),
    ],
)
def test_what_cannot_be_read_says_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_status(path) == ()
    remove_status(path)
    assert path.read_bytes() == content


def test_a_directory_that_is_missing_is_told(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_status(path / "no" / "such", ())


def test_identities() -> None:
    assert identity() == identity(os.getpid())
    assert identity().startswith(f"{os.getpid()}-")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert identity(other.pid).startswith(f"{other.pid}-")
        assert identity(other.pid) != identity()
    with pytest.raises(ProcessLookupError):
        identity(999999999)
