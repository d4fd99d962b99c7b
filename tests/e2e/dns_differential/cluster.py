# SPDX-License-Identifier: Apache-2.0
"""Namespaces, Services, EndpointSlices and Pods at random, as the API takes them, and their changes at random. Pure.

Names and addresses come from small pools, so that objects meet: Services of one name in several namespaces, endpoints
of several Services, endpoints that have the address of a Service, hostnames that look like addresses, namespaces
that are called like parts of the zone.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final

from svcproxy.model.meta import Family
from tests.e2e.objects import Object

NAMESPACES: Final = ("shop", "yard", "svc", "pod", "dns", "empty", "bare")
SYSTEM: Final = "kube-system"
"""Is there from the beginning, and stays."""
SERVICES: Final = ("web", "db", "api", "svc", "any", "tcp", "a-b", "x1", "dns-version", "cluster")
HOSTNAMES: Final = ("a", "b", "db-0", "db-1", "web", "10-0-0-9", "10-244-0-1", "0", "fd00--1")
PORT_NAMES: Final = ("http", "https", "dns", "p", "a-b", "x1", "tcp")
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
EXTERNAL: Final = (
    "www.example.com",
    "www.example.com.",
    "alias.example.com",
    "nx.example.com",
    "fail.example.com",
    "tc.example.com",
    "ttl0.example.com",
    "big.example.com",
    "192.0.2.7",
    "nowhere",
)
"""Targets outside the zone; `tests.dns.upstream` knows them."""
SERVER: Final = {Family.IPV4: "10.244.0.20", Family.IPV6: "fd00:244::20"}
"""The addresses of either server."""
BIG: Final = "big"
"""A headless Service of SYSTEM with more endpoints than datagrams hold."""
BIG_SIZE: Final = 150
ZONE: Final = "cluster.local"
KNOWN_ADDRESS: Final = "9.9.9.10.in-addr.arpa"
"""One that the upstream has a name for."""
FQDN: Final = "pod.example.com"
"""What slices of names hold."""

_CONDITIONS: Final[tuple[tuple[int, dict[str, bool]], ...]] = (
    (14, {"ready": True, "serving": True, "terminating": False}),
    (3, {}),
    (3, {"ready": False, "serving": True, "terminating": True}),
    (2, {"ready": False, "serving": False, "terminating": False}),
    (1, {"ready": True, "serving": False, "terminating": True}),
    (1, {"ready": True, "serving": False}),
    (1, {"ready": False}),
)
_SERVICES_MAX: Final = 7
_PODS_MAX: Final = 4
"""Of one namespace."""

Key = tuple[str, str]
"""Namespace and name."""


def endpoint_address(number: int, family: Family) -> str:
    """One of a few addresses; some of IPv6 end in zeros, some of either family belong to Services too."""
    if family is Family.IPV4:
        return f"10.96.1.{number - 10}" if number > 14 else f"10.244.0.{number}"
    if number > 14:
        return f"fd00:96::{number:x}"
    return f"fd00:244:0:{number}::" if number % 4 == 0 else f"fd00:244::{number:x}"


ENDPOINTS_MAX: Final = 16


class RandomNames:
    """What exists now."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._generation = 0
        self._addresses: dict[Key, int] = {}
        """The number of the cluster IPs of each Service: kept while it has them."""
        self.namespaces: list[str] = [SYSTEM, *rng.sample(NAMESPACES, 5)]
        self.services: dict[Key, Object] = {}
        self.slices: dict[Key, Object] = {}
        self.pods: dict[Key, Object] = {}
        for namespace in self.namespaces:
            self._populate(namespace)
        self._make_big()
        self._make_server()

    @property
    def objects(self) -> dict[str, Object]:
        """By path, namespaces first."""
        found = {
            f"/api/v1/namespaces/{name}": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in self.namespaces
            if name != SYSTEM
        }
        for prefix, objects in (
            ("/api/v1/namespaces/{}/services/{}", self.services),
            ("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/{}", self.slices),
            ("/api/v1/namespaces/{}/pods/{}", self.pods),
        ):
            found |= {prefix.format(*key): each for key, each in objects.items()}
        return found

    def slices_of(self, key: Key) -> list[Object]:
        """The slices that name this Service."""
        return [each for each in self.slices.values() if owner(each) == key]

    def mutate(self) -> None:
        """About half of everything changes in some way."""
        rng = self._rng
        for name in NAMESPACES:
            if name in self.namespaces and rng.random() < 0.15:
                self._clear(name)
                self.namespaces.remove(name)
            elif name not in self.namespaces and rng.random() < 0.3:
                self.namespaces.append(name)
                self._populate(name)
        for key in list(self.services):
            if key[1] in {BIG, "kube-dns"}:
                continue
            for change, share in (
                (self._change_endpoints, 0.3),
                (self._move_endpoint, 0.15),
                (self._make_slices, 0.1),
                (self._change_ports, 0.1),
                (self._replace, 0.1),
                (self._delete, 0.05),
            ):
                if rng.random() < share:
                    change(key)
                    break
        for namespace in self.namespaces:
            if rng.random() < 0.3 and namespace not in {"empty", "bare"}:
                self._create(namespace)
        if rng.random() < 0.3:
            self._make_server()
        if rng.random() < 0.5:
            self._make_big()

    def _populate(self, namespace: str) -> None:
        rng = self._rng
        if namespace == "empty":
            return
        if namespace != "bare":
            for _ in range(rng.randint(1, _SERVICES_MAX)):
                self._create(namespace)
        for number in range(rng.randint(0, _PODS_MAX)):
            self._make_pod(namespace, f"p{number}")

    def _clear(self, namespace: str) -> None:
        for objects in (self.services, self.slices, self.pods, self._addresses):
            for key in [key for key in objects if key[0] == namespace]:
                del objects[key]

    # Services

    def _create(self, namespace: str) -> None:
        rng = self._rng
        key = namespace, rng.choice(SERVICES)
        if key in self.services:
            return
        kind = rng.choices(["ClusterIP", "NodePort", "LoadBalancer", "headless", "ExternalName"], [5, 1, 1, 6, 4])[0]
        spec: Object
        if kind == "ExternalName":
            spec = {"type": kind, "externalName": self._target(key)}
            if rng.random() < 0.2:
                spec["ports"] = self._ports()
        else:
            families = rng.choice([["IPv4"], ["IPv6"], ["IPv4", "IPv6"], ["IPv6", "IPv4"]])
            spec = {
                "type": "ClusterIP" if kind == "headless" else kind,
                "ipFamilies": families,
                "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
                "clusterIPs": ["None"] if kind == "headless" else self._cluster_ips(key, families),
                "ports": self._ports(),
                "publishNotReadyAddresses": rng.random() < 0.1,
            }
            spec["clusterIP"] = spec["clusterIPs"][0]
            if kind == "headless" and rng.random() < 0.15:
                del spec["ports"]
            if kind == "LoadBalancer" or rng.random() < 0.1:
                spec["externalIPs"] = ["203.0.113.5"]
        self.services[key] = {"apiVersion": "v1", "kind": "Service", "metadata": _named(key), "spec": spec}
        self._make_slices(key)

    def _cluster_ips(self, key: Key, families: Sequence[str]) -> list[str]:
        number = self._addresses[key] = next(n for n in range(1, 250) if n not in self._addresses.values())
        return [f"10.96.1.{number}" if each == "IPv4" else f"fd00:96::{number:x}" for each in families]

    def _target(self, key: Key) -> str:
        rng = self._rng
        name, namespace = rng.choice(SERVICES), rng.choice(self.namespaces)
        inside = f"{name}.{namespace}.svc.{ZONE}"
        known = [other for other in self.services if other != key]
        if known and rng.random() < 0.6:
            name, namespace = rng.choice(known)
            inside = f"{name}.{namespace}.svc.{ZONE}"
        own = f"{key[1]}.{key[0]}.svc.{ZONE}"
        label = f"{rng.choice(HOSTNAMES)}."
        odd = (ZONE, f"dns-version.{ZONE}", f"10-1-2-3.{namespace}.pod.{ZONE}", f"{namespace}.svc.{ZONE}")
        return rng.choice([inside, inside, inside, own, label + inside, rng.choice(odd), *rng.sample(EXTERNAL, 3)])

    def _ports(self) -> list[Object]:
        rng = self._rng
        if rng.random() < 0.15:
            return [{"port": rng.choice([80, 9000]), "protocol": rng.choice(PROTOCOLS)}]
        count = rng.randint(1, 3)
        number, protocol = rng.choice([53, 80]), rng.choice(PROTOCOLS)
        ports = []
        for index, name in enumerate(rng.sample(PORT_NAMES, count)):
            if rng.random() < 0.5:
                number = 80 + index
            ports.append({"name": name, "port": number, "protocol": protocol})
            protocol = PROTOCOLS[(PROTOCOLS.index(protocol) + 1) % 3]
        return ports

    def _change_ports(self, key: Key) -> None:
        if "clusterIPs" in (spec := self.services[key]["spec"]):
            spec["ports"] = self._ports()

    def _delete(self, key: Key) -> None:
        """The Service; its slices may be left behind."""
        del self.services[key]
        self._addresses.pop(key, None)
        if self._rng.random() < 0.6:
            self._drop_slices(key)

    def _replace(self, key: Key) -> None:
        self._delete(key)
        self._create(key[0])

    # slices

    def _drop_slices(self, key: Key) -> None:
        for each in [name for name, found in self.slices.items() if owner(found) == key]:
            del self.slices[each]

    def _make_slices(self, key: Key) -> None:
        rng = self._rng
        self._drop_slices(key)
        spec = self.services[key]["spec"]
        if rng.random() < 0.15:
            return
        ports = spec.get("ports", [])
        for family in rng.choice([[Family.IPV4], [Family.IPV6], list(Family), list(Family)]):
            for _ in range(rng.choice([1, 1, 2, 3])):
                self._add_slice(
                    key, family.label, [self._endpoint(family) for _ in range(rng.choice([0, 1, 2, 3, 5]))], ports
                )
        copied = [each for each in self.slices_of(key) if each["endpoints"]]
        if copied and rng.random() < 0.3:  # an endpoint that is on its way from one slice to another
            found = rng.choice(copied)
            self._add_slice(key, found["addressType"], [dict(rng.choice(found["endpoints"]))], ports)
        if rng.random() < 0.04:
            self._add_slice(key, "FQDN", [{"addresses": [FQDN], "conditions": {"ready": True}}], ports)

    def _add_slice(self, key: Key, kind: str, endpoints: list[Object], ports: Sequence[Object]) -> None:
        rng = self._rng
        self._generation += 1
        name = f"{key[1]}-{self._generation}"
        offered: list[Object] = []
        for port in ports:
            if rng.random() < 0.93:
                number = {} if rng.random() < 0.05 else {"port": rng.choice([port["port"], 8080, 8443])}
                offered.append({"name": port.get("name", ""), "protocol": port["protocol"], **number})
        self.slices[key[0], name] = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**_named((key[0], name)), "labels": {"kubernetes.io/service-name": key[1]}},
            "addressType": kind,
            "ports": offered,
            "endpoints": endpoints,
        }

    def _endpoint(self, family: Family) -> Object:
        rng = self._rng
        weights, conditions = zip(*_CONDITIONS, strict=True)
        number = rng.randint(1, ENDPOINTS_MAX)
        endpoint: Object = {
            "addresses": [endpoint_address(number, family)],
            "conditions": dict(rng.choices(conditions, weights)[0]),
        }
        if rng.random() < 0.4:
            endpoint["hostname"] = rng.choice(HOSTNAMES)
        if rng.random() < 0.5:
            endpoint["targetRef"] = {"kind": "Pod", "name": f"pod-{number}"}
        return endpoint

    def _change_endpoints(self, key: Key) -> None:
        """Other endpoints in the slices there are."""
        for found in self.slices_of(key):
            if found["addressType"] != "FQDN" and self._rng.random() < 0.7:
                family = Family.IPV4 if found["addressType"] == "IPv4" else Family.IPV6
                found["endpoints"] = [self._endpoint(family) for _ in range(self._rng.choice([0, 1, 2, 3]))]

    def _move_endpoint(self, key: Key) -> None:
        """From one slice to another."""
        slices = [each for each in self.slices_of(key) if each["addressType"] != "FQDN"]
        full = [each for each in slices if each["endpoints"]]
        if not full:
            return
        source = self._rng.choice(full)
        target = self._rng.choice([each for each in slices if each["addressType"] == source["addressType"]])
        target["endpoints"].append(source["endpoints"].pop(self._rng.randrange(len(source["endpoints"]))))

    # particular Services

    def _make_big(self) -> None:
        key = SYSTEM, BIG
        self._drop_slices(key)
        ports = [{"name": "p", "port": 80, "protocol": "TCP"}]
        spec = {"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4"], "ports": ports}
        self.services[key] = {"apiVersion": "v1", "kind": "Service", "metadata": _named(key), "spec": spec}
        for part in range(2):
            first = self._rng.randrange(100)
            self._add_slice(
                key,
                "IPv4",
                [{"addresses": [f"10.245.{part}.{first + n}"], "conditions": {}} for n in range(BIG_SIZE // 2)],
                ports,
            )

    def _make_server(self) -> None:
        """The Service that the DNS servers are endpoints of, in one way or another; or none."""
        key, rng = (SYSTEM, "kube-dns"), self._rng
        self._drop_slices(key)
        self.services.pop(key, None)
        if rng.random() < 0.2:
            return
        ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
        headless = rng.random() < 0.3
        families = rng.choice([["IPv4"], ["IPv4", "IPv6"]])
        ips = ["None"] if headless else ["10.96.0.10", "fd00:96::a00"][: len(families)]
        spec = {"clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families, "ports": ports}
        spec["ipFamilyPolicy"] = "SingleStack" if len(families) == 1 else "RequireDualStack"
        self.services[key] = {"apiVersion": "v1", "kind": "Service", "metadata": _named(key), "spec": spec}
        for family, ip in SERVER.items():
            if rng.random() < 0.8:
                hostname = {"hostname": "ns-a"} if rng.random() < 0.3 else {}
                self._add_slice(key, family.label, [{"addresses": [ip], "conditions": {}, **hostname}], ports)

    def _make_pod(self, namespace: str, name: str) -> None:
        rng = self._rng
        number = rng.randint(1, ENDPOINTS_MAX)
        ips = [endpoint_address(number, Family.IPV4), endpoint_address(number, Family.IPV6)]
        if rng.random() < 0.3:
            ips.reverse()
        ips = ips[: rng.randint(0, 2)]
        status: Object = {"phase": rng.choice(["Running", "Running", "Running", "Pending", "Succeeded", "Failed"])}
        if ips:
            status |= {"podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
        self.pods[namespace, name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": _named((namespace, name)),
            "spec": {"containers": [{"name": "c", "image": "none"}]},
            "status": status,
        }


def _named(key: Key) -> dict[str, Any]:
    return {"namespace": key[0], "name": key[1]}


def owner(found: Object) -> Key:
    """The Service of a slice."""
    return found["metadata"]["namespace"], found["metadata"]["labels"]["kubernetes.io/service-name"]


def endpoints_of(slices: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """Each endpoint with its slice."""
    for found in slices:
        for endpoint in found["endpoints"]:
            yield endpoint, found
