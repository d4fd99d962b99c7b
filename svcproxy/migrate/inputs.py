# SPDX-License-Identifier: Apache-2.0
"""What is read: configuration files as they are, or the objects that hold them, as YAML or JSON. Pure.

A file may hold ConfigMaps, DaemonSets, Pods and Services, one after the other or in a List as kubectl prints them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from svcproxy import syntax
from svcproxy.document import Document, Value, read
from svcproxy.errors import ConfigError, Problem
from svcproxy.migrate.caddyfile import Corefile, parse
from svcproxy.migrate.draft import Place, Source
from svcproxy.migrate.kube_proxy_settings import KIND, Given, KubeProxy, plain, server_of
from svcproxy.migrate.node_local_dns import KubeDns, NodeLocalDns, read_kube_dns

OCTETS_MAX = 4 << 20
"""Size of one file or object."""
OBJECTS_MAX = 1000
"""Objects of one file."""


class Subject(StrEnum):
    """What a file is about."""

    KUBE_PROXY = "kube-proxy"
    COREFILE = "corefile"
    NODE_LOCAL_DNS = "node-local-dns"
    KUBE_DNS = "kube-dns"


@dataclass(slots=True)
class Inputs:
    """Everything read."""

    kube_proxy: KubeProxy | None = None
    corefile: Corefile | None = None
    node_local_dns: NodeLocalDns | None = None
    kube_dns: KubeDns | None = None
    cluster_ips: list[str] = field(default_factory=list)
    """Addresses of the Service kube-dns."""
    read: list[tuple[Subject, str]] = field(default_factory=list)
    """What was read, and where from, in order."""

    def take(self, subject: Subject, octets: bytes, file: str, variables: Mapping[str, str]) -> None:
        """Take a file or an object in. `variables`: those of Corefiles. Raises `ConfigError`."""
        if len(octets) > OCTETS_MAX:
            raise ConfigError([Problem(f"larger than {OCTETS_MAX >> 20} MiB", file)])
        self.read.append((subject, file))
        documents = read(octets, file)
        objects = list(_objects(documents))
        if subject is Subject.KUBE_PROXY or any(objects):
            broken = [problem for document in documents for problem in document.problems]
            if broken:
                raise ConfigError(broken)
            before = self._taken()
            for document, each in objects[:OBJECTS_MAX]:
                self._object(subject, document, each, variables)
            if self._taken() == before:
                raise ConfigError([Problem(f"holds nothing of {subject} that is known", file)])
            return
        if subject is Subject.KUBE_DNS:
            raise ConfigError([Problem("expected a ConfigMap or a Service, as YAML or JSON", file)])
        self._corefile(subject, _text(octets, file), file, variables)

    def _taken(self) -> int:
        """A number that grows with everything that is taken."""
        proxy = self.kube_proxy
        known = (
            len(proxy.fields) + len(proxy.unknown) + len(proxy.commands) + (proxy.server is not None) if proxy else 0
        )
        cache = self.node_local_dns
        known += (cache.corefile is not None) + len(cache.arguments) if cache else 0
        return (
            known
            + sum(each is not None for each in (proxy, self.corefile, cache, self.kube_dns))
            + len(self.cluster_ips)
        )

    def _object(self, subject: Subject, document: Document, each: Value, variables: Mapping[str, str]) -> None:
        obj: dict[str, Any] = plain(each)
        match subject, obj.get("kind"):
            case Subject.KUBE_PROXY, kind:
                self._kube_proxy(kind, document, each, obj)
            case Subject.COREFILE | Subject.NODE_LOCAL_DNS, "ConfigMap":
                for key, text in _data(obj).items():
                    if key.startswith("Corefile"):
                        self._corefile(subject, text, f"{document.file}, key {key}", variables)
            case Subject.NODE_LOCAL_DNS, "DaemonSet" | "Pod":
                for words in _commands(obj, "node-cache"):
                    self._cache().arguments += words
                    self._cache().arguments_file = document.file
            case Subject.KUBE_DNS, "ConfigMap":
                self.kube_dns = read_kube_dns(_data(obj), document.file)
            case Subject.KUBE_DNS, "Service":
                self.cluster_ips += _cluster_ips(obj)
            case _:
                pass

    def _kube_proxy(self, kind: object, document: Document, each: Value, obj: Mapping[str, Any]) -> None:
        """What an object says of kube-proxy; a kubeconfig or a configuration may stand alone."""
        match kind:
            case "ConfigMap":
                for key, text in _data(obj).items():
                    self._kube_proxy_file(f"{document.file}, key {key}", text)
            case "DaemonSet" | "Pod":
                for words in _commands(obj, "kube-proxy"):
                    self._proxy().commands.append((words, document.file, each.line))
            case "KubeProxyConfiguration":
                self._proxy().read(Document(document.file, each.line, each))
            case _:
                pass

    def _kube_proxy_file(self, file: str, text: str) -> None:
        """One file of kube-proxy's ConfigMap: its configuration, or its kubeconfig."""
        for document in read(text.encode(), file):
            root = document.root
            if root is None or not isinstance(root.content, dict):
                continue
            kind = plain(root).get("kind")
            if kind == KIND:
                self._proxy().read(document)
            elif kind == "Config" and (server := server_of(plain(root))) is not None:
                self._proxy().server = Given(server, Place(Source.KUBE_PROXY, "kubeconfig", file, document.line))

    def _corefile(self, subject: Subject, text: str, file: str, variables: Mapping[str, str]) -> None:
        corefile = parse(text, file, variables)
        if subject is Subject.NODE_LOCAL_DNS:
            self._cache().corefile = corefile
        else:
            self.corefile = corefile

    def _proxy(self) -> KubeProxy:
        self.kube_proxy = self.kube_proxy or KubeProxy()
        return self.kube_proxy

    def _cache(self) -> NodeLocalDns:
        self.node_local_dns = self.node_local_dns or NodeLocalDns()
        return self.node_local_dns


def _text(octets: bytes, file: str) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError([Problem("not UTF-8", file, octets.count(b"\n", 0, exc.start) + 1)]) from exc


def _objects(documents: list[Document]) -> Iterator[tuple[Document, Value]]:
    """The Kubernetes objects of a file; those of a List one by one."""
    for document in documents:
        root = document.root
        if root is None or not isinstance(root.content, dict) or not {"kind", "apiVersion"} <= root.content.keys():
            continue
        items = root.content.get("items")
        if items is not None and isinstance(items.content, list):
            yield from ((document, each) for each in items.content if isinstance(each.content, dict))
        else:
            yield document, root


def _data(obj: Mapping[str, Any]) -> dict[str, str]:
    data = obj.get("data")
    if not isinstance(data, dict):
        return {}
    return {key: text for key, text in data.items() if isinstance(text, str)}


def _commands(obj: Mapping[str, Any], program: str) -> Iterator[list[str]]:
    """The command lines of the containers that run a program, or that have its name."""
    spec = obj.get("spec")
    if isinstance(spec, dict) and isinstance(spec.get("template"), dict):
        spec = spec["template"].get("spec")
    containers = spec.get("containers") if isinstance(spec, dict) else None
    for each in containers if isinstance(containers, list) else ():
        if not isinstance(each, dict):
            continue
        words = [str(word) for name in ("command", "args") for word in each.get(name) or ()]
        if each.get("name") == program or any(program in word for word in words):
            yield words


def _cluster_ips(obj: Mapping[str, Any]) -> list[str]:
    spec = obj.get("spec")
    listed = (spec.get("clusterIPs") or [spec.get("clusterIP")]) if isinstance(spec, dict) else []
    found: list[str] = []
    for text in listed:
        try:
            found.append(syntax.ip_address(str(text)))
        except ValueError:
            continue
    return found
