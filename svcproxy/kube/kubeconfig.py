# SPDX-License-Identifier: Apache-2.0
"""Kubeconfig files: merged, checked, and reduced to the one context in use. Pure: the caller reads the files.

What the agent cannot do is refused here by name, for a credential that is silently ignored ends as a riddle at 401:
basic authentication (gone since Kubernetes 1.19), auth-provider plugins (1.26), impersonation, exec plugins of the
alpha API (1.24) or that need a terminal. Format: the v1 Config of client-go, `tools/clientcmd/api/v1/types.go`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

import msgspec

from svcproxy.errors import ConfigError, Problem

EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
"""Versions of the credential plugin API that exist today."""


class _Cluster(msgspec.Struct, rename="kebab", omit_defaults=True):
    server: str
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None
    insecure_skip_tls_verify: bool | None = None
    tls_server_name: str | None = None
    proxy_url: str | None = None


class _EnvVar(msgspec.Struct):
    name: str
    value: str


class _Exec(msgspec.Struct, rename="camel", omit_defaults=True):
    command: str
    api_version: str
    args: list[str] | None = None
    env: list[_EnvVar] | None = None
    interactive_mode: str | None = None
    provide_cluster_info: bool | None = None


class _User(msgspec.Struct, rename="kebab", omit_defaults=True):
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    token: str | None = None
    token_file: str | None = msgspec.field(default=None, name="tokenFile")
    username: str | None = None
    password: str | None = None
    auth_provider: dict[str, Any] | None = None
    exec: _Exec | None = None
    impersonate: str | None = msgspec.field(default=None, name="as")
    impersonate_uid: str | None = msgspec.field(default=None, name="as-uid")
    impersonate_groups: list[str] | None = msgspec.field(default=None, name="as-groups")
    impersonate_extra: dict[str, Any] | None = msgspec.field(default=None, name="as-user-extra")


class _Context(msgspec.Struct):
    cluster: str
    user: str | None = None


class _NamedCluster(msgspec.Struct):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct):
    name: str
    user: _User | None = None


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context


class _Config(msgspec.Struct, rename="kebab"):
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None
    current_context: str | None = None


_Named = TypeVar("_Named", _NamedCluster, _NamedUser, _NamedContext)


@dataclass(frozen=True, slots=True)
class Selected:
    """One context of a kubeconfig, ready for kubernetes-asyncio."""

    document: dict[str, Any]
    """A kubeconfig with this context, its cluster and its user alone; paths of files are absolute."""
    files: tuple[str, ...]
    """Every file it depends on, the kubeconfig's own included."""
    uses_exec: bool
    """Whether the credentials come from an exec plugin, which is not to be run more often than they expire."""


def select(documents: Sequence[tuple[str, object]], context: str | None) -> Selected:
    """Merge the parsed kubeconfig `documents`, (file, content), and pick `context`, or the current one.

    The first file that names something wins, as with kubectl. Raises `ConfigError` with every problem found.
    """
    configs: list[tuple[str, _Config]] = []
    problems: list[Problem] = []
    for file, content in documents:
        try:
            configs.append((file, msgspec.convert({} if content is None else content, _Config)))
        except msgspec.ValidationError as exc:
            message, _, path = str(exc).partition(" - at `$.")
            problems.append(Problem(message, file, path=path.rstrip("`")))
    if problems:
        raise ConfigError(problems)
    files = [file for file, _ in configs]
    place = ":".join(files)
    chosen = context or next((c.current_context for _, c in configs if c.current_context), None)
    if not chosen:
        raise ConfigError([Problem("no context is given, and none is current", place, path="current-context")])
    _, named_context = _find([(f, c.contexts) for f, c in configs], chosen, "contexts", place)
    cluster_name, user_name = named_context.context.cluster, named_context.context.user
    cluster_file, named_cluster = _find([(f, c.clusters) for f, c in configs], cluster_name, "clusters", place)
    cluster, user, user_file = named_cluster.cluster, _User(), place
    if user_name:
        user_file, named_user = _find([(f, c.users) for f, c in configs], user_name, "users", place)
        user = named_user.user or user
    problems = [
        *(
            Problem(text, cluster_file, path=f"clusters[{cluster_name}].{key}")
            for key, text in _cluster_faults(cluster)
        ),
        *(Problem(text, user_file, path=f"users[{user_name}].{key}") for key, text in _user_faults(user)),
    ]
    if problems:
        raise ConfigError(problems)
    files += _absolute(cluster, ("certificate_authority",), cluster_file)
    files += _absolute(user, ("client_certificate", "client_key", "token_file"), user_file)
    if user.token_file:
        # client-go: the file's content takes precedence. kubernetes-asyncio has it the other way round.
        user.token = None
    if user.exec is not None and "/" in user.exec.command:
        user.exec.command = str(PurePath(user_file).parent / user.exec.command)
    document = {
        "current-context": chosen,
        "contexts": [{"name": chosen, "context": {"cluster": cluster_name, "user": "user"}}],
        "clusters": [{"name": cluster_name, "cluster": msgspec.to_builtins(cluster)}],
        "users": [{"name": "user", "user": msgspec.to_builtins(user)}],
    }
    return Selected(document, tuple(files), user.exec is not None)


def _find(places: Sequence[tuple[str, list[_Named] | None]], name: str, key: str, place: str) -> tuple[str, _Named]:
    """The entry called `name` and the file it stands in."""
    for file, entries in places:
        for entry in entries or ():
            if entry.name == name:
                return file, entry
    raise ConfigError([Problem(f"there is no entry named {name!r}", place, path=key)])


def _cluster_faults(cluster: _Cluster) -> Iterator[tuple[str, str]]:
    if not cluster.server.startswith(("https://", "http://")):
        yield "server", f"not an http or https URL: {cluster.server!r}"
    if cluster.proxy_url and not cluster.proxy_url.startswith(("https://", "http://")):
        yield "proxy-url", f"only http and https proxies are supported, not {cluster.proxy_url!r}"


def _user_faults(user: _User) -> Iterator[tuple[str, str]]:
    for key, value in (("username", user.username), ("password", user.password)):
        if value is not None:
            yield key, "basic authentication was removed from Kubernetes in 1.19; use a token or a client certificate"
    if user.auth_provider is not None:
        name = str(user.auth_provider.get("name", ""))
        yield "auth-provider", f"auth provider {name!r}: removed from Kubernetes in 1.26; use an exec plugin"
    for key, given in (
        ("as", user.impersonate),
        ("as-uid", user.impersonate_uid),
        ("as-groups", user.impersonate_groups),
        ("as-user-extra", user.impersonate_extra),
    ):
        if given:
            yield key, "impersonation is not supported; give the agent credentials of its own"
    certificate = user.client_certificate or user.client_certificate_data
    key_given = user.client_key or user.client_key_data
    if certificate and not key_given:
        yield "client-key", "a client certificate needs its key"
    if key_given and not certificate:
        yield "client-certificate", "a client key needs its certificate"
    if user.exec is not None:
        yield from _exec_faults(user.exec)


def _exec_faults(plugin: _Exec) -> Iterator[tuple[str, str]]:
    if plugin.api_version not in EXEC_VERSIONS:
        yield "exec.apiVersion", f"{plugin.api_version!r} is not one of {', '.join(EXEC_VERSIONS)}"
    if plugin.interactive_mode == "Always":
        yield "exec.interactiveMode", "the agent has no terminal for a plugin that always needs one"
    if plugin.provide_cluster_info:
        yield "exec.provideClusterInfo", "plugins that ask for cluster information are not supported"


def _absolute(entry: _Cluster | _User, fields: Sequence[str], file: str) -> list[str]:
    """Make the paths in `fields` absolute: they are relative to the file they stand in. Returns them."""
    paths: list[str] = []
    for name in fields:
        if (value := getattr(entry, name)) and not getattr(entry, f"{name}_data", None):
            paths.append(str(PurePath(file).parent / value))
            setattr(entry, name, paths[-1])
    return paths
