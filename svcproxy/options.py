# SPDX-License-Identifier: Apache-2.0
"""From a command line, a file and the environment to the configuration tree.

A value comes from the flag, else the file, else the environment (`NODE_NAME`, `KUBECONFIG`), else the default. Whatever
is wrong is told at once: a value of the file with its file, line and key, any other with its flag or variable.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

from svcproxy.config import INTERCEPTED_MAX, Config, DataplaneConfig, DataplaneMode, DetectLocalMode, LogFormat
from svcproxy.convert import convert
from svcproxy.document import Document, Value, read
from svcproxy.errors import ConfigError, Problem
from svcproxy.syntax import split_address

OCTETS_MAX = 1 << 20
"""Size of a configuration file."""
_PORTS = 65536


@dataclass(frozen=True, slots=True)
class Flag:
    """A command-line flag that sets one key."""

    name: str
    key: str
    """Dotted path in the tree."""
    metavar: str
    help: str
    repeatable: bool = False
    besides: tuple[str, ...] = ()
    """Values of the key that stay when the flag is given."""

    @property
    def attribute(self) -> str:
        """Where argparse puts the value."""
        return self.name.removeprefix("--").replace("-", "_")


FLAGS: tuple[Flag, ...] = (
    Flag("--kubeconfig", "kube.kubeconfig", "FILE", "kubeconfig of the cluster (default: $KUBECONFIG, else the Pod's)"),
    Flag("--api-server", "kube.api_servers", "URL", "API server to use in place of the kubeconfig's", repeatable=True),
    Flag("--manifests", "kube.manifests", "PATH", "serve the objects of this YAML/JSON file or directory, no cluster"),
    Flag("--node-name", "node_name", "NAME", "name of the own Node object (default: $NODE_NAME, else the host name)"),
    Flag(
        "--dataplane", "dataplane.mode", f"{{{','.join(DataplaneMode)}}}", "how Services are balanced (default: auto)"
    ),
    Flag("--dns-listen", "dns.listen", "ADDRESS:PORT", "address that answers DNS", repeatable=True),
    Flag(
        "--cluster-domain",
        "dns.zones",
        "ZONE",
        "zone of the cluster's names (default: cluster.local), besides those of all addresses",
        repeatable=True,
        besides=("in-addr.arpa", "ip6.arpa"),
    ),
    Flag("--upstream", "dns.upstreams", "ADDRESS[:PORT]", "resolver for all other names", repeatable=True),
    Flag("--admin-listen", "admin.metrics_listen", "ADDRESS:PORT", "address of /metrics and the read-only status API"),
    Flag("--run-dir", "run_dir", "DIR", "sockets, locks and process status (default: /run/svcproxy)"),
    Flag("--state-dir", "state_dir", "DIR", "what survives a restart (default: /var/lib/svcproxy)"),
    Flag("--log-level", "log.level", "{debug,info,warning,error}", "least severe records written (default: info)"),
    Flag("--log-format", "log.format", f"{{{','.join(LogFormat)}}}", "how records are written (default: logfmt)"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and every flag of `FLAGS`. `from_arguments` checks the values, all at once."""
    group = parser.add_argument_group("configuration", "Flags win over the file; see docs/reference/config.md.")
    group.add_argument("--config", metavar="FILE", help="YAML file with the whole configuration")
    for flag in FLAGS:
        action = "append" if flag.repeatable else "store"
        text = f"{flag.help} (repeatable)" if flag.repeatable else flag.help
        group.add_argument(flag.name, dest=flag.attribute, metavar=flag.metavar, action=action, help=text)


def from_arguments(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that a parsed command line asks for; its `--config` file is read. Raises as `load` does."""
    given = {flag.key: getattr(arguments, flag.attribute, None) for flag in FLAGS}
    overrides = {key: value for key, value in given.items() if value is not None}
    for flag in FLAGS:
        if flag.besides and flag.key in overrides:
            overrides[flag.key] = [*overrides[flag.key], *flag.besides]
    return load(getattr(arguments, "config", None), overrides, environ)


@dataclass(frozen=True, slots=True)
class Launch:
    """How a role was started: its configuration can be read again when the file changes."""

    arguments: argparse.Namespace

    @property
    def config_file(self) -> str | None:
        """The `--config` file, if there is one."""
        path: str | None = getattr(self.arguments, "config", None)
        return path

    def load(self) -> Config:
        """The configuration as file, flags and environment say now. Raises as `load` does."""
        return from_arguments(self.arguments)


def load(
    path: str | None,
    overrides: Mapping[str, str | Sequence[str]] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration of the file at `path`, if any, under `overrides`: values of flags by dotted key.

    The node name is always filled in. Raises `ConfigError` with every problem.
    """
    sources = {flag.key: flag.name for flag in FLAGS}
    sources = {key: sources.get(key, key) for key in overrides or {}}
    document, problems = _read_file(path) if path is not None else (Document("", 1, Value(0, {})), [])
    for key, value in (overrides or {}).items():
        document = _with(document, key, value)
    for key, value, source in _defaults(document, environ):
        document = _with(document, key, value)
        sources[key] = source
    config, found = check(document)
    problems += [_at_source(problem, sources) for problem in found]
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda problem: (not problem.file, problem.line or 0)))
    return config


def check(document: Document) -> tuple[Config | None, tuple[Problem, ...]]:
    """A document as configuration, and everything that is wrong with it. What the machine says is not filled in."""
    config, found = convert(document, Config)
    if config is None:
        return None, found
    return config, (*found, *_contradictions(config, document, {problem.path for problem in found}))


def _read_file(path: str) -> tuple[Document, list[Problem]]:
    """The one document of the file; an empty one, and why, if it cannot be used."""
    nothing = Document(path, 1, Value(0, {}))
    try:
        with Path(path).open("rb") as file:
            octets = file.read(OCTETS_MAX + 1)
    except (OSError, ValueError) as exc:
        cause = exc.strerror if isinstance(exc, OSError) else str(exc)
        return nothing, [Problem(f"cannot be read: {cause}", path)]
    if len(octets) > OCTETS_MAX:
        return nothing, [Problem(f"larger than {OCTETS_MAX >> 20} MiB", path)]
    documents = read(octets, path)
    if not documents:
        return nothing, []
    problems = [Problem("a second document, one is expected", path, other.line) for other in documents[1:]]
    if documents[0].root is None:
        return nothing, [*documents[0].problems, *problems]
    return documents[0], problems


def _defaults(document: Document, environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(key, value, source) of what neither file nor flags say and the machine does."""
    kube = ("kube.kubeconfig", "kube.api_servers", "kube.manifests")
    if environ.get("KUBECONFIG") and all(_get(document, key) is None for key in kube):
        yield "kube.kubeconfig", environ["KUBECONFIG"], "$KUBECONFIG"
    if not _get(document, "node_name"):
        if environ.get("NODE_NAME"):
            yield "node_name", environ["NODE_NAME"], "$NODE_NAME"
        else:
            yield "node_name", os.uname().nodename, "the host name (give --node-name)"


def _get(document: Document, key: str) -> object:
    """The content at a dotted key; None if it is absent or null."""
    at = document.root
    for step in key.split("."):
        if at is None or not isinstance(at.content, dict):
            return None
        at = at.content.get(step)
    return at.content if at is not None else None


def _with(document: Document, key: str, value: str | Sequence[str]) -> Document:
    """The document with another value at a dotted key. What is no mapping on the way stays, for `convert` to refuse."""
    content: str | list[Value] = value if isinstance(value, str) else [Value(0, item) for item in value]

    def changed(at: Value, steps: Sequence[str]) -> Value:
        if not steps:
            return Value(0, content)
        members = {} if at.content is None else at.content
        if not isinstance(members, dict):
            return at
        inner = changed(members.get(steps[0], Value(0, None)), steps[1:])
        return Value(at.line, {**members, steps[0]: inner})

    return replace(document, root=changed(document.root or Value(0, None), key.split(".")))


def _contradictions(config: Config, document: Document, bad: set[str]) -> Iterator[Problem]:
    """What is wrong with keys that are right by themselves; `bad` ones are left out."""
    kube, admin = config.kube, config.admin
    if kube.manifests is not None:
        for key, given in (
            ("kubeconfig", kube.kubeconfig),
            ("context", kube.context),
            ("api_servers", kube.api_servers),
        ):
            if given:
                yield document.problem("excluded by kube.manifests: objects come from one place", ("kube", key))
    for section, key, values in (
        ("kube", "api_servers", kube.api_servers),
        ("dns", "listen", config.dns.listen),
        ("dns", "intercept", config.dns.intercept),
        ("dns", "zones", config.dns.zones),
        ("dns", "upstreams", config.dns.upstreams),
    ):
        for index, value in enumerate(values):
            if value in values[:index] and not value.endswith(":0"):
                yield document.problem(f"{value} is listed twice", (section, key, index))
    if len(config.dns.intercept) > INTERCEPTED_MAX:
        problem = f"{len(config.dns.intercept)} addresses, at most {INTERCEPTED_MAX} can be intercepted"
        yield document.problem(problem, ("dns", "intercept"))
    if not config.dns.cluster_domain and "dns.zones" not in bad:
        yield document.problem("a cluster domain is needed besides zones of addresses", ("dns", "zones"))
    if config.dns.enabled and not config.dns.listen:
        yield document.problem("at least one address is needed while dns.enabled is true", ("dns", "listen"))
    yield from _metrics_contradictions(config, document, bad)
    one_address = admin.health_listen is not None and admin.health_listen == admin.metrics_listen
    if (
        one_address
        and not str(admin.health_listen).endswith(":0")
        and not {"admin.health_listen", "admin.metrics_listen"} & bad
    ):
        yield document.problem("the same address as admin.health_listen", ("admin", "metrics_listen"))
    yield from _pod_contradictions(config.dataplane, document, {path.partition("[")[0] for path in bad})


def _metrics_contradictions(config: Config, document: Document, bad: set[str]) -> Iterator[Problem]:
    """What is wrong with the ports that the DNS workers' metrics need, one for each worker."""
    dns, admin = config.dns, config.admin
    if dns.metrics_listen is None or {"dns.metrics_listen", "dns.workers"} & bad:
        return
    host, first = split_address(dns.metrics_listen)
    ports = range(first, first + dns.workers)
    if ports.start and ports.stop > _PORTS:
        yield document.problem(f"no port for each of {dns.workers} workers from here on", ("dns", "metrics_listen"))
    for key, other in (("health_listen", admin.health_listen), ("metrics_listen", admin.metrics_listen)):
        if other is not None and first:
            elsewhere, port = split_address(other)
            if elsewhere == host and port in ports:
                problem = f"port {port} is that of admin.{key}"
                yield document.problem(problem, ("dns", "metrics_listen"))


def _pod_contradictions(config: DataplaneConfig, document: Document, bad: set[str]) -> Iterator[Problem]:
    """What is wrong between the keys that say what is a pod."""
    mode = config.local_mode
    for owner, key, value in (
        (DetectLocalMode.CLUSTER_CIDR, "cluster_cidrs", config.cluster_cidrs),
        (DetectLocalMode.BRIDGE_INTERFACE, "pod_bridge_interface", config.pod_bridge_interface),
        (DetectLocalMode.INTERFACE_NAME_PREFIX, "pod_interface_name_prefix", config.pod_interface_name_prefix),
    ):
        besides = key == "cluster_cidrs" and mode in {
            DetectLocalMode.BRIDGE_INTERFACE,
            DetectLocalMode.INTERFACE_NAME_PREFIX,
        }
        if besides or {f"dataplane.{key}", "dataplane.detect_local_mode"} & bad:
            continue
        if mode is owner and not value:
            yield document.problem(f"needed while dataplane.detect_local_mode is {mode}", ("dataplane", key))
        elif mode is not owner and value:
            yield document.problem(f"not used while dataplane.detect_local_mode is {mode}", ("dataplane", key))
    for index, cidr in enumerate(config.service_cidrs):
        for pods in config.cluster_cidrs:
            if ip_network(cidr).overlaps(ip_network(pods)):
                problem = f"{cidr} overlaps dataplane.cluster_cidrs {pods}"
                yield document.problem(problem, ("dataplane", "service_cidrs", index))


def _at_source(problem: Problem, sources: Mapping[str, str]) -> Problem:
    """The problem placed at the flag or variable that its value came from, if it did not come from the file."""
    for key, source in sources.items():
        if problem.path == key or problem.path.startswith(f"{key}["):
            return replace(problem, file="", line=None, path=source)
    return problem
