# SPDX-License-Identifier: Apache-2.0
"""The read-only status API under `/v1/`: routes, questions checked, big lists paged.

A question that makes no sense is answered with 400 and says why; what does not exist with 404. Answers are those of
`svcproxy.api` as JSON.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from svcproxy import api
from svcproxy.admin import views
from svcproxy.admin.metrics import AgentMetrics
from svcproxy.admin.paging import Page, page, steps
from svcproxy.admin.state import AgentState
from svcproxy.config import Config, DataplaneMode
from svcproxy.frontends.addresses import canonical
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.trace import InvalidAddress, trace
from svcproxy.model import NamespacedName, Service
from svcproxy.model.meta import API_SERVER, Protocol
from svcproxy.names.environment import service_environment

LIMIT_DEFAULT = 500
LIMIT_MAX = 5000
"""Items of one page."""
ENDPOINTS_PER_PAGE = 10_000
"""A page of `/v1/endpoints` ends early once it holds so many endpoints."""
PORT_MAX = 65535
PARAMETER_MAX = 512
"""Characters of one parameter."""
TABLE_KINDS = frozenset({"Service", "EndpointSlice"})
"""Without all of them the table is a part of itself."""
SOCKET_ONLY = frozenset({"/v1/ruleset"})
"""Takes seconds of work: not for whoever can connect to the TCP listener."""
RENDERED_PER_TURN = 50
"""Items rendered between two turns of the event loop."""

_USER_INFO = re.compile(r"(?<=://)[^/@]*@")

Handler = Callable[[web.Request], Awaitable[web.Response]]


class StatusApi:
    """The handlers, over one agent's state."""

    def __init__(self, state: AgentState, metrics: AgentMetrics) -> None:
        self._state = state
        self._metrics = metrics
        self._making_ruleset = asyncio.Lock()

    def routes(self) -> Mapping[str, Handler]:
        """Handlers by path."""
        return {
            "/v1/status": self._status,
            "/v1/services": self._services,
            "/v1/services/{namespace}/{name}": self._service,
            "/v1/endpoints": self._endpoints,
            "/v1/frontends": self._frontends,
            "/v1/trace": self._trace,
            "/v1/env": self._environment,
            "/v1/config": self._config,
            "/v1/ruleset": self._ruleset,
        }

    async def _status(self, request: web.Request) -> web.Response:
        parameters(request)
        counts = await self._metrics.refresh()
        return reply(views.status(self._state, self._state.clock(), counts))

    async def _services(self, request: web.Request) -> web.Response:
        found = await self._service_page(parameters(request, "namespace", "limit", "continue"))
        items = []
        now = self._state.clock()
        async for batch in steps(found.items, RENDERED_PER_TURN):
            for key in batch:
                if (service := self._state.store.services.get(key)) is not None:
                    items.append(views.service_summary(self._state, service, now))
        return reply(api.ServicePage(tuple(items), str(found.items[-1]) if found.more else ""))

    async def _service_page(self, question: Mapping[str, str]) -> Page[NamespacedName]:
        """The keys of one page of Services."""
        namespace = question.get("namespace")
        return await page(
            self._state.store.services,
            lambda key: key if namespace is None or key.namespace == namespace else None,
            after=_key("continue", question["continue"]) if "continue" in question else None,
            limit=_limit(question),
        )

    async def _service(self, request: web.Request) -> web.Response:
        parameters(request)
        key = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        service = self._state.store.services.get(key)
        if service is None:
            raise web.HTTPNotFound(text=f"no Service {key}")
        details = []
        async for frontends in steps(self._state.table.frontends.values()):
            details += [
                views.frontend_detail(self._state, each) for each in frontends if each.service_port.owner == key
            ]
        return reply(
            api.ServiceDetail(
                views.service_summary(self._state, service, self._state.clock()),
                tuple(sorted(details, key=lambda detail: detail.frontend)),
                views.endpoint_details(self._state, key),
            )
        )

    async def _endpoints(self, request: web.Request) -> web.Response:
        found = await self._service_page(parameters(request, "namespace", "limit", "continue"))
        items: list[api.EndpointsSummary] = []
        shown = 0
        async for (key,) in steps(found.items, 1):
            items.append(views.endpoints_summary(self._state, key))
            shown += len(items[-1].endpoints)
            if shown >= ENDPOINTS_PER_PAGE:
                break
        more = found.more or len(items) < len(found.items)
        return reply(api.EndpointsPage(tuple(items), str(found.items[len(items) - 1]) if more else ""))

    async def _frontends(self, request: web.Request) -> web.Response:
        question = parameters(request, "service", "limit", "continue")
        owner = _key("service", question["service"]) if "service" in question else None
        found = await page(
            self._state.table.frontends.values(),
            lambda each: str(each.key) if owner is None or each.service_port.owner == owner else None,
            after=question.get("continue"),
            limit=_limit(question),
        )
        details: list[api.FrontendDetail] = []
        async for batch in steps(found.items, RENDERED_PER_TURN):
            details += [views.frontend_detail(self._state, each) for each in batch]
        return reply(api.FrontendPage(tuple(details), details[-1].frontend if found.more else ""))

    async def _trace(self, request: web.Request) -> web.Response:
        question = parameters(request, "address", "from")
        ip, protocol, port = _destination(question.get("address", ""))
        state = self._state
        pods = state.config.dataplane
        try:
            traced = trace(
                state.table,
                state.store,
                state.node or NodeView(state.node_name),
                ip,
                protocol,
                port,
                source=question.get("from"),
                pod_cidrs=state.pod_cidrs(),
                pod_interfaces=pods.pod_interfaces if state.dataplane_name == DataplaneMode.NFTABLES else (),
                conflicts=state.conflicts(),
                refused=state.refused(),
            )
        except InvalidAddress as exc:
            raise web.HTTPBadRequest(text=str(exc)) from exc
        answer = views.trace(traced)
        if state.inspect is not None:
            kernel = await state.inspect(canonical(ip) or ip, protocol, port, answer)
            answer = msgspec.structs.replace(answer, kernel=kernel)
        return reply(answer)

    async def _environment(self, request: web.Request) -> web.Response:
        """`service` may be repeated: only these. The API server's Service is looked for in its own namespace too."""
        question = parameters(request, "namespace", "service", repeated="service")
        namespace = question.get("namespace", "default")
        names = set(request.query.getall("service", ()))
        relevant: list[Service] = []
        async for batch in steps(self._state.store.services.items()):
            relevant += [
                service
                for key, service in batch
                if (key.namespace == namespace or key == API_SERVER) and (not names or key.name in names)
            ]
        if missing := names - {service.metadata.name for service in relevant}:
            raise web.HTTPNotFound(text=f"no Service {', '.join(f'{namespace}/{name}' for name in sorted(missing))}")
        variables = service_environment(relevant, namespace)
        return reply(api.Environment(namespace, tuple(api.Variable(*variable) for variable in variables)))

    async def _config(self, request: web.Request) -> web.Response:
        parameters(request)
        return reply(shown_config(self._state.config))

    async def _ruleset(self, request: web.Request) -> web.Response:
        """Made in a thread, one at a time, of a copy of the table.

        For 10 000 Services the copy holds the loop up for 5 ms, and for a second or two most turns take 5 ms longer.
        """
        parameters(request)
        state = self._state
        async with self._making_ruleset:
            waits_for = [each.kind for each in state.sources() if each.kind in TABLE_KINDS and not each.synced]
            if waits_for and not state.snapshot:
                raise web.HTTPServiceUnavailable(text=f"not known completely yet: {', '.join(waits_for)}")
            text = await asyncio.to_thread(state.ruleset())
        return web.Response(text=text)


def reply(answer: Any, status: int = 200) -> web.Response:
    """An answer as JSON."""
    return web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")


def shown_config(config: Config) -> Any:
    """The configuration as plain values, without user names and passwords that a URL may hold."""
    return _without_user_info(msgspec.to_builtins(config))


def _without_user_info(value: Any) -> Any:
    match value:
        case str():
            return _USER_INFO.sub("", value)
        case dict():
            return {key: _without_user_info(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_user_info(each) for each in value]
        case _:
            return value


def parameters(request: web.Request, *known: str, repeated: str = "") -> dict[str, str]:
    """The parameters of the question: none unknown, none twice but the one that may be `repeated`."""
    question = dict(request.query)
    for name, value in request.query.items():
        if name != repeated and len(request.query.getall(name)) > 1:
            raise web.HTTPBadRequest(text=f"parameter {name!r} is given twice")
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise web.HTTPBadRequest(text=f"unknown parameter {name!r}; {takes}")
        if len(value) > PARAMETER_MAX:
            raise web.HTTPBadRequest(text=f"parameter {name!r} is longer than {PARAMETER_MAX} characters")
    return question


def _limit(question: Mapping[str, str]) -> int:
    text = question.get("limit", str(LIMIT_DEFAULT))
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= LIMIT_MAX:
        raise web.HTTPBadRequest(text=f"limit: {text!r} is not a number from 1 to {LIMIT_MAX}")
    return int(text)


def _destination(text: str) -> tuple[str, Protocol, int]:
    """ADDRESS:PORT[/PROTO]."""
    address, slash, protocol = text.partition("/")
    host, _, port = address.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        host = ""
    if not host or not (port.isascii() and port.isdigit()) or int(port) > PORT_MAX:
        raise web.HTTPBadRequest(text=f"address: {text!r} is not ADDRESS:PORT[/PROTO], IPv6 in brackets")
    try:
        return host.strip("[]"), Protocol(protocol.upper() if slash else "TCP"), int(port)
    except ValueError:
        raise web.HTTPBadRequest(text=f"address: {protocol!r} is none of {', '.join(Protocol)}") from None


def _key(parameter: str, text: str) -> NamespacedName:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise web.HTTPBadRequest(text=f"{parameter}: {text!r} is not NAMESPACE/NAME")
    return NamespacedName(namespace, name)
