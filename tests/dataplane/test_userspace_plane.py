# SPDX-License-Identifier: Apache-2.0
"""Which frontends can be opened, what is said about the others, and how sockets pass to another instance."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from svcproxy.dataplane.contract import APPLIED, Refused
from svcproxy.dataplane.userspace import Notice
from svcproxy.dataplane.userspace.plane import SETTLED_PER_TURN
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKind, NodePort
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.dataplane_conformance import SOMEWHERE, cluster_ip, grow, service_port, shrink
from svcproxy.testing.traffic import PATIENCE, Client, Met, Server, ask, serving
from tests.dataplane.world import PORT, SOURCES, UserspaceHarness, until, userspace

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
SOURCE = SOURCES[SourceKind.POD]
NOT_LOCAL = "203.0.113.1"
"""TEST-NET-3: on no node."""
ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        pytest.param(
            Address(NOT_LOCAL, TCP, 80), f"tcp/{NOT_LOCAL}:80: the address is not on this node", id="TCP, not local"
        ),
        pytest.param(
            Address(NOT_LOCAL, UDP, 53), f"udp/{NOT_LOCAL}:53: the address is not on this node", id="UDP, not local"
        ),
        pytest.param(Address("127.0.0.1", SCTP, 80), "SCTP is not supported in user space", id="SCTP"),
        pytest.param(NodePort(Family.IPV4, SCTP, 30080), "SCTP is not supported in user space", id="SCTP NodePort"),
    ],
)
async def test_what_cannot_be_opened_is_refused_and_reported_once(key: Address | NodePort, reason: str) -> None:
    async with userspace() as harness:
        frontend = cluster_ip(harness.address(0, TCP), service_port(0))
        bad = Frontend(key, service_port(1, key.protocol), FrontendKind.EXTERNAL_IP)
        table = FrontendTable()
        delta = FrontendDelta(frontends=(bad, frontend))
        table.apply(delta)
        assert await harness.plane.apply(delta) == {key: Refused(reason), frontend.key: APPLIED}
        for _ in range(2):
            assert await harness.plane.apply(FrontendDelta(backends=(grow(bad, SOMEWHERE),))) == {key: Refused(reason)}
            assert await harness.plane.apply(FrontendDelta(backends=(shrink(bad, SOMEWHERE),))) == {
                key: Refused(reason)
            }
            assert not await harness.plane.resync(table)
            assert await harness.plane.retry_refused() == {key: Refused(reason)}
        assert harness.notices == [Notice("frontend refused", key, reason)]


async def test_a_refused_frontend_is_opened_when_the_obstacle_is_gone() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        key = harness.address(0, TCP)
        frontend = cluster_ip(key, service_port(0))
        harness.obstruct(key)
        async with serving(server):
            delta = FrontendDelta(frontends=(frontend,), backends=(grow(frontend, server.backend),))
            reason = f"tcp/{key.ip}:{PORT}: another socket has this address and port"
            assert await harness.plane.apply(delta) == {key: Refused(reason)}
            harness.clear(key)
            assert await harness.plane.retry_refused() == {key: APPLIED}
            assert await ask(TCP, SOURCE, (key.ip, PORT)) == "here"
        assert [notice.message for notice in harness.notices] == ["frontend refused", "frontend no longer refused"]


async def test_a_node_port_is_in_force_where_it_could_be_opened() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        good = harness.node_ips[0]
        frontend = Frontend(NodePort(Family.IPV4, TCP, 20080), service_port(0), FrontendKind.NODE_PORT)
        async with serving(server):
            outcomes = await harness.plane.apply(
                FrontendDelta(
                    frontends=(frontend,),
                    backends=(grow(frontend, server.backend),),
                    node_port_addresses=frozenset((good, NOT_LOCAL, "::1")),
                )
            )
            assert outcomes == {frontend.key: Refused(f"tcp/{NOT_LOCAL}:20080: the address is not on this node")}
            assert await ask(TCP, SOURCE, (good, 20080)) == "here"
            outcomes = await harness.plane.apply(FrontendDelta(node_port_addresses=frozenset((good,))))
            assert outcomes == {frontend.key: APPLIED}
            assert await ask(TCP, SOURCE, (good, 20080)) == "here"


async def test_a_node_port_says_who_has_its_place() -> None:
    async with userspace() as harness:
        ip = harness.node_ips[0]
        node_port = Frontend(NodePort(Family.IPV4, TCP, 20080), service_port(0), FrontendKind.NODE_PORT)
        address = cluster_ip(Address(ip, TCP, 20080), service_port(1))
        await harness.plane.apply(FrontendDelta(frontends=(node_port,), node_port_addresses=frozenset((ip,))))
        await harness.plane.apply(FrontendDelta(frontends=(address,)))
        assert dict(harness.plane.refused) == {node_port.key: f"tcp/{ip}:20080: the place of {address.key}"}
        await harness.plane.apply(FrontendDelta(removed=(address.key,)))
        assert not harness.plane.refused


def both(harness: UserspaceHarness, *backends: Backend) -> FrontendTable:
    """A TCP and a UDP frontend on one address; the TCP backend comes first."""
    table = FrontendTable()
    frontends = [cluster_ip(harness.address(0, protocol), service_port(0, protocol)) for protocol in (TCP, UDP)]
    grown = tuple(grow(frontend, backend) for frontend, backend in zip(frontends, backends, strict=False))
    table.apply(FrontendDelta(frontends=tuple(frontends), backends=grown))
    return table


def pass_on(old: UserspaceHarness) -> dict[str, socket.socket]:
    """What another process gets: duplicates of the sockets, which the data plane then releases."""
    passed = {name: sock.dup() for name, sock in old.plane.sockets().items()}
    old.plane.release()
    return passed


async def test_sockets_pass_to_another_instance_with_what_waits_in_them() -> None:
    """Between release and adoption clients connect and send: nobody is refused, nothing is lost."""
    async with userspace() as old:
        servers = [Server("tcp", TCP, old.backend_ips[0]), Server("udp", UDP, old.backend_ips[0])]
        async with serving(*servers):
            table = both(old, *(server.backend for server in servers))
            await old.plane.resync(table)
            target = (old.ip(1), PORT)
            with Client(TCP, SOURCE, target) as established:
                assert await established.ask() == "tcp"
                passed = pass_on(old)
                with Client(TCP, SOURCE, target) as tcp, Client(UDP, SOURCE, target) as udp:
                    async with asyncio.TaskGroup() as group:
                        waiting = [group.create_task(client.ask(), name="client") for client in (tcp, udp)]
                        await asyncio.sleep(0)
                        async with userspace(inherited=passed) as new:
                            assert await new.plane.apply(FrontendDelta()) == {}
                            await new.plane.resync(table)
                            assert await asyncio.gather(*waiting) == ["tcp", "udp"]
                            assert new.plane.totals.flows == 2
                            assert await established.ask() == "tcp"
                            await old.plane.close()
                            assert await ask(TCP, SOURCE, target) == "tcp"
                            assert await udp.ask() == "udp"


async def test_a_released_plane_changes_no_socket() -> None:
    async with userspace() as old:
        table = both(old, SOMEWHERE, SOMEWHERE)
        await old.plane.resync(table)
        passed = pass_on(old)
        async with userspace(inherited=passed) as new:
            await new.plane.resync(table)
            assert new.plane.sockets() == passed
            await old.plane.apply(FrontendDelta(removed=tuple(table.frontends)))
            await old.plane.drain(0.0)
            assert passed[f"tcp/{old.ip(1)}:{PORT}"].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


async def test_an_inherited_socket_of_a_frontend_without_backends_refuses() -> None:
    async with userspace() as old:
        await old.plane.resync(both(old, SOMEWHERE, SOMEWHERE))
        passed = pass_on(old)
        async with userspace(inherited=passed) as new:
            await new.plane.resync(both(old))
            for protocol in (TCP, UDP):
                assert await ask(protocol, SOURCE, (old.ip(1), PORT)) == Met.REFUSED


async def test_inherited_sockets_that_nobody_claims_are_closed_and_wrong_ones_replaced() -> None:
    unclaimed, wrong = socket.socket(), socket.socket()
    async with userspace(inherited={"tcp/127.0.0.1:1": unclaimed}) as harness:
        await harness.plane.resync(FrontendTable())
        assert unclaimed.fileno() == -1
    async with userspace() as harness:
        name = f"tcp/{harness.ip(1)}:{PORT}"
        async with userspace(inherited={name: wrong}) as other:
            frontend = cluster_ip(harness.address(0, TCP), service_port(0))
            assert await other.plane.apply(FrontendDelta(frontends=(frontend,))) == {frontend.key: APPLIED}
            assert wrong.fileno() == -1
            assert [notice.message for notice in other.notices] == ["inherited socket is not what its name says"]


async def test_draining_gives_up_in_time_and_close_resets_what_is_left() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        async with serving(server):
            frontend = cluster_ip(harness.address(0, TCP), service_port(0))
            await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, server.backend),)))
            with Client(TCP, SOURCE, (harness.ip(1), PORT)) as client:
                assert await client.ask() == "here"
                await harness.plane.drain(0.0)
                assert harness.plane.connections == 1
                await harness.plane.close()
                assert await client.ask() == Met.REFUSED
                await until(lambda: not server.open)


async def test_many_frontends_let_others_have_their_turn() -> None:
    """The loop runs something else at least once in every `SETTLED_PER_TURN` frontends (none of these can be bound)."""
    async with userspace() as harness:
        keys = [Address(f"203.0.113.{n % 250}", TCP, 80 + n // 250) for n in range(1000)]
        frontends = tuple(cluster_ip(key, service_port(n)) for n, key in enumerate(keys))
        turns = 0
        async with asyncio.TaskGroup() as group:
            task = group.create_task(harness.plane.apply(FrontendDelta(frontends=frontends)), name="apply")
            while not task.done():
                turns += 1
                await asyncio.sleep(0)
        assert turns >= len(frontends) // SETTLED_PER_TURN


UNPRIVILEGED = """
import asyncio, encodings.idna, os, uvloop
from svcproxy.testing.traffic import Server, ask, serving
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Address
from svcproxy.frontends.table import FrontendDelta
from svcproxy.model.meta import Protocol
from svcproxy.testing.dataplane_conformance import cluster_ip, grow, service_port, shrink
from tests.dataplane.world import PORT, userspace

if os.getuid() == 0:  # not before the imports: root's interpreter need not be readable
    os.setgroups([])
    os.setgid({nobody})
    os.setuid({nobody})

async def main():
    async with userspace() as harness:
        servers = [Server(p, p, harness.backend_ips[0]) for p in (Protocol.TCP, Protocol.UDP)]
        low = cluster_ip(Address(harness.ip(1), Protocol.TCP, 80), service_port(9))
        async with serving(*servers):
            for server, protocol in zip(servers, (Protocol.TCP, Protocol.UDP)):
                frontend = cluster_ip(harness.address(0, protocol), service_port(0, protocol))
                grown = FrontendDelta(frontends=(frontend, low), backends=(grow(frontend, server.backend),))
                await harness.plane.apply(grown)
                source = harness.source(SourceKind.POD)
                print(await ask(protocol, source, (harness.ip(1), PORT)))
                await harness.plane.apply(FrontendDelta(backends=(shrink(frontend, server.backend),)))
                print(await ask(protocol, source, (harness.ip(1), PORT)))
        print(*harness.plane.refused.values())
    print(os.getuid(), [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")])

uvloop.run(main())
"""


def test_nobody_without_capabilities_on_uvloop() -> None:
    """The essence of the suite as uid 65534; a low port is refused with the reason."""
    script = UNPRIVILEGED.format(nobody=NOBODY)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'dns'}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == ["TCP", Met.REFUSED, "UDP", Met.REFUSED]
    assert lines[4].endswith(":80: binding this port needs CAP_NET_BIND_SERVICE")
    assert lines[5] == f"{os.getuid() or NOBODY} ['0000000000000000']"
