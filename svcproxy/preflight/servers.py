# SPDX-License-Identifier: Apache-2.0
"""The API servers of a configuration, asked with the agent's credentials. A shell."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from svcproxy.config import Config
from svcproxy.errors import ApiUnavailable
from svcproxy.kube.client import ApiClient
from svcproxy.kube.credentials import Authenticator, loader_for
from svcproxy.kube.resources import NotServed

SILENCE = 10.0
"""Seconds without an octet that end an answer."""
ANSWER_MAX = 4 << 20
"""Octets of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an API server said."""

    body: bytes
    date: str
    """The Date header; empty without."""
    server: str
    before: float
    """Unix seconds here when it was asked."""
    after: float


class Servers:
    """Asks one after the other until one answers, which is then asked first."""

    def __init__(self, client: ApiClient, urls: Sequence[str], *, through_service: bool) -> None:
        self.urls = tuple(urls)
        self.through_service = through_service
        """Whether the only address is that of the Service `default/kubernetes`."""
        self.silent: dict[str, str] = {}
        """Those that have not answered, and why."""
        self._client = client

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """The first answer. Raises as `ApiClient` does; `ApiUnavailable` when nobody answers."""
        for url in [each for each in self.urls if each not in self.silent]:
            before = time.time()
            try:
                octets, date = await self._client.exchange(url, method, path, body)
            except NotServed:
                raise
            except ApiUnavailable as exc:
                self.silent[url] = str(exc)
            else:
                return Answer(octets, date, url, before, time.time())
        raise ApiUnavailable("; ".join(self.silent.values()))

    async def probe(self) -> None:
        """Find out who else does not answer."""
        for url in [each for each in self.urls if each not in self.silent]:
            try:
                await self._client.probe(url)
            except ApiUnavailable as exc:
                self.silent[url] = str(exc)


@asynccontextmanager
async def servers(config: Config) -> AsyncIterator[Servers]:
    """Those that the configuration or the credentials name. Raises `ConfigError`, `ApiUnavailable`."""
    authenticator = Authenticator(loader_for(config.kube), time.monotonic)
    client = ApiClient(authenticator, silence_timeout=SILENCE, body_limit=ANSWER_MAX)
    try:
        credentials = await authenticator.current()
        urls = config.kube.api_servers or ((credentials.server,) if credentials.server else ())
        if not urls:
            raise ApiUnavailable("the credentials name no API server")
        in_cluster = credentials.in_cluster and not config.kube.api_servers
        yield Servers(client, urls, through_service=in_cluster)
    finally:
        await client.close()
