# SPDX-License-Identifier: Apache-2.0
"""What runs in the pods of the cluster's tests. Standard library only; the image holds this file and Python.

workload serve PORT [DRAIN]      HTTP and UDP: says the pod's name and whom it sees; after SIGTERM it serves for DRAIN s
workload ask HOST PORT [COUNT]   requests, each on a connection of its own, and what came
workload ask-udp HOST PORT       one datagram, and what came
workload tls HOST PORT           the certificate of a server, if the pod's CA file verifies it
workload file PATH               what is in a file
workload resolve NAME            the addresses, as the pod's resolver finds them
workload load HOST PORT          new connections one after the other until standard input ends; outcomes are counted
workload sleep                   until SIGTERM
"""

import asyncio
import errno
import json
import os
import random
import signal
import socket
import ssl
import sys
from collections import Counter
from pathlib import Path

AT_ONCE = 2
"""Connections of `load`."""
PACE = 0.05
"""Seconds between two connections of each of them."""
TIMEOUT = 15.0
"""Seconds: a machine may be busy; who sends to a pod that is gone waits longer."""
REQUEST = b"GET / HTTP/1.0\r\n\r\n"
HEAD_OCTETS_MAX = 4096
CA_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"


def said_to(client: tuple[str, int]) -> bytes:
    """The pod's name and the client as it is seen."""
    return f"{socket.gethostname()} {client[0].removeprefix('::ffff:')}\n".encode()


def answer_datagram(socket_: socket.socket) -> None:
    """One datagram."""
    _, client = socket_.recvfrom(HEAD_OCTETS_MAX)
    socket_.sendto(said_to(client), client)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + said_to(writer.get_extra_info("peername")))
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def serve(port: int, drain: float) -> None:
    """Both families, both protocols."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("::", port))
        loop.add_reader(datagrams, answer_datagram, datagrams)
        async with await asyncio.start_server(answer, ["0.0.0.0", "::"], port, limit=HEAD_OCTETS_MAX):
            await ending.wait()
            await asyncio.sleep(drain)
        loop.remove_reader(datagrams)


async def ask(host: str, port: int) -> str:
    """The body of an answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(REQUEST)
        return (await reader.read()).decode().partition("\r\n\r\n")[2].strip()
    finally:
        writer.close()


def ask_udp(host: str, port: int) -> str:
    """What comes back for a datagram."""
    ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    with socket.socket(family, kind, protocol) as asking:
        asking.settimeout(TIMEOUT)
        asking.connect(address)
        asking.send(b"?")
        return asking.recv(HEAD_OCTETS_MAX).decode().strip()


def certificate_of(host: str, port: int) -> object:
    """What a server proves about itself."""
    context = ssl.create_default_context(cafile=CA_FILE)
    with (
        socket.create_connection((host, port), TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return secured.getpeercert()


async def outcome(host: str, port: int) -> str:
    """`served`, or how far a connection came and what happened then. The family is drawn."""
    doing = "name"
    try:
        async with asyncio.timeout(TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            address = str(random.choice(found)[4][0])
            doing = "IPv6" if ":" in address else "IPv4"
            return "served" if await ask(address, port) else f"{doing}: closed without an answer"
    except TimeoutError:
        return f"{doing}: timeout"
    except socket.gaierror as exc:
        return f"{doing}: {exc.strerror}"
    except OSError as exc:
        return f"{doing}: {errno.errorcode.get(exc.errno or 0, repr(exc))}"


async def load(host: str, port: int) -> Counter[str]:
    """Outcomes of connections until standard input ends."""
    met = Counter[str]()
    going_on = True

    async def connect() -> None:
        while going_on:
            met[await outcome(host, port)] += 1
            await asyncio.sleep(PACE)

    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(connect(), name=f"connection {number}")
        print("going", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        going_on = False
    return met


def resolve(name: str) -> list[str]:
    """Sorted; empty if there are none."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except socket.gaierror:
        return []


def main(words: list[str]) -> None:
    """Do as the words say."""
    match words:
        case ["serve", port, *drain]:
            asyncio.run(serve(int(port), float(drain[0]) if drain else 0.0))
        case ["ask", host, port, *count]:
            for _ in range(int(count[0]) if count else 1):
                print(asyncio.run(asyncio.wait_for(ask(host, int(port)), TIMEOUT)))
        case ["ask-udp", host, port]:
            print(ask_udp(host, int(port)))
        case ["tls", host, port]:
            print(json.dumps(certificate_of(host, int(port))))
        case ["file", path]:
            print(Path(path).read_text())
        case ["resolve", name]:
            print(json.dumps(resolve(name)))
        case ["load", host, port]:
            print(json.dumps(asyncio.run(load(host, int(port)))))
        case ["sleep"]:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            signal.pause()
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
