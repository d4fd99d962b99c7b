# SPDX-License-Identifier: Apache-2.0
"""The cluster as a source of objects: Services, EndpointSlices, Namespaces and the agent's own Node.

The kinds are followed side by side. Beside them run the prober, which finds out when a better API server is back, and
the poster of Kubernetes Events. The servers behind `default/kubernetes` are found in the slices as they pass by.
"""

import asyncio
import logging
import os
import random as random_module
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from svcproxy.config import KubeConfig
from svcproxy.errors import ApiForbidden, ApiGone, ApiUnauthorized, ApiUnavailable
from svcproxy.kube.client import ApiClient
from svcproxy.kube.credentials import SERVICE_ACCOUNT, Authenticator, Credentials, loader_for
from svcproxy.kube.decoding import KindDecoder
from svcproxy.kube.follow import Follower, FollowStats
from svcproxy.kube.interning import Interner
from svcproxy.kube.notes import Note, NoteLimiter, event_body, event_path
from svcproxy.kube.reflector import Reflector
from svcproxy.kube.resources import resources
from svcproxy.kube.servers import Origin, Server, ServerSet, endpoint_urls
from svcproxy.kube.source import InvalidObject, KindStatus, ObjectSink
from svcproxy.model import Changes, EndpointSlice
from svcproxy.model.meta import API_SERVER

log = logging.getLogger(__name__)

BODY_PER_OBJECT = 4
"""A page may be this many times as large as one object may be; a larger one is asked for in smaller pages."""
PROBE_INTERVAL = 2.0
"""Seconds between two looks whether a server is due for a probe."""
NOTES_MAX = 64
"""Events waiting to be posted; further ones are dropped."""


class ApiSource:
    """A `Source`: follows API servers for ever."""

    def __init__(
        self,
        config: KubeConfig,
        node_name: str,
        known: Mapping[type, Iterable[Any]] | None = None,
        versions: Mapping[str, str] | None = None,
        remembered: Sequence[str] = (),
        *,
        pods: bool = False,
        node_pods: bool = False,
        environ: Mapping[str, str] = os.environ,
        service_account: Path = SERVICE_ACCOUNT,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        """`known`, `versions` and `remembered`: the objects, `versions()` and `endpoints()` of an earlier life.
        `pods`: whether all Pods are followed too. `node_pods`: whether those of the node are, if that is allowed.

        Raises `ConfigError` when the configuration or the kubeconfig cannot be used.
        """
        known, versions = known or {}, versions or {}
        self._node_name = node_name
        self._authenticator = Authenticator(loader_for(config, environ, service_account), time.monotonic)
        self._client = ApiClient(
            self._authenticator,
            silence_timeout=config.silence_timeout,
            body_limit=config.object_limit * BODY_PER_OBJECT,
        )
        self._servers = ServerSet(node_name, config.api_servers, remembered, random)
        self._random = random
        self._configured: Credentials | None = None
        self._chosen = ""
        interner = Interner()
        self._followers: dict[str, Follower[Any]] = {}
        for resource in resources(node_name, pods=pods, node_pods=node_pods):
            reflector: Reflector[Any] = Reflector(
                resource.kind,
                known=known.get(resource.kind, ()),
                version=versions.get(resource.name, ""),
                page_size=config.page_size,
            )
            self._followers[resource.name] = Follower(
                resource,
                reflector,
                KindDecoder(resource.kind, interner),
                self._client,
                self._authenticator,
                self._servers,
                self._choose,
                config,
                random,
            )
        self._notes: asyncio.Queue[Note] = asyncio.Queue(NOTES_MAX)
        self._limiter = NoteLimiter()
        self.notes_posted = 0
        """Events created."""
        self.notes_dropped = 0
        """Events not created: repeated, too many, or refused by the API server."""

    async def run(self, sink: ObjectSink) -> None:
        """Follow until cancelled."""
        finder = _ServerFinder(sink, self._servers, self._followers[EndpointSlice.__name__].reflector.held.values())
        try:
            async with asyncio.TaskGroup() as group:
                for name, follower in self._followers.items():
                    group.create_task(follower.run(finder), name=f"kube-follow-{name.lower()}")
                group.create_task(self._probe(), name="kube-probe")
                group.create_task(self._post(), name="kube-post-events")
        finally:
            await self._client.close()

    def status(self) -> Sequence[KindStatus]:
        """One entry per kind."""
        return [follower.status() for follower in self._followers.values()]

    def versions(self) -> Mapping[str, str]:
        """By kind, the newest resource version of what has been delivered: for the next life."""
        return {name: follower.reflector.floor for name, follower in self._followers.items()}

    def endpoints(self) -> tuple[str, ...]:
        """URLs of the API servers behind `default/kubernetes`, as last seen: for the next life."""
        return self._servers.endpoints()

    @property
    def stats(self) -> Mapping[str, FollowStats]:
        """Counters by kind."""
        return {name: follower.stats for name, follower in self._followers.items()}

    def post_event(self, note: Note) -> bool:
        """Have a Kubernetes Event created, some time later. Never blocks; returns whether it was accepted."""
        if self._notes.full() or not self._limiter.admit(note, time.monotonic()):
            self.notes_dropped += 1
            return False
        self._notes.put_nowait(note)
        return True

    async def _choose(self) -> Server:
        """The server to ask now. Raises `ApiUnavailable` while there is none."""
        credentials = await self._authenticator.current()
        if credentials is not self._configured:
            origin = Origin.IN_CLUSTER if credentials.in_cluster else Origin.KUBECONFIG
            self._servers.configured(credentials.server, origin, verified=credentials.verifies)
            self._configured = credentials
        server = self._servers.pick()
        if server is None:
            raise ApiUnavailable("the credentials name no API server, and none is given")
        if server.url != self._chosen:
            log.info("API server chosen", extra={"server": server.url, "origin": server.origin.name})
            if server.origin is Origin.IN_CLUSTER:
                log.warning("the API server is reached through a Service address", extra={"server": server.url})
            self._chosen = server.url
        return server

    async def _probe(self) -> None:
        """Find out when servers that failed, or were never tried, answer."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL * (0.5 + self._random()))
            due = self._servers.to_probe(time.monotonic()) if len(self._servers.urls()) > 1 else ()
            for url in due:
                try:
                    await self._client.probe(url)
                except ApiUnavailable as exc:
                    self._servers.failed(url, time.monotonic(), str(exc))
                else:
                    self._servers.answered(url, probe=True)

    async def _post(self) -> None:
        """Create the Events. One that cannot be created is dropped: nothing depends on it."""
        while True:
            note = await self._notes.get()
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = event_body(note, self._node_name, now, time.time_ns())
            try:
                server = await self._choose()
                await self._client.create(server.url, event_path(note), body)
            except (ApiUnavailable, ApiForbidden, ApiUnauthorized, ApiGone) as exc:
                self.notes_dropped += 1
                log.warning("a Kubernetes Event was not created", extra={"reason": note.reason, "cause": str(exc)})
            else:
                self.notes_posted += 1


class _ServerFinder:
    """An `ObjectSink` that passes everything on and looks for the slices of `default/kubernetes` on the way."""

    def __init__(self, sink: ObjectSink, servers: ServerSet, known: Iterable[EndpointSlice]) -> None:
        self._sink = sink
        self._servers = servers
        self._slices = {obj.key: obj for obj in known if obj.service == API_SERVER}
        servers.discovered(endpoint_urls(self._slices.values()))

    def changed(self, changes: Changes[Any], read_at: float) -> None:
        """See `ObjectSink`."""
        if changes.kind is EndpointSlice:
            self._look(changes)
        self._sink.changed(changes, read_at)

    def synced(self, kind: type) -> None:
        """See `ObjectSink`."""
        self._sink.synced(kind)

    def invalid(self, report: InvalidObject) -> None:
        """See `ObjectSink`."""
        self._sink.invalid(report)

    def _look(self, changes: Changes[EndpointSlice]) -> None:
        before = dict(self._slices)
        for obj in changes.applied:
            if obj.service == API_SERVER:
                self._slices[obj.key] = obj
            elif self._slices:
                self._slices.pop(obj.key, None)
        for key in changes.removed:
            self._slices.pop(key, None)
        if self._slices != before:
            self._servers.discovered(endpoint_urls(self._slices.values()))
