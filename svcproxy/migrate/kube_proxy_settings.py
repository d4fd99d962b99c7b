# SPDX-License-Identifier: Apache-2.0
"""How a kube-proxy is set: what its configuration file, its command line and its kubeconfig say. Pure."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from svcproxy.document import Document, Value
from svcproxy.errors import ConfigError
from svcproxy.migrate.draft import Place, Source
from svcproxy.migrate.kube_proxy_fields import BY_FLAG, BY_PATH, SECTIONS, Field

API_VERSION, KIND = "kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"
_NOTHING: tuple[object, ...] = (None, "", 0, False, "0", "0s", [], {})


@dataclass(frozen=True, slots=True)
class Given:
    """A field that is set."""

    value: Any
    """Built-in values."""
    place: Place


@dataclass(slots=True)
class KubeProxy:
    """Everything known of how a kube-proxy is set."""

    fields: dict[str, Given] = field(default_factory=dict)
    unknown: list[Given] = field(default_factory=list)
    """Fields and flags that kube-proxy 1.37 does not have."""
    server: Given | None = None
    """URL of the API server in its kubeconfig, or of its flag --master."""
    remarks: list[tuple[Given, str]] = field(default_factory=list)
    """Flags without a field, and what becomes of them."""
    commands: list[tuple[Sequence[str], str, int]] = field(default_factory=list)
    """Command lines, with file and line; `settle` looks into them."""

    def read(self, document: Document) -> None:
        """Take the fields of a KubeProxyConfiguration in. Raises `ConfigError` if it is something else."""
        root = document.root
        if root is None or not isinstance(root.content, dict):
            raise ConfigError(document.problems or [document.problem("not a mapping")])
        found = {name: getattr(root.content.get(name), "content", None) for name in ("apiVersion", "kind")}
        for name, wanted in (("kind", KIND), ("apiVersion", API_VERSION)):
            if found[name] != wanted:
                raise ConfigError([document.problem(f"expected {wanted}, found {found[name]!r}", (name,))])
        if document.problems:
            raise ConfigError(document.problems)
        self._read(document, root, "")

    def _read(self, document: Document, at: Value, prefix: str) -> None:
        assert isinstance(at.content, dict)
        for name, value in at.content.items():
            path = f"{prefix}{name}"
            given = Given(plain(value), Place(Source.KUBE_PROXY, path, document.file, value.line))
            if path in BY_PATH:
                self.fields[path] = given
            elif path not in SECTIONS:
                self.unknown.append(given)
            elif isinstance(value.content, dict):
                self._read(document, value, f"{path}.")
            elif value.content is not None:
                raise ConfigError([document.problem("expected a mapping", tuple(path.split(".")))])

    def settle(self) -> None:
        """Let the flags of the command lines count, over the configuration file where kube-proxy has it so."""
        for words, file, line in self.commands:
            self._command(words, file, line)
        self.commands = []

    def _command(self, words: Sequence[str], file: str, line: int) -> None:
        flags = list(_flags(words))
        has_config = any(name == "config" for name, _ in flags)
        for name, value in flags:
            given = Given(value, Place(Source.KUBE_PROXY, f"--{name}" if name != "v" else "-v", file, line))
            flag = BY_FLAG.get(name)
            if flag is None:
                self.unknown.append(given)
            elif has_config and not flag.beside_config:
                self.remarks.append((given, "kube-proxy ignores it beside --config, and so does this"))
            elif name == "master":
                self.server = given
            elif name in ("healthz-port", "metrics-port"):
                self._port(name, given)
            elif flag.path:
                self.fields[flag.path] = given
            elif flag.text:
                self.remarks.append((given, flag.text))

    def _port(self, name: str, given: Given) -> None:
        """The deprecated flags: a port on the address of the other flag, 0 for none."""
        path, address = {
            "healthz-port": ("healthzBindAddress", "0.0.0.0"),  # noqa: S104  # kube-proxy's own default
            "metrics-port": ("metricsBindAddress", "127.0.0.1"),
        }[name]
        known = self.fields.get(path)
        if known is not None and isinstance(known.value, str):
            address = known.value.rpartition(":")[0] or known.value
        self.fields[path] = Given("" if given.value == "0" else f"{address}:{given.value}", given.place)

    @property
    def mode(self) -> str:
        """How it balances; iptables unless it says otherwise."""
        given = self.fields.get("mode")
        return str(given.value) if given is not None and given.value else "iptables"

    def given(self, path: str) -> Given | None:
        """A field that says something."""
        known = self.fields.get(path)
        return None if known is None or _says_nothing(BY_PATH[path], known.value) else known


def plain(value: Value) -> Any:
    """A value without its lines."""
    match value.content:
        case dict() as members:
            return {key: plain(each) for key, each in members.items()}
        case list() as members:
            return [plain(each) for each in members]
        case scalar:
            return scalar


def _says_nothing(of: Field, value: Any) -> bool:
    if value is None or (of.zero_counts and value != ""):
        return value is None
    return any(value == nothing and type(value) is type(nothing) for nothing in _NOTHING)


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of the flags of a command line; that of a shell is looked into."""
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") or word == "-":
            if " " in word and "kube-proxy" in word:
                try:
                    queue[:0] = shlex.split(word.replace("\n", " "), comments=True)
                except ValueError:
                    continue
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if word == "-c":
            continue
        known = BY_FLAG.get(name)
        if not equals:
            boolean_flag = known is not None and known.boolean
            value = queue.pop(0) if not boolean_flag and queue and not queue[0].startswith("-") else "true"
        yield name, value


def server_of(kubeconfig: Mapping[str, Any]) -> str | None:
    """The API server of a kubeconfig's current context; None if it names none."""
    try:
        contexts = {each["name"]: each["context"]["cluster"] for each in kubeconfig["contexts"]}
        clusters = {each["name"]: each["cluster"]["server"] for each in kubeconfig["clusters"]}
        return msgspec.convert(clusters[contexts[kubeconfig["current-context"]]], str)
    except (KeyError, TypeError, msgspec.ValidationError):
        return None
