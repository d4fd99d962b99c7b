# SPDX-License-Identifier: Apache-2.0
"""What becomes of NodeLocal DNSCache and of the ConfigMap kube-dns, beside CoreDNS and alone."""

import json
from pathlib import Path

import pytest

from svcproxy.errors import ConfigError
from svcproxy.migrate.draft import Treatment
from tests.migrate.world import Made, made

FILES = Path(__file__).parent / "files"
COREDNS = ". {\n kubernetes cluster.local\n forward . 192.0.2.1\n cache 30\n}\n"
CACHE = """
cluster.local:53 {
 cache {
  success 9984 30
  denial 9984 5
 }
 bind 169.254.20.10 10.96.0.10
 forward . __PILLAR__CLUSTER__DNS__ {
  force_tcp
 }
}
.:53 {
 cache 60
 bind 169.254.20.10 10.96.0.10
 forward . %s
}
"""
LISTEN = ["169.254.20.10:53", "10.96.0.10:53"]


def config_map(**data: object) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "data": {k: json.dumps(v) for k, v in data.items()}})


def cached(upstreams: str = "__PILLAR__UPSTREAM__SERVERS__", **files: str) -> Made:
    return made(node_local_dns=CACHE % upstreams, **files)


def asked(made: Made) -> list[str]:
    """Where pods ask: on addresses that the DNS role brings."""
    return [f"[{each}]:53" if ":" in each else f"{each}:53" for each in made.config["dns.intercept"]]


def test_pods_go_on_asking_where_they_asked() -> None:
    found = cached()
    assert asked(found) == LISTEN
    assert "dns.stub_domains" not in found.config, "the cluster's zones are answered, not forwarded"


def test_its_upstreams_and_cache_count_for_pods_ask_it_first() -> None:
    found = cached("198.51.100.53", corefile=COREDNS)
    assert found.config["dns.upstreams"] == ["198.51.100.53:53"]
    assert found.config["dns.cache.ttl_max"] == 60
    assert found.config["dns.zones"] == ["cluster.local"]
    overruled = [each for each in found.said("forward") if each.place.source == "CoreDNS"]
    assert [each.treatment for each in overruled] == [Treatment.DIFFERS]
    assert "pods ask" in overruled[0].text


def test_what_it_hands_to_coredns_coredns_forwards() -> None:
    found = cached("__PILLAR__CLUSTER__DNS__", corefile=COREDNS)
    assert found.config["dns.upstreams"] == ["192.0.2.1:53"]


def test_the_service_of_coredns_is_known_by_its_address() -> None:
    service = '{"apiVersion": "v1", "kind": "Service", "spec": {"clusterIP": "10.96.0.10"}}'
    assert cached("10.96.0.10", corefile=COREDNS, kube_dns=service).config["dns.upstreams"] == ["192.0.2.1:53"]


def test_without_a_config_map_other_names_go_to_the_nodes_resolvers() -> None:
    found = cached()
    assert found.config["dns.resolv_conf"] == "/etc/resolv.conf"
    assert "dns.upstreams" not in found.config


def test_the_config_map_kube_dns_fills_the_template() -> None:
    kube_dns = config_map(upstreamNameservers=["198.51.100.1"], stubDomains={"Acme.example": ["10.1.0.53:5353"]})
    config = cached(kube_dns=kube_dns).config
    assert config["dns.upstreams"] == ["198.51.100.1:53"]
    assert config["dns.stub_domains"] == {"acme.example": ["10.1.0.53:5353"]}


def test_the_config_map_alone_is_that_of_a_kube_dns() -> None:
    kube_dns = config_map(upstreamNameservers=["198.51.100.1"], stubDomains={"acme.example": ["x", "10.1.0.53"]})
    found = made(kube_dns=kube_dns)
    assert found.config == {
        "dns.upstreams": ["198.51.100.1:53"],
        "dns.stub_domains": {"acme.example": ["10.1.0.53:53"]},
    }
    assert any("given by address" in each.text for each in found.said("stubDomains acme.example"))


def test_nobody_reads_the_config_map_beside_coredns_alone() -> None:
    found = made(corefile=COREDNS, kube_dns=config_map(upstreamNameservers=["198.51.100.1"], federations={}))
    assert found.config["dns.upstreams"] == ["192.0.2.1:53"]
    assert found.of("upstreamNameservers").treatment is Treatment.NEEDLESS
    assert found.of("federations").treatment is Treatment.NONE


@pytest.mark.parametrize("text", ["7", '{"a": 1}', "{"])
def test_a_config_map_that_holds_something_else_is_refused(text: str) -> None:
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"stubDomains": text}}
    with pytest.raises(ConfigError, match="kube_dns: stubDomains: not what JSON of stubDomains is"):
        made(kube_dns=json.dumps(obj))


def test_the_service_kube_dns_says_where_pods_ask() -> None:
    service = '{"apiVersion": "v1", "kind": "Service", "spec": {"clusterIPs": ["10.96.0.10", "fd00::a"]}}'
    found = made(corefile=COREDNS, kube_dns=service)
    assert asked(found) == ["10.96.0.10:53", "[fd00::a]:53"]


def test_without_it_that_is_said() -> None:
    found = made(corefile=COREDNS)
    assert "dns.listen" not in found.config
    assert "set dns.listen" in found.of("dns.listen").text


def test_flags_of_the_daemonset() -> None:
    text = (
        (FILES / "node-local-dns.yaml")
        .read_text()
        .replace("kube-dns-upstream", "x, --nonsense=1, -skipteardown=true, y")
    )
    text = text.replace('"x, --nonsense=1, -skipteardown=true, y"', '"x", "--nonsense=1", "-skipteardown=true", "y"')
    treatments = made(node_local_dns=text).treatments()
    assert treatments["-nonsense"] == {Treatment.NONE}
    assert treatments["-skipteardown"] == {Treatment.DIFFERS}
    assert treatments["-upstreamsvc"] == treatments["-conf"] == {Treatment.NEEDLESS}


def test_a_template_that_nobody_filled_in_is_told() -> None:
    text = (FILES / "node-local-dns.yaml").read_text()
    text = text.replace("169.254.20.10", "__PILLAR__LOCAL__DNS__").replace("10.96.0.10", "__PILLAR__DNS__SERVER__")
    found = made(node_local_dns=text, corefile=COREDNS)
    assert any("template is not filled in" in each.text for each in found.said("-localip"))
    assert found.config["dns.resolv_conf"] == "/etc/resolv.conf"
    assert "dns.listen" not in found.config


def test_the_files_of_a_cluster() -> None:
    subjects = {"kube_proxy": "kube-proxy.yaml", "node_local_dns": "node-local-dns.yaml", "kube_dns": "kube-dns.yaml"}
    files = {name: (FILES / file).read_text() for name, file in subjects.items()}
    found = made(corefile=(FILES / "Corefile").read_text(), env_SECOND_RESOLVER="10.2.0.53", **files)
    assert asked(found) == LISTEN
    assert found.config["dns.stub_domains"] == {
        "corp.example": ["10.1.0.53:53", "10.2.0.53:53"],
        "acme.example": ["198.51.100.53:53", "198.51.100.54:5353"],
    }
