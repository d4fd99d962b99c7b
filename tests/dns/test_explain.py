# SPDX-License-Identifier: Apache-2.0
"""Explanations: they agree with what is answered, and say why in words. `~` stands for `.shop.svc.cluster.local`"""

import random

import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy.config import PodNames, UpstreamPolicy
from svcproxy.model import Service
from svcproxy.names.records import Record
from svcproxy_dns.body import Body
from svcproxy_dns.cache import Cache, CacheLimits
from svcproxy_dns.contents import Schema
from svcproxy_dns.domains import Domains
from svcproxy_dns.explain import Explained, Explainer, Origin
from svcproxy_dns.forwarding import Question, Timing
from svcproxy_dns.rendered import Rendered
from svcproxy_dns.resolver import Bounds, Resolver
from svcproxy_dns.upstreams import Upstreams
from svcproxy_dns.wire import CLASS_IN, Rcode, RRType, encode_name
from svcproxy_dns.zone import Zone
from tests.dns.world import OBJECTS, PROBES, ZONES, Client, empty_zone, record, records, synced_zone

TYPES = ["A", "AAAA", "SRV", "CNAME", "PTR", "NS", "SOA", "TXT", "MX", "AXFR"]
EXPLAINED_NAMES = [  # the big ones are cut over UDP
    *(
        f"{each.metadata.name}.shop.svc.cluster.local"
        for each in OBJECTS
        if isinstance(each, Service) and not each.metadata.name.startswith("big")
    ),
    "dns-version.cluster.local",
    "x.dns-version.cluster.local",
    "dns.cluster.local",
    "x.dns.cluster.local",
    "foo.cluster.local",
    "x.web.shop.svc.cluster.local",
    "_.x.web.shop.svc.cluster.local",
    "a.b.c.web.shop.svc.cluster.local",
    "sub.ext.shop.svc.cluster.local",
    "10-1-2-300.shop.pod.cluster.local",
    "x.10-1-2-3.shop.pod.cluster.local",
    "9.9.9.10.in-addr.arpa",
    "9.10.in-addr.arpa",
    "in-addr.arpa",
    "example.com",
]


def explainer(zone: Zone, rendered: Rendered | None = None, resolver: Resolver | None = None) -> Explainer:
    stubs = {"corp.example": ["192.0.2.9:53"], "deep.corp.example": ["192.0.2.10:53"]}
    return Explainer(zone, Domains(ZONES), rendered or Rendered(), resolver, stubs)


def explain(zone: Zone, name: str, qtype: str = "A") -> Explained:
    return explainer(zone).explain(name, int(dns.rdatatype.from_text(qtype)), 0.0)


def assert_agrees(zone: Zone, name: str, qtype: str) -> None:
    response = Client(zone).exchange(dns.message.make_query(name, qtype))
    found = explain(zone, name, qtype)
    assert found.rcode == dns.rcode.to_text(response.rcode()), (name, qtype, found.steps)
    if (
        found.origin is Origin.ZONE
        and found.rcode == "NOERROR"
        and not any(stage == "alias" for stage, _ in found.steps)
    ):
        counts = [int(text.split()[0]) for stage, text in found.steps if stage == "type" and text[0].isdigit()]
        assert counts == ([len(response.answer[0])] if response.answer else []), (name, qtype, found.steps)


@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("synced", [True, False])
def test_explanations_agree_with_answers(qtype: str, synced: bool) -> None:
    zone = synced_zone(records()) if synced else empty_zone()
    if not synced:
        zone.change(records(), ())
    for name in EXPLAINED_NAMES:
        assert_agrees(zone, name, qtype)


SCHEMAS = [
    Schema(pods=PodNames.VERIFIED),
    Schema(pods=PodNames.DISABLED, ignore_empty_service=True, endpoint_pod_names=True),
    Schema(namespaces=frozenset({"shop"})),
]


@settings(max_examples=30, deadline=None)
@given(held=st.lists(record, max_size=8), schema=st.sampled_from(SCHEMAS), probes=st.lists(st.sampled_from(PROBES)))
def test_explanations_agree_with_answers_whatever_is_known(
    held: list[Record], schema: Schema, probes: list[str]
) -> None:
    zone = synced_zone(held, schema)
    for name in probes:
        for qtype in ("A", "AAAA", "SRV", "PTR"):
            assert_agrees(zone, name, qtype)


@pytest.mark.parametrize(
    ("name", "qtype", "service", "texts"),
    [
        pytest.param(
            "web~", "A", "shop/web", ["the Service shop/web, ClusterIP 10.96.10.1", "1 A record"], id="ClusterIP"
        ),
        pytest.param("web~", "AAAA", "shop/web", ["it exists without AAAA records, and has 1 A, 3 SRV"], id="NODATA"),
        pytest.param("hl~", "A", "shop/hl", ["headless with 6 ready endpoints", "4 A records"], id="headless"),
        pytest.param(
            "db-0.hl~",
            "A",
            "shop/hl",
            ["the endpoint db-0 of the Service shop/hl, 10.244.2.1, fd00:244::1"],
            id="endpoint",
        ),
        pytest.param(
            "db-9.hl~", "A", "shop/hl", ["no ready endpoint of the Service shop/hl is called db-9"], id="not ready"
        ),
        pytest.param("down~", "A", "shop/down", ["is headless, and no endpoint is ready"], id="nothing ready"),
        pytest.param("nope~", "A", "shop/nope", ["there is no Service shop/nope"], id="no Service"),
        pytest.param("web.nons.svc.cluster.local", "A", "nons/web", ["there is no namespace nons"], id="no namespace"),
        pytest.param(
            "_grpc._tcp.web~", "SRV", "shop/web", ["has no port grpc/TCP; it has http/TCP, https/TCP"], id="no port"
        ),
        pytest.param("_https._tcp.web~", "SRV", "shop/web", ["the port https/TCP of", "1 SRV record"], id="port"),
        pytest.param("http.tcp.web~", "SRV", "shop/web", ["http.tcp is not _PORT._PROTOCOL"], id="no underscores"),
        pytest.param(
            "a.b.c.web~", "A", "shop/web", ["3 labels left of the Service shop/web are too many"], id="labels"
        ),
        pytest.param("sub.ext~", "A", "shop/ext", ["nothing below the Service shop/ext, an ExternalName"], id="below"),
        pytest.param(
            "alias~", "A", "shop/web", ["CNAME to web.shop.svc.cluster.local.", "ClusterIP 10.96.10.1"], id="CNAME"
        ),
        pytest.param("self~", "A", "shop/self", ["the names lead nowhere"], id="loop"),
        pytest.param("ext~", "A", "shop/ext", ["CNAME to www.example.com.", "the CNAME alone"], id="target outside"),
        pytest.param(
            "shop.cluster.local", "A", "None", ["names in the zone end in svc or pod, not in shop"], id="foreign"
        ),
        pytest.param("10-1-2-300.shop.pod.cluster.local", "A", "None", ["is no address with dashes"], id="no address"),
        pytest.param(
            "1.10.96.10.in-addr.arpa", "PTR", "shop/web", ["10.96.10.1 is the ClusterIP of shop/web"], id="PTR"
        ),
        pytest.param(
            "5.1.244.10.in-addr.arpa", "PTR", "shop/web", ["is a ready endpoint of shop/web"], id="PTR of an endpoint"
        ),
        pytest.param("example.com", "A", "None", ["in no zone that is answered here"], id="elsewhere"),
        pytest.param("cluster.local", "AXFR", "None", ["transfers are refused"], id="transfer"),
    ],
)
def test_reasons(name: str, qtype: str, service: str, texts: list[str]) -> None:
    found = explain(synced_zone(records()), name.replace("~", ".shop.svc.cluster.local"), qtype)
    said = "\n".join(text for _, text in found.steps)
    assert [text for text in texts if text not in said] == [], said
    assert str(found.service) == service


def test_whether_an_answer_is_kept_is_told() -> None:
    client = Client(synced_zone(records()))
    about = explainer(client.zone, client.rendered)
    name = "web.shop.svc.cluster.local"
    assert ("answer", "made when it is asked for") in about.explain(name, 1, 0.0).steps
    client.exchange(dns.message.make_query(name, "A"))
    assert ("answer", "kept from an earlier query") in about.explain(name, 1, 0.0).steps


def forwarding(*upstreams: str) -> tuple[Explainer, Resolver]:
    groups = Upstreams(UpstreamPolicy.SEQUENTIAL, random.Random(1))
    stubs = {"corp.example": ["192.0.2.9:53"], "deep.corp.example": ["192.0.2.10:53"]}
    groups.replace(upstreams, stubs)
    cache = Cache(CacheLimits(5, 30, 30, 5, 3600))
    resolver = Resolver(groups, cache, random.Random(1), bounds=Bounds(), timing=Timing(4.0))
    return explainer(synced_zone(records()), resolver=resolver), resolver


def test_whom_a_name_outside_the_zone_is_asked_of() -> None:
    about, _ = forwarding("192.0.2.1:53")
    found = about.explain("www.example.com", 1, 0.0)
    assert (found.origin, found.rcode) == (Origin.UPSTREAMS, "")
    assert [each.address for each in found.upstreams] == ["192.0.2.1:53"]
    for name, address in (("x.corp.example", "192.0.2.9:53"), ("x.deep.corp.example", "192.0.2.10:53")):
        found = about.explain(name, 1, 0.0)
        assert [each.address for each in found.upstreams] == [address]
        assert found.steps == [("zone", f"asked of the upstreams of {name[2:]}")]
    assert about.explain("9.9.9.10.in-addr.arpa", 12, 0.0).origin is Origin.UPSTREAMS
    assert about.explain("ext.shop.svc.cluster.local", 1, 0.0).origin is Origin.UPSTREAMS
    assert about.explain("www.example.com", int(RRType.ANY), 0.0).origin is Origin.UPSTREAMS
    assert about.explain("www.example.com", 250, 0.0).rcode == "REFUSED"


def test_without_an_upstream_that_can_be_asked_it_is_servfail() -> None:
    about, resolver = forwarding("192.0.2.1:53")
    for upstream in resolver.upstreams:
        upstream.looping = True
    found = about.explain("www.example.com", 1, 0.0)
    assert (found.rcode, found.steps[-1]) == ("SERVFAIL", ("upstreams", "all of them lead back here"))
    assert forwarding()[0].explain("www.example.com", 1, 0.0).steps[-1] == ("upstreams", "none is known")


def test_what_the_cache_holds_is_told() -> None:
    about, resolver = forwarding("192.0.2.1:53")
    key = Question(encode_name("www.example.com"), 1, CLASS_IN).key
    resolver.cache.keep(key, Body(b"\0", Rcode.NXDOMAIN), 20, denies=True, now=100.0)
    found = about.explain("www.example.com", 1, 105.0)
    assert (found.origin, found.rcode) == (Origin.CACHE, "NXDOMAIN")
    assert ("cache", "an upstream has said NXDOMAIN; kept for 15 s more") in found.steps
    found = about.explain("www.example.com", 1, 130.0)
    assert found.origin is Origin.UPSTREAMS
    assert ("cache", "an answer has expired 10 s ago; it is given if upstreams fail") in found.steps
    resolver.cache.fail(key, Rcode.SERVFAIL, 5, 130.0)
    assert about.explain("www.example.com", 1, 131.0).rcode == "NXDOMAIN"
    resolver.cache.fail(key[:-1] + b"\1", Rcode.SERVFAIL, 5, 130.0)
    other = Question(encode_name("fail.example.com"), 1, CLASS_IN).key
    resolver.cache.fail(other, Rcode.SERVFAIL, 5, 130.0)
    found = about.explain("fail.example.com", 1, 131.0)
    assert found.steps[-1] == ("cache", "upstreams have failed; kept for 4 s more")
