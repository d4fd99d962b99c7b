# SPDX-License-Identifier: Apache-2.0
"""What is put into a store outlives whoever did: real sockets, and processes that are killed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.errors import ConfigError
from svcproxy.process.descriptor_store import STORE_VARIABLE, DescriptorStore
from svcproxy.process.descriptors import DESCRIPTORS_MAX, close_all, send_packet

PUT_AND_DIE = """
import os, signal, socket
from svcproxy.process.descriptor_store import DescriptorStore
store = DescriptorStore.inherited()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.bind(("127.0.0.1", 0))
    store.put({"udp": udp.fileno()})
    print(udp.getsockname()[1], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def store() -> Iterator[DescriptorStore]:
    made = DescriptorStore.make()
    yield made
    made.close()


def bound() -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    return udp


def names(store: DescriptorStore) -> list[str]:
    found = store.contents()
    close_all(list(found.values()))
    return list(found)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_empty_store_has_nothing(store: DescriptorStore) -> None:
    assert store.contents() == {}


def test_a_socket_of_a_killed_process_is_the_same_with_what_waits_in_it(store: DescriptorStore) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PUT_AND_DIE],
        env=os.environ | {STORE_VARIABLE: ",".join(map(str, store.descriptors))},
        pass_fds=store.descriptors,
        stdout=subprocess.PIPE,
        check=False,
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", int(finished.stdout)))
        client.send(b"while nobody runs")
        for _ in range(2):  # it can be asked for more than once
            with socket.socket(fileno=store.contents()["udp"]) as found:
                assert found.getsockname() == client.getpeername()
                assert not os.get_inheritable(found.fileno())
                assert found.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"while nobody runs"


def test_the_last_set_counts_and_the_earlier_is_closed(store: DescriptorStore) -> None:
    first, second = bound(), bound()
    address = first.getsockname()
    store.put({"first": first.fileno()})
    store.put({"second": second.fileno()})
    first.close()
    second.close()
    assert names(store) == ["second"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)


def test_a_process_killed_between_putting_in_and_taking_out_leaves_the_later_set(store: DescriptorStore) -> None:
    with bound() as first, bound() as second:
        store.put({"first": first.fileno()})
        _, number = store.descriptors
        with socket.socket(fileno=os.dup(number)) as writer:
            send_packet(writer, b'{"names": ["second"], "version": 1}', [second.fileno()])
        assert names(store) == ["second"]
        store.put({"third": first.fileno()})
        assert names(store) == ["third"]


def test_what_is_cleared_is_closed(store: DescriptorStore) -> None:
    with bound() as udp:
        store.put({"udp": udp.fileno()})
        address = udp.getsockname()
    store.clear()
    assert store.contents() == {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)


def test_a_full_packet_fits_and_more_leaves_the_store_empty(store: DescriptorStore) -> None:
    with bound() as udp:
        store.put({str(number): udp.fileno() for number in range(DESCRIPTORS_MAX)})
        assert len(names(store)) == DESCRIPTORS_MAX
        store.put({str(number): udp.fileno() for number in range(DESCRIPTORS_MAX + 1)})
        assert store.contents() == {}


@pytest.mark.parametrize(
    ("message", "descriptors"),
    [
        pytest.param(b"[]", 0, id="no object"),
        pytest.param(b'{"names": [', 1, id="no JSON"),
        pytest.param(b'{"names": ["udp"], "version": 2}', 1, id="another version"),
        pytest.param(b'{"names": ["udp"], "version": 1}', 2, id="more descriptors than names"),
        pytest.param(b'{"names": ["udp", "tcp"], "version": 1}', 1, id="more names than descriptors"),
        pytest.param(b'{"names": ["udp", "udp"], "version": 1}', 2, id="a name twice"),
    ],
)
def test_what_cannot_be_read_is_dropped_and_closed(store: DescriptorStore, message: bytes, descriptors: int) -> None:
    before = open_descriptors()
    with bound() as udp, socket.socket(fileno=os.dup(store.descriptors[1])) as writer:
        send_packet(writer, message, [udp.fileno()] * descriptors)
        address = udp.getsockname()
    assert store.contents() == {}
    assert open_descriptors() == before
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)


def test_without_a_supervisor_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    assert DescriptorStore.inherited() is None


@pytest.mark.parametrize("text", ["1", "a,b", "1,2,3", "987654,987655"])
def test_what_the_environment_names_must_be_one(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(STORE_VARIABLE, text)
    with pytest.raises(ConfigError, match=STORE_VARIABLE):
        DescriptorStore.inherited()
