# SPDX-License-Identifier: Apache-2.0
"""Following API servers over real sockets, through each failure that they have in store."""

from typing import Any

import pytest

from svcproxy.config import KubeConfig
from svcproxy.model import EndpointSlice, Namespace, NamespacedName, Node, Service, ServiceCIDR
from svcproxy.testing.fake_api import GONE, FakeApiServer, FakeCluster, line, refusal, status_body, stream
from tests.kube.world import Recorder, api_source, decoded, following, service_fields, slice_fields

LIMIT = 4096
SHORT = KubeConfig(page_size=2, backoff_max=0.02, silence_timeout=0.3, object_limit=LIMIT)
HTML = "<html><body>Sign in to the wireless network</body></html>"
CHANGED = {"metadata": {"name": "s1", "namespace": "default", "resourceVersion": "900"}, **service_fields("10.96.9.9")}
NAMELESS = {"metadata": {"name": 7, "resourceVersion": "900"}}
TOO_LARGE = status_body(
    504, "Timeout", "Too large resource version: 9, current: 1", causes=("ResourceVersionTooLarge",)
)


async def test_lists_every_kind_and_follows(cluster: FakeCluster, server: FakeApiServer) -> None:
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced()
        assert sink.names(Service) == {"s0", "s1", "s2", "s3", "s4"}
        assert sink.names(EndpointSlice) == {"s0-a"}
        assert sink.names(Namespace) == {"default"}
        assert sink.names(Node) == {"n1"}, "only the own Node"
        assert sink.names(ServiceCIDR) == {"kubernetes"}
        cluster.put("Service", "new", "default", **service_fields("10.96.0.77"))
        cluster.put("Node", "n1", status={"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]})
        cluster.delete("Service", "s0", "default")
        await sink.until(lambda: sink.names() == {"new", "s1", "s2", "s3", "s4"})
        await sink.until(lambda: any(isinstance(obj, Node) and obj.status.addresses for obj in sink.applied))
        assert all(status.synced and not status.error for status in source.status())
        assert source.versions()["Service"] == str(cluster.version)
    assert sink.removed == [NamespacedName("default", "s0")]
    assert server.count("continue", "Service") == 2, "five Services on pages of two"


@pytest.mark.parametrize(
    ("verb", "answer", "cause"),
    [
        pytest.param("list", refusal(429, status_body(429, "TooManyRequests", "later"), {"Retry-After": "0"}),
                     "unavailable", id="list: 429"),
        pytest.param("list", refusal(500, status_body(500, "InternalError", "etcd")), "unavailable", id="list: 500"),
        pytest.param("list", refusal(503, HTML), "unavailable", id="list: 503 from a proxy"),
        pytest.param("list", refusal(200, HTML), "unavailable", id="list: HTML instead of JSON"),
        pytest.param("list", refusal(302, HTML, {"Location": "/elsewhere"}), "unavailable", id="list: redirect"),
        pytest.param("list", refusal(200, {"kind": "Status"}), "unavailable", id="list: JSON that is no list"),
        pytest.param("list", refusal(410, GONE), "expired", id="list: 410"),
        pytest.param("list", stream(b'{"metadata":{"resou', cut=True), "unavailable", id="list: cut"),
        pytest.param("list", stream(b'{"metadata":{', hang=True), "unavailable", id="list: silent"),
        pytest.param("list", stream(b" " * 5 * LIMIT), "too large", id="list: page over the limit"),
        pytest.param("list", refusal(504, TOO_LARGE), "behind", id="list: version too large"),
        pytest.param("continue", refusal(410, GONE), "expired", id="continuation: 410"),
        pytest.param("continue", refusal(400, status_body(400, "BadRequest", "token")), "expired",
                     id="continuation: token refused"),
        pytest.param("continue", refusal(500, HTML), "unavailable", id="continuation: 500"),
        pytest.param("continue", refusal(200, {"metadata": {"resourceVersion": "900"}, "items": []}), "expired",
                     id="continuation: of another list"),
        pytest.param("watch", refusal(410, GONE), "expired", id="watch: 410 at start"),
        pytest.param("watch", stream(line("ERROR", GONE)), "expired", id="watch: 410 as event"),
        pytest.param("watch", stream(line("ERROR", status_body(500, "InternalError", "etcd"))), "unavailable",
                     id="watch: 500 as event"),
        pytest.param("watch", refusal(429, HTML, {"Retry-After": "0"}), "unavailable", id="watch: 429"),
        pytest.param("watch", refusal(200, HTML), "unavailable", id="watch: HTML instead of JSON"),
        pytest.param("watch", stream(HTML.encode() + b"\n"), "unavailable", id="watch: HTML under a JSON header"),
        pytest.param("watch", stream(), "closed", id="watch: closed at once"),
        pytest.param("watch", stream(b"\n\r\n\n"), "closed", id="watch: empty lines"),
        pytest.param("watch", stream(line("MODIFIED", CHANGED)[:50]), "unavailable",
                     id="watch: ends in the middle of a line"),
        pytest.param("watch", stream(line("MODIFIED", CHANGED)[:50], cut=True), "unavailable",
                     id="watch: cut in the middle of a line"),
        pytest.param("watch", stream(hang=True), "unavailable", id="watch: silent"),
        pytest.param("watch", stream(line("SURPRISE", CHANGED)), "unavailable", id="watch: unknown event type"),
        pytest.param("watch", stream(line("BOOKMARK", {"metadata": {"resourceVersion": "3"}})), "behind",
                     id="watch: bookmark of the past"),
        pytest.param("watch", stream(line("MODIFIED", NAMELESS)), "lost", id="watch: object without a name"),
        pytest.param("watch", stream(line("DELETED", NAMELESS)), "lost", id="watch: deletion without a name"),
    ],
)  # fmt: skip
async def test_survives(cluster: FakeCluster, server: FakeApiServer, verb: str, answer: Any, cause: str) -> None:
    """Whatever happens once, the end is what the server says, and nothing that existed throughout ever went."""
    server.fail(answer, kind="Service", verb=verb)
    source = api_source(server, config=SHORT)
    async with following(source) as sink:
        await sink.until_synced()
        await sink.until(lambda: source.stats["Service"].failures.get(cause, 0) >= 1)
        cluster.version = max(cluster.version, 1000)
        cluster.put("Service", "new", "default", **service_fields("10.96.0.77"))
        cluster.delete("Service", "s0", "default")
        await sink.until(lambda: sink.names() == {"new", "s1", "s2", "s3", "s4"})
        expected = decoded(cluster)
        assert {key: obj for (kind, key), obj in sink.held.items() if kind is Service} == expected
        await sink.until(lambda: source.status()[0].error == "")
    assert sink.removed == [NamespacedName("default", "s0")]
    assert sink.synced_kinds.count(Service) == 1


def huge(kind: str, name: str, version: int) -> bytes:
    """An event over the limit."""
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version)}
    return line(kind, {"kind": "Service", "metadata": metadata, **service_fields("10.96.9.9"), "padding": "x" * LIMIT})


async def test_an_object_over_the_limit_is_reported_by_name_and_keeps_its_last_good_version(
    cluster: FakeCluster, server: FakeApiServer
) -> None:
    after = {
        "metadata": {"name": "s2", "namespace": "default", "resourceVersion": "902"},
        **service_fields("10.96.9.9"),
    }
    events = huge("MODIFIED", "s1", 900) + huge("DELETED", "s3", 901) + line("MODIFIED", after)
    server.fail(stream(events, hang=True), kind="Service", verb="watch")
    source = api_source(server, config=SHORT)
    async with following(source) as sink:
        await sink.until_synced()
        await sink.until(lambda: sink.held[Service, NamespacedName("default", "s2")].spec.cluster_ip == "10.96.9.9")
        assert [report.name for report in sink.reports] == ["default/s1"]
        assert "larger than allowed" in sink.reports[0].reason
        assert sink.held[Service, NamespacedName("default", "s1")].spec.cluster_ip == "10.96.0.2"
        assert sink.removed == [NamespacedName("default", "s3")], "a deletion needs no more than the name"


async def test_an_invalid_object_stays_at_its_last_good_version_across_a_list(
    cluster: FakeCluster, server: FakeApiServer
) -> None:
    source = api_source(server, config=SHORT)
    async with following(source) as sink:
        await sink.until_synced()
        good = sink.held[Service, NamespacedName("default", "s1")]
        cluster.put("Service", "s1", "default", spec={"ports": [{"port": "eighty"}]})
        await sink.until(lambda: bool(sink.reports))
        assert (sink.reports[0].kind, sink.reports[0].name) == ("Service", "default/s1")
        assert sink.reports[0].reason.startswith("spec.ports[0].port: Expected `int`")
        cluster.put("Namespace", "other")
        cluster.compact()
        server.fail(refusal(410, GONE), kind="Service", verb="watch")
        await server.stop()  # cuts the watch; the next one is too old
        await server.start()
        await sink.until(lambda: len(sink.reports) == 2)
        cluster.put("Service", "new", "default", **service_fields("10.96.0.77"))
        await sink.until(lambda: "new" in sink.names())
        assert sink.held[Service, NamespacedName("default", "s1")] is good
        cluster.put("Service", "s1", "default", **service_fields("10.96.0.99"))
        await sink.until(lambda: sink.held[Service, NamespacedName("default", "s1")] != good)
    assert sink.removed == []
    assert source.stats["Service"].invalid == 2


async def test_a_clean_close_never_spins(cluster: FakeCluster, server: FakeApiServer) -> None:
    source = api_source(server, config=KubeConfig(backoff_max=30.0))
    server.fail(stream(), kind="Service", verb="watch", times=1000)
    async with following(source) as sink:
        await sink.until_synced()
        await sink.until(lambda: source.stats["Service"].failures.get("closed", 0) >= 3)
        assert server.count("watch", "Service") == 3
        assert source.stats["EndpointSlice"].failures == {}, "other kinds are not held up"


async def test_a_missing_rule_is_named(cluster: FakeCluster, server: FakeApiServer) -> None:
    forbidden = refusal(403, status_body(403, "Forbidden", "services is forbidden"))
    server.fail(forbidden, kind="EndpointSlice", verb="list", times=1000)
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced(4)
        await sink.until(lambda: "forbidden" in source.stats["EndpointSlice"].failures)
        error = {status.kind: status.error for status in source.status()}["EndpointSlice"]
        assert "lacks verb 'list' on resource 'endpointslices' in API group discovery.k8s.io" in error
        assert EndpointSlice not in sink.synced_kinds


NOT_SERVED = refusal(404, "404 page not found")
NOT_ALLOWED = refusal(403, status_body(403, "Forbidden", "servicecidrs is forbidden"))


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        pytest.param(NOT_SERVED, "not served", id="404: older than Kubernetes 1.33"),
        pytest.param(NOT_ALLOWED, "forbidden", id="403: the role lacks the rule"),
    ],
)
async def test_without_an_optional_kind_nothing_else_changes(
    cluster: FakeCluster, server: FakeApiServer, answer: Any, cause: str
) -> None:
    async with FakeApiServer(cluster) as other:
        for each in (server, other):
            each.fail(answer, kind="ServiceCIDR", times=1000)
        source = api_source(server, other, config=KubeConfig(backoff_max=30.0), random=lambda: 0.0)
        async with following(source) as sink:
            await sink.until_synced(4)
            await sink.until(lambda: cause in source.stats["ServiceCIDR"].failures)
            cluster.put("Namespace", "later")
            await sink.until(lambda: "later" in sink.names(Namespace))
            statuses = {status.kind: status for status in source.status()}
            assert [kind for kind, status in statuses.items() if status.optional] == ["ServiceCIDR"]
            assert not statuses["ServiceCIDR"].synced
            assert "'servicecidrs' in API group" in statuses["ServiceCIDR"].error
        assert sorted(bool(each.seen) for each in (server, other)) == [False, True], "no server is to blame"
        assert all(not stats.failures for kind, stats in source.stats.items() if kind != "ServiceCIDR")


@pytest.mark.parametrize("answer", [NOT_SERVED, NOT_ALLOWED], ids=["404", "403"])
async def test_an_optional_kind_is_asked_for_less_often(server: FakeApiServer, answer: Any) -> None:
    for kind in ("ServiceCIDR", "Namespace"):
        server.fail(answer, kind=kind, times=1000)
    source = api_source(server, config=KubeConfig(backoff_max=1.0), random=lambda: 0.0)
    async with following(source) as sink:
        await sink.until(lambda: server.count("list", "Namespace") >= 3)
        assert server.count("list", "ServiceCIDR") == 1


@pytest.mark.parametrize("answer", [NOT_SERVED, NOT_ALLOWED], ids=["404", "403"])
@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_an_optional_kind_is_followed_once_it_can_be(
    cluster: FakeCluster, server: FakeApiServer, answer: Any, verb: str
) -> None:
    server.fail(answer, kind="ServiceCIDR", verb=verb, times=2)
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced()
        cluster.put("ServiceCIDR", "more", spec={"cidrs": ["10.97.0.0/16", "fd00::/112"]})
        await sink.until(lambda: sink.names(ServiceCIDR) == {"kubernetes", "more"})
        await sink.until(lambda: all(not status.error for status in source.status()))
    assert sum(source.stats["ServiceCIDR"].failures.values()) == 2


async def test_a_kind_that_is_needed_is_looked_for_elsewhere(cluster: FakeCluster, server: FakeApiServer) -> None:
    async with FakeApiServer(cluster) as other:
        for each in (server, other):
            each.fail(NOT_SERVED, kind="EndpointSlice")
        async with following(api_source(server, other)) as sink:
            await sink.until_synced()
        assert all(each.count("list", "EndpointSlice") for each in (server, other))


async def test_retry_after_is_respected(cluster: FakeCluster, server: FakeApiServer) -> None:
    busy = refusal(429, status_body(429, "TooManyRequests", "later"), {"Retry-After": "30"})
    server.fail(busy, kind="Service", verb="list", times=1000)
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced(4)
        cluster.put("Namespace", "later")
        await sink.until(lambda: "later" in sink.names(Namespace))
        assert server.count("list", "Service") == 1


async def test_a_page_over_the_limit_is_asked_for_in_smaller_ones(server: FakeApiServer, cluster: FakeCluster) -> None:
    for number in range(6):
        cluster.put("Service", f"big{number}", "default", **service_fields("10.96.1.1"), padding="x" * LIMIT)
    source = api_source(server, config=KubeConfig(page_size=500, backoff_max=0.02, object_limit=LIMIT))
    async with following(source) as sink:
        await sink.until_synced()
        assert len(sink.names()) == 11
    limits = [int(seen.query["limit"]) for seen in server.seen if seen.kind == "Service" and "limit" in seen.query]
    assert limits[0] == 500
    assert min(limits) < 6


async def test_known_objects_give_a_delta(cluster: FakeCluster, server: FakeApiServer) -> None:
    known = list(decoded(cluster).values())
    version = str(cluster.version)
    cluster.put("Service", "s1", "default", **service_fields("10.96.0.99"))
    cluster.delete("Service", "s2", "default")
    source = api_source(server, known={Service: known}, versions={"Service": version})
    assert source.versions()["Service"] == version
    async with following(source, Recorder(known)) as sink:
        await sink.until_synced()
        assert [obj.metadata.name for obj in sink.applied if isinstance(obj, Service)] == ["s1"]
        assert sink.removed == [NamespacedName("default", "s2")]
    first = next(seen for seen in server.seen if seen.kind == "Service")
    assert (first.query["resourceVersion"], first.query["resourceVersionMatch"]) == (version, "NotOlderThan")


async def test_nothing_known_is_asked_for_as_a_consistent_read(server: FakeApiServer) -> None:
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced()
    assert all("resourceVersion" not in seen.query for seen in server.seen if seen.verb == "list")


async def test_nothing_goes_while_no_server_answers(cluster: FakeCluster, server: FakeApiServer) -> None:
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced()
        await server.stop()
        await sink.until(lambda: all(status.error for status in source.status()))
        cluster.delete("Service", "s4", "default")
        assert sink.names() == {"s0", "s1", "s2", "s3", "s4"}
        await server.start()
        await sink.until(lambda: sink.names() == {"s0", "s1", "s2", "s3"})
    assert sink.removed == [NamespacedName("default", "s4")]


async def test_many_events_in_one_read_are_one_change(cluster: FakeCluster, server: FakeApiServer) -> None:
    events = b"".join(
        line("MODIFIED", {"metadata": {"name": "s1", "namespace": "default", "resourceVersion": str(2000 + n)},
                          **service_fields(f"10.97.0.{n}")}) for n in range(50)
    )  # fmt: skip
    server.fail(stream(events, hang=True), kind="Service", verb="watch")
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced()
        await sink.until(lambda: source.stats["Service"].events == 50)
        mine = [obj for obj in sink.applied if isinstance(obj, Service) and obj.metadata.name == "s1"]
        assert len(mine) <= 3, "the list, and one change per read"
        assert mine[-1].spec.cluster_ip == "10.97.0.49"


async def test_slices_of_many_endpoints(cluster: FakeCluster, server: FakeApiServer) -> None:
    addresses = [f"10.2.{n // 250}.{n % 250}" for n in range(1000)]
    cluster.put("EndpointSlice", "wide", "default", **slice_fields("s1", *addresses))
    source = api_source(server)
    async with following(source) as sink:
        await sink.until_synced()
        wide = sink.held[EndpointSlice, NamespacedName("default", "wide")]
        assert [endpoint.addresses[0] for endpoint in wide.endpoints] == addresses
    assert source.stats["EndpointSlice"].failures == {}
