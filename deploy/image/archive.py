# SPDX-License-Identifier: Apache-2.0
"""Images as archives that `docker load`, `ctr images import` and `skopeo` read, made without any of them.

    python -m deploy.image.archive OUT.tar NAME:TAG…      the image of svcproxy, from this checkout

The format is `docker save`'s: a tar with manifest.json, the configuration and a tar for each layer. Equal files give
equal octets: members are sorted, belong to root and are as old as `SOURCE_DATE_EPOCH`.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from deploy.image import rootfs
from svcproxy.testing.binaries import cache_folder

KEPT_LAYERS = 4
"""Layers of one name that stay in the cache; the ones used longest ago make room."""


def layer_archive(folder: Path, target: Path, epoch: int) -> None:
    """Write the tar of a folder."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            member = archive.gettarinfo(path, str(path.relative_to(folder)))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = epoch
            if member.isreg():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)


def image_archive(target: Path, names: Sequence[str], layers: Sequence[Path], config: Mapping[str, Any]) -> None:
    """Write an image of layer archives. `config` has the words of image.toml."""
    digests = [_digest(layer) for layer in layers]
    created = datetime.fromtimestamp(_epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    described = _json(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "created": created,
            "config": {
                "User": config["user"],
                "Entrypoint": list(config["entrypoint"]),
                "Env": [f"{name}={value}" for name, value in config["env"].items()],
                "WorkingDir": config["working_dir"],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            "history": [{"created": created}] * len(layers),
        }
    )
    config_name = f"{hashlib.sha256(described).hexdigest()}.json"
    members = [f"{digest}/layer.tar" for digest in digests]
    manifest = _json([{"Config": config_name, "RepoTags": list(names), "Layers": members}])
    with tarfile.open(target, "w") as archive:
        for member, layer in zip(members, layers, strict=True):
            with layer.open("rb") as content:
                _add(archive, member, content, layer.stat().st_size)
        for member, octets in ((config_name, described), ("manifest.json", manifest)):
            _add(archive, member, io.BytesIO(octets), len(octets))


def svcproxy_layers() -> list[Path]:
    """The layers of svcproxy's image, from the cache or built into it: folders that have `layer.tar` beside `files`."""
    return [_kept(layer) for layer in rootfs.LAYERS]


def _kept(layer: rootfs.Layer) -> Path:
    kept = cache_folder() / "image"
    folder = kept / f"{layer.name}-{layer.key()}"
    if not folder.exists():
        print(f"building layer {layer.name} of the image", file=sys.stderr, flush=True)
        unfinished = kept / f".{folder.name}.{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        rootfs.build(layer, unfinished / "files")
        layer_archive(unfinished / "files", unfinished / "layer.tar", _epoch())
        shutil.rmtree(unfinished / "files")
        try:
            unfinished.rename(folder)
        except OSError:  # somebody else was faster
            shutil.rmtree(unfinished)
    os.utime(folder)
    of_this_name = sorted(kept.glob(f"{layer.name}-*"), key=lambda path: path.stat().st_mtime)
    for path in of_this_name[:-KEPT_LAYERS]:
        shutil.rmtree(path, ignore_errors=True)
    return folder / "layer.tar"


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    archive.addfile(member, content)


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def main(arguments: Sequence[str]) -> int:
    """Write the image of svcproxy to a file, under one or several names."""
    target, *names = arguments
    image_archive(Path(target), names, svcproxy_layers(), rootfs.read_image_file()["config"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
