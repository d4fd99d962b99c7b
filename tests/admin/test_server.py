# SPDX-License-Identifier: Apache-2.0
"""The doors of an agent, on real sockets: what they answer, and what they refuse."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from svcproxy import api
from svcproxy.admin import server
from svcproxy.admin.metrics import AgentMetrics
from svcproxy.admin.server import AdminServer, host_allowed
from svcproxy.admin.state import AgentState
from svcproxy.admin.worker import WorkerAnswers, WorkerServer
from svcproxy.config import AdminConfig, Config, DataplaneConfig, DetectLocalMode, KubeConfig
from svcproxy.model import Changes, NamespacedName, Service
from svcproxy.testing.admin import FakeSource, example_state


@pytest.fixture
def state() -> AgentState:
    return example_state()


@pytest.fixture
async def client(state: AgentState, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    path = tmp_path / "admin.sock"
    async with AdminServer(state, AgentMetrics(state)).serve_socket(path), over(path) as session:
        yield session


def over(path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(path)))


async def until(condition: Callable[[], bool]) -> None:
    """Let the others run until something that they do has happened."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0.001)


async def get(client: aiohttp.ClientSession, path: str) -> Any:
    async with client.get(path) as response:
        body = await response.json()
        assert response.status == 200, body
        return body


async def test_status_is_what_its_type_says(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/status") as response:
        status = msgspec.json.decode(await response.read(), type=api.Status)
    assert status.readiness == api.Readiness(ready=True, stale=False, waiting=False)
    assert status.uptime == 65.5
    assert status.counts == api.Counts(
        services=4, endpoint_slices=2, namespaces=1, frontends=5, backends=3, health_checks=1
    )
    assert status.workers == (api.Worker("dns-0", 15, 2, 1.0),)
    assert status.refused == (
        api.RefusedFrontend("198.51.100.7:443/TCP", "shop/edge", "the address is not this node's"),
    )
    assert [each.contact_age for each in status.sources] == [3.0, 3.0, 3.0]
    assert status.invalid[0].name == "shop/odd"


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        pytest.param("/nothing", 404, "nothing at /nothing", id="unknown path"),
        pytest.param("/v1/services/shop/none", 404, "no Service shop/none", id="unknown Service"),
        pytest.param("/v1/status?verbose=1", 400, "unknown parameter 'verbose'; it takes none", id="unknown parameter"),
        pytest.param("/v1/services?limit=0", 400, "limit: '0' is not a number from 1 to 5000", id="limit too small"),
        pytest.param(
            "/v1/services?limit=5001", 400, "limit: '5001' is not a number from 1 to 5000", id="limit too big"
        ),
        pytest.param("/v1/services?limit=1&limit=2", 400, "parameter 'limit' is given twice", id="twice"),
        pytest.param("/v1/services?continue=a", 400, "continue: 'a' is not NAMESPACE/NAME", id="bad continue"),
        pytest.param(
            "/v1/services?continue=a/", 400, "continue: 'a/' is not NAMESPACE/NAME", id="continue without name"
        ),
        pytest.param(
            f"/v1/services?namespace={'x' * 513}", 400, "parameter 'namespace' is longer than 512 characters", id="long"
        ),
        pytest.param(
            "/v1/trace", 400, "address: '' is not ADDRESS:PORT[/PROTO], IPv6 in brackets", id="trace without address"
        ),
        pytest.param(
            "/v1/trace?address=::1:80",
            400,
            "address: '::1:80' is not ADDRESS:PORT[/PROTO], IPv6 in brackets",
            id="trace to IPv6 without brackets",
        ),
        pytest.param(
            "/v1/trace?address=10.0.0.1:80/ICMP", 400, "address: 'ICMP' is none of TCP, UDP, SCTP", id="trace of ICMP"
        ),
        pytest.param("/v1/trace?address=web:80", 400, "not an IP address: 'web'", id="trace to a name"),
        pytest.param("/v1/env?namespace=shop&service=nope", 404, "no Service shop/nope", id="env of nothing"),
    ],
)
async def test_refusals_say_why(client: aiohttp.ClientSession, path: str, status: int, message: str) -> None:
    async with client.get(path) as response:
        assert response.status == status
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert msgspec.json.decode(await response.read(), type=api.Failure) == api.Failure(status, message)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/status", "/livez", "/nothing"])
async def test_everything_is_read_only(client: aiohttp.ClientSession, method: str, path: str) -> None:
    async with client.request(method, path, data=b"x" * 100_000) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


async def test_the_ruleset_is_text(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/ruleset") as response:
        assert (response.status, response.content_type) == (200, "text/plain")
        assert (await response.text()).startswith("#!/usr/sbin/nft -f\n")


@pytest.mark.parametrize(("snapshot", "status"), [(False, 503), (True, 200)], ids=["partial", "saved state"])
async def test_a_ruleset_is_made_of_all_or_nothing(
    client: aiohttp.ClientSession, state: AgentState, snapshot: bool, status: int
) -> None:
    state.sources = lambda: [FakeSource("Service"), FakeSource("EndpointSlice", synced=False)]
    state.snapshot = snapshot
    async with client.get("/v1/ruleset") as response:
        assert response.status == status
        assert ("not known completely yet: EndpointSlice" in await response.text()) is (status == 503)


async def test_head_is_get_without_a_body(client: aiohttp.ClientSession) -> None:
    async with client.head("/v1/services") as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_pages_lead_to_each_other(client: aiohttp.ClientSession) -> None:
    names, following = [], ""
    for _ in range(4):
        page = await get(client, "/v1/services?limit=1" + (f"&continue={following}" if following else ""))
        names += [f"{item['namespace']}/{item['name']}" for item in page["items"]]
        following = page["continue"]
    assert names == ["default/docs", "shop/edge", "shop/web", "shop/web-metrics"]
    assert following == ""


async def test_services_as_kubectl_shows_them(client: aiohttp.ClientSession) -> None:
    page = await get(client, "/v1/services")
    rows = {each["name"]: each for each in page["items"]}
    assert rows["web"]["ports"] == ["80:30080/TCP"]
    assert (rows["web"]["ready"], rows["web"]["endpoints"], rows["web"]["age"]) == (2, 3, 8065.5)
    assert rows["docs"]["external"] == ["docs.example.org"]
    assert rows["docs"]["age"] is None
    assert rows["edge"]["external"] == ["198.51.100.7"]
    assert rows["edge"]["clusterIPs"] == ["10.96.0.20"]
    assert rows["web-metrics"]["clusterIPs"] == ["None"]


async def test_one_service_with_frontends_and_endpoints(client: aiohttp.ClientSession) -> None:
    detail = await get(client, "/v1/services/shop/edge")
    by_frontend = {each["frontend"]: each for each in detail["frontends"]}
    vip = by_frontend["198.51.100.7:443/TCP"]
    assert (vip["policy"], vip["backends"], vip["whenEmpty"]) == ("Local", [], "drop")
    assert vip["refused"] == "the address is not this node's"
    assert by_frontend["10.96.0.20:443/TCP"]["backends"] == ["10.244.2.9:8443"]
    assert [each["address"] for each in detail["endpoints"]] == ["10.244.2.9"]


async def test_endpoints_carry_their_conditions(client: aiohttp.ClientSession) -> None:
    page = await get(client, "/v1/endpoints?namespace=shop")
    web = next(item for item in page["items"] if item["name"] == "web")
    assert web["endpointsCount"] == 3
    conditions = [(each["ready"], each["serving"], each["terminating"]) for each in web["endpoints"]]
    assert conditions == [(True, True, False), (True, True, False), (False, False, True)]
    assert web["endpoints"][0] == {
        "address": "10.244.1.5",
        "ports": ["http:8080/TCP"],
        "ready": True,
        "serving": True,
        "terminating": False,
        "node": "n1",
        "zones": ["z1"],
        "pod": "web-a",
        "slice": "web-1",
    }


async def test_frontends_of_one_service_in_pages(client: aiohttp.ClientSession) -> None:
    first = await get(client, "/v1/frontends?service=shop/web&limit=1")
    second = await get(client, f"/v1/frontends?service=shop/web&limit=1&continue={first['continue']}")
    shown = [each["frontend"] for page in (first, second) for each in page["items"]]
    assert shown == ["10.96.0.10:80/TCP", "IPv4 node-port:30080/TCP"]
    assert second["continue"] == ""
    assert first["items"][0]["affinityTimeout"] == 600


async def test_trace_says_where_a_connection_goes(client: aiohttp.ClientSession) -> None:
    answer = await get(client, "/v1/trace?address=10.96.0.10:80&from=10.244.1.9")
    assert (answer["verdict"], answer["sourceKind"], answer["service"]) == ("forward", "pod", "shop/web")
    assert set(answer["backends"]) <= {"10.244.1.5:8080", "10.244.2.6:8080"}
    nothing = await get(client, "/v1/trace?address=[fd00::1]:80/udp")
    assert nothing["verdict"] == "not-ours"


async def test_a_kind_that_is_optional_is_shown_and_not_waited_for(
    client: aiohttp.ClientSession, state: AgentState
) -> None:
    listed = [*state.sources(), FakeSource("ServiceCIDR", synced=False, error="not served", optional=True)]
    state.sources = lambda: listed
    state.silence_timeout = 3.5
    status = await get(client, "/v1/status")
    assert [each["kind"] for each in status["sources"] if each["optional"]] == ["ServiceCIDR"]
    assert status["sources"][-1]["error"] == "not served"
    listed[-1] = FakeSource("ServiceCIDR", last_contact=0.0, optional=True)
    for answer in (status["readiness"], await get(client, "/readyz")):
        assert (answer["ready"], answer["stale"], answer["reasons"]) == (True, False, [])


@pytest.mark.parametrize(("dataplane", "said"), [("nftables", True), ("userspace", False)])
async def test_trace_says_where_interfaces_tell_pods(
    client: aiohttp.ClientSession, state: AgentState, dataplane: str, said: bool
) -> None:
    told_by_bridge = DataplaneConfig(detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, pod_bridge_interface="cni0")
    state.config = msgspec.structs.replace(state.config, dataplane=told_by_bridge)
    state.dataplane_name = dataplane
    answer = await get(client, "/v1/trace?address=10.96.0.10:80&from=10.244.1.9")
    assert any("what comes through cni0 is a pod's" in step["text"] for step in answer["steps"]) is said


async def test_environment_of_chosen_services(client: aiohttp.ClientSession) -> None:
    answer = await get(client, "/v1/env?namespace=shop&service=web")
    assert answer["variables"][:2] == [
        {"name": "WEB_SERVICE_HOST", "value": "10.96.0.10"},
        {"name": "WEB_SERVICE_PORT", "value": "80"},
    ]
    everything = await get(client, "/v1/env?namespace=shop")
    assert {"name": "EDGE_SERVICE_PORT", "value": "443"} in everything["variables"]


async def test_config_hides_credentials_in_urls(tmp_path: Path) -> None:
    state = example_state(Config(kube=KubeConfig(api_servers=("https://user:secret@10.0.0.1:6443",))))
    path = tmp_path / "admin.sock"
    async with AdminServer(state, AgentMetrics(state)).serve_socket(path), over(path) as client:
        config = await get(client, "/v1/config")
    assert config["kube"]["api_servers"] == ["https://10.0.0.1:6443"]
    assert config["dns"]["zones"] == ["cluster.local", "in-addr.arpa", "ip6.arpa"]


async def test_what_has_gone_is_not_found(client: aiohttp.ClientSession, state: AgentState) -> None:
    state.store.apply(Changes(Service, removed=(NamespacedName("shop", "web"),)))
    async with client.get("/v1/services/shop/web") as response:
        assert response.status == 404


async def test_probes_answer_by_status(client: aiohttp.ClientSession, state: AgentState) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        async with client.get(path) as response:
            assert response.status == 200
            assert response.content_type == "application/json"
    state.holds_node = False
    async with client.get("/livez") as response:
        assert response.status == 200
    async with client.get("/readyz") as response:
        assert response.status == 503
        assert (await response.json())["waiting"] is True


async def test_socket_admits_its_owner_alone(state: AgentState, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with AdminServer(state, AgentMetrics(state)).serve_socket(path):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:10249", True),
        ("127.0.0.1", True),
        ("[::1]:10249", True),
        ("[::1]", True),
        ("LOCALHOST:80", True),
        ("", True),
        ("evil.example.org", False),
        ("localhost.evil.example.org:80", False),
        ("127.0.0.1.evil.example.org", False),
        ("[evil]:80", False),
        ("::1", False),
        ("localhost:80:80", False),
    ],
)
def test_hosts_that_a_browser_cannot_be_tricked_into(host: str, allowed: bool) -> None:
    assert host_allowed(host) is allowed


async def listening(state: AgentState, name: str) -> str:
    await until(lambda: name in state.listeners and not state.listeners[name].error)
    return state.listeners[name].address


async def test_tcp_listeners_serve_what_belongs_there() -> None:
    state = example_state(Config(admin=AdminConfig(health_listen="127.0.0.1:0", metrics_listen="[::1]:0")))
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as client:
        serving = tasks.create_task(AdminServer(state, AgentMetrics(state)).serve_node(), name="listeners")
        health, metrics = await listening(state, "health"), await listening(state, "metrics")
        expected = {
            f"http://{health}/healthz": 200,
            f"http://{health}/readyz": 200,
            f"http://{health}/metrics": 404,
            f"http://{health}/v1/status": 404,
            f"http://{metrics}/metrics": 200,
            f"http://{metrics}/v1/status": 200,
            f"http://{metrics}/v1/ruleset": 404,
            f"http://{metrics}/livez": 404,
        }
        answers = {}
        for url in expected:
            async with client.get(url) as response:
                answers[url] = response.status
        assert answers == expected
        for path, text in {"healthz": "ok", "proxyMode": "userspace"}.items():
            async with client.get(f"http://{metrics}/{path}") as response:
                assert await response.text() == text
        async with client.get(f"http://{metrics}/v1/status", headers={"Host": "evil.example.org"}) as response:
            assert response.status == 421
        async with client.get(f"http://{health}/healthz", headers={"Host": "lb.example.org"}) as response:
            assert response.status == 200
        serving.cancel()


async def test_an_address_in_use_is_taken_once_it_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        state = example_state(Config(admin=AdminConfig(health_listen=address, metrics_listen=None)))
        agent = AdminServer(state, AgentMetrics(state), retry_interval=0.01)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(agent.serve_node(), name="listeners")
            await until(lambda: "health" in state.listeners)
            assert state.listeners["health"] == api.Listener("health", address, "Address already in use")
            holder.close()
            assert await listening(state, "health") == address
            serving.cancel()


async def test_a_worker_serves_its_own_health(tmp_path: Path) -> None:
    live = api.Readiness(ready=True, stale=False, waiting=False)
    starting = api.Readiness(ready=False, stale=False, waiting=False, reasons=("no snapshot yet",))

    async def metrics() -> bytes:
        return b"coredns_dns_requests_total 1\n"

    path = tmp_path / "dns-0.health.sock"
    doors = WorkerServer(WorkerAnswers(lambda: live, lambda: starting, metrics))
    async with doors.serve_socket(path), over(path) as client:
        async with client.get("/livez") as response:
            assert response.status == 200
        async with client.get("/readyz") as response:
            assert response.status == 503
            assert (await response.json())["reasons"] == ["no snapshot yet"]
        async with client.get("/metrics") as response:
            assert await response.read() == b"coredns_dns_requests_total 1\n"
            assert response.content_type == "text/plain"


async def test_too_many_requests_at_once_are_refused(tmp_path: Path) -> None:
    release = asyncio.Event()
    waiting = 0

    async def metrics() -> bytes:
        nonlocal waiting
        waiting += 1
        await release.wait()
        return b""

    live = api.Readiness(ready=True, stale=False, waiting=False)
    path = tmp_path / "slow.sock"
    doors = WorkerServer(WorkerAnswers(lambda: live, lambda: live, metrics))
    async with doors.serve_socket(path), over(path) as client:

        async def ask() -> int:
            async with client.get("/metrics") as response:
                return response.status

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(), name="ask") for _ in range(server.REQUESTS_MAX)]
            await until(lambda: waiting == server.REQUESTS_MAX)
            async with client.get("/livez") as response:
                refused = response.status
            release.set()
        assert refused == 503
        assert {task.result() for task in asked} == {200}
