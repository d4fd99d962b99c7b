# SPDX-License-Identifier: Apache-2.0
"""The files of the image, a folder for each layer: Debian's packages, the locked requirements, svcproxy itself.

    python -m deploy.image.rootfs FOLDER        in a checkout, on the Debian that image.toml names, as root

deploy/Dockerfile runs this, and so does archive.py, which needs no Docker. Equal inputs give equal files: the time in
them is `SOURCE_DATE_EPOCH`, bytecode is checked against nothing. A layer whose inputs have not changed can be kept;
`key` says whether. Needs the packages of requirements/test.txt, apt-get, dpkg-deb and a C compiler.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
IMAGE_FILE = Path(__file__).with_name("image.toml")
PYTHON = (3, 11)
SOURCES = ("svcproxy", "dns", "tools/compiled-modules", "hatch_build.py", "pyproject.toml", "README.md", "LICENSE")
"""What svcproxy's wheel is built from."""
_MERGED = ("bin", "lib", "lib64", "sbin")
_LAUNCHER = """#!/usr/bin/python3.11 -I
from svcproxy.cli import main

raise SystemExit(main())
"""
_ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: how its files are made, and from what."""

    name: str
    build: Callable[[dict[str, Any], Path], None]
    inputs: tuple[str, ...]
    """Files and folders of the checkout."""

    def key(self) -> str:
        """The same as long as the files would be."""
        digest = hashlib.sha256(repr((sys.version_info[:3], _epoch())).encode())
        for path in (IMAGE_FILE, Path(__file__), *(CHECKOUT / name for name in self.inputs)):
            for file in sorted(_files(path)):
                digest.update(f"{file.relative_to(CHECKOUT)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:16]


def read_image_file() -> dict[str, Any]:
    """What `image.toml` says."""
    return tomllib.loads(IMAGE_FILE.read_text())


def build(layer: Layer, folder: Path) -> None:
    """Make the files of a layer in a folder that does not exist, or only has parts when this raises."""
    if sys.version_info[:2] != PYTHON:
        raise SystemExit(f"the image has Python {PYTHON[0]}.{PYTHON[1]}, and is built with it")
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    image = read_image_file()
    layer.build(image, folder)
    for pattern in image["without"]:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _compile(folder)


def _packages(image: dict[str, Any], folder: Path) -> None:
    for name in _MERGED:
        (folder / "usr" / name).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        _run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *image["packages"], cwd=Path(scratch))
        for package in sorted(Path(scratch).glob("*.deb")):
            _run("dpkg-deb", "--extract", str(package), str(folder))
            status = folder / "var/lib/dpkg/status.d" / package.name.split("_")[0]  # where scanners look
            status.parent.mkdir(parents=True, exist_ok=True)
            status.write_bytes(subprocess.run(["dpkg-deb", "--field", package], capture_output=True, check=True).stdout)
    for name in _MERGED:
        if (folder / name).exists():
            shutil.copytree(folder / name, folder / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder / name)
        (folder / name).symlink_to(f"usr/{name}")
    for name, text in _ACCOUNTS.items():
        (folder / name).write_text(text)
    (folder / "tmp").mkdir(mode=0o1777)
    (folder / "tmp").chmod(0o1777)


def _requirements(image: dict[str, Any], folder: Path) -> None:
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
        *("--require-hashes", "--no-deps", "--only-binary=:all:", "--requirement", image["requirements"]),
        *("--target", str(folder / image["site"])),
    )
    shutil.rmtree(folder / image["site"] / "bin", ignore_errors=True)


def _svcproxy(image: dict[str, Any], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"SVCPROXY_COMPILE": "1", "SOURCE_DATE_EPOCH": str(_epoch())}
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", scratch, "."]
        subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / image["site"])
    shutil.rmtree(folder / image["site"] / "svcproxy" / "testing")
    launcher = folder / image["config"]["entrypoint"][0].lstrip("/")
    launcher.parent.mkdir(parents=True)
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)


LAYERS = (
    Layer("packages", _packages, ()),
    Layer("requirements", _requirements, ("requirements/run.txt",)),
    Layer("svcproxy", _svcproxy, SOURCES),
)


def _compile(folder: Path) -> None:
    """Bytecode beside every module: the probes are processes that start anew. It names no path of this machine."""
    options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", "/")
    _run(sys.executable, "-m", "compileall", *options, str(folder / "usr"), environment={"PYTHONHASHSEED": "0"})


def _epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH", "0")) or 315532800  # what a zip file can hold at least


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _run(*command: str, cwd: Path = CHECKOUT, environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=os.environ | (environment or {}), check=True, stdout=sys.stderr)


def main(arguments: list[str]) -> int:
    """Build every layer into the folder that is given."""
    (target,) = arguments
    for layer in LAYERS:
        build(layer, Path(target) / layer.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
