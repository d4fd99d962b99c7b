# SPDX-License-Identifier: Apache-2.0
"""The shells on real Unix sockets: who is served, who is dropped, and what a worker keeps."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from svcproxy.feed.client import FeedClient
from svcproxy.feed.codec import NAMES, PROTOCOL_VERSION, encode_frame
from svcproxy.feed.frames import Ack, Hello, SourceState
from svcproxy.feed.publisher import SubscriptionState
from svcproxy.feed.server import CONNECTIONS_MAX, FeedServer
from svcproxy.feed.subscriber import FeedState, Phase, Subscriber
from svcproxy.process.sockets import Peer, connect_unix, listen_unix
from tests.feed.world import LIVE, Agent, SetSink, record

HELLO = encode_frame(Hello(PROTOCOL_VERSION, "names", "", 0, False, "raw", 1))


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds, none of which signals
            await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(path: Path, agent: Agent, **options: Any) -> AsyncIterator[FeedServer]:
    """A server for `agent` at `path`, until the block ends."""
    server = FeedServer(agent.publisher, options.pop("admit", lambda peer: peer.trusted), **options)
    with listen_unix(path) as listener:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(server.run(listener), name="feed server")
            yield server
            running.cancel()


class Worker:
    def __init__(self, path: Callable[[], Path], **options: Any) -> None:
        self.sink = SetSink()
        self.states: list[FeedState] = []
        self.client = FeedClient(path, Subscriber(NAMES, self.sink, "dns-0", 42), self.states.append, **options)

    def holds(self, agent: Agent) -> bool:
        return self.client.state.complete and self.sink.known.keys() == agent.records.keys()

    def hears_again(self, since: float) -> Callable[[], bool]:
        return lambda: (self.client.last_contact or 0.0) > since

    def is_in(self, phase: Phase) -> bool:
        return self.client.state.phase is phase


@asynccontextmanager
async def working(path: Path | Callable[[], Path], **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(path if callable(path) else lambda: path, **options)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.client.run(), name="feed client")
        yield worker
        running.cancel()


def agent_with(count: int, epoch: str = "epoch-0") -> Agent:
    agent = Agent(epoch)
    agent.change(added=[record(number) for number in range(count)])
    agent.publisher.source_changed(LIVE)
    return agent


async def test_a_worker_takes_the_set_and_follows_it(tmp_path: Path) -> None:
    agent = agent_with(500)
    async with serving(tmp_path / "feed", agent), working(tmp_path / "feed") as worker:
        await eventually(lambda: worker.holds(agent))
        agent.change(added=[record("new")], removed=[record(7)])
        await eventually(lambda: worker.holds(agent))
        await eventually(lambda: [entry.lag for entry in agent.publisher.subscribers()] == [0])
        assert worker.client.last_contact is not None
        assert worker.client.error == ""


async def test_a_worker_hears_of_states_and_not_of_revisions(tmp_path: Path) -> None:
    agent = agent_with(3)
    async with serving(tmp_path / "feed", agent), working(tmp_path / "feed") as worker:
        await eventually(lambda: worker.client.state.source.synced)
        told = len(worker.states)
        agent.change(added=[record("new")])
        await eventually(lambda: worker.holds(agent))
        assert len(worker.states) == told
        assert [state.complete for state in worker.states] == sorted(state.complete for state in worker.states)


async def test_a_worker_without_an_agent_keeps_its_records_and_resumes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    agent, successor = agent_with(50), agent_with(60, "another epoch")
    async with working(path) as worker:
        async with serving(path, agent):
            await eventually(lambda: worker.holds(agent))
        await eventually(lambda: worker.is_in(Phase.OFFLINE))
        await eventually(lambda: worker.client.error)
        assert worker.holds(agent)
        assert worker.client.state.stale
        async with serving(path, successor):
            await eventually(lambda: worker.holds(successor))
            await eventually(lambda: not worker.client.state.stale)


async def test_a_worker_that_comes_back_resumes(tmp_path: Path) -> None:
    path, agent = tmp_path / "feed", agent_with(50)
    async with working(path) as worker:
        for _ in range(2):
            async with serving(path, agent):
                await eventually(lambda: worker.is_in(Phase.LIVE) and worker.holds(agent))
            agent.change(added=[record("meanwhile")])
        assert worker.sink.generation == 1


async def test_a_worker_moves_when_the_feed_does(tmp_path: Path) -> None:
    old, new = agent_with(5), agent_with(6, "another epoch")
    active = [tmp_path / "a"]
    async with (
        serving(tmp_path / "a", old),
        serving(tmp_path / "b", new),
        working(lambda: active[0], path_check_interval=0.01) as worker,
    ):
        await eventually(lambda: worker.holds(old))
        active[0] = tmp_path / "b"
        await eventually(lambda: worker.holds(new))
        assert old.publisher.subscribers() == []


async def test_a_worker_leaves_an_agent_that_is_silent(tmp_path: Path) -> None:
    path, agent = tmp_path / "feed", agent_with(5)
    with listen_unix(path):  # accepts into its backlog, and never says a word
        async with working(path, silence_max=0.02, path_check_interval=0.01) as worker:
            await eventually(lambda: "silent" in worker.client.error)
            async with serving(path, agent):
                await eventually(lambda: worker.holds(agent))


async def test_a_worker_leaves_an_agent_that_talks_nonsense(tmp_path: Path) -> None:
    path, agent = tmp_path / "feed", agent_with(5)
    with listen_unix(path) as listener:
        async with working(path) as worker:
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_sendall(connection, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                await eventually(lambda: "octets" in worker.client.error)
            async with serving(path, agent):
                await eventually(lambda: worker.holds(agent))


async def test_an_idle_conversation_has_signs_of_life(tmp_path: Path) -> None:
    agent = agent_with(5)
    async with serving(tmp_path / "feed", agent, ping_interval=0.005), working(tmp_path / "feed") as worker:
        await eventually(lambda: worker.is_in(Phase.LIVE) and worker.holds(agent))
        for _ in range(3):
            await eventually(worker.hears_again(worker.client.last_contact or 0.0))
        assert worker.client.error == ""


async def test_news_that_ask_for_no_answer_are_no_sign_of_life(tmp_path: Path) -> None:
    agent = agent_with(5)

    async def tell() -> None:
        for second in count(1):
            agent.publisher.source_changed(SourceState(synced=True, stale=True, since=second))
            await asyncio.sleep(0.001)

    with listen_unix(tmp_path / "feed") as listener:
        server = FeedServer(agent.publisher, lambda _: True, ping_interval=0.5)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(each, name="agent") for each in (server.run(listener), tell())]
            with connect_unix(tmp_path / "feed") as worker:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(worker, HELLO)
                async with asyncio.timeout(10):
                    while b"ping" not in await loop.sock_recv(worker, 65536):
                        pass
            for task in running:
                task.cancel()


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP"),
        pytest.param(b"\xff\xff\xff\xff", id="a frame of 4 GiB"),
        pytest.param(bytes(4), id="an empty frame"),
        pytest.param(b"\x00\x00\x00\x02\xc1\xc1", id="no msgpack"),
        pytest.param(encode_frame(Ack(1)), id="Ack before Hello"),
        pytest.param(HELLO + HELLO, id="second Hello"),
        pytest.param(HELLO + encode_frame(Ack(1 << 40)), id="Ack of what is to come"),
    ],
)
async def test_who_breaks_the_protocol_is_dropped_and_others_are_served(tmp_path: Path, octets: bytes) -> None:
    agent = agent_with(50)
    async with serving(tmp_path / "feed", agent) as server, working(tmp_path / "feed") as worker:
        with connect_unix(tmp_path / "feed") as vandal:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(vandal, octets)
            await eventually(lambda: server.dropped == 1)
            while await loop.sock_recv(vandal, 65536):
                pass
        await eventually(lambda: worker.holds(agent))
        await eventually(lambda: len(agent.publisher.subscribers()) == 1)
        assert server.dropped == 1


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"", id="from the start"),
        pytest.param(HELLO[:9], id="after half a Hello"),
        pytest.param(HELLO, id="without an answer to a Ping"),
    ],
)
async def test_who_is_silent_is_dropped(tmp_path: Path, octets: bytes) -> None:
    agent = agent_with(50)
    async with serving(tmp_path / "feed", agent, ping_interval=0.01, silence_max=0.05) as server:
        with connect_unix(tmp_path / "feed") as client:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, octets)
            while await loop.sock_recv(client, 65536):
                pass
        await eventually(lambda: not agent.publisher.subscribers())
        assert server.dropped == 1


async def test_who_hangs_up_in_the_middle_is_forgotten(tmp_path: Path) -> None:
    agent = agent_with(5000)
    async with serving(tmp_path / "feed", agent) as server:
        with connect_unix(tmp_path / "feed") as client:
            await asyncio.get_running_loop().sock_sendall(client, HELLO)
            await eventually(agent.publisher.subscribers)
        await eventually(lambda: not agent.publisher.subscribers())
        assert server.dropped == 0


async def test_who_never_reads_costs_a_bounded_buffer_and_holds_nobody_up(tmp_path: Path) -> None:
    agent = agent_with(20000)
    async with serving(tmp_path / "feed", agent), working(tmp_path / "feed") as worker:
        with connect_unix(tmp_path / "feed") as sleeper:
            sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.get_running_loop().sock_sendall(sleeper, HELLO)
            await eventually(lambda: worker.holds(agent))
            for number in range(100):
                agent.change(added=[record(f"new-{number}")])
            await eventually(lambda: worker.holds(agent))
            states = {entry.name: entry.state for entry in agent.publisher.subscribers()}
            assert states == {"raw": SubscriptionState.SNAPSHOT, "dns-0": SubscriptionState.LIVE}


async def test_who_is_not_admitted_gets_nothing(tmp_path: Path) -> None:
    asked: list[Peer] = []

    def admit(peer: Peer) -> bool:
        asked.append(peer)
        return False

    agent = agent_with(5)
    async with serving(tmp_path / "feed", agent, admit=admit) as server:
        with connect_unix(tmp_path / "feed") as stranger:
            assert await asyncio.get_running_loop().sock_recv(stranger, 10) == b""
        assert server.refused == 1
        assert agent.publisher.subscribers() == []
        assert asked[0].trusted, "it is this very process"


async def test_connections_are_bounded(tmp_path: Path) -> None:
    agent = agent_with(5)
    loop = asyncio.get_running_loop()
    async with serving(tmp_path / "feed", agent) as server:
        clients = []
        try:
            for _ in range(CONNECTIONS_MAX):
                clients.append(connect_unix(tmp_path / "feed"))
                await loop.sock_sendall(clients[-1], HELLO)
                await eventually(lambda: len(agent.publisher.subscribers()) == len(clients))
            clients.append(connect_unix(tmp_path / "feed"))
            assert await loop.sock_recv(clients[-1], 10) == b""
            assert server.refused == 1
        finally:
            for client in clients:
                client.close()
        await eventually(lambda: not agent.publisher.subscribers())
        with connect_unix(tmp_path / "feed") as late:
            await loop.sock_sendall(late, HELLO)
            await eventually(agent.publisher.subscribers)
