# SPDX-License-Identifier: Apache-2.0
"""`svcproxy resolve` against a DNS server on loopback: search list, answers, TCP when an answer is cut, failures."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from svcproxy.cli import main
from svcproxy.client.resolve import Server, candidates, parse_server
from svcproxy.config import Config, DnsConfig
from svcproxy.process.instance import Instance
from svcproxy.testing.admin import example_state, serving

ZONE = {
    ("web.shop.svc.cluster.local.", "A"): ["10.96.0.10"],
    ("many.shop.svc.cluster.local.", "A"): [f"10.244.0.{number}" for number in range(1, 9)],
}
NAMES = {name for name, _ in ZONE}


def answer(query: dns.message.Message, *, cut: bool) -> bytes:
    """As cluster DNS does, REFUSED outside of its zone; `cut` answers with TC alone when there is much to say."""
    response = dns.message.make_response(query)
    name, qtype = query.question[0].name.to_text().lower(), query.question[0].rdtype.name
    if not name.endswith(".cluster.local."):
        response.set_rcode(dns.rcode.REFUSED)
    elif name not in NAMES:
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif (data := ZONE.get((name, qtype))) is not None:
        if cut and len(data) > 1:
            response.flags |= dns.flags.TC
        else:
            response.answer.append(dns.rrset.from_text_list(name, 30, "IN", qtype, data))
    return response.to_wire()


@contextlib.contextmanager
def same_port_twice() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A UDP and a TCP socket of one port. The kernel chooses ports of the two apart, so a free pair is looked for."""
    for _ in range(50):
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            try:
                udp.bind(tcp.getsockname())
            except OSError:
                continue
            yield udp, tcp
            return
    raise AssertionError("no port is free for both UDP and TCP")


@pytest.fixture
def server() -> Iterator[str]:
    """ADDRESS:PORT of a DNS server over UDP and TCP that also sends a stray answer with another ID first."""
    with contextlib.ExitStack() as sockets:
        udp, tcp = sockets.enter_context(same_port_twice())

        def serve_udp() -> None:
            while octets := (received := udp.recvfrom(4096))[0]:
                query = dns.message.from_wire(octets)
                reply = answer(query, cut=True)
                stray = bytes([reply[0] ^ 1]) + reply[1:]
                udp.sendto(stray, received[1])
                udp.sendto(reply, received[1])

        def serve_tcp() -> None:
            while True:
                client, _ = tcp.accept()
                with client, client.makefile("rb") as stream:
                    octets = stream.read(int.from_bytes(stream.read(2)))
                    if not octets:
                        return
                    reply = answer(dns.message.from_wire(octets), cut=False)
                    client.sendall(len(reply).to_bytes(2) + reply)

        threads = [threading.Thread(target=serve_udp), threading.Thread(target=serve_tcp)]
        for thread in threads:
            thread.start()
        host, port = udp.getsockname()
        yield f"{host}:{port}"
        udp.sendto(b"", (host, port))
        socket.create_connection((host, port)).close()
        for thread in threads:
            thread.join()


def test_a_short_name_is_completed_as_in_a_pod(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "web.shop", "--server", server]) == 0
    assert capsys.readouterr().out == (
        "NAME                          TTL   TYPE   DATA\nweb.shop.svc.cluster.local.   30    A      10.96.0.10\n"
    )


def test_an_answer_that_is_cut_is_asked_for_over_tcp(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "many", "a", "-n", "shop", "--server", server, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["transport"], found["rcode"], found["name"]) == ("tcp", "NOERROR", "many.shop.svc.cluster.local.")
    assert sorted(each["data"] for each in found["records"]) == ZONE["many.shop.svc.cluster.local.", "A"]


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        pytest.param(
            ["web.shop", "AAAA"],
            "web.shop.svc.cluster.local. AAAA: exists, without such records",
            id="a name that exists tells more than NXDOMAIN and REFUSED",
        ),
        pytest.param(
            ["none", "-n", "shop"], "none.shop.svc.cluster.local. A: NXDOMAIN", id="the first name of the search list"
        ),
        pytest.param(["example.org."], "example.org. A: REFUSED", id="a final dot: that name alone"),
    ],
)
def test_no_records(server: str, capsys: pytest.CaptureFixture[str], arguments: list[str], outcome: str) -> None:
    assert main(["resolve", *arguments, "--server", server]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{outcome} (from {server} over udp)\n")


def test_the_instance_says_whom_to_ask(
    server: str, instance: Instance, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = server.rpartition(":")[2]
    state = example_state(Config(dns=DnsConfig(listen=(f"0.0.0.0:{port}",))))
    with serving(state, instance.paths.admin_socket):
        assert main(["resolve", "web.shop", "--run-dir", str(run_dir), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["server"] == server


def test_the_second_server_is_asked_when_the_first_is_not_there(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{unused.getsockname()[1]}"
    assert main(["resolve", "web.shop", "--server", closed, "--server", server]) == 0
    assert "10.96.0.10" in capsys.readouterr().out
    assert main(["resolve", "web.shop", "--server", closed]) == 1
    assert "no DNS answer for web.shop.default.svc.cluster.local.:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("web", ["web.ns.svc.z.", "web.svc.z.", "web.z.", "web."], id="short"),
        pytest.param(
            "web.ns.svc.z", ["web.ns.svc.z."], id="complete but for the dot: completing it again would only cost time"
        ),
        pytest.param("web.", ["web."], id="final dot"),
    ],
)
def test_search_list(name: str, expected: list[str]) -> None:
    assert list(candidates(name, "ns", "z")) == expected


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("10.0.0.1", Server("10.0.0.1", 53)),
        ("10.0.0.1:5353", Server("10.0.0.1", 5353)),
        ("[fd00::1]:5353", Server("fd00::1", 5353)),
        ("fd00::1", Server("fd00::1", 53)),
    ],
)
def test_server_addresses(text: str, server: Server) -> None:
    assert parse_server(text) == server
