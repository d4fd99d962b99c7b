# SPDX-License-Identifier: Apache-2.0
"""Services, EndpointSlices and the zone of n1 at random, as the API takes them, and their changes at random. Pure.

Each Service lives in a slot, which has a ClusterIP of each family, NodePorts and addresses of its own: what one
Service leaves behind there the next one finds. Their endpoints are pods, processes of nodes and a server outside.
"""

from collections.abc import Iterator
from random import Random
from typing import Final

from svcproxy.model.meta import Family
from tests.e2e.objects import Object
from tests.netns.places import AT
from tests.netns.world import PODS, PORTS

SERVICES: Final = "/api/v1/namespaces/default/services"
SLICES: Final = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"
ZONES: Final = ("z1", "z2", None)
PORTS_MAX: Final = 3
_SLICES_MAX: Final = 4
"""Of one Service and family."""
SHARED: Final = 9
"""The host part of addresses that Services share, each with ports of its own."""
AFFINITY_TIMEOUT: Final = 600
_UNIQUE_PORTS: Final = 7000
"""The first. Not those of endpoints: what is sent to a process of n1, kube-proxy refuses if address and port are by
chance those of a frontend without endpoints."""

ENDPOINTS: Final = {**PODS, "h1": "n1", "h2": "n2", "y": None}
"""The node of each."""
_CONDITIONS: Final[tuple[tuple[int, dict[str, bool]], ...]] = (
    (14, {"ready": True, "serving": True, "terminating": False}),
    (2, {}),
    (3, {"ready": False, "serving": True, "terminating": True}),
    (1, {"ready": False, "serving": False, "terminating": True}),
    (1, {"ready": False, "serving": True, "terminating": False}),
    (1, {"ready": False, "serving": False, "terminating": False}),
    (1, {"ready": True, "serving": False, "terminating": True}),
    (1, {"ready": False}),
    (1, {"ready": False, "terminating": True}),
)
_TERMINATING: Final = {"ready": False, "serving": True, "terminating": True}
_HINTS: Final = ("none", "none", "none", "zones", "some zones", "nodes", "nodes and zones", "some nodes and zones")


def address(place: str, family: Family) -> str:
    """Of a node (`h1`, `h2`), pod, or client outside."""
    at = AT[family]
    return at.of_pods.get(place) or str(getattr(at, place.replace("h", "n")))


def cluster_ip(slot: int, family: Family) -> str:
    """The ClusterIP of whatever Service has the slot."""
    return f"10.96.1.{10 + slot}" if family is Family.IPV4 else f"fd00:96::{110 + slot}"


def balancer_ip(host: int, family: Family) -> str:
    """An address outside that only load balancing makes anything of."""
    return f"198.51.100.{host}" if family is Family.IPV4 else f"fd00:51::{host}"


def node_port(slot: int, index: int) -> int:
    return 30100 + 10 * slot + index


def families_of(service: Object) -> list[Family]:
    """What the Service has ClusterIPs of."""
    return [Family.IPV4 if name == "IPv4" else Family.IPV6 for name in service["spec"].get("ipFamilies", ())]


class RandomCluster:
    """What exists now. `touched` names what has happened to each Service since the last `mutate`."""

    def __init__(self, rng: Random, slots: int) -> None:
        self._rng = rng
        self._slots: list[str | None] = [None] * slots
        self._generation = 0
        self.zone: str | None = "z1"
        self.services: dict[str, Object] = {}
        self.slices: dict[str, Object] = {}
        self.touched: dict[str, list[str]] = {}
        for slot in range(slots):
            if rng.random() < 0.9:
                self._create(slot)

    @property
    def slots(self) -> Iterator[tuple[int, Object | None]]:
        """Each slot and the Service there, if any."""
        for slot, name in enumerate(self._slots):
            yield slot, self.services[name] if name is not None else None

    def slices_of(self, name: str) -> list[Object]:
        return [each for each in self.slices.values() if _owner(each) == name]

    def mutate(self) -> None:
        """About half of everything changes in some way."""
        self.touched = {}
        if self._rng.random() < 0.4:
            self.zone = self._rng.choice([zone for zone in ZONES if zone != self.zone])
        for slot, name in enumerate(self._slots):
            if name is None:
                if self._rng.random() < 0.5:
                    self._create(slot)
                continue
            for change, share in (
                (self._change_endpoints, 0.4),
                (self._change_slices, 0.1),
                (self._change_policies, 0.25),
                (self._change_ports, 0.1),
                (self._change_type, 0.1),
                (self._replace, 0.08),
                (self._delete, 0.05),
            ):
                if self._rng.random() < share:
                    self._note(name, change.__name__.strip("_").replace("_", " "))
                    change(slot, name)
                    break

    def _note(self, name: str, what: str) -> None:
        self.touched.setdefault(name, []).append(what)

    # Services

    def _create(self, slot: int) -> None:
        self._generation += 1
        name = f"s{slot}-{self._generation}"
        self._slots[slot] = name
        self.services[name] = self._service(slot, name)
        self._note(name, "create")
        self._make_slices(name)

    def _delete(self, slot: int, name: str) -> None:
        del self.services[name]
        self._slots[slot] = None
        self._drop_slices(name)

    def _replace(self, slot: int, name: str) -> None:
        self._delete(slot, name)
        self._create(slot)

    def _service(self, slot: int, name: str) -> Object:
        rng = self._rng
        families = rng.choice([["IPv4"], ["IPv6"], ["IPv4", "IPv6"], ["IPv4", "IPv6"], ["IPv6", "IPv4"]])
        spec: Object = {
            "ipFamilies": families,
            "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
            "clusterIPs": [cluster_ip(slot, Family.IPV4 if each == "IPv4" else Family.IPV6) for each in families],
        }
        service: Object = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "labels": {}},
            "spec": spec,
        }
        if rng.random() < 0.06:
            service["metadata"]["labels"][PROXY_NAME] = "other"
        kind = rng.choices(["ClusterIP", "NodePort", "LoadBalancer", "headless", "ExternalName"], [5, 4, 7, 1, 0.5])[0]
        if kind == "ExternalName":
            service["spec"] = {"type": kind, "externalName": "example.com"}
            return service
        self._set_ports(slot, service)
        if kind == "headless":
            spec |= {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}
            return service
        spec["clusterIP"] = spec["clusterIPs"][0]
        self._set_type(slot, service, kind)
        self._set_policies(slot, service)
        return service

    def _set_ports(self, slot: int, service: Object) -> None:
        rng, ports = self._rng, list[Object]()
        base = rng.choice([80, _UNIQUE_PORTS + 10 * slot])
        for index in range(rng.randint(1, PORTS_MAX)):
            protocols = rng.choice([["TCP"], ["TCP"], ["UDP"], ["TCP", "UDP"]])
            for protocol in protocols:
                ports.append({"name": f"{protocol.lower()}{index}", "port": base + index, "protocol": protocol})
        service["spec"]["ports"] = ports

    def _set_type(self, slot: int, service: Object, kind: str) -> None:
        """The type, and what hangs on it."""
        rng, spec = self._rng, service["spec"]
        spec["type"] = kind
        spec.pop("allocateLoadBalancerNodePorts", None)
        bare = kind == "LoadBalancer" and rng.random() < 0.2
        if bare:
            spec["allocateLoadBalancerNodePorts"] = False
        for index, port in enumerate(spec["ports"]):
            port.pop("nodePort", None)
            if kind != "ClusterIP" and not bare:
                port["nodePort"] = node_port(slot, index)
        service.pop("status", None)
        if kind == "LoadBalancer":
            service["status"] = {"loadBalancer": {"ingress": list(self._ingress(slot, service))}}

    def _ingress(self, slot: int, service: Object) -> Iterator[Object]:
        rng = self._rng
        for family in families_of(service):
            ip = rng.choice([*self._external_addresses(slot, service, family), balancer_ip(100 + slot, family)])
            if rng.random() < 0.85:
                yield {"ip": ip, "ipMode": "Proxy"} if rng.random() < 0.2 else {"ip": ip, "ipMode": "VIP"}
        if rng.random() < 0.1:
            yield {"hostname": "balancer.example.com"}

    def _external_addresses(self, slot: int, service: Object, family: Family) -> list[str]:
        """Where the Service does not meet others: shared addresses only for ports that are unique."""
        unique = service["spec"]["ports"][0]["port"] >= _UNIQUE_PORTS
        shared = [balancer_ip(SHARED, family), AT[family].n1, AT[family].second] if unique else []
        return [balancer_ip(50 + slot, family), *shared]

    def _set_policies(self, slot: int, service: Object) -> None:
        rng, spec = self._rng, service["spec"]
        for key in (
            "externalIPs",
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "loadBalancerSourceRanges",
            "sessionAffinity",
            "sessionAffinityConfig",
        ):
            spec.pop(key, None)
        taken = {each.get("ip") for each in service.get("status", {}).get("loadBalancer", {}).get("ingress", ())}
        if rng.random() < 0.3:
            spec["externalIPs"] = [
                ip
                for family in Family
                for ip in self._external_addresses(slot, service, family)
                if rng.random() < 0.5 and ip not in taken
            ]
        spec["internalTrafficPolicy"] = rng.choice(["Cluster", "Cluster", "Local"])
        if spec["type"] != "ClusterIP" or spec.get("externalIPs"):
            spec["externalTrafficPolicy"] = rng.choice(["Cluster", "Local"])
        if spec["type"] == "LoadBalancer":
            if spec["externalTrafficPolicy"] == "Local":
                spec["healthCheckNodePort"] = 31000 + slot
            if rng.random() < 0.4:
                spec["loadBalancerSourceRanges"] = self._ranges()
        if rng.random() < 0.2:
            spec["sessionAffinity"] = "ClientIP"
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT}}

    def _ranges(self) -> list[str]:
        pool = [
            cidr
            for at in AT.values()
            for cidr in (at.outside, at.pods, at.nodes, f"{at.y}/{at.prefix_length}", f"{at.p1}/{at.prefix_length}")
        ]
        return self._rng.sample(pool, self._rng.randint(1, 4))

    def _change_policies(self, slot: int, name: str) -> None:
        if balanced(self.services[name]):
            self._set_policies(slot, self.services[name])

    def _change_type(self, slot: int, name: str) -> None:
        if balanced(self.services[name]):
            self._set_type(slot, self.services[name], self._rng.choice(["ClusterIP", "NodePort", "LoadBalancer"]))
            self._set_policies(slot, self.services[name])

    def _change_ports(self, slot: int, name: str) -> None:
        """Other ports; slices follow or not."""
        service = self.services[name]
        if balanced(service):
            self._set_ports(slot, service)
            self._set_type(slot, service, service["spec"]["type"])
            self._set_policies(slot, service)
            if self._rng.random() < 0.7:
                self._drop_slices(name)
                self._make_slices(name)

    # Slices

    def _drop_slices(self, name: str) -> None:
        for piece in [key for key, each in self.slices.items() if _owner(each) == name]:
            del self.slices[piece]

    def _change_slices(self, _: int, name: str) -> None:
        self._drop_slices(name)
        self._make_slices(name)

    def _change_endpoints(self, _: int, name: str) -> None:
        """Other endpoints in the slices there are."""
        hints = self._rng.choice(_HINTS)
        for piece in self.slices_of(name):
            if piece["addressType"] != "FQDN":
                family = Family.IPV4 if piece["addressType"] == "IPv4" else Family.IPV6
                number = int(piece["metadata"]["name"].rpartition("-")[2])
                pool = list(ENDPOINTS)[number::_SLICES_MAX]
                piece["endpoints"] = [self._endpoint(each, family, hints) for each in self._some(pool)]

    def _make_slices(self, name: str) -> None:
        """A few slices that share no endpoint, but now and then one that is dying in one of them."""
        rng, service = self._rng, self.services[name]
        if rng.random() < 0.08 or service["spec"]["type"] == "ExternalName":
            return
        hints = rng.choice(_HINTS)
        for family in Family if rng.random() < 0.2 else families_of(service):
            endpoints = list(ENDPOINTS)
            rng.shuffle(endpoints)
            count = rng.choice([1, 1, 1, 2, 3])
            for number in range(count):
                chosen = [self._endpoint(each, family, hints) for each in self._some(endpoints[number::count])]
                self._add_slice(service, family.label, number, chosen)
            alive = [each for each in self.slices_of(name) for each in each["endpoints"] if _alive(each)]
            if alive and rng.random() < 0.2:
                dying = {**rng.choice(alive), "conditions": _TERMINATING}
                self._add_slice(service, family.label, count, [dying] if dying["addresses"] else [])
        if rng.random() < 0.05:
            self._add_slice(service, "FQDN", 0, [{"addresses": ["pod.example.com"], "conditions": {"ready": True}}])

    def _add_slice(self, service: Object, kind: str, number: int, endpoints: list[Object]) -> None:
        name = service["metadata"]["name"]
        family = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}.get(kind)
        if family is not None:
            endpoints = [each for each in endpoints if (":" in each["addresses"][0]) is (family is Family.IPV6)]
        own = f"{name}-{kind.lower()}-{number}"
        self.slices[own] = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": own, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "addressType": kind,
            "ports": self._slice_ports(service),
            "endpoints": endpoints,
        }

    def _slice_ports(self, service: Object) -> list[Object]:
        """Of most ports of the Service, each with the slice's own number; rarely one without a number."""
        rng, ports = self._rng, list[Object]()
        for port in service["spec"]["ports"]:
            if rng.random() < 0.93:
                number = {} if rng.random() < 0.03 else {"port": rng.choice(PORTS)}
                ports.append({"name": port["name"], "protocol": port["protocol"], **number})
        return ports

    def _some(self, pool: list[str]) -> list[str]:
        return self._rng.sample(pool, min(len(pool), self._rng.choice([0, 1, 2, 2, 3, 4])))

    def _endpoint(self, place: str, family: Family, hints: str) -> Object:
        rng = self._rng
        weights, conditions = zip(*_CONDITIONS, strict=True)
        endpoint: Object = {
            "addresses": [address(place, family)],
            "conditions": dict(rng.choices(conditions, weights)[0]),
        }
        if (node := ENDPOINTS[place]) is not None and rng.random() < 0.95:
            endpoint["nodeName"] = node
        found: Object = {}
        if "zones" in hints and not ("some" in hints and rng.random() < 0.3):
            found["forZones"] = [{"name": rng.choice(["z1", "z2"])}]
        if "nodes" in hints and not ("some" in hints and rng.random() < 0.3):
            found["forNodes"] = [{"name": rng.choice(["n1", "n2"])}]
        return {**endpoint, "hints": found} if found else endpoint


def _owner(piece: Object) -> str:
    return str(piece["metadata"]["labels"]["kubernetes.io/service-name"])


def _alive(endpoint: Object) -> bool:
    return not endpoint["conditions"].get("terminating")


def balanced(service: Object) -> bool:
    """Whether it has ClusterIPs."""
    spec = service["spec"]
    return bool(spec["type"] != "ExternalName" and spec["clusterIPs"] != ["None"])
