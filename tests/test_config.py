# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy import syntax
from svcproxy.config import (
    LIVE,
    Config,
    DataplaneMode,
    DetectLocalMode,
    DnsConfig,
    LogConfig,
    LogFormat,
    changed_keys,
    dump,
)
from svcproxy.errors import ConfigError
from svcproxy.options import FLAGS, OCTETS_MAX, add_flags, from_arguments, load
from tests.config_reference import render, sections

REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "config.md"
ENVIRON = {"NODE_NAME": "n1"}
BOTH = {"NODE_NAME": "n1", "KUBECONFIG": "/k"}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a configuration file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return str(path)

    return write


def refused(path: str | None, overrides: Mapping[str, str | list[str]] | None = None) -> list[str]:
    """The problems of a configuration, the directory of its file left out."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, ENVIRON)
    directory = f"{Path(path).parent}/" if path is not None else ""
    return [str(problem).removeprefix(directory) for problem in caught.value.problems]


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)


# --- the reference


def test_the_reference_holds_every_key_as_the_tree_has_it() -> None:
    text = REFERENCE.read_text()
    missing = [key.row for _, _, keys in sections() for key in keys if key.row not in text]
    assert missing == [], "rows that docs/reference/config.md lacks"


def test_the_reference_holds_nothing_else() -> None:
    rows = {key.row for _, _, keys in sections() for key in keys}
    keys, _, flags = REFERENCE.read_text().partition("## Flags")
    assert [line for line in keys.splitlines() if line.startswith("| `") and line not in rows] == []
    assert [line.split("`")[1] for line in flags.splitlines() if line.startswith("| `")] == [
        flag.name for flag in FLAGS
    ]
    assert [line.split("`")[3] for line in flags.splitlines() if line.startswith("| `")] == [flag.key for flag in FLAGS]
    assert render() in keys


def test_live_keys_and_flags_name_keys_of_the_tree() -> None:
    known = {key.path for _, _, keys in sections() for key in keys}
    assert known >= LIVE
    assert known >= {flag.key for flag in FLAGS}


# --- files


def test_defaults_are_what_the_tree_says() -> None:
    assert load(None, None, ENVIRON) == Config(node_name="n1")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("# nothing\n", id="comments"),
        pytest.param("---\n", id="an empty document"),
        pytest.param("null\n", id="null"),
        pytest.param("{}\n", id="an empty mapping"),
        pytest.param("dns:\nlog:\n  # level: debug\nnode_name:\n", id="sections without keys"),
    ],
)
def test_a_file_may_say_nothing(file: Callable[[str], str], text: str) -> None:
    assert load(file(text), None, ENVIRON) == Config(node_name="n1")


def test_values_take_their_canonical_form(file: Callable[[str], str]) -> None:
    config = load(
        file("""\
node_name: Node-1.Example
kube: {api_servers: [https://10.0.0.1:6443/]}
dataplane: {cluster_cidrs: [10.1.2.3/16, FD00::/48], node_port_addresses: [all, 192.0.2.1/32], resync_interval: 5}
dns:
  listen: ["[FD00:0::1]:53"]
  zones: [Cluster.Local., 10.96.0.1/12, IP6.arpa]
  upstreams: [192.0.2.53, "fd00::53", "[fd00::54]:54"]
admin: {health_listen: null}
log: {format: json}
"""),
        None,
        ENVIRON,
    )
    assert config.node_name == "node-1.example"
    assert config.kube.api_servers == ("https://10.0.0.1:6443",)
    assert config.dataplane.cluster_cidrs == ("10.1.0.0/16", "fd00::/48")
    assert config.dataplane.node_port_addresses == ("all", "192.0.2.1/32")
    assert config.dataplane.resync_interval == 5.0
    assert isinstance(config.dataplane.resync_interval, float)
    assert config.dns.listen == ("[fd00::1]:53",)
    assert config.dns.zones == ("cluster.local", "10.96.0.0/12", "ip6.arpa")
    assert config.dns.upstreams == ("192.0.2.53:53", "[fd00::53]:53", "[fd00::54]:54")
    assert config.admin.health_listen is None
    assert config.log.format is LogFormat.JSON


@pytest.mark.parametrize(
    ("listen", "bound"),
    [
        pytest.param(["127.0.0.1:9053"], ["127.0.0.1:9053", "10.96.0.10:53", "[fd96::a]:53"], id="besides"),
        pytest.param(["10.96.0.10:53"], ["10.96.0.10:53", "[fd96::a]:53"], id="one of them is among the others"),
        pytest.param(["0.0.0.0:53"], ["0.0.0.0:53", "[fd96::a]:53"], id="a wildcard has its family's"),
        pytest.param(["0.0.0.0:53", "[::]:53"], ["0.0.0.0:53", "[::]:53"], id="wildcards have all"),
        pytest.param(["[::]:5353"], ["[::]:5353", "10.96.0.10:53", "[fd96::a]:53"], id="of another port"),
    ],
)
def test_intercepted_addresses_are_bound_on_port_53(listen: list[str], bound: list[str]) -> None:
    config = DnsConfig(listen=tuple(listen), intercept=("10.96.0.10", "fd96::a"))
    assert config.sockets == tuple(bound)


BAD = """\
node_name: n_1
bogus: 1
kube:
  page_size: 0
  api_server: [https://10.0.0.1]
  api_servers: [https://10.0.0.1, ftp://x, https://a:b@c]
dns:
  ttl: 4000
  listen: [1.2.3.4, ":53", "127.0.0.1:53", "[::1]:99999"]
  workers: many
  enabled: 1
dataplane:
  mode: ebpf
  cluster_cidrs: 10.0.0.0/8
  node_port_addresses: [secondary]
  resync_interval: .inf
  userspace: []
admin:
  metrics_listen: localhost:1
log:
  level: loud
log: {}
state:
  max_age: -1
"""


def test_every_problem_is_told_at_once_with_its_line(file: Callable[[str], str]) -> None:
    overrides: dict[str, str | list[str]] = {"log.format": "xml", "run_dir": "", "dns.upstreams": ["192.0.2.1", "up"]}
    problems = refused(file(BAD), overrides)
    assert [problem.split(": ")[0:2] for problem in problems] == [
        ["c.yaml:1", "node_name"],
        ["c.yaml:2", "bogus"],
        ["c.yaml:4", "kube.page_size"],
        ["c.yaml:5", "kube.api_server"],
        ["c.yaml:6", "kube.api_servers[1]"],
        ["c.yaml:6", "kube.api_servers[2]"],
        ["c.yaml:8", "dns.ttl"],
        ["c.yaml:9", "dns.listen[0]"],
        ["c.yaml:9", "dns.listen[1]"],
        ["c.yaml:9", "dns.listen[3]"],
        ["c.yaml:10", "dns.workers"],
        ["c.yaml:11", "dns.enabled"],
        ["c.yaml:13", "dataplane.mode"],
        ["c.yaml:14", "dataplane.cluster_cidrs"],
        ["c.yaml:15", "dataplane.node_port_addresses[0]"],
        ["c.yaml:16", "dataplane.resync_interval"],
        ["c.yaml:17", "dataplane.userspace"],
        ["c.yaml:19", "admin.metrics_listen"],
        ["c.yaml:21", "log.level"],
        ["c.yaml:22", "log"],
        ["c.yaml:24", "state.max_age"],
        ["--run-dir", "'' is not a path"],
        ["--upstream", problems[-2].partition(": ")[2]],
        ["--log-format", "expected one of logfmt, json, found 'xml'"],
    ]
    assert "'up' is not ADDRESS or ADDRESS:PORT" in problems[-2]
    assert problems[3].endswith("unknown key, did you mean api_servers?")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("dns: [", "c.yaml:1: while parsing a flow", id="syntax"),
        pytest.param("a: 1\n---\nb: 2\n", "c.yaml:1: a: unknown key", id="two documents: the first is still checked"),
        pytest.param("- 1\n", "c.yaml:1: expected a mapping, found a list", id="a list"),
        pytest.param("text\n", "c.yaml:1: expected a mapping, found 'text'", id="text"),
        pytest.param("dns: 5\n", "c.yaml:1: dns: expected a mapping, found 5", id="a section that is a number"),
        pytest.param("#" * (OCTETS_MAX + 1), "c.yaml: larger than 1 MiB", id="too large"),
        pytest.param(
            "kube: {manifests: /m, context: c}\n",
            "c.yaml:1: kube.context: excluded by kube.manifests",
            id="files and a cluster",
        ),
        pytest.param(
            "dns:\n  listen:\n  - 127.0.0.1:53\n  - 127.0.0.1:53\n",
            "c.yaml:4: dns.listen[1]: 127.0.0.1:53 is listed twice",
            id="an address twice",
        ),
        pytest.param(
            "dns: {zones: [in-addr.arpa, 10.96.0.0/12]}\n",
            "c.yaml:1: dns.zones: a cluster domain is needed besides zones of addresses",
            id="zones of addresses alone",
        ),
        pytest.param(
            "dns:\n  intercept:\n  - FD96:0::A\n  - fd96::a\n",
            "c.yaml:4: dns.intercept[1]: fd96::a is listed twice",
            id="an intercepted address twice",
        ),
        pytest.param(
            f"dns: {{intercept: [{', '.join(f'10.96.0.{number}' for number in range(8))}]}}\n",
            "c.yaml:1: dns.intercept: 8 addresses, at most 7 can be intercepted",
            id="too many intercepted addresses",
        ),
        *(
            pytest.param(
                f"dns: {{intercept: ['{address}']}}\n",
                f"c.yaml:1: dns.intercept[0]: '{address}' cannot be intercepted",
                id=f"{address} cannot be intercepted",
            )
            for address in (
                "0.0.0.0",
                "::",
                "127.0.0.1",
                "::1",
                "224.0.0.1",
                "ff02::1",
                "fe80::1",
                "::ffff:10.0.0.1",
                "255.255.255.255",
                "0.1.2.3",
            )
        ),
        pytest.param(
            "dns: {intercept: [10.96.0.10:53]}\n",
            "c.yaml:1: dns.intercept[0]: '10.96.0.10:53' is not an IP address",
            id="an intercepted address with a port",
        ),
        pytest.param("dns: {listen: []}\n", "c.yaml:1: dns.listen: at least one address", id="DNS without address"),
        pytest.param(
            "admin: {health_listen: '127.0.0.1:10249'}\n",
            "c.yaml:1: admin.metrics_listen: the same address",
            id="two listeners on one address",
        ),
        pytest.param(
            "dns: {metrics_listen: '127.0.0.1:10248', workers: 3}\n",
            "c.yaml:1: dns.metrics_listen: port 10249 is that of admin.metrics_listen",
            id="a worker's port that is taken",
        ),
        pytest.param(
            "dns: {metrics_listen: '[::1]:65535', workers: 2}\n",
            "c.yaml:1: dns.metrics_listen: no port for each of 2 workers from here on",
            id="no port for a worker",
        ),
        pytest.param(
            "dataplane:\n  detect_local_mode: BridgeInterface\n",
            "c.yaml:1: dataplane.pod_bridge_interface: needed while dataplane.detect_local_mode is BridgeInterface",
            id="a bridge without a name",
        ),
        pytest.param(
            "dataplane: {detect_local_mode: InterfaceNamePrefix, pod_interface_name_prefix: null}\n",
            "c.yaml:1: dataplane.pod_interface_name_prefix: needed while",
            id="interfaces without a prefix",
        ),
        pytest.param(
            "dataplane: {detect_local_mode: ClusterCIDR}\n",
            "c.yaml:1: dataplane.cluster_cidrs: needed while",
            id="no CIDR of the cluster",
        ),
        pytest.param(
            "dataplane:\n  detect_local_mode: NodeCIDR\n  cluster_cidrs: [10.0.0.0/8]\n",
            "c.yaml:3: dataplane.cluster_cidrs: not used while dataplane.detect_local_mode is NodeCIDR",
            id="a CIDR that is not used",
        ),
        pytest.param(
            "dataplane:\n  pod_bridge_interface: cni0\n",
            "c.yaml:2: dataplane.pod_bridge_interface: not used while dataplane.detect_local_mode is NodeCIDR",
            id="an interface that is not used",
        ),
        pytest.param(
            "dataplane:\n  cluster_cidrs: [fd00::/48, 10.0.0.0/8]\n  service_cidrs: [fd01::/112, 10.96.0.0/12]\n",
            "c.yaml:3: dataplane.service_cidrs[1]: 10.96.0.0/12 overlaps dataplane.cluster_cidrs 10.0.0.0/8",
            id="Services among pods",
        ),
    ],
)
def test_files_that_are_refused(file: Callable[[str], str], text: str, problem: str) -> None:
    assert refused(file(text))[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        pytest.param("", DetectLocalMode.NODE_CIDR, id="nothing given: the Node's podCIDRs"),
        pytest.param("cluster_cidrs: [10.0.0.0/8]", DetectLocalMode.CLUSTER_CIDR, id="a CIDR of the cluster"),
        pytest.param(
            "detect_local_mode: BridgeInterface, pod_bridge_interface: cni0, cluster_cidrs: [10.0.0.0/8]",
            DetectLocalMode.BRIDGE_INTERFACE,
            id="a CIDR beside the bridge",
        ),
        pytest.param(
            "detect_local_mode: InterfaceNamePrefix, pod_interface_name_prefix: veth",
            DetectLocalMode.INTERFACE_NAME_PREFIX,
            id="a prefix",
        ),
    ],
)
def test_how_pods_are_known(file: Callable[[str], str], text: str, mode: DetectLocalMode) -> None:
    assert load(file(f"dataplane: {{{text}}}\n"), None, ENVIRON).dataplane.local_mode is mode


@pytest.mark.parametrize(
    "text",
    [
        "detect_local_mode: Bridge, pod_bridge_interface: cni0",
        "cluster_cidrs: [x], detect_local_mode: ClusterCIDR",
        "detect_local_mode: BridgeInterface, pod_bridge_interface: 'a\"b'",
        "detect_local_mode: InterfaceNamePrefix, pod_interface_name_prefix: 'a\\'",
    ],
)
def test_a_bad_key_is_told_once(file: Callable[[str], str], text: str) -> None:
    assert len(refused(file(f"dataplane: {{{text}}}\n"))) == 1


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="absent"),
        pytest.param(lambda path: path.mkdir(), "Is a directory", id="a directory"),
        pytest.param(lambda path: path.symlink_to(path), "Too many levels of symbolic links", id="a circle"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_beside_the_flags(
    make: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    make(tmp_path / "c.yaml")
    problems = refused(str(tmp_path / "c.yaml"), {"dns.zones": ["a..b"]})
    assert problems[0] == f"c.yaml: cannot be read: {cause}"
    assert problems[1].startswith("--cluster-domain: 'a..b' is not a DNS name")


# --- flags and environment


def test_cluster_domains_of_the_command_line_stand_beside_the_zones_of_addresses(file: Callable[[str], str]) -> None:
    path = file("dns: {zones: [file.local, ip6.arpa]}\n")
    given = arguments("--config", path, "--cluster-domain", "a.local", "--cluster-domain", "b.local")
    assert from_arguments(given, ENVIRON).dns.zones == ("a.local", "b.local", "in-addr.arpa", "ip6.arpa")


def test_flags_win_over_the_file(file: Callable[[str], str]) -> None:
    path = file("node_name: file\ndns: {listen: ['127.0.0.1:1'], ttl: 5}\nlog: {level: loud}\n")
    config = from_arguments(
        arguments(
            "--config", path, "--node-name", "Flag", "--dns-listen", "127.0.0.1:2", "--dns-listen", "[::1]:2",
            "--log-level", "debug", "--dataplane", "none", "--admin-listen", "127.0.0.1:9",
        ),
        ENVIRON,
    )  # fmt: skip
    assert config.node_name == "flag"
    assert config.dns == DnsConfig(listen=("127.0.0.1:2", "[::1]:2"), ttl=5)
    assert config.log == LogConfig(level="debug")
    assert config.dataplane.mode is DataplaneMode.NONE
    assert config.admin.metrics_listen == "127.0.0.1:9"


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_has_help_and_is_named_in_its_problems(flag: object) -> None:
    assert flag in FLAGS
    (entry,) = (each for each in FLAGS if each is flag)
    assert entry.help
    with pytest.raises(ConfigError) as caught:
        from_arguments(arguments(entry.name, "\0"), ENVIRON)
    assert [(problem.path, problem.file) for problem in caught.value.problems] == [(entry.name, "")]


@pytest.mark.parametrize(
    ("text", "environ", "node", "kubeconfig"),
    [
        pytest.param("", {"NODE_NAME": "N1", "KUBECONFIG": "/k"}, "n1", "/k", id="environment"),
        pytest.param("node_name: n2\nkube: {kubeconfig: /f}", BOTH, "n2", "/f", id="file"),
        pytest.param("kube: {manifests: /m}", BOTH, "n1", None, id="manifests instead"),
        pytest.param("kube: {api_servers: [http://a]}", BOTH, "n1", None, id="servers"),
        pytest.param("", {"NODE_NAME": "", "KUBECONFIG": ""}, os.uname().nodename.lower(), None, id="empty variables"),
    ],
)  # fmt: skip
def test_environment(
    file: Callable[[str], str], text: str, environ: dict[str, str], node: str, kubeconfig: str | None
) -> None:
    config = load(file(text), None, environ)
    assert (config.node_name, config.kube.kubeconfig) == (node, kubeconfig)


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, None, {"NODE_NAME": "a b"})
    assert [problem.path for problem in caught.value.problems] == ["$NODE_NAME"]


# --- the tree


def test_a_dump_reads_back_as_the_same_configuration(file: Callable[[str], str]) -> None:
    config = Config(node_name="n1", dns=DnsConfig(listen=("[::1]:53",)), log=LogConfig(level="error"))
    assert load(file(json.dumps(dump(config))), None, {}) == config


def test_changed_keys_are_leaves() -> None:
    old = Config()
    new = msgspec.structs.replace(old, node_name="x", dns=DnsConfig(ttl=1), log=LogConfig(level="debug"))
    assert changed_keys(old, new) == ("dns.ttl", "log.level", "node_name")
    assert changed_keys(new, new) == ()


def test_zones_that_come_and_go_are_changes() -> None:
    old = Config(dns=DnsConfig(stub_domains={"a.example": ("192.0.2.1:53",), "b.example": ("192.0.2.1:53",)}))
    new = Config(dns=DnsConfig(stub_domains={"b.example": ("192.0.2.2:53",), "c.example": ("192.0.2.1:53",)}))
    assert changed_keys(old, new) == tuple(f"dns.stub_domains.{zone}.example" for zone in "abc")


def test_stub_domains_take_their_canonical_form(file: Callable[[str], str]) -> None:
    config = load(file('dns: {stub_domains: {Corp.Example.: [192.0.2.1, "fd00::1"], "x.y": [192.0.2.2:54]}}'), None, {})
    assert config.dns.stub_domains == {"corp.example": ("192.0.2.1:53", "[fd00::1]:53"), "x.y": ("192.0.2.2:54",)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("{corp.example: 192.0.2.1}", "corp.example: expected a list", id="no list"),
        pytest.param("{corp.example: []}", "corp.example has no upstreams", id="an empty list"),
        pytest.param("{corp.example: [dns.example]}", "'dns.example' is not ADDRESS", id="a name"),
        pytest.param("{corp.example: [192.0.2.1, 192.0.2.1:53]}", "has an upstream twice", id="one twice"),
        pytest.param("{'': [192.0.2.1]}", "'' is not a DNS name", id="no name"),
        pytest.param("{a.b: [192.0.2.1], A.B.: [192.0.2.1]}", "a.b is there twice", id="two spellings"),
        pytest.param("[192.0.2.1]", "expected a mapping", id="no mapping"),
    ],
)
def test_bad_stub_domains_are_refused(file: Callable[[str], str], text: str, problem: str) -> None:
    (told,) = refused(file(f"dns: {{stub_domains: {text}}}"))
    assert told.startswith("c.yaml:1: dns.stub_domains")
    assert problem in told


# --- text forms


@pytest.mark.parametrize(
    ("check", "text", "expected"),
    [
        pytest.param(syntax.ip_address, "FD00:0:0::1", "fd00::1", id="RFC 5952"),
        pytest.param(syntax.ip_address, "10.0.0.01", None, id="leading zero"),
        pytest.param(syntax.ip_address, "fe80::1%eth0", None, id="zone"),
        pytest.param(syntax.cidr, "10.0.0.1/8", "10.0.0.0/8", id="host bits"),
        pytest.param(syntax.cidr, "10.0.0.1", None, id="no length"),
        pytest.param(syntax.cidr, "10.0.0.0/255.0.0.0", None, id="a mask"),
        pytest.param(syntax.cidr, "10.0.0.0/33", None, id="too long"),
        pytest.param(syntax.listen_address, "127.0.0.1:0", "127.0.0.1:0", id="any port"),
        pytest.param(syntax.listen_address, "::1:53", None, id="IPv6 without brackets"),
        pytest.param(syntax.listen_address, "[127.0.0.1]:53", None, id="IPv4 in brackets"),
        pytest.param(syntax.listen_address, "127.0.0.1:٣", None, id="digits of another script"),
        pytest.param(syntax.resolver_address, "::1", "[::1]:53", id="resolver without port"),
        pytest.param(syntax.resolver_address, "[::1]", "[::1]:53", id="resolver in brackets"),
        pytest.param(syntax.resolver_address, "resolver:53", None, id="resolver by name"),
        pytest.param(syntax.dns_label, "a" * 63, "a" * 63, id="longest label"),
        pytest.param(syntax.dns_label, "a" * 64, None, id="label too long"),
        pytest.param(syntax.dns_label, "a\n", None, id="a line end"),
        pytest.param(syntax.dns_label, "-a", None, id="hyphen first"),
        pytest.param(syntax.dns_subdomain, "a..b", None, id="empty label"),
        pytest.param(syntax.dns_subdomain, ".".join(["a" * 63] * 4), None, id="name too long"),
        pytest.param(syntax.zone, "Cluster.Local.", "cluster.local", id="zone"),
        pytest.param(syntax.node_name, " Host ", "host", id="node name"),
        pytest.param(syntax.api_server_url, "https://[::1]:6443/", "https://[::1]:6443", id="URL"),
        pytest.param(syntax.api_server_url, "https://a:b@c", None, id="URL with credentials"),
        pytest.param(syntax.api_server_url, "https://a:99999", None, id="URL with a bad port"),
        pytest.param(syntax.api_server_url, "10.0.0.1:6443", None, id="no scheme"),
        pytest.param(syntax.node_port_addresses, "localhost", "localhost", id="keyword"),
        pytest.param(syntax.interface_name, "cali12-3.4_x", "cali12-3.4_x", id="interface"),
        pytest.param(syntax.interface_name, "a" * 16, None, id="interface too long"),
        pytest.param(syntax.interface_name, "veth*", None, id="interface with a star"),
        pytest.param(syntax.interface_name, "eth0:1", None, id="interface alias"),
        pytest.param(syntax.interface_name, "..", None, id="interface that is a directory"),
        pytest.param(syntax.path, "", None, id="no path"),
    ],
)
def test_text_forms(check: Callable[[str], str], text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"\S"):
            check(text)
    else:
        assert check(text) == expected


@pytest.mark.parametrize(
    "check",
    [
        syntax.ip_address, syntax.cidr, syntax.listen_address, syntax.resolver_address, syntax.zone, syntax.node_name,
        syntax.api_server_url, syntax.node_port_addresses, syntax.dns_label, syntax.dns_subdomain, syntax.path,
        syntax.interface_name,
    ],
)  # fmt: skip
@given(text=st.one_of(st.text(max_size=30), st.text(alphabet="0123456789abf.:/[]%-", max_size=30)))
def test_a_canonical_form_is_its_own(check: Callable[[str], str], text: str) -> None:
    try:
        canonical = check(text)
    except ValueError:
        return
    assert check(canonical) == canonical
