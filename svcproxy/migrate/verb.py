# SPDX-License-Identifier: Apache-2.0
"""`svcproxy migrate`: reads files or a cluster, prints a configuration. Changes nothing."""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from svcproxy.errors import ConfigError, Problem
from svcproxy.migrate.inputs import OCTETS_MAX, Inputs, Subject
from svcproxy.migrate.result import as_json, as_yaml, migrate

STANDARD_INPUT = "-"

Found = Iterator[tuple[Subject, bytes, str]]
"""What it is about, its octets, and where it comes from, for people."""


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration. Raises `ConfigError` for what cannot be read, and as the API client does."""
    variables = _variables(arguments.env or ())
    files = {subject: getattr(arguments, subject.replace("-", "_")) for subject in Subject}
    inputs = Inputs()
    found = _files(files) if any(files.values()) else _cluster(arguments)
    for subject, octets, where in found:
        inputs.take(subject, octets, where, variables)
    if not inputs.read:
        raise ConfigError([Problem("the cluster has none of kube-proxy, coredns, node-local-dns in kube-system")])
    draft = migrate(inputs)
    if arguments.output == "json":
        text = msgspec.json.format(msgspec.json.encode(as_json(inputs, draft)), indent=2).decode() + "\n"
    else:
        text = as_yaml(inputs, draft)
    if arguments.write is None:
        sys.stdout.write(text)
    else:
        _write(Path(arguments.write), text)
    return 0


def _variables(words: Sequence[str]) -> Mapping[str, str]:
    """NAME=VALUE of each --env. Raises `ConfigError`."""
    wrong = [word for word in words if "=" not in word or word.startswith("=")]
    if wrong:
        raise ConfigError([Problem(f"{word!r} is not NAME=VALUE", path="--env") for word in wrong])
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _files(files: Mapping[Subject, str | None]) -> Found:
    for subject, name in files.items():
        if name is None:
            continue
        if name == STANDARD_INPUT:
            yield subject, sys.stdin.buffer.read(OCTETS_MAX + 1), "standard input"
            continue
        try:
            with Path(name).open("rb") as file:
                octets = file.read(OCTETS_MAX + 1)
        except (OSError, ValueError) as exc:
            cause = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise ConfigError([Problem(f"{name} cannot be read: {cause}", path=f"--{subject}")]) from exc
        yield subject, octets, name


def _cluster(arguments: argparse.Namespace) -> Found:
    # Loaded only when it is used: it brings aiohttp and kubernetes-asyncio with it.
    read: Callable[[argparse.Namespace], Found] = importlib.import_module("svcproxy.migrate.cluster").read
    return read(arguments)


def _write(path: Path, text: str) -> None:
    """Raises `ConfigError`."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError([Problem(f"{path} cannot be written: {exc.strerror}", path="--write")]) from exc
