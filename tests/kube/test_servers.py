# SPDX-License-Identifier: Apache-2.0
"""Which API server is asked: order of origins, health, spreading."""

from collections import Counter

import msgspec
import pytest

from svcproxy.kube.servers import ENDPOINTS_MAX, RETRY_MAX, Health, Origin, ServerSet, endpoint_urls
from svcproxy.model import EndpointSlice

A, B, C = "https://192.0.2.1:6443", "https://192.0.2.2:6443", "https://192.0.2.3:6443"
FILE, INSIDE = "https://api.example:6443", "https://10.96.0.1:443"


def servers(*explicit: str, remembered: tuple[str, ...] = (), node: str = "n1") -> ServerSet:
    return ServerSet(node, explicit, remembered, lambda: 0.0)


def picked(subject: ServerSet) -> str:
    server = subject.pick()
    assert server is not None
    return server.url


def test_nobody_is_asked_before_anybody_is_known() -> None:
    assert servers().pick() is None


def test_urls_given_by_the_user_are_used_alone() -> None:
    subject = servers(A, remembered=(B,))
    subject.configured(FILE, Origin.KUBECONFIG, verified=True)
    subject.discovered([C])
    assert subject.urls() == (A,)
    assert subject.endpoints() == (C,), "remembered all the same"


def test_order_of_origins() -> None:
    subject = servers(remembered=(A,))
    subject.configured(FILE, Origin.KUBECONFIG, verified=True)
    assert subject.urls() == (A, FILE)
    subject.configured(INSIDE, Origin.IN_CLUSTER, verified=True)
    assert subject.urls() == (A, INSIDE), "the credentials name one server"
    subject.failed(A, 0.0, "down")
    assert picked(subject) == INSIDE
    subject.answered(A, probe=True)
    assert picked(subject) == A


def test_a_failing_service_address_is_explained() -> None:
    subject = servers(remembered=(A,))
    subject.configured(INSIDE, Origin.IN_CLUSTER, verified=True)
    assert "set kube.api_servers" in subject.explained(INSIDE, "timed out")
    assert subject.explained(A, "timed out") == "timed out"


def test_endpoints_need_tls_that_verifies() -> None:
    subject = servers(remembered=(A,))
    subject.configured(FILE, Origin.KUBECONFIG, verified=False)
    subject.discovered([A, B])
    assert subject.urls() == (FILE,)
    subject.configured(FILE, Origin.KUBECONFIG, verified=True)
    assert set(subject.urls()) == {A, B, FILE}


def test_endpoints_are_followed_and_never_all_taken_away() -> None:
    subject = servers()
    subject.configured(FILE, Origin.KUBECONFIG, verified=True)
    subject.discovered([A, B])
    subject.discovered([B, C])
    assert set(subject.urls()) == {B, C, FILE}
    subject.discovered([])
    assert set(subject.urls()) == {B, C, FILE}


def test_endpoints_are_bounded() -> None:
    subject = servers()
    subject.configured(FILE, Origin.KUBECONFIG, verified=True)
    subject.discovered(f"https://192.0.2.{n}:6443" for n in range(200))
    assert len(subject.urls()) == ENDPOINTS_MAX + 1


def test_fails_over_and_returns() -> None:
    subject = servers(A, B)
    first = picked(subject)
    second = B if first == A else A
    subject.answered(first)
    subject.failed(first, 100.0, "reset")
    assert picked(subject) == second
    assert subject.alternative(first)
    assert not subject.alternative(second)
    assert subject.to_probe(100.0) == (second,), "the one never tried; the failed one has its time"
    subject.answered(second)
    assert subject.to_probe(200.0) == (first,)
    subject.answered(first, probe=True)
    assert picked(subject) == first, "back to the preferred one"


def test_when_all_fail_the_first_to_be_due_is_tried() -> None:
    subject = servers(A, B)
    subject.failed(A, 100.0, "down")
    subject.failed(B, 101.0, "down")
    assert picked(subject) == A
    subject.failed(A, 102.0, "down")
    assert picked(subject) == B


def test_waits_double_within_bounds_and_a_probe_forgets_nothing() -> None:
    subject = ServerSet("n1", [A], (), lambda: 1.0)
    waits = []
    for _ in range(10):
        subject.failed(A, 0.0, "down")
        waits.append(subject.servers()[0].retry_at)
        subject.answered(A, probe=True)
    assert waits == [1, 2, 4, 8, 16, 32, *[RETRY_MAX] * 4]
    subject.answered(A)
    subject.failed(A, 0.0, "down")
    assert subject.servers()[0].retry_at == 1


@pytest.mark.parametrize(
    ("asked", "until"),
    [
        pytest.param(30.0, 30.0, id="as asked"),
        pytest.param(1e9, RETRY_MAX, id="bounded"),
        pytest.param(None, 0.5, id="not"),
    ],
)
def test_a_server_that_asks_for_time_gets_it(asked: float | None, until: float) -> None:
    subject = servers(A)
    subject.failed(A, 0.0, "busy", asked)
    assert (subject.servers()[0].health, subject.servers()[0].retry_at) == (Health.FAILING, until)


def test_a_fleet_spreads_and_each_node_has_its_preference() -> None:
    choices = Counter(picked(servers(A, B, C, node=f"n{n}")) for n in range(300))
    assert min(choices.values()) > 60
    assert picked(servers(A, B, C)) == picked(servers(C, B, A)), "whatever the order they are given in"


SLICE = {
    "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["192.0.2.2"]}, {"addresses": ["192.0.2.1"], "conditions": {"ready": True}}],
    "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
}
ELSEWHERE = {"name": "kubernetes", "namespace": "other", "labels": {"kubernetes.io/service-name": "kubernetes"}}


@pytest.mark.parametrize(
    ("changes", "urls"),
    [
        pytest.param({}, (A, B), id="two"),
        pytest.param({"addressType": "IPv6", "endpoints": [{"addresses": ["2001:db8::1"]}]},
                     ("https://[2001:db8::1]:6443",), id="IPv6"),
        pytest.param({"endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": False}}]}, (), id="not ready"),
        pytest.param({"endpoints": None}, (), id="none"),
        pytest.param({"ports": [{"name": "metrics", "port": 9090}]}, (), id="no https port"),
        pytest.param({"metadata": ELSEWHERE}, (), id="another namespace"),
    ],
)  # fmt: skip
def test_endpoints_of_default_kubernetes(changes: dict[str, object], urls: tuple[str, ...]) -> None:
    assert endpoint_urls([msgspec.convert({**SLICE, **changes}, EndpointSlice)]) == urls
