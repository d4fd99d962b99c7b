# SPDX-License-Identifier: Apache-2.0
"""Interception on a node whose Services are in the kernel: it comes first, and with nobody left the Service does."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.model.meta import Family
from tests.netns.interception import CLUSTER_IP, COREDNS, OURS, RESOLVER, Site, ask, eventually, kill, site
from tests.netns.routed import HOSTS

pytestmark = pytest.mark.netns

ENDPOINTS = [hosts[0] for hosts in HOSTS.values()]
DATAPLANE = {"mode": "nftables", "cluster_cidrs": ["10.1.1.0/24", "fd01:1::/64"]}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, dataplane=DATAPLANE) as made:
        yield made


def answers(made: Site) -> set[str | None]:
    """What pods and processes of the node are told at the ClusterIPs."""
    asked = ((place, ip, tcp) for place in (made.pod, made.node) for ip in CLUSTER_IP.values() for tcp in (False, True))
    return {ask(place, ip, tcp=tcp) for place, ip, tcp in asked}


def test_with_everything_killed_names_resolve_again(served: Site) -> None:
    served.start_coredns()
    served.serve_dns_with(*ENDPOINTS)
    supervisor = served.start("run")
    eventually(lambda: served.stands() and served.readiness("").get("ready") is True, "both roles are ready")
    assert answers(served) == {OURS}
    assert served.tracked() == []
    kill(supervisor)
    eventually(lambda: answers(served) == {COREDNS}, "CoreDNS is asked")


def test_without_interception_the_same_service_leads_to_coredns(served: Site) -> None:
    """Or the test above would show nothing."""
    served.start_coredns()
    served.serve_dns_with(*ENDPOINTS)
    served.start("agent")
    eventually(lambda: answers(served) == {COREDNS}, "CoreDNS is asked")


def test_a_service_without_endpoints_is_answered_all_the_same(served: Site) -> None:
    supervisor = served.start("run")
    eventually(lambda: served.stands() and served.readiness("").get("ready") is True, "both roles are ready")
    assert answers(served) == {OURS}
    kill(supervisor)
    eventually(lambda: not served.standing(), "the addresses are gone")
    assert ask(served.pod, CLUSTER_IP[Family.IPV4]) is None


def test_when_the_worker_hangs_coredns_is_asked_until_it_is_replaced(served: Site) -> None:
    served.start_coredns()
    served.serve_dns_with(*ENDPOINTS)
    supervisor = served.start("run")
    eventually(lambda: answers(served) == {OURS} and served.readiness("").get("ready") is True, "both roles are ready")
    (worker,) = served.children(supervisor, "dns")
    os.kill(worker, signal.SIGSTOP)
    eventually(lambda: ask(served.pod, CLUSTER_IP[Family.IPV4]) == COREDNS, "CoreDNS is asked")
    eventually(lambda: answers(served) == {OURS}, "another worker answers")


def test_dns_that_is_stopped_leaves_its_clients_to_coredns(served: Site) -> None:
    served.start_coredns()
    served.serve_dns_with(*ENDPOINTS)
    served.start("agent")
    dns = served.start("dns")
    eventually(lambda: answers(served) == {OURS}, "it answers")
    met: set[str | None] = set()
    dns.terminate()
    while dns.poll() is None:
        met.add(ask(served.pod, CLUSTER_IP[Family.IPV4], patience=RESOLVER))
    assert answers(served) == {COREDNS}
    assert met <= {OURS, COREDNS}, "nobody is left without an answer"


def test_ports_of_nodes_are_not_served_at_intercepted_addresses(tmp_path: Path) -> None:
    with site(tmp_path, dataplane=DATAPLANE | {"node_port_addresses": ["all"]}) as made:
        made.start("run")
        eventually(lambda: made.stands() and made.readiness("").get("ready") is True, "both roles are ready")
        addresses = made.node.run("nft", "list", "set", "ip", "svcproxy", "nodeips")
        assert "10.1.1.1" in addresses
        assert CLUSTER_IP[Family.IPV4] not in addresses
        assert "169.254.20.10" not in addresses


def test_the_user_space_data_plane_leaves_port_53_to_the_worker(tmp_path: Path) -> None:
    """Also while the address stands and no worker does."""
    with site(tmp_path, dataplane={"mode": "userspace"}) as made:
        for address in CLUSTER_IP.values():
            made.node.ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        made.start("agent")
        eventually(lambda: "dns.intercept" in made.log("agent"), "the frontends are refused")
        for address in CLUSTER_IP.values():
            made.node.ip("address", "delete", f"{address}/{128 if ':' in address else 32}", "dev", "lo")
        made.start("dns")
        eventually(lambda: answers(made) == {OURS}, "the worker answers")
