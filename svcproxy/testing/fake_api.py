# SPDX-License-Identifier: Apache-2.0
"""A small API server that behaves, and misbehaves when told to.

`FakeCluster` is the etcd: objects with their history under one counter of resource versions. Any number of
`FakeApiServer`s serve it over real sockets with LIST (paged, consistent or not older than), WATCH (bookmarks, 410 after
compaction) and POST of Events. Each can lag behind the cluster, fall silent, and be given faults: the next request that
a fault fits gets it instead of an answer.
"""

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

JsonObject = dict[str, Any]

PATHS = {
    "/api/v1/services": "Service",
    "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSlice",
    "/api/v1/namespaces": "Namespace",
    "/api/v1/pods": "Pod",
    "/api/v1/nodes": "Node",
    "/apis/networking.k8s.io/v1/servicecidrs": "ServiceCIDR",
}


def status_body(code: int, reason: str, message: str, *, causes: tuple[str, ...] = ()) -> JsonObject:
    """A meta/v1 Status."""
    details = {"causes": [{"reason": cause, "message": cause} for cause in causes]}
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message, "details": details}  # fmt: skip


GONE = status_body(410, "Expired", "too old resource version")


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history."""

    version: int
    type: str
    kind: str
    key: tuple[str, str]
    object: JsonObject


class FakeCluster:
    """Objects of all kinds and how they came to be."""

    def __init__(self, version: int = 100) -> None:
        self.version = version
        self.compacted = version
        """History up to here is gone."""
        self.history: list[Change] = []
        self.snapshots: dict[int, dict[str, list[JsonObject]]] = {}
        """Lists that continuations refer to, by version."""
        self._changed = asyncio.Event()

    def put(self, kind: str, name: str, namespace: str = "", **fields: Any) -> JsonObject:
        """Create or replace an object. `metadata=` adds to the metadata."""
        self.version += 1
        metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **fields.pop("metadata", {}),
                    "resourceVersion": str(self.version)}  # fmt: skip
        obj = {"metadata": metadata, **fields}
        existing = (namespace, name) in self.state(self.version)[kind]
        self._append(Change(self.version, "MODIFIED" if existing else "ADDED", kind, (namespace, name), obj))
        return obj

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Delete an object."""
        last = self.state(self.version)[kind][(namespace, name)]
        self.version += 1
        obj = {**last, "metadata": {**last["metadata"], "resourceVersion": str(self.version)}}
        self._append(Change(self.version, "DELETED", kind, (namespace, name), obj))

    def compact(self) -> None:
        """Forget the history: older watches and continuations expire."""
        self.compacted = self.version
        self.snapshots.clear()

    def restore(self, version: int) -> None:
        """Go back to an earlier version, as an etcd restored from a backup does."""
        self.history = [change for change in self.history if change.version <= version]
        self.version = version
        self.compacted = min(self.compacted, version)
        self.snapshots.clear()
        self._wake()

    def state(self, version: int) -> dict[str, dict[tuple[str, str], JsonObject]]:
        """The objects as of `version`, by kind and key."""
        objects: dict[str, dict[tuple[str, str], JsonObject]] = {kind: {} for kind in PATHS.values()}
        for change in self.history:
            if change.version > version:
                break
            if change.type == "DELETED":
                del objects[change.kind][change.key]
            else:
                objects[change.kind][change.key] = change.object
        return objects

    async def wait_for_change(self) -> None:
        """Returns when something has changed."""
        await self._changed.wait()

    def _append(self, change: Change) -> None:
        self.history.append(change)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(slots=True)
class Fault:
    """What to do instead of answering the next request that fits."""

    answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
    kind: str = ""
    """Only requests for this kind, empty for any."""
    verb: str = ""
    """`list`, `continue`, `watch` or `post`; empty for any."""


def refusal(
    code: int, body: JsonObject | str = "", headers: Mapping[str, str] | None = None
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answers with a status; a string body goes out as HTML."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        if isinstance(body, str):
            return web.Response(status=code, text=body, content_type="text/html", headers=headers)
        return web.json_response(body, status=code, headers=headers)

    return answer


def stream(
    *chunks: bytes, cut: bool = False, hang: bool = False
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answers a watch with `chunks`, then ends well, breaks the connection, or says nothing more."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if hang:
            await asyncio.Event().wait()
        if cut and request.transport is not None:
            request.transport.close()
        return response

    return answer


def line(kind: str, obj: JsonObject) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": kind, "object": obj}, separators=(",", ":")).encode() + b"\n"


@dataclass(slots=True)
class Seen:
    """A request that came."""

    verb: str
    kind: str
    query: dict[str, str]
    authorization: str = ""


@dataclass(slots=True)
class FakeApiServer:
    """One API server of a cluster. An async context manager; listens on a free port of 127.0.0.1."""

    cluster: FakeCluster
    tls: ssl.SSLContext | None = None
    lag: int | None = None
    """The version that this server has reached; None: it keeps up."""
    token: str = ""
    """The token it wants; empty admits everyone."""
    silent: bool = False
    """Watches are accepted and nothing is sent, bookmarks neither."""
    bookmark_interval: float = 0.05
    faults: deque[Fault] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    posted: list[JsonObject] = field(default_factory=list)
    url: str = ""
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the same port as before if it has listened before."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self.tls, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def fail(
        self,
        answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
        *,
        kind: str = "",
        verb: str = "",
        times: int = 1,
    ) -> None:
        """Give the next `times` fitting requests `answer`."""
        self.faults.extend(Fault(answer, kind, verb) for _ in range(times))

    def count(self, verb: str, kind: str = "") -> int:
        """Requests seen."""
        return sum(seen.verb == verb and kind in {"", seen.kind} for seen in self.seen)

    @property
    def version(self) -> int:
        """The version that this server knows."""
        return self.cluster.version if self.lag is None else min(self.lag, self.cluster.version)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/readyz":
            return web.Response(text="ok")
        kind = PATHS.get(request.path, "")
        query = dict(request.query)
        verb = "post" if request.method == "POST" else "list"
        if "watch" in query:
            verb = "watch"
        elif "continue" in query:
            verb = "continue"
        self.seen.append(Seen(verb, kind, query, request.headers.get("Authorization", "")))
        for fault in self.faults:
            if fault.kind in {"", kind} and fault.verb in {"", verb}:
                self.faults.remove(fault)
                return await fault.answer(request)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response(status_body(401, "Unauthorized", "Unauthorized"), status=401)
        if verb == "post":
            self.posted.append(await request.json())
            return web.json_response(self.posted[-1], status=201)
        if not kind:
            return web.json_response(status_body(404, "NotFound", "not found"), status=404)
        if verb == "watch":
            return await self._watch(request, kind, query)
        return self._list(kind, query)

    def _list(self, kind: str, query: Mapping[str, str]) -> web.Response:
        if token := query.get("continue"):
            version_text, _, start_text = token.partition(":")
            version, start = int(version_text), int(start_text)
            if version not in self.cluster.snapshots:
                return web.json_response(GONE, status=410)
        else:
            # A consistent read sees everything; a cached one what this server has got so far.
            consistent = not query.get("resourceVersion")
            version, start = (self.cluster.version if consistent else self.version), 0
            if not consistent and int(query["resourceVersion"]) > version:
                message = f"Too large resource version: {query['resourceVersion']}, current: {version}"
                body = status_body(504, "Timeout", message, causes=("ResourceVersionTooLarge",))
                return web.json_response(body, status=504)
            state = self.cluster.state(version)
            self.cluster.snapshots[version] = {name: [*objects.values()] for name, objects in state.items()}
        objects = [o for o in self.cluster.snapshots[version][kind] if _selected(o, query)]
        end = start + int(query.get("limit", "0")) if query.get("limit") else len(objects)
        metadata = {"resourceVersion": str(version)}
        if end < len(objects):
            metadata["continue"] = f"{version}:{end}"
        return web.json_response({"kind": f"{kind}List", "metadata": metadata, "items": objects[start:end]})

    async def _watch(self, request: web.Request, kind: str, query: Mapping[str, str]) -> web.StreamResponse:
        sent = int(query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if sent < self.cluster.compacted:
            await response.write(line("ERROR", GONE))
            return response
        deadline = asyncio.get_running_loop().time() + float(query.get("timeoutSeconds", "3600"))
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            reached = self.version
            for change in [c for c in self.cluster.history if sent < c.version <= reached and not self.silent]:
                if change.kind == kind and _selected(change.object, query):
                    await response.write(line(change.type, change.object))
            sent = sent if self.silent else max(sent, reached)
            if not self.silent:
                await response.write(line("BOOKMARK", {"metadata": {"resourceVersion": str(reached)}}))
            try:
                async with asyncio.timeout(min(self.bookmark_interval, left)):
                    await self.cluster.wait_for_change()
            except TimeoutError:
                continue
        return response


def _selected(obj: JsonObject, query: Mapping[str, str]) -> bool:
    selector = query.get("fieldSelector", "")
    return not selector or bool(selector == f"metadata.name={obj['metadata']['name']}")
