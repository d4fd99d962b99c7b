# SPDX-License-Identifier: Apache-2.0
"""What a DNS worker answers about itself on its own socket: `/v1/status`, and `/v1/resolve`, which explains a name."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from svcproxy import __version__, api
from svcproxy.admin.api import Handler, parameters, reply
from svcproxy.config import DnsConfig
from svcproxy.feed.subscriber import FeedState
from svcproxy_dns.query_log import TYPES
from svcproxy_dns.upstreams import Upstream
from svcproxy_dns.worker import DnsWorker

_TYPE_MAX = 65535
_NUMBERS = {name: number for number, name in TYPES.items()}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the role knows beyond its worker."""

    name: str
    instance: str
    config: Callable[[], DnsConfig]
    readiness: Callable[[], api.Readiness]
    feed: Callable[[], FeedState]
    feed_error: Callable[[], str]
    listen: Callable[[], Iterable[str]]
    config_errors: Callable[[], tuple[str, ...]]


class DnsStatusApi:
    """The handlers, over one worker's state."""

    def __init__(self, worker: DnsWorker, about: Surroundings) -> None:
        self._worker = worker
        self._about = about
        self._started = time.monotonic()

    def routes(self) -> Mapping[str, Handler]:
        """Handlers by path."""
        return {"/v1/status": self._status, "/v1/resolve": self._resolve}

    async def _status(self, request: web.Request) -> web.Response:
        parameters(request)
        about, now = self._about, self._worker.statistics()
        feed = about.feed()
        answered = dict[str, int]()
        tallies = [(rcode, tally) for (_, rcode), tally in now.responses.items()]
        if now.forward is not None:
            tallies += [(rcode, tally) for (_, rcode, _), tally in now.forward.responses.items()]
        for rcode, tally in tallies:
            answered[rcode] = answered.get(rcode, 0) + sum(tally)
        forward = now.forward
        return reply(
            api.DnsStatus(
                name=about.name,
                version=__version__,
                instance=about.instance,
                pid=os.getpid(),
                uptime=time.monotonic() - self._started,
                readiness=about.readiness(),
                listen=tuple(sorted(about.listen())),
                zones=about.config().zones,
                feed=feed.phase.value,
                feed_error=about.feed_error(),
                revision=feed.revision,
                namespaces=now.namespaces,
                services=now.services,
                endpoints=now.endpoints,
                queries=sum(answered.values()),
                failures=answered.get("SERVFAIL", 0),
                cached=sum(store.entries for store in forward.stores) if forward is not None else 0,
                upstreams=tuple(
                    api.DnsUpstream(each.address, each.suspect, each.looping, each.unanswered)
                    for each in (forward.upstreams if forward is not None else ())
                ),
                config_errors=about.config_errors(),
            )
        )

    async def _resolve(self, request: web.Request) -> web.Response:
        question = parameters(request, "name", "type")
        rrtype = question.get("type", "A").upper()
        name = question.get("name", "").lower().removesuffix(".")
        try:
            found = self._worker.explainer.explain(name, type_number(rrtype), time.monotonic())
        except ValueError as exc:
            raise web.HTTPBadRequest(text=str(exc)) from exc
        return reply(
            api.Explanation(
                worker=self._about.name,
                revision=self._about.feed().revision,
                name=f"{name}.",
                type=rrtype,
                origin=found.origin.value,
                rcode=found.rcode,
                steps=tuple(api.TraceStep(stage, text) for stage, text in found.steps),
                service=str(found.service) if found.service is not None else None,
                upstreams=tuple(map(_upstream, found.upstreams)),
            )
        )


def _upstream(each: Upstream) -> api.DnsUpstream:
    return api.DnsUpstream(each.address, each.suspect, each.looping, each.unanswered_total)


def type_number(text: str) -> int:
    """A record type by its name, or as `TYPE65` (RFC 3597 §5). Raises `ValueError`."""
    digits = text.removeprefix("TYPE")
    if text in _NUMBERS:
        return _NUMBERS[text]
    if digits != text and digits.isascii() and digits.isdigit() and int(digits) <= _TYPE_MAX:
        return int(digits)
    raise ValueError(f"{text!r} is not a record type")
