# SPDX-License-Identifier: Apache-2.0
"""Who may keep flows, whatever policies, topology and termination say; and which changes take that from somebody."""

import pytest

from svcproxy.frontends.keys import ServicePortName
from svcproxy.frontends.serving import serving, stopped_serving
from svcproxy.model import Changes, Endpoint, EndpointSlice, NamespacedName, Store
from svcproxy.model.meta import Family, Protocol
from tests.frontends.world import draining, endpoint, ready, slice_of

DNS = ServicePortName("ns", "s", "dns", Protocol.UDP)
DNS_SCTP = ServicePortName("ns", "s", "dns", Protocol.SCTP)
PORTS = [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5353, "protocol": "TCP"}]
A, B = "10.244.1.1", "10.244.2.1"


def udp(
    *endpoints: Endpoint, name: str = "s-1", of: str | None = "s", family: str = "IPv4", **ports: int
) -> EndpointSlice:
    """A slice whose port dns over UDP is 5353, and dns-tcp over TCP too."""
    return slice_of(
        *endpoints, name=name, of=of, family=family, ports=[{**each, "port": ports.get("port", 5353)} for each in PORTS]
    )


def stored(*slices: EndpointSlice) -> Store:
    store = Store()
    store.apply(Changes.of(EndpointSlice, slices))
    return store


@pytest.mark.parametrize(
    ("entry", "keeps"),
    [
        pytest.param(ready(A), True, id="ready"),
        pytest.param(draining(A), True, id="serving and terminating"),
        pytest.param(endpoint(A, ready=False, serving=False, terminating=True), False, id="terminating, not serving"),
        pytest.param(endpoint(A, ready=False, serving=False), False, id="not ready, not serving"),
        pytest.param(endpoint(A, ready=True, serving=False), True, id="ready as publishNotReadyAddresses makes it"),
        pytest.param(endpoint(A), True, id="conditions are null"),
        pytest.param(endpoint(A, ready=False), True, id="serving is null"),
        pytest.param(ready(A, zones=["z9"], nodes=["n9"]), True, id="hinted elsewhere"),
        pytest.param(ready("10.244.1.1x"), False, id="no address"),
    ],
)
def test_an_endpoint_keeps_its_flows(entry: Endpoint, keeps: bool) -> None:
    found = serving(stored(udp(entry)), DNS, Family.IPV4)
    assert set(map(str, found)) == ({f"{A}:5353"} if keeps else set())


def test_slices_of_a_service_port_add_up_and_one_good_entry_of_an_address_is_enough() -> None:
    store = stored(
        udp(ready(A), name="s-1"),
        udp(endpoint(A, ready=False, serving=False), ready(B), name="s-2"),
        udp(ready("10.244.3.1"), name="other", of="t"),
        udp(ready("fd00:244::1:1"), name="s-6", family="IPv6"),
    )
    assert set(map(str, serving(store, DNS, Family.IPV4))) == {f"{A}:5353", f"{B}:5353"}
    assert set(map(str, serving(store, DNS, Family.IPV6))) == {"[fd00:244::1:1]:5353"}
    assert serving(store, DNS_SCTP, Family.IPV4) == set()
    assert serving(store, ServicePortName("ns", "gone", "dns", Protocol.UDP), Family.IPV4) == set()


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        pytest.param(udp(ready(A)), udp(ready(B)), True, id="replaced"),
        pytest.param(udp(ready(A)), udp(), True, id="scaled to zero"),
        pytest.param(udp(ready(A)), None, True, id="the slice is deleted"),
        pytest.param(udp(ready(A)), udp(ready(A), of="t"), True, id="the slice moves to another Service"),
        pytest.param(udp(ready(A)), udp(ready(A), port=5354), True, id="the target port changes"),
        pytest.param(udp(draining(A), ready(B)), udp(ready(B)), True, id="a terminating endpoint goes"),
        pytest.param(
            udp(draining(A)), udp(endpoint(A, ready=False, serving=False, terminating=True)), True, id="stops serving"
        ),
        pytest.param(udp(ready(A)), udp(draining(A)), False, id="begins to terminate"),
        pytest.param(udp(ready(A)), udp(ready(A), ready(B)), False, id="another one comes"),
        pytest.param(udp(ready(A), ready(B)), udp(ready(B), ready(A)), False, id="another order"),
        pytest.param(udp(ready(A)), udp(ready(A, zones=["z1"])), False, id="hints"),
        pytest.param(udp(endpoint(A, ready=False, serving=False)), udp(), False, id="one that did not serve goes"),
        pytest.param(slice_of(ready(A)), slice_of(), False, id="TCP"),
        pytest.param(None, udp(ready(A)), False, id="the slice is new"),
    ],
)
def test_a_change_takes_flows_from_somebody(old: EndpointSlice | None, new: EndpointSlice | None, lost: bool) -> None:
    store = stored(*([old] if old is not None else []))
    if new is not None:
        touched = store.apply(Changes.of(EndpointSlice, [new]))
    else:
        touched = store.apply(Changes(EndpointSlice, (), (NamespacedName("ns", "s-1"),)))
    assert list(stopped_serving(touched)) == ([(DNS, Family.IPV4)] if lost else [])
