# SPDX-License-Identifier: Apache-2.0
"""The image: the Dockerfile says what image.toml says, and archives are the same whenever they are made."""

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deploy.image import rootfs
from deploy.image.archive import image_archive, layer_archive

DOCKERFILE = Path(__file__).parents[2] / "deploy" / "Dockerfile"
CONFIG = {
    "user": "65532:65532",
    "entrypoint": ["/program"],
    "env": {"PATH": "/bin", "LANG": "C"},
    "working_dir": "/",
}


def instructions() -> list[tuple[str, str]]:
    lines = [line.split(maxsplit=1) for line in DOCKERFILE.read_text().splitlines() if line and line[0] != "#"]
    return [(word, rest) for word, rest in lines]


def last_stage() -> list[tuple[str, str]]:
    said = instructions()
    start = max(index for index, (word, _) in enumerate(said) if word == "FROM")
    return said[start:]


def test_the_dockerfile_builds_on_the_base() -> None:
    assert instructions()[0] == ("FROM", f"{rootfs.read_image_file()['base']} AS build")


def test_the_dockerfile_has_every_layer_and_nothing_else() -> None:
    copies = [rest for word, rest in last_stage() if word == "COPY"]
    assert last_stage()[0] == ("FROM", "scratch")
    assert copies == [f"--from=build /layers/{layer.name} /" for layer in rootfs.LAYERS]


def test_the_dockerfile_configures_as_the_image_file() -> None:
    config = rootfs.read_image_file()["config"]
    said = {word: rest for word, rest in last_stage() if word not in {"FROM", "COPY"}}
    assert said == {
        "ENV": " ".join(f"{name}={value}" for name, value in config["env"].items()),
        "USER": config["user"],
        "WORKDIR": config["working_dir"],
        "ENTRYPOINT": json.dumps(config["entrypoint"]),
    }


def files(folder: Path) -> Path:
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "b").write_text("b")
    (folder / "etc" / "a").write_text("a")
    (folder / "program").write_text("#!/bin/true\n")
    (folder / "program").chmod(0o755)
    (folder / "link").symlink_to("program")
    return folder


def archive(folder: Path) -> Path:
    layer_archive(files(folder / "files"), folder / "layer.tar", 0)
    image_archive(folder / "image.tar", ["name:1", "name:2"], [folder / "layer.tar"], CONFIG)
    return folder / "image.tar"


def read(image: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Its manifest, its configuration, its only layer."""
    with tarfile.open(image) as opened:
        members = {member.name: opened.extractfile(member) for member in opened}
        octets = {name: content.read() for name, content in members.items() if content is not None}
    (manifest,) = json.loads(octets["manifest.json"])
    (layer,) = manifest["Layers"]
    return manifest, json.loads(octets[manifest["Config"]]), octets[layer]


def test_equal_files_give_equal_octets(tmp_path: Path) -> None:
    first = archive(tmp_path / "1")
    os.utime(tmp_path / "1" / "files" / "program", (1, 1))
    assert archive(tmp_path / "2").read_bytes() == first.read_bytes()


def test_the_configuration_names_the_layers_by_their_digests(tmp_path: Path) -> None:
    manifest, config, layer = read(archive(tmp_path))
    assert manifest["RepoTags"] == ["name:1", "name:2"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert (
        manifest["Config"].removesuffix(".json")
        == hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    )
    assert config["config"] == {
        "User": "65532:65532",
        "Entrypoint": ["/program"],
        "Env": ["PATH=/bin", "LANG=C"],
        "WorkingDir": "/",
    }


def test_files_belong_to_root_and_keep_their_modes(tmp_path: Path) -> None:
    archive(tmp_path)
    with tarfile.open(tmp_path / "layer.tar") as layer:
        members = {member.name: (member.type, member.mode & 0o777, member.uid, member.mtime) for member in layer}
    assert list(members) == ["etc", "etc/a", "etc/b", "link", "program"]
    assert members["program"] == (tarfile.REGTYPE, 0o755, 0, 0)
    assert members["link"][0] == tarfile.SYMTYPE


@pytest.mark.parametrize("name", [layer.name for layer in rootfs.LAYERS])
def test_a_layer_has_the_same_key_while_its_inputs_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (layer,) = [each for each in rootfs.LAYERS if each.name == name]
    key = layer.key()
    assert layer.key() == key
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert layer.key() != key
