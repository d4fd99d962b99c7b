# SPDX-License-Identifier: Apache-2.0
"""Single short requests, as `svcproxy preflight` makes them."""

import json
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import pytest

from svcproxy.errors import ApiUnavailable
from svcproxy.kube.client import ApiClient, BodyTooLarge
from svcproxy.kube.credentials import AnonymousLoader, Authenticator
from svcproxy.kube.resources import NotServed
from svcproxy.testing.fake_api import FakeApiServer

LIMIT = 1 << 20


@pytest.fixture
async def client() -> AsyncIterator[ApiClient]:
    made = ApiClient(Authenticator(AnonymousLoader(), time.monotonic), silence_timeout=10.0, body_limit=LIMIT)
    yield made
    await made.close()


async def test_the_answer_comes_with_its_date(server: FakeApiServer, client: ApiClient) -> None:
    body, date = await client.exchange(server.url, "GET", "/api/v1/namespaces")
    assert json.loads(body)["items"]
    assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 3600


async def test_what_is_not_there(server: FakeApiServer, client: ApiClient) -> None:
    with pytest.raises(NotServed):
        await client.exchange(server.url, "GET", "/apis/nothing")


async def test_an_answer_has_a_bound(server: FakeApiServer) -> None:
    client = ApiClient(Authenticator(AnonymousLoader(), time.monotonic), silence_timeout=10.0, body_limit=10)
    with pytest.raises(BodyTooLarge, match="an answer is larger than 10 octets"):
        await client.exchange(server.url, "GET", "/api/v1/namespaces")
    await client.close()


async def test_nobody_there(client: ApiClient) -> None:
    with pytest.raises(ApiUnavailable, match=r"127\.0\.0\.1:1"):
        await client.exchange("http://127.0.0.1:1", "GET", "/api")
