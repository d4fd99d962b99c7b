# SPDX-License-Identifier: Apache-2.0
"""Where objects come from: API servers or files. Chosen here, so that file mode never loads kubernetes-asyncio."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from svcproxy.config import Config, PodNames
from svcproxy.kube.notes import Note
from svcproxy.kube.source import Source
from svcproxy.model import EndpointSlice, Namespace, Node, Pod, Service, ServiceCIDR
from svcproxy.process.state import StateSnapshot


class ClusterSource(Source, Protocol):
    """What the source of a cluster offers besides objects."""

    def versions(self) -> Mapping[str, str]:
        """By kind, the newest resource version delivered."""
        ...

    def endpoints(self) -> Sequence[str]:
        """URLs of the API servers known."""
        ...

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counters by kind."""
        ...

    def post_event(self, note: Note) -> bool:
        """Have a Kubernetes Event created."""
        ...


def manifest_source(config: Config) -> Source:
    """The source of `kube.manifests`."""
    source: Source = importlib.import_module("svcproxy.kube.manifests").ManifestSource(config.kube.manifests)
    return source


def cluster_source(config: Config, node_name: str, snapshot: StateSnapshot | None) -> ClusterSource:
    """The source of a cluster, going on from what a snapshot knows. Raises `ConfigError`."""
    source: ClusterSource = importlib.import_module("svcproxy.kube.api_source").ApiSource(
        config.kube,
        node_name,
        known=known_objects(snapshot) if snapshot else None,
        versions=dict(snapshot.versions) if snapshot else None,
        remembered=snapshot.servers if snapshot else (),
        pods=Pod in named_kinds(config),
        node_pods=config.dns.query_log.pods,
    )
    return source


def named_kinds(config: Config) -> frozenset[type]:
    """The kinds that names are made of: all of them have to be known before absence means something."""
    kinds: frozenset[type] = frozenset({Service, EndpointSlice, Namespace})
    return kinds | {Pod} if config.dns.pods is PodNames.VERIFIED else kinds


def known_objects(snapshot: StateSnapshot) -> dict[type, tuple[Any, ...]]:
    """The objects of a snapshot by kind, in the order in which they are best taken in."""
    return {
        Namespace: snapshot.namespaces,
        Node: snapshot.nodes,
        ServiceCIDR: snapshot.service_cidrs,
        EndpointSlice: snapshot.slices,
        Service: snapshot.services,
        Pod: snapshot.pods,
    }
