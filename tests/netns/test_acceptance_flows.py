# SPDX-License-Identifier: Apache-2.0
"""What a single flow meets over time, and what meets packets that are neither TCP nor UDP."""

import asyncio
import socket

import pytest

from svcproxy.model import Service
from svcproxy.model.meta import Family, Protocol
from tests.netns import sctp
from tests.netns.nftables_stage import nftables
from tests.netns.objects import PORT, failing, service, slice_of
from tests.netns.places import AT, Addresses
from tests.netns.probes import PATIENCE, Served
from tests.netns.world import World

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
ECHO_REQUEST = {Family.IPV4: bytes((8, 0, 0xF7, 0xFD, 0, 1, 0, 1)), Family.IPV6: bytes((128, 0, 0, 0, 0, 1, 0, 1))}
"""The kernel adds the checksum of ICMPv6."""
ICMP = {Family.IPV4: socket.IPPROTO_ICMP, Family.IPV6: socket.IPPROTO_ICMPV6}
CLIENT_PORT, SERVER_PORT = 40000, 8080


@FAMILIES
async def test_case_43_t23_an_established_flow_stays_where_it_is(family: Family) -> None:
    at = AT[family]
    target = at.cluster_ip, PORT
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at), slice_of(at, "a1"))
            with world.flow("p1", Protocol.TCP, target) as flow:
                assert await flow.ask() == Served("a1", at.p1)
                await stage.apply(slice_of(at, failing(at, "a1"), "b1"))
                assert await flow.ask() == Served("a1", at.p1)
                assert await world.attempt("p1", Protocol.TCP, target) == Served("b1", at.p1)
                await stage.apply(slice_of(at, "b1"))
                assert await flow.ask() == Served("a1", at.p1)
                await stage.apply(slice_of(at))
                assert await flow.ask() == Served("a1", at.p1)
                await stage.remove(Service, "s")
                assert await flow.ask() == Served("a1", at.p1)


@FAMILIES
async def test_t31_a_source_port_that_speaks_to_the_endpoint_itself_too(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at), slice_of(at, "a1"))
            with (
                world.flow("p1", Protocol.UDP, (at.a1, 8080), at.p1, CLIENT_PORT) as direct,
                world.flow("p1", Protocol.UDP, (at.a1, 9090), at.p1, CLIENT_PORT + 1) as other,
            ):
                assert await direct.ask() == Served("a1", at.p1)
                assert await other.ask() == Served("a1:9090", at.p1)
                direct.sock.close()
                with world.flow("p1", Protocol.UDP, (at.cluster_ip, PORT), at.p1, CLIENT_PORT) as flow:
                    assert await flow.ask() == Served("a1", at.p1)
                    assert await flow.ask() == Served("a1", at.p1)


@FAMILIES
@pytest.mark.parametrize("place", ["p1", "x"])
async def test_case_30_a_ping_to_a_cluster_ip_is_refused(family: Family, place: str) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at), slice_of(at, "a1"))
            with raw(world, at, place, ICMP[family]) as sock:
                sock.connect((at.cluster_ip, 0))
                sock.send(ECHO_REQUEST[family])
                with pytest.raises(ConnectionRefusedError):
                    await receive(sock)


@FAMILIES
@pytest.mark.parametrize(("place", "source"), [("p1", "p1"), ("x", "n1")])
async def test_t03_sctp_is_translated_both_ways(family: Family, place: str, source: str) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            ports = [{"name": "sctp", "port": PORT, "protocol": "SCTP"}]
            there = [{"name": "sctp", "port": SERVER_PORT, "protocol": "SCTP"}]
            await stage.apply(service(at, ports=ports), slice_of(at, "b1", ports=there))
            with raw(world, at, place, sctp.PROTOCOL) as client, raw(world, at, "b1", sctp.PROTOCOL) as server:
                client.connect((at.cluster_ip, 0))
                client.send(sctp.Packet(CLIENT_PORT, PORT, sctp.INIT, 0, 7).encode())
                request, sender = await receive(server)
                asked = sctp.decode(request)
                assert (asked.port, asked.chunk, asked.initiate_tag) == (SERVER_PORT, sctp.INIT, 7)
                assert sender == getattr(at, source)
                answer = sctp.Packet(SERVER_PORT, asked.source_port, sctp.INIT_ACK, 7, 8)
                server.sendto(answer.encode(), (sender, 0))
                reply, sender = await receive(client)
                assert sender == at.cluster_ip
                assert sctp.decode(reply) == sctp.Packet(PORT, CLIENT_PORT, sctp.INIT_ACK, 7, 8)


@FAMILIES
async def test_t03_sctp_without_endpoints_is_refused(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at, ports=[{"name": "sctp", "port": PORT, "protocol": "SCTP"}]))
            with raw(world, at, "p1", sctp.PROTOCOL) as client:
                client.connect((at.cluster_ip, 0))
                client.send(sctp.Packet(CLIENT_PORT, PORT, sctp.INIT, 0, 7).encode())
                with pytest.raises(ConnectionRefusedError):
                    await receive(client)


def raw(world: World, at: Addresses, place: str, protocol: int) -> socket.socket:
    """A raw socket at a place."""
    six = at.family is Family.IPV6
    with world.namespace(place).entered():
        sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, protocol)
    sock.setblocking(False)
    sock.bind((getattr(at, place), 0))
    return sock


async def receive(sock: socket.socket) -> tuple[bytes, str]:
    """The next packet, without the header of IPv4, and who sent it."""
    async with asyncio.timeout(PATIENCE):
        packet, sender = await asyncio.get_running_loop().sock_recvfrom(sock, 2048)
    header = 0 if sock.family is socket.AF_INET6 else (packet[0] & 15) * 4
    return packet[header:], sender[0]
