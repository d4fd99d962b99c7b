# SPDX-License-Identifier: Apache-2.0
"""The supervisor's part in interception, turn by turn on a real kernel; a worker is an octet in a pipe."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator

import pytest

from svcproxy.process.leases import VALID
from svcproxy.process.proof import Proof, encode, read_channel
from svcproxy.supervisor.interception import INTERVAL, Interception
from svcproxy.supervisor.proofs import SILENCE_MAX
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

IPV4, IPV6 = ADDRESSES = ("10.96.0.10", "fd96::a")
TABLES = ["table ip svcproxy-dns", "table ip6 svcproxy-dns"]


class Turns:
    """An interception with a clock that is moved by hand."""

    def __init__(self, node: Namespace) -> None:
        self.node = node
        self.now = 1000.0
        self.made = Interception(ADDRESSES, self.now)
        self._writers: dict[int, int] = {}

    def start(self, worker: int = 0) -> dict[str, str]:
        self._writers[worker], told = self.made.open(worker)
        return told

    def end(self, worker: int = 0) -> None:
        os.close(self._writers.pop(worker))
        with self.node.entered():
            self.made.ended(worker)

    def says(self, *answered: str, worker: int = 0, stands_by: bool = False) -> None:
        os.write(self._writers[worker], encode(Proof(frozenset(answered), stands_by), ADDRESSES))

    def turn(self, after: float = INTERVAL) -> tuple[int, ...]:
        self.now += after
        with self.node.entered():
            return tuple(self.made.turn(self.now))

    def stop(self) -> None:
        with self.node.entered():
            self.made.stop(self.now)

    def close(self) -> None:
        for worker in tuple(self._writers):
            self.end(worker)
        with self.node.entered():
            self.made.close()

    def standing(self) -> set[str]:
        (loopback,) = json.loads(self.node.run("ip", "-json", "address", "show", "dev", "lo"))
        return {each["local"] for each in loopback["addr_info"]} & set(ADDRESSES)

    def tables(self) -> list[str]:
        return self.node.run("nft", "list", "tables").splitlines()

    def taken(self, name: str) -> int:
        """How many elements a set has, over both families."""
        listed = (self.node.run("nft", "list", "set", family, "svcproxy-dns", name) for family in ("ip", "ip6"))
        return sum(text.count(" . 53") for text in listed)


@pytest.fixture
def turns() -> Iterator[Turns]:
    with Namespace() as node:
        made = Turns(node)
        yield made
        made.close()


def test_a_worker_is_told_its_end_of_the_pipe_and_the_addresses(turns: Turns) -> None:
    told = turns.start()
    writer, addresses = read_channel(told) or (-1, ())
    assert addresses == ADDRESSES
    os.write(writer, encode(Proof(frozenset({IPV4})), addresses))
    turns.turn()
    assert turns.standing() == {IPV4}


def test_nothing_is_touched_before_something_is_proven(turns: Turns) -> None:
    turns.start()
    turns.says()
    turns.turn()
    assert (turns.standing(), turns.tables()) == (set(), [])


def test_what_is_proven_stands_and_the_rest_does_not(turns: Turns) -> None:
    turns.start()
    turns.says(IPV4)
    turns.turn()
    assert (turns.standing(), turns.tables()) == ({IPV4}, TABLES)


def test_states_are_told_once_and_survive_a_turn_without_a_word(turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    turns.start()
    for _ in range(3):
        turns.says(IPV4)
        turns.turn()
    turns.turn()
    for _ in range(3):
        turns.turn(VALID)
    told = [(each.message, each.__dict__.get("address")) for each in caplog.records]
    assert told == [("intercepting", IPV4), ("not intercepting", IPV4)]


def test_a_worker_that_falls_silent_is_to_be_killed_and_one_that_starts_is_not(turns: Turns) -> None:
    for worker in (0, 1, 2):
        turns.start(worker)
    turns.says(IPV4, worker=0)
    turns.says(worker=1)
    assert turns.turn() == ()
    turns.says(worker=1)
    assert turns.turn(SILENCE_MAX) == (0,)
    assert turns.turn() == ()


def test_stopped_it_leaves_queries_to_others_at_once_and_the_rest_when_the_last_worker_has_ended(turns: Turns) -> None:
    for worker in (0, 1):
        turns.start(worker)
        turns.says(*ADDRESSES, worker=worker)
    turns.turn()
    assert (turns.taken("queries"), turns.taken("replies")) == (4, 4)
    turns.stop()
    assert (turns.taken("queries"), turns.taken("replies")) == (0, 4)
    turns.end(0)
    assert turns.turn() == (), "nobody is killed for being silent"
    assert turns.taken("queries") == 0
    assert turns.standing() == set(ADDRESSES)
    turns.end(1)
    assert (turns.standing(), turns.tables()) == (set(), [])


def test_stopped_it_renews_until_the_last_worker_has_ended(turns: Turns) -> None:
    turns.start()
    turns.says(*ADDRESSES)
    turns.turn()
    turns.stop()
    turns.node.ip("address", "delete", f"{IPV4}/32", "dev", "lo")
    turns.turn()
    assert turns.standing() == set(ADDRESSES)


def test_stopped_it_leaves_everything_to_a_successor(turns: Turns) -> None:
    turns.start()
    turns.says(*ADDRESSES)
    turns.turn()
    turns.says(stands_by=True)
    turns.stop()
    turns.end()
    turns.close()
    assert (turns.standing(), turns.tables()) == (set(ADDRESSES), TABLES)
    assert turns.taken("queries") == 4


def test_a_successor_that_comes_while_it_stops_gets_everything(turns: Turns) -> None:
    turns.start()
    turns.says(*ADDRESSES)
    turns.turn()
    turns.stop()
    turns.says(stands_by=True)
    turns.end()
    turns.close()
    assert (turns.standing(), turns.tables()) == (set(ADDRESSES), TABLES)


def test_what_workers_left_behind_of_an_earlier_list_goes_with_the_next_tables(turns: Turns) -> None:
    turns.start()
    turns.says(*ADDRESSES)
    turns.turn()
    with turns.node.entered():
        other = Interception((IPV6,), turns.now)
        writer, _ = other.open(0)
        os.write(writer, encode(Proof(frozenset({IPV6})), (IPV6,)))
        other.turn(turns.now)
    assert turns.tables() == ["table ip6 svcproxy-dns"]
    os.close(writer)
    with turns.node.entered():
        other.close()


def test_without_privileges_the_reason_is_told_once(turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    turns.start()
    turns.turn()
    with _ipv6_forbidden(turns.node):
        for _ in range(3):
            turns.says(*ADDRESSES)
            turns.turn()
    told = [each.__dict__.get("cause") for each in caplog.records if each.message == "not intercepting"]
    assert told == ["Permission denied"]
    assert turns.standing() == {IPV4}
    turns.says(*ADDRESSES)
    turns.turn()
    assert turns.standing() == set(ADDRESSES)


@contextlib.contextmanager
def _ipv6_forbidden(node: Namespace) -> Iterator[None]:
    node.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    yield
    node.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")
