# SPDX-License-Identifier: Apache-2.0
"""The images that nodes have from the beginning; there is no registry."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.image import archive, rootfs
from svcproxy.testing.binaries import KUBERNETES_VERSION
from tests.cluster.node import SANDBOX_IMAGE

SVCPROXY_IMAGE = "docker.io/library/svcproxy:0.1.0"
WORKLOAD_IMAGES = ("localhost/workload:1", "localhost/workload:2")
"""The same under two names, so that there is something to roll out."""
WORKLOAD = Path(__file__).with_name("workload.py")


def build(folder: Path) -> list[Path]:
    """Write the archives of all images into a folder."""
    layers = archive.svcproxy_layers()
    config = rootfs.read_image_file()["config"]
    svcproxy = folder / "svcproxy.tar"
    archive.image_archive(svcproxy, [SVCPROXY_IMAGE], layers, config)
    with _layer(folder) as files:
        program = files / "usr/local/bin/workload"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/usr/bin/python3.11 -I\n{WORKLOAD.read_text()}")
        program.chmod(0o755)
    workload = _image(folder, "workload", WORKLOAD_IMAGES, [layers[0], folder / "layer.tar"], "/usr/local/bin/workload")
    with _layer(folder) as files:
        source = _kubernetes_source() / "build" / "pause" / "linux" / "pause.c"
        subprocess.run(["gcc", "-Os", "-static", "-s", "-o", files / "pause", source], check=True)
    pause = _image(folder, "pause", [SANDBOX_IMAGE], [folder / "layer.tar"], "/pause")
    return [pause, svcproxy, workload]


@contextmanager
def _layer(folder: Path) -> Iterator[Path]:
    """The block makes the files; they become `layer.tar`."""
    files = folder / "files"
    files.mkdir()
    yield files
    archive.layer_archive(files, folder / "layer.tar", 0)
    shutil.rmtree(files)


def _image(folder: Path, name: str, names: Sequence[str], layers: Sequence[Path], entrypoint: str) -> Path:
    config: Mapping[str, Any] = {
        "user": "",
        "entrypoint": [entrypoint],
        "env": {"PATH": "/usr/local/bin:/usr/bin"},
        "working_dir": "/",
    }
    target = folder / f"{name}.tar"
    archive.image_archive(target, names, layers, config)
    return target


def _kubernetes_source() -> Path:
    command = ["go", "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES_VERSION}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(json.loads(listed.stdout)["Dir"])
