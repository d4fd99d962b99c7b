# SPDX-License-Identifier: Apache-2.0
"""Requests to API servers over aiohttp: one session per server, bounded bodies, one error per reaction.

Nothing is decided here. A failure of the network, of TLS or of HTTP becomes `ApiUnavailable` with the cause in words;
401, 403, 410 and "I know less than you" become their own errors. Redirects are never followed, so that a token goes
nowhere but to the server it was meant for.
"""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp

from svcproxy.errors import ApiForbidden, ApiGone, ApiUnauthorized, ApiUnavailable
from svcproxy.kube.credentials import Authenticator, Credentials
from svcproxy.kube.decoding import Status, decode_status
from svcproxy.kube.resources import NotServed, ServerBehind

CONNECT_TIMEOUT = 5.0
"""Time to reach a server, TLS included."""
LIST_TIMEOUT = 120.0
"""Time for one page of a list, first to last octet."""
SHORT_TIMEOUT = 10.0
"""Time for a probe, and for posting an Event."""
READ_BUFFER = 1 << 18
"""Octets read ahead of one response."""
CHUNK_LIMIT = 1 << 20
"""Octets of a watch decoded before others on the loop have their turn."""
STATUS_LIMIT = 1 << 16
"""Octets read of a refusal."""
SESSIONS_MAX = 80
"""Sessions at once; when the servers change this often, the oldest is closed."""
USER_AGENT = "svcproxy"


class BodyTooLarge(ApiUnavailable):
    """An answer is larger than allowed. Reaction: ask for less at once."""


class WatchStream:
    """A running watch. An async context manager; `read` until it returns nothing."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, silence: float) -> None:
        self._response = response
        self._url = url
        self._silence = silence

    async def read(self) -> bytes:
        """Some octets, b"" at the end. Raises `ApiUnavailable` when the connection breaks or falls silent."""
        try:
            return await self._response.content.read(CHUNK_LIMIT)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise _unavailable(self._url, exc, self._silence) from exc

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


class ApiClient:
    """Speaks to any number of API servers with the same credentials."""

    def __init__(self, authenticator: Authenticator, *, silence_timeout: float, body_limit: int) -> None:
        """`silence_timeout`: seconds without an octet that end a response; `body_limit`: octets of one page."""
        self._authenticator = authenticator
        self._silence = silence_timeout
        self._body_limit = body_limit
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def page(self, server: str, path: str, query: Mapping[str, str]) -> bytes:
        """The body of a LIST, decompressed. Raises `BodyTooLarge` and what the module says."""
        credentials = await self._authenticator.current()
        timeout = aiohttp.ClientTimeout(
            total=LIST_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=min(self._silence, LIST_TIMEOUT)
        )
        try:
            async with await self._request(server, "GET", path, query, credentials, timeout) as response:
                await _check(response, query)
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > self._body_limit:
                        raise BodyTooLarge(f"{server}{path}: a page is larger than {self._body_limit} octets")
                return bytes(body)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise _unavailable(server + path, exc, self._silence) from exc

    async def watch(self, server: str, path: str, query: Mapping[str, str], lifetime: float) -> WatchStream:
        """Start a watch, cut here after `lifetime` seconds if the server does not end it."""
        credentials = await self._authenticator.current()
        timeout = aiohttp.ClientTimeout(total=lifetime, sock_connect=CONNECT_TIMEOUT, sock_read=self._silence)
        try:
            # Events are small and urgent: compression would only hold them back.
            response = await self._request(
                server, "GET", path, query, credentials, timeout, {"Accept-Encoding": "identity"}
            )
            try:
                await _check(response, query)
            except BaseException:
                response.close()
                raise
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise _unavailable(server + path, exc, self._silence) from exc
        return WatchStream(response, server + path, self._silence)

    async def probe(self, server: str) -> None:
        """Returns if the server answers as one, whatever it thinks of us; raises `ApiUnavailable` if not."""
        credentials = await self._authenticator.current()
        timeout = aiohttp.ClientTimeout(total=SHORT_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        try:
            async with await self._request(server, "GET", "/readyz", {}, credentials, timeout) as response:
                if response.status >= 500:
                    raise ApiUnavailable(f"{server}/readyz: status {response.status}")
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise _unavailable(server, exc, SHORT_TIMEOUT) from exc

    async def create(self, server: str, path: str, body: bytes) -> None:
        """POST a JSON object. Raises what the module says."""
        credentials = await self._authenticator.current()
        timeout = aiohttp.ClientTimeout(total=SHORT_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        headers = {"Content-Type": "application/json"}
        try:
            async with await self._request(server, "POST", path, {}, credentials, timeout, headers, body) as response:
                if response.status not in {200, 201, 202}:
                    await _refuse(response, {})
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise _unavailable(server + path, exc, SHORT_TIMEOUT) from exc

    async def exchange(self, server: str, method: str, path: str, body: bytes | None = None) -> tuple[bytes, str]:
        """One short request: the body of the answer, and its Date header ("" without). Raises what the module says."""
        credentials = await self._authenticator.current()
        timeout = aiohttp.ClientTimeout(total=SHORT_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with await self._request(server, method, path, {}, credentials, timeout, headers, body) as response:
                if response.status not in {200, 201}:
                    await _refuse(response, {})
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > self._body_limit:
                        raise BodyTooLarge(f"{server}{path}: an answer is larger than {self._body_limit} octets")
                return bytes(answer), response.headers.get("Date", "")
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise _unavailable(server + path, exc, SHORT_TIMEOUT) from exc

    async def close(self) -> None:
        """End every request and close all connections."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def _request(
        self,
        server: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        credentials: Credentials,
        timeout: aiohttp.ClientTimeout,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> aiohttp.ClientResponse:
        session = await self._session(server)
        sent = {"Accept": "application/json", "User-Agent": USER_AGENT, **(headers or {})}
        if credentials.authorization is not None:
            sent["Authorization"] = credentials.authorization
        return await session.request(
            method,
            server + path,
            params=query,
            headers=sent,
            data=body,
            timeout=timeout,
            ssl=credentials.tls,
            server_hostname=credentials.tls_server_name if server.startswith("https:") else None,
            proxy=credentials.proxy,
            allow_redirects=False,
        )

    async def _session(self, server: str) -> aiohttp.ClientSession:
        session = self._sessions.get(server)
        if session is None:
            if len(self._sessions) >= SESSIONS_MAX:
                await self._sessions.pop(next(iter(self._sessions))).close()
            session = self._sessions[server] = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=READ_BUFFER
            )
        return session


async def _check(response: aiohttp.ClientResponse, query: Mapping[str, str]) -> None:
    """Raise unless the response is a success in JSON."""
    if response.status != 200:
        await _refuse(response, query)
    if response.content_type != "application/json":
        raise ApiUnavailable(f"{response.url.origin()}: {response.content_type} instead of JSON")


async def _refuse(response: aiohttp.ClientResponse, query: Mapping[str, str]) -> None:
    """Raise what a status other than success asks for."""
    body = bytearray()
    while len(body) < STATUS_LIMIT and (chunk := await response.content.read(STATUS_LIMIT)):
        body += chunk
    status = decode_status(bytes(body))
    place = f"{response.method} {response.url.path} on {response.url.origin()}"
    text = f"{place}: {response.status} {status.message or response.reason or ''}".rstrip()
    raise_for(response.status, status, text, query, _retry_after(response.headers.get("Retry-After", "")))


def raise_for(code: int, status: Status, text: str, query: Mapping[str, str], retry_after: float | None = None) -> None:
    """Raise the error for a refusal of `query` with HTTP status `code`, or of a watch by an ERROR event."""
    match code:
        case 401:
            raise ApiUnauthorized(text)
        case 403:
            raise ApiForbidden(text)
        case 404:
            raise NotServed(text, retry_after=retry_after)
        case 410:
            raise ApiGone(text)
        case 400 if "continue" in query:
            # A token of another server version, or one damaged on the way: as good as expired.
            raise ApiGone(text)
        case 504 if status.too_large:
            raise ServerBehind(text, retry_after=retry_after)
        case _:
            raise ApiUnavailable(text, retry_after=retry_after)


def _retry_after(value: str) -> float | None:
    """Seconds (RFC 9110 §10.2.3); API servers send no dates."""
    return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


def _unavailable(url: str, exc: Exception, silence: float) -> ApiUnavailable:
    if isinstance(exc, aiohttp.ServerTimeoutError) and not isinstance(exc, aiohttp.ConnectionTimeoutError):
        return ApiUnavailable(f"{url}: silent for {silence:g} s")
    if isinstance(exc, asyncio.TimeoutError):
        return ApiUnavailable(f"{url}: timed out")
    return ApiUnavailable(f"{url}: {str(exc) or type(exc).__name__}")
