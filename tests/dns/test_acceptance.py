# SPDX-License-Identifier: Apache-2.0
"""The acceptance cases of names and types, octets in and octets out. `~` stands for `.shop.svc.cluster.local.`

A rows are what CoreDNS answers, B rows what is wanted where it does better. Weights of SRV are shared by the endpoints
that differ: a copy of one in a second slice does not count.
"""

import dns.message
import pytest

from svcproxy_dns.rendered import TCP
from tests.dns.world import (
    NODATA,
    NXDOMAIN,
    REFUSED,
    SHOP,
    SOA,
    Answer,
    Client,
    addresses,
    expand,
    noerror,
    records,
    synced_zone,
)


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(synced_zone(records()))


KUBE_DNS = "kube-dns.kube-system.svc.cluster.local."
V6 = f"{'0.' * 23}4.4.2.0.0.0.d.f.ip6.arpa."
HL = {
    "db-0": ["10.244.2.1", "fd00:244::1"],
    "db-1": ["10.244.2.2"],
    "10-244-2-3": ["10.244.2.3"],
    "db-nil": ["10.244.2.5"],
    "fd00-244-0-0-1--0": ["fd00:244:0:0:1::"],
}
SRV_OF_HL = noerror(
    *(f"_db._tcp.hl~ SRV 0 16 5432 {label}.hl~" for label in HL),
    add=[f"{label}.hl~ {'AAAA' if ':' in ip else 'A'} {ip}" for label, ips in HL.items() for ip in ips],
)


def ptr(owner: str, target: str) -> Answer:
    return noerror(f"{owner} PTR {target}")


@pytest.mark.parametrize(
    ("qname", "qtype", "expected"),
    [
        pytest.param("web~", "A", noerror("web~ A 10.96.10.1"), id="A1: ClusterIP"),
        pytest.param("web~", "AAAA", NODATA, id="A2: NODATA, not NXDOMAIN"),
        pytest.param("v6~", "A", NODATA, id="A3: IPv6 only"),
        pytest.param("v6~", "AAAA", noerror("v6~ AAAA fd00:96::3"), id="A4: IPv6 only"),
        pytest.param("dual~", "AAAA", noerror("dual~ AAAA fd00:96::2"), id="A5: dual stack"),
        pytest.param("dual~", "A", noerror("dual~ A 10.96.10.2"), id="A5: dual stack, the other family"),
        pytest.param(
            "dual~",
            "SRV",
            noerror("dual~ SRV 0 50 80 dual~", add=["dual~ A 10.96.10.2", "dual~ AAAA fd00:96::2"]),
            id="A6: SRV of both families",
        ),
        pytest.param("idle~", "A", noerror("idle~ A 10.96.10.5"), id="A7: no slices at all"),
        pytest.param("lb~", "A", noerror("lb~ A 10.96.10.9"), id="A8: the cluster IP of a LoadBalancer"),
        pytest.param(
            "web~",
            "SRV",
            noerror(*(f"web~ SRV 0 33 {port} web~" for port in (80, 443, 9000)), add=["web~ A 10.96.10.1"]),
            id="A9: SRV of every port, unnamed ones too",
        ),
        pytest.param(
            "_https._tcp.web~",
            "SRV",
            noerror("_https._tcp.web~ SRV 0 100 443 web~", add=["web~ A 10.96.10.1"]),
            id="A10: SRV of one port",
        ),
        pytest.param("_https._udp.web~", "SRV", NXDOMAIN, id="A11: port of another protocol"),
        pytest.param("_grpc._tcp.web~", "SRV", NXDOMAIN, id="A12: no such port"),
        pytest.param("noports~", "SRV", NODATA, id="A13: Service without ports"),
        pytest.param("web-a.web~", "A", noerror("web-a.web~ A 10.244.1.5"), id="A14: endpoint of a ClusterIP Service"),
        pytest.param("10-244-1-6.web~", "A", noerror("10-244-1-6.web~ A 10.244.1.6"), id="A15: endpoint by address"),
        pytest.param("10-244-1-5.web~", "A", NXDOMAIN, id="A16: it has a hostname, so no dashed name"),
        pytest.param("10-244-1-7.web~", "A", NXDOMAIN, id="A17: not ready"),
        pytest.param(
            "web-a.web~",
            "SRV",
            noerror(
                *(f"web-a.web~ SRV 0 50 {port} web-a.web~" for port in (8080, 8443)), add=["web-a.web~ A 10.244.1.5"]
            ),
            id="A18: SRV of an endpoint: the slice's ports",
        ),
        pytest.param("nope~", "A", NXDOMAIN, id="A19: unknown Service"),
        pytest.param("nope~", "HTTPS", NXDOMAIN, id="A20: unknown Service, any type"),
        pytest.param("web~", "HTTPS", NODATA, id="A21: HTTPS"),
        pytest.param("web~", "MX", NODATA, id="A22: MX"),
        pytest.param("web~", "ANY", NODATA, id="A23: ANY"),
        pytest.param(
            "hl~",
            "A",
            noerror(*(f"hl~ A 10.244.2.{low}" for low in (1, 2, 3, 5))),
            id="A24: headless: ready or null, each address once",
        ),
        pytest.param(
            "hl~", "AAAA", noerror("hl~ AAAA fd00:244::1", "hl~ AAAA fd00:244:0:0:1::"), id="A25: headless, IPv6"
        ),
        pytest.param("_db._tcp.hl~", "SRV", SRV_OF_HL, id="A26: SRV of headless endpoints"),
        pytest.param("db-0.hl~", "A", noerror("db-0.hl~ A 10.244.2.1"), id="A27: endpoint by hostname"),
        pytest.param("db-0.hl~", "AAAA", noerror("db-0.hl~ AAAA fd00:244::1"), id="A28: same name, other family"),
        pytest.param("db-1.hl~", "AAAA", NODATA, id="A29: the name exists in the other family"),
        pytest.param("db-9.hl~", "A", NXDOMAIN, id="A30: serving is not ready"),
        pytest.param(
            "fd00-244-0-0-1--0.hl~",
            "AAAA",
            noerror("fd00-244-0-0-1--0.hl~ AAAA fd00:244:0:0:1::"),
            id="A31: trailing :: is --0",
        ),
        pytest.param("down~", "A", NXDOMAIN, id="A32: headless, nothing ready"),
        pytest.param("down~", "SRV", NXDOMAIN, id="A33: headless, nothing ready, any type"),
        pytest.param("bare~", "A", noerror("bare~ A 10.244.4.1", "bare~ A 10.244.4.2"), id="A34: headless, no ports"),
        pytest.param("bare~", "SRV", NODATA, id="A35: headless, no ports"),
        pytest.param("p-0.pnr~", "A", noerror("p-0.pnr~ A 10.244.5.1"), id="A36: ready as the slice says"),
        pytest.param("ext~", "A", noerror("ext~ CNAME www.example.com."), id="A37: ExternalName, nobody to ask"),
        pytest.param("ext~", "CNAME", noerror("ext~ CNAME www.example.com."), id="A38: the CNAME alone"),
        pytest.param("ext~", "SRV", NODATA, id="A39: ExternalName has no SRV"),
        pytest.param("_http._tcp.extp~", "SRV", NXDOMAIN, id="A40: nor have its ports"),
        pytest.param("sub.ext~", "A", NXDOMAIN, id="A41: nothing below an ExternalName"),
        pytest.param(
            "alias~", "A", noerror("alias~ CNAME web~", "web~ A 10.96.10.1"), id="A42: followed within the zone"
        ),
        pytest.param("ghost~", "CNAME", noerror("ghost~ CNAME nope~"), id="A43: CNAME to what does not exist"),
        pytest.param("self~", "A", NODATA, id="A45: CNAME to itself"),
        pytest.param("ring-a~", "A", NODATA, id="A45: CNAMEs in a ring"),
        pytest.param("ipname~", "A", NXDOMAIN, id="A46: ExternalName that is an address"),
        pytest.param("cluster.local.", "A", NODATA, id="A47: apex"),
        pytest.param("svc.cluster.local.", "A", NODATA, id="A48: svc"),
        pytest.param("pod.cluster.local.", "AAAA", NODATA, id="A49: pod"),
        pytest.param("shop.svc.cluster.local.", "A", NODATA, id="A50: namespace"),
        pytest.param("empty.svc.cluster.local.", "SRV", NODATA, id="A51: namespace without objects"),
        pytest.param("shop.pod.cluster.local.", "A", NODATA, id="A52: namespace of pods"),
        pytest.param("nons.svc.cluster.local.", "A", NXDOMAIN, id="A53: no such namespace"),
        pytest.param("web.nons.svc.cluster.local.", "A", NXDOMAIN, id="A54: nor anything in it"),
        pytest.param("nons.pod.cluster.local.", "A", NXDOMAIN, id="A55: nor its pods"),
        pytest.param("foo.cluster.local.", "NS", NXDOMAIN, id="A56: foreign label"),
        pytest.param("shop.cluster.local.", "A", NXDOMAIN, id="A57: namespace without svc"),
        pytest.param("a.b.c.web~", "A", NXDOMAIN, id="A58: too many labels"),
        pytest.param("*~", "A", NXDOMAIN, id="A59: wildcards are nothing special"),
        pytest.param("*.*.svc.cluster.local.", "A", NXDOMAIN, id="A60: wildcards are nothing special"),
        pytest.param("cluster.local.", "SOA", noerror(SOA.replace("30 IN ", "", 1)), id="A61: SOA"),
        pytest.param(
            "cluster.local.",
            "NS",
            noerror(f"cluster.local. NS {KUBE_DNS}", add=[f"{KUBE_DNS} A 10.96.0.10"]),
            id="A62: NS: the Service that the server is an endpoint of",
        ),
        pytest.param(
            "ns.dns.cluster.local.",
            "A",
            noerror("ns.dns.cluster.local. A 10.96.0.10"),
            id="A63: its address under the server's own name",
        ),
        pytest.param("ns.dns.cluster.local.", "AAAA", NODATA, id="A63: the server itself, other family"),
        pytest.param(
            "dns-version.cluster.local.",
            "TXT",
            noerror('dns-version.cluster.local. TXT "1.1.0"'),
            id="A64: version of the schema",
        ),
        pytest.param(
            "10-1-2-3.shop.pod.cluster.local.",
            "A",
            noerror("10-1-2-3.shop.pod.cluster.local. A 10.1.2.3"),
            id="A65: pod by address",
        ),
        pytest.param("10-1-2-3.shop.pod.cluster.local.", "AAAA", NODATA, id="A65: pod by address, other family"),
        pytest.param(
            "fd00--9.shop.pod.cluster.local.",
            "AAAA",
            noerror("fd00--9.shop.pod.cluster.local. AAAA fd00::9"),
            id="A66: pod by IPv6 address",
        ),
        pytest.param("10-1-2-300.shop.pod.cluster.local.", "A", NXDOMAIN, id="A67: no address"),
        pytest.param("10-1-2-3.nons.pod.cluster.local.", "A", NXDOMAIN, id="A68: pod of no namespace"),
        pytest.param("1.10.96.10.in-addr.arpa.", "PTR", ptr("1.10.96.10.in-addr.arpa.", "web~"), id="A69: ClusterIP"),
        pytest.param(
            "5.1.244.10.in-addr.arpa.",
            "PTR",
            ptr("5.1.244.10.in-addr.arpa.", "web-a.web~"),
            id="A70: endpoint's hostname",
        ),
        pytest.param(
            "6.1.244.10.in-addr.arpa.",
            "PTR",
            ptr("6.1.244.10.in-addr.arpa.", "10-244-1-6.web~"),
            id="A71: endpoint without a hostname",
        ),
        pytest.param(f"1.{V6}", "PTR", ptr(f"1.{V6}", "db-0.hl~"), id="A72: IPv6"),
        pytest.param("cluster.local.", "AXFR", REFUSED, id="A76: transfer"),
        pytest.param("cluster.local.", "IXFR", REFUSED, id="A76: incremental transfer"),
        pytest.param("cluster.local.", "TXT", NODATA, id="B1: apex"),
        pytest.param("svc.cluster.local.", "TXT", NODATA, id="B1: svc"),
        pytest.param("shop.svc.cluster.local.", "TXT", NODATA, id="B1: namespace"),
        pytest.param("dns-version.cluster.local.", "A", NODATA, id="B2: dns-version"),
        pytest.param("x.dns-version.cluster.local.", "A", NXDOMAIN, id="B2: below dns-version"),
        pytest.param("dns.cluster.local.", "A", NODATA, id="B3: parent of the server's name"),
        pytest.param("ns.dns.cluster.local.", "TXT", NODATA, id="B3: the server's name"),
        pytest.param("x.dns.cluster.local.", "A", NXDOMAIN, id="B3: its sibling"),
        pytest.param("_tcp.web~", "A", NODATA, id="B4: parent of a port"),
        pytest.param("_tcp.web~", "SRV", NODATA, id="B4: parent of a port, SRV"),
        pytest.param("_udp.web~", "A", NXDOMAIN, id="B4: parent of no port"),
        pytest.param("_https._tcp.web~", "A", NODATA, id="a port's name holds no address"),
        pytest.param("_https._tcp.web~", "TXT", NODATA, id="a port's name, other types"),
        pytest.param("_db._tcp.web-a.web~", "SRV", NXDOMAIN, id="an endpoint's ports have no names"),
        pytest.param("web-a.web~", "PTR", NODATA, id="PTR of a forward name"),
        pytest.param("soon~", "SRV", NODATA, id="B12: SRV of a cluster IP still to come"),
        pytest.param("10-1-2-3.shop.pod.cluster.local.", "SRV", NODATA, id="a pod has no ports"),
        pytest.param("_db._tcp.hl~", "A", NODATA, id="a port of headless endpoints"),
        pytest.param("_tcp.hl~", "A", NODATA, id="parent of a port of headless endpoints"),
        pytest.param("_db._tcp.anyport~", "SRV", NODATA, id="a port without a number exists"),
        pytest.param("_db._tcp.anyport~", "A", NODATA, id="a port without a number exists for all types"),
        pytest.param("_dx._tcp.anyport~", "SRV", NXDOMAIN, id="another port does not"),
        pytest.param(
            "anyport~",
            "SRV",
            noerror("anyport~ SRV 0 100 80 10-244-6-1.anyport~", add=["10-244-6-1.anyport~ A 10.244.6.1"]),
            id="SRV of the ports that have a number",
        ),
        pytest.param("_tcp.noports~", "A", NXDOMAIN, id="protocol of a Service without ports"),
        pytest.param("_._tcp.web~", "SRV", NXDOMAIN, id="B6: the unnamed port has no name"),
        pytest.param("http.tcp.web~", "SRV", NXDOMAIN, id="B6: underscores are not optional"),
        pytest.param("nope~", "SOA", NXDOMAIN, id="B5: SOA of an unknown name"),
        pytest.param("web~", "SOA", NODATA, id="B5: SOA of a known name"),
        pytest.param("x.10-1-2-3.shop.pod.cluster.local.", "A", NXDOMAIN, id="B7: nothing below a pod"),
        pytest.param("ext~", "HTTPS", noerror("ext~ CNAME www.example.com."), id="B11: CNAME whatever is asked"),
        pytest.param("ext~", "TXT", noerror("ext~ CNAME www.example.com."), id="B11: CNAME whatever is asked"),
        pytest.param(
            "version~",
            "TXT",
            noerror("version~ CNAME dns-version.cluster.local.", 'dns-version.cluster.local. TXT "1.1.0"'),
            id="B11: the target's TXT",
        ),
        pytest.param(
            "apex~",
            "SOA",
            noerror("apex~ CNAME cluster.local.", SOA.replace("30 IN ", "", 1)),
            id="B11: the target's SOA",
        ),
        pytest.param(
            "apex~",
            "NS",
            noerror("apex~ CNAME cluster.local.", f"cluster.local. NS {KUBE_DNS}"),
            id="B11: the target's NS",
        ),
        pytest.param(
            "address~",
            "PTR",
            noerror("address~ CNAME 1.10.96.10.in-addr.arpa.", "1.10.96.10.in-addr.arpa. PTR web~"),
            id="B11: the target's PTR",
        ),
        pytest.param("soon~", "A", NODATA, id="B12: cluster IP still to come"),
        pytest.param("web-a.down~", "A", NXDOMAIN, id="nothing below what does not exist"),
        pytest.param("www.example.com.", "A", REFUSED, id="another zone"),
        pytest.param("xcluster.local.", "A", REFUSED, id="another zone with the same end"),
        pytest.param("local.", "A", REFUSED, id="the parent zone"),
        pytest.param(".", "NS", REFUSED, id="the root"),
        pytest.param("10\\.244\\.1\\.6.web~", "A", NXDOMAIN, id="dots inside a label are no address"),
        pytest.param("fd00:244::1.hl~", "AAAA", NXDOMAIN, id="colons inside a label are no address"),
        pytest.param("web\\.shop.svc.cluster.local.", "A", NXDOMAIN, id="a dot inside a label is no boundary"),
    ],
)
def test_names_and_types(client: Client, qname: str, qtype: str, expected: Answer) -> None:
    assert client.ask(qname.replace("~", SHOP), qtype, TCP) == expand(expected)


@pytest.mark.parametrize("qname", ["WeB.sHoP.SvC.ClUsTeR.lOcAl.", "WEB.shop.svc.cluster.LOCAL."])
def test_a74_case_is_echoed(client: Client, qname: str) -> None:
    """Question and owner as asked."""
    response = client.exchange(dns.message.make_query(qname, "A"))
    assert [str(rrset.name) for rrset in (*response.question, *response.answer)] == [qname, qname]
    negative = client.exchange(dns.message.make_query("x" + qname, "A"))
    assert [str(rrset.name) for rrset in negative.authority] == [qname.split(".", 3)[3]], "the zone as asked"
    assert addresses(response) == ["10.96.10.1"]


def test_a75_rdata_has_canonical_labels_and_the_zone_as_asked(client: Client) -> None:
    qname, target = "_HTTPS._Tcp.Web.Shop.svc.Cluster.Local.", "web.shop.svc.Cluster.Local."
    response = client.exchange(dns.message.make_query(qname, "SRV"))
    assert [str(rrset) for rrset in response.answer] == [f"{qname} 30 IN SRV 0 100 443 {target}"]
    assert [str(rrset) for rrset in response.additional] == [f"{target} 30 IN A 10.96.10.1"]


def test_a64_the_version_has_a_ttl_of_its_own(client: Client) -> None:
    response = client.exchange(dns.message.make_query("dns-version.cluster.local.", "TXT"))
    assert [rrset.ttl for rrset in response.answer] == [28800]
