# SPDX-License-Identifier: Apache-2.0
import textwrap
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.kube.manifest_reader import REPORTS_MAX, Contents, Gone, ManifestReader, Unreadable, Update
from svcproxy.model import Namespace, NamespacedName, Object, Service, Store

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  clusterIP: 10.0.0.1
  ports: [{port: 80}]
"""
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
ports: [{port: 8080}]
"""

RANGE = """\
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/12]}
"""


def service(name: str, ip: str = "10.0.0.1") -> str:
    return SERVICE.replace("NAME", name).replace("10.0.0.1", ip)


def stream(*documents: str) -> bytes:
    return "---\n".join(documents).encode()


class Follower:
    """A reader and the store that its changes lead to."""

    def __init__(self) -> None:
        self.reader = ManifestReader()
        self.store = Store()

    def apply(self, **files: Contents) -> Update:
        update = self.reader.apply({f"{name}.yaml": contents for name, contents in files.items()})
        for changes in update.changes:
            self.store.apply(changes)
        return update

    def services(self) -> dict[str, str | None]:
        return {str(key): service.spec.cluster_ip for key, service in self.store.services.items()}

    def namespaces(self) -> set[str]:
        return {key.name for key in self.store.namespaces}


def read(text: str) -> tuple[dict[str, Object], list[str]]:
    """The objects of one file by `Kind namespace/name`, and the reasons why others were left out."""
    update = ManifestReader().apply({"m.yaml": textwrap.dedent(text).encode()})
    objects = {f"{type(o).__name__} {o.key}": o for changes in update.changes for o in changes.applied}
    return objects, [report.reason for report in update.invalid]


def test_every_kind_is_read() -> None:
    objects, reasons = read("""\
        apiVersion: v1
        kind: Service
        metadata: {name: web, namespace: prod, creationTimestamp: 2024-01-01T00:00:00Z}
        spec: {clusterIP: None}
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: web-1, namespace: prod}
        addressType: IPv6
        endpoints: [{addresses: ["FD00::1"]}]
        ---
        apiVersion: v1
        kind: Node
        metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}
        status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
        ---
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "empty"}}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: web-0, namespace: prod}
        status: {phase: Running, podIPs: [{ip: 10.1.0.1}]}
        ---
        apiVersion: networking.k8s.io/v1
        kind: ServiceCIDR
        metadata: {name: kubernetes}
        spec: {cidrs: [10.96.0.0/16, "FD00::/112"]}
        """)
    assert reasons == []
    assert set(objects) == {
        "Service prod/web",
        "EndpointSlice prod/web-1",
        "Node n1",
        "Namespace empty",
        "Namespace prod",
        "Pod prod/web-0",
        "ServiceCIDR kubernetes",
    }


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "apiVersion: v1\nkind: List\nitems:\n"
            "- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None}}",
            id="List",
        ),
        pytest.param(
            "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: a}, spec: {clusterIP: None}}",
            id="ServiceList whose items leave their kind out",
        ),
        pytest.param(
            '{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","annotations":{"x":"\\ud83d\\ude00"}},'
            '"spec":{"clusterIP":"None"}}',
            id="JSON",
        ),
        pytest.param("# head\n---\n---\nnull\n---\n" + service("a").replace("10.0.0.1", "None"), id="empty documents"),
        pytest.param(service("a").replace("10.0.0.1", "None").replace("\n", "\r\n"), id="CRLF"),
        pytest.param("\ufeff" + service("a").replace("10.0.0.1", "None"), id="byte order mark"),
    ],
)
def test_forms_of_a_file(text: str) -> None:
    objects, reasons = read(text)
    assert reasons == []
    assert set(objects) == {"Namespace default", "Service default/a"}


def test_what_the_api_server_would_fill_in() -> None:
    objects, _ = read(service("a"))
    obj = objects["Service default/a"]
    assert isinstance(obj, Service)
    assert (obj.spec.cluster_ips, obj.spec.ip_families) == (("10.0.0.1",), ("IPv4",))
    objects, _ = read(service("a").replace("clusterIP: 10.0.0.1", "clusterIPs: ['fd00::1', 10.0.0.1]"))
    obj = objects["Service default/a"]
    assert isinstance(obj, Service)
    assert (obj.spec.cluster_ip, obj.spec.ip_families) == ("fd00::1", ("IPv6", "IPv4"))


MANY_BAD_FIELDS = """\
  externalTrafficPolicy: local
  internalTrafficPolicy: x
  sessionAffinity: Client
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}
  loadBalancerSourceRanges: [10.0.0.1, ' 10.0.0.0/8 ']
  externalIPs: [x]
"""


def bad(change: tuple[str, str], *reasons: str, of: str = SERVICE, id: str) -> object:  # noqa: A002
    return pytest.param(of.replace("NAME", "web").replace(*change), list(reasons), id=id)


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        bad(("name: web", "name: Web"), "3: metadata.name: 'Web' is not a DNS label", id="name"),
        bad(("name: web", "nme: web"), "3: metadata.name: required", id="no name"),
        bad(("name: web", "name: 5"), "3: metadata.name: expected a string, found 5; quote it", id="name is a number"),
        bad(("name: web", "name: web, namespace: a.b"), "3: metadata.namespace: 'a.b' is not a DNS", id="namespace"),
        bad(("10.0.0.1", "10.0.0.256"), "5: spec.clusterIP: '10.0.0.256' is not an IP address", id="clusterIP"),
        bad(("10.0.0.1", "010.0.0.1"), "5: spec.clusterIP: '010.0.0.1' is not an IP address", id="leading zero"),
        bad(("10.0.0.1", "fe80::1%eth0"), "5: spec.clusterIP: 'fe80::1%eth0' has a zone", id="zone"),
        bad(("10.0.0.1", "224.0.0.1"), "5: spec.clusterIP: '224.0.0.1' is no unicast address", id="multicast"),
        bad(("  clusterIP: 10.0.0.1\n", ""), "4: spec.clusterIP: required", id="nobody allocates"),
        bad(("port: 80", "port: 0"), "6: spec.ports[0].port: 0 is out of range", id="port 0"),
        bad(("port: 80", "port: 65536"), "6: spec.ports[0].port: 65536 is out of range", id="port too large"),
        bad(("port: 80", "port: '80'"), "6: spec.ports[0].port: expected an integer, found '80'", id="port is text"),
        bad(("port: 80", "port: true"), "6: spec.ports[0].port: expected an integer, found", id="port is a boolean"),
        bad(("{port: 80}", "{prt: 80}"), "6: spec.ports[0].port: required", id="no port"),
        bad(("{port: 80}", ""), "6: spec.ports: required", id="no ports"),
        bad(("{port: 80}", "80"), "6: spec.ports[0]: expected a mapping, found 80", id="port is no mapping"),
        bad(
            ("[{port: 80}]", "\n  - {name: a, port: 1}\n  - {name: a, port: 2}\n  - {port: 1}"),
            "8: spec.ports[1].name: 'a' is the name of another port",
            "9: spec.ports[2].name: required where there are several ports",
            "9: spec.ports[2]: 1/TCP is listed twice",
            id="ports that do not go together",
        ),
        bad(("port: 80", "port: 80, protocol: tcp"), "6: spec.ports[0].protocol: expected one of TCP,", id="case"),
        bad(("  ports", "  type: Foo\n  ports"), "6: spec.type: expected one of ClusterIP", id="type"),
        bad(("  ports", "  type: ExternalName\n  ports"), "4: spec.externalName: required", id="no external name"),
        bad(
            ("  ports", "  clusterIPs: [10.0.0.2, 10.0.0.3]\n  ipFamilies: [IPv6, IPv4]\n  ports"),
            "6: spec.clusterIPs[0]: 10.0.0.2 differs from clusterIP 10.0.0.1",
            "6: spec.clusterIPs[1]: two addresses of one family",
            "7: spec.ipFamilies[0]: IPv6 does not fit 10.0.0.2",
            id="addresses that do not go together",
        ),
        bad(
            (
                "  ports",
                MANY_BAD_FIELDS + "  ports",
            ),
            "6: spec.externalTrafficPolicy: expected one of Cluster, Local, found 'local'",
            "7: spec.internalTrafficPolicy: expected one of",
            "8: spec.sessionAffinity: expected one of None, ClientIP",
            "9: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is out of range: 1 to 86400",
            "10: spec.loadBalancerSourceRanges[0]: '10.0.0.1' is not a CIDR",
            "11: spec.externalIPs[0]: 'x' is not an IP address",
            id="all at once",
        ),
        bad(("metadata", "spec: {}\nmetadata"), "5: spec: set twice, first on line 3", id="a key twice"),
        bad(("10.1.0.1", "fd00::1"), "5: endpoints[0].addresses[0]: 'fd00::1' is not of the", of=SLICE, id="family"),
        bad(("[10.1.0.1]", "[]"), "5: endpoints[0].addresses: at least one address", of=SLICE, id="no address"),
        bad(("addressType: IPv4\n", ""), "1: addressType: required", of=SLICE, id="no address type"),
        bad(("port: 8080", "port: 0"), "6: ports[0].port: 0 is out of range", of=SLICE, id="slice port"),
        bad(("{port: 8080}", "{port: 1}, {port: 2}"), "6: ports[1].name: '' is the name of", of=SLICE, id="port names"),
        bad(("10.96.0.0/12", "10.96.0.0/33"), "4: spec.cidrs[0]: '10.96.0.0/33' is not a CIDR", of=RANGE, id="range"),
        bad(("[10.96.0.0/12]", "[]"), "4: spec.cidrs: required", of=RANGE, id="no range"),
        bad(("0/12]", "0/12, 10.0.0.0/8]"), "4: spec.cidrs[1]: two ranges of one family", of=RANGE, id="two ranges"),
        bad(("io/v1", "io/v1beta1"), "1: apiVersion: EndpointSlice is read as discovery", of=SLICE, id="version"),
        bad(("kind: Service\n", ""), "1: not a Kubernetes object: it needs apiVersion and kind", id="no kind"),
        bad(("{name: web}", "{name: web"), "4: while parsing a flow mapping", id="syntax"),
        bad(("{name: web}", "!!python/object:os.system {}"), "3: the tag tag:yaml.org,2002:python/object", id="tag"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(text: str, reasons: list[str]) -> None:
    objects, found = read(text)
    assert not any(name.startswith(("Service", "EndpointSlice")) for name in objects)
    (reason,) = found
    places = reason.split("; m.yaml:")
    assert len(places) == len(reasons)
    for place, expected in zip(places, reasons, strict=True):
        assert place.removeprefix("m.yaml:").startswith(expected)


def test_problems_of_list_items_count_lines_of_the_file() -> None:
    objects, reasons = read("""\
        apiVersion: v1
        kind: List
        items:
        - apiVersion: v1
          kind: Service
          metadata: {name: good}
          spec: {clusterIP: None}
        - apiVersion: v1
          kind: Service
          metadata: {name: bad}
          spec:
            clusterIP: x
            clusterIP: y
            ports: [{port: 80}]
        - 5
        """)
    assert "Service default/good" in objects
    assert reasons == [
        "m.yaml:12: spec.clusterIP: 'x' is not an IP address; m.yaml:13: spec.clusterIP: set twice, first on line 12",
        "m.yaml:15: not a Kubernetes object: it needs apiVersion and kind",
    ]


def test_other_kinds_are_told_once() -> None:
    follower = Follower()
    deployment = service("d").replace("v1", "apps/v1").replace("Service", "Deployment")
    foreign = service("k").replace("v1", "serving.knative.dev/v1")
    assert follower.apply(a=stream(deployment, deployment, foreign, service("a"))).ignored == [
        "apps/v1 Deployment",
        "serving.knative.dev/v1 Service",
    ]
    update = follower.apply(b=stream(deployment))
    assert (update.ignored, update.invalid, update.changes) == ([], [], [])
    assert follower.services() == {"default/a": "10.0.0.1"}


def test_the_last_good_version_stays_in_force() -> None:
    follower = Follower()
    follower.apply(a=stream(service("x"), service("y"), service("z")))
    update = follower.apply(a=stream(service("x", "no"), service("y", "10.0.0.9")))
    assert follower.services() == {"default/x": "10.0.0.1", "default/y": "10.0.0.9"}, "x is kept, z is gone"
    assert [(report.kind, report.name) for report in update.invalid] == [("Service", "default/x")]
    follower.apply(a=stream(service("x", "no"), service("y", "10.0.0.9"), "# touched\n"))
    assert follower.services()["default/x"] == "10.0.0.1"
    follower.apply(a=stream(service("x", "10.0.0.7")))
    assert follower.services() == {"default/x": "10.0.0.7"}


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b"", id="empty: about to be written"),
        pytest.param(b" \n\n", id="blank"),
        pytest.param(stream(service("x"))[:40], id="cut inside a document"),
        pytest.param(stream(service("x"), "apiVersion: v1\nkin"), id="cut before the kind"),
        pytest.param(stream(service("x"), "{"), id="cut inside a flow mapping"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b"\x00", id="a control character"),
        pytest.param(b"just text", id="no object"),
        pytest.param(Unreadable("cannot be read: Input/output error"), id="unreadable"),
    ],
)
def test_a_file_that_cannot_be_understood_removes_nothing(broken: Contents) -> None:
    follower = Follower()
    follower.apply(a=stream(service("x"), service("y")))
    update = follower.apply(a=broken)
    assert update.changes == []
    assert len(update.invalid) == 1
    assert update.invalid[0].reason.startswith("a.yaml")
    assert follower.apply(a=stream(service("x"))).invalid == []
    assert follower.services() == {"default/x": "10.0.0.1"}


def test_comments_alone_say_that_there_is_nothing() -> None:
    follower = Follower()
    follower.apply(a=stream(service("x")))
    assert follower.apply(a=b"# nothing for now\n").invalid == []
    assert follower.services() == {}
    assert follower.namespaces() == set()


def test_the_first_file_wins_and_the_next_takes_over() -> None:
    follower = Follower()
    update = follower.apply(b=stream(service("x", "10.0.0.2")), c=stream(service("x", "10.0.0.3")))
    assert follower.services() == {"default/x": "10.0.0.2"}
    assert [report.reason for report in update.invalid] == ["c.yaml:1: defined in b.yaml too; this one is left out"]

    update = follower.apply(a=stream(service("x", "10.0.0.1")))
    assert follower.services() == {"default/x": "10.0.0.1"}
    assert sorted(report.reason[:6] for report in update.invalid) == ["b.yaml", "c.yaml"]

    update = follower.apply(a=Gone.GONE, c=stream(service("x", "10.0.0.4")))
    assert follower.services() == {"default/x": "10.0.0.2"}
    assert update.invalid == [], "told before"
    follower.apply(b=Gone.GONE)
    assert follower.services() == {"default/x": "10.0.0.4"}


def test_the_first_of_two_in_one_file_wins() -> None:
    follower = Follower()
    update = follower.apply(a=stream(service("x"), service("x", "10.0.0.2")))
    assert follower.services() == {"default/x": "10.0.0.1"}
    assert [report.reason for report in update.invalid] == ["a.yaml:8: defined before on line 1; this one is left out"]


def test_a_mentioned_namespace_exists_as_long_as_it_is_mentioned() -> None:
    follower = Follower()
    prod = service("x").replace("name: x", "name: x, namespace: prod")
    follower.apply(a=stream(prod), b=stream(service("y")))
    assert follower.namespaces() == {"prod", "default"}
    explicit = "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod, uid: u1}\n"
    follower.apply(c=stream(explicit))
    assert follower.store.namespaces[NamespacedName("", "prod")].metadata.uid == "u1"
    follower.apply(a=Gone.GONE)
    assert follower.namespaces() == {"prod", "default"}
    follower.apply(c=Gone.GONE)
    assert follower.namespaces() == {"default"}


def test_a_flood_of_bad_objects_is_summed_up() -> None:
    update = ManifestReader().apply({"a": stream(*[service("x", "no")] * (REPORTS_MAX + 50))})
    assert len(update.invalid) == REPORTS_MAX + 1
    assert update.invalid[-1].reason == "a: further bad objects, not listed"


def test_unchanged_contents_say_nothing() -> None:
    follower = Follower()
    contents = stream(service("x"), service("y", "bad"))
    assert len(follower.apply(a=contents).invalid) == 1
    again = follower.apply(a=contents)
    assert (again.changes, again.invalid, again.ignored) == ([], [], [])


JUNK = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=80).map(str.encode),
    st.text(alphabet="{}[]:,-&*!|>'\"#%@ \n\tab0", max_size=60).map(str.encode),
    st.sampled_from([b"a: &a [*a]", b"a: *b", b"? [1]\n: 2", b"%YAML 9.9", b"--- |\n x", b"- " * 200, b"{" * 2000]),
)


@given(before=JUNK, after=JUNK)
def test_junk_next_to_a_good_object_costs_only_itself(before: bytes, after: bytes) -> None:
    good = stream(service("good"))
    update = ManifestReader().apply({"a": b"\n---\n".join([before.replace(b"---", b""), good, after])})
    if b"\xef" not in before + after and _is_text(before + after):
        applied = {str(obj.key) for changes in update.changes for obj in changes.applied}
        assert "default/good" in applied


def _is_text(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["clusterIP", "ports", "type", "externalIPs", "ipFamilies", "sessionAffinityConfig", "clusterIPs"]
)


@given(spec=st.dictionaries(FIELDS, VALUES, max_size=4), name=VALUES)
def test_any_shape_of_an_object_is_read_or_refused(spec: Mapping[str, object], name: object) -> None:
    import json

    text = json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    update = ManifestReader().apply({"a": text.encode()})
    applied = [obj for changes in update.changes for obj in changes.applied if not isinstance(obj, Namespace)]
    assert len(applied) + len(update.invalid) == 1


FILES = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.one_of(
        st.just(Gone.GONE),
        st.lists(st.builds(service, st.sampled_from("xyz"), st.sampled_from(["10.0.0.1", "10.0.0.2"])), max_size=3).map(
            lambda documents: stream("# file\n", *documents)
        ),
    ),
)


@given(steps=st.lists(FILES, max_size=6))
def test_step_by_step_equals_at_once(steps: list[dict[str, Contents]]) -> None:
    follower, final = Follower(), dict[str, Contents]()
    for step in steps:
        follower.apply(**step)
        final.update(step)
    fresh = Follower()
    fresh.apply(**final)
    assert follower.store.services == fresh.store.services
    assert follower.store.namespaces == fresh.store.namespaces
