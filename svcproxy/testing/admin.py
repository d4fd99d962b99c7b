# SPDX-License-Identifier: Apache-2.0
"""A small agent for tests of health, metrics, status and the command line: real state, derived from a few objects."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from svcproxy import api
from svcproxy.admin.health import Instant
from svcproxy.admin.metrics import PROGRAMMING, AgentMetrics
from svcproxy.admin.server import AdminServer
from svcproxy.admin.state import AgentState, ConntrackState, Subscriber
from svcproxy.config import Config
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.script import script
from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.keys import Address, FrontendKey
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.model import Changes, EndpointSlice, Namespace, Node, Object, Service, Store
from svcproxy.model.meta import Family, Protocol

NODE = "n1"
STARTED = Instant(1000.0, 1_700_000_000.0)
SURROUNDINGS = Surroundings(pod_cidrs=("10.244.0.0/16",), service_cidrs=("10.96.0.0/12",))
NOW = Instant(1065.5, 1_700_000_065.5)

_OBJECTS: tuple[tuple[type[Object], str], ...] = (
    (Namespace, '{"metadata":{"name":"shop"}}'),
    (Node, '{"metadata":{"name":"n1"}}'),
    (
        Service,
        """{"metadata":{"name":"web","namespace":"shop","creationTimestamp":"2023-11-14T20:00:00Z"},
        "spec":{"type":"NodePort","clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10"],"sessionAffinity":"ClientIP",
        "sessionAffinityConfig":{"clientIP":{"timeoutSeconds":600}},
        "ports":[{"name":"http","port":80,"nodePort":30080}]}}""",
    ),
    (
        Service,
        """{"metadata":{"name":"web-metrics","namespace":"shop","creationTimestamp":"2023-11-14T22:00:00Z"},
        "spec":{"clusterIP":"None","ports":[{"port":9100}]}}""",
    ),
    (
        Service,
        """{"metadata":{"name":"docs","namespace":"default"},
        "spec":{"type":"ExternalName","externalName":"docs.example.org"}}""",
    ),
    (
        Service,
        """{"metadata":{"name":"edge","namespace":"shop","creationTimestamp":"2023-11-14T22:10:00Z"},
        "spec":{"type":"LoadBalancer","clusterIP":"10.96.0.20","externalTrafficPolicy":"Local",
        "healthCheckNodePort":32000,"ports":[{"port":443,"nodePort":30443}]},
        "status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.7"}]}}}""",
    ),
    (
        EndpointSlice,
        """{"metadata":{"name":"web-1","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},
        "addressType":"IPv4","ports":[{"name":"http","port":8080}],"endpoints":[
        {"addresses":["10.244.1.5"],"nodeName":"n1","targetRef":{"name":"web-a"},"hints":{"forZones":[{"name":"z1"}]}},
        {"addresses":["10.244.2.6"],"nodeName":"n2","conditions":{"ready":true}},
        {"addresses":["10.244.2.7"],"nodeName":"n2","conditions":{"ready":false,"serving":false,"terminating":true}}]}""",
    ),
    (
        EndpointSlice,
        """{"metadata":{"name":"edge-1","namespace":"shop","labels":{"kubernetes.io/service-name":"edge"}},
        "addressType":"IPv4","ports":[{"name":"","port":8443}],"endpoints":[
        {"addresses":["10.244.2.9"],"nodeName":"n2"}]}""",
    ),
)


@dataclass(slots=True)
class FakeSource:
    """How well a kind is followed, as a source would say it."""

    kind: str
    synced: bool = True
    server: str = "https://10.0.0.1:6443"
    last_contact: float | None = NOW.monotonic - 3
    resource_version: str = "42"
    error: str = ""
    optional: bool = False


def example_state(config: Config | None = None) -> AgentState:
    """An agent of node n1 that serves four Services; ready, with everything in its status filled in."""
    store = Store()
    view = NodeView(NODE, "z1", frozenset({"192.0.2.11", "127.0.0.1"}), ("192.0.2.11",))
    builder = FrontendBuilder(store, view, FrontendOptions())
    for kind, text in _OBJECTS:
        builder.update(store.apply(Changes(kind, (msgspec.json.decode(text, type=kind),))))
    refused: dict[FrontendKey, str] = {Address("198.51.100.7", Protocol.TCP, 443): "the address is not this node's"}
    web = Address("10.96.0.10", Protocol.TCP, 80)

    async def connections() -> dict[FrontendKey, int]:
        return {web: 7}

    async def conntrack() -> ConntrackState:
        return ConntrackState(800, 1000, 1, 2, 3, 4, 0.5, 6, {Family.IPV4: 7, Family.IPV6: 8})

    async def inspect(ip: str, protocol: Protocol, port: int, wanted: api.Trace) -> api.KernelView:
        if (ip, protocol, port) == (web.ip, web.protocol, web.port):
            return api.KernelView("forward", ("class: goto a2-600", "a2-600: 2 backends"), wanted.backends, True, "")
        return api.KernelView(wanted.verdict, ("class: nothing",), (), True, "")

    state = AgentState(
        config=config or Config(node_name=NODE),
        clock=lambda: NOW,
        started=STARTED,
        instance="7-100",
        node_name=NODE,
        store=store,
        table=builder.table,
        version="1.2.3",
        pid=7,
        node=view,
        holds_node=True,
        programmed=True,
        silence_timeout=90.0,
        sources=lambda: [FakeSource("Service"), FakeSource("EndpointSlice"), FakeSource("Node")],
        dataplane_name="userspace",
        refused=lambda: refused,
        compromised=lambda: {web: "affinity for 300 s: there are 16 other time-outs"},
        connections=connections,
        inspect=inspect,
        conntrack=conntrack,
        probes=(
            api.Probe("owner", True, "tables that no other program can change", ""),
            api.Probe("nat-ipv6", False, "ENOENT (No such file or directory)", "IPv6 is not served by nftables"),
        ),
        settings=(
            api.Setting("nf_conntrack_tcp_be_liberal", 1, 0, 1, ""),
            api.Setting("nf_conntrack_max", 9, 9, 9, ""),
        ),
        others=(api.Foreign("kube-proxy (nftables)", ("table ip kube-proxy",), False, True),),
        programming=lambda: dict.fromkeys(PROGRAMMING, 3),
        conflicts=lambda: builder.conflicts,
        problems=lambda: builder.problems,
        no_local_endpoints=lambda: builder.no_local_endpoints,
        pod_cidrs=lambda: ["10.244.0.0/16"],
        ruleset=lambda: partial(script, builder.table.copy(), SURROUNDINGS),
        revision=lambda: 17,
        subscribers=lambda: [Subscriber("dns-0", 15, NOW.monotonic - 1)],
        latencies=lambda: [api.Latency("frontends", 12, 0.0004, 0.002, 0.0005)],
        roles=lambda: [api.Role("dns", "running", 8, 3, crash_loop=True, detail="signal 9")],
    )
    state.invalid.report("Service", "shop/odd", "spec.ports[0].port: expected int, got str", NOW.monotonic - 30)
    return state


@contextlib.contextmanager
def serving(state: AgentState, socket_path: Path) -> Iterator[None]:
    """Serve a state on a Unix socket from another thread, for clients that block."""
    started, stop = threading.Event(), asyncio.Event()
    failures: list[BaseException] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with AdminServer(state, AgentMetrics(state)).serve_socket(socket_path):
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as exc:
            failures.append(exc)
            raise
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=run, name="admin server")
    thread.start()
    started.wait()
    try:
        yield
    finally:
        if not failures:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
