# SPDX-License-Identifier: Apache-2.0
"""What a worker proves to its supervisor, on real sockets of the loopback."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

from svcproxy.config import DnsConfig
from svcproxy.process.proof import Proof, channel, decode
from svcproxy.workers import interception
from svcproxy.workers.interception import Prover, Standing
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.worker import DnsWorker

SERVES, STANDS_BY, STARTS = Standing(True, False), Standing(False, True), Standing(False, False)
ABSENT, FOREIGN = "10.96.0.10", "fd96::a"
"""Neither is on this machine; the supervisor wants both, the configuration has the first one only."""
CONFIG = DnsConfig(listen=("127.0.0.1:0",), intercept=(ABSENT,), resolv_conf=None)
PATIENCE = 20.0


class Supervised:
    """A prover and the supervisor's end of its pipe."""

    def __init__(self, standing: Standing, sockets: list[socket.socket]) -> None:
        self.reader, writer = os.pipe2(os.O_NONBLOCK)
        self.writer = writer
        self.standing = standing
        told = channel(writer, (ABSENT, FOREIGN))
        self.prover = Prover(CONFIG, told, lambda: self.standing, lambda: sockets)

    async def says(self) -> Proof:
        """The next thing that it says, from now on."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)
        readable = asyncio.Event()
        loop.add_reader(self.reader, readable.set)
        async with asyncio.timeout(PATIENCE):
            await readable.wait()
        loop.remove_reader(self.reader)
        return decode(os.read(self.reader, 4096)[-1], (ABSENT, FOREIGN))


@contextlib.asynccontextmanager
async def supervised(standing: Standing, sockets: list[socket.socket]) -> AsyncIterator[Supervised]:
    made = Supervised(standing, sockets)
    task = asyncio.get_running_loop().create_task(made.prover.run(), name="prover")  # ended below
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        os.close(made.reader)
        os.close(made.writer)


async def test_who_is_answered_elsewhere_proves_what_is_not_on_the_node_yet() -> None:
    """But nothing that is not configured any more."""
    worker = DnsWorker(CONFIG)
    await worker.start(bind_listeners(CONFIG.listen))
    async with supervised(SERVES, worker.sockets()) as made:
        assert await made.says() == Proof(frozenset({ABSENT}))
    worker.close()


@pytest.mark.parametrize("standing", [STANDS_BY, STARTS])
async def test_who_does_not_serve_proves_nothing_and_says_that_it_lives(standing: Standing) -> None:
    worker = DnsWorker(CONFIG)
    await worker.start(bind_listeners(CONFIG.listen))
    async with supervised(standing, worker.sockets()) as made:
        assert await made.says() == Proof(stands_by=standing.stands_by)
    worker.close()


async def test_a_worker_that_was_succeeded_says_so_at_once() -> None:
    worker = DnsWorker(CONFIG)
    await worker.start(bind_listeners(CONFIG.listen))
    async with supervised(SERVES, worker.sockets()) as made:
        assert await made.says() == Proof(frozenset({ABSENT}))
        made.standing = STANDS_BY
        made.prover.standing_changed()
        (octet,) = os.read(made.reader, 1)
        assert decode(octet, (ABSENT, FOREIGN)) == Proof(stands_by=True)
    worker.close()


async def test_who_is_not_answered_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interception, "ATTEMPT_INTERVAL", 0.002)
    deaf = bind_listeners(CONFIG.listen)
    async with supervised(SERVES, deaf) as made:
        assert await made.says() == Proof()
    for each in deaf:
        each.close()


async def test_one_of_two_that_share_the_address_is_enough() -> None:
    """The other one has the socket and does not read."""
    hung = bind_listeners(CONFIG.listen, shared=True)
    worker = DnsWorker(CONFIG)
    await worker.start(bind_listeners([f"127.0.0.1:{hung[0].getsockname()[1]}"], shared=True))
    async with supervised(SERVES, worker.sockets()) as made:
        said = [await made.says() for _ in range(6)]
    worker.close()
    for each in hung:
        each.close()
    assert sum(ABSENT in proof.answered for proof in said) >= 4


async def test_what_gave_no_answer_while_it_was_on_the_node_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would stand again as soon as it has gone."""
    monkeypatch.setattr(interception, "ATTEMPT_INTERVAL", 0.002)
    worker = DnsWorker(CONFIG)
    await worker.start(bind_listeners(CONFIG.listen))
    async with supervised(SERVES, worker.sockets()) as made:
        assert await made.says() == Proof(frozenset({ABSENT}))
        made.prover.local = frozenset({ABSENT})  # where nobody answers
        while (await made.says()).answered:
            pass
        made.prover.local = frozenset()
        assert await made.says() == Proof()
    worker.close()


def test_what_is_not_intercepted_is_told() -> None:
    config = DnsConfig(intercept=(ABSENT, "169.254.20.10"))
    prover = Prover(config, channel(3, (ABSENT,)), lambda: SERVES, list)
    assert list(prover.reasons()) == [
        f"{ABSENT} is not intercepted: it is not on this node",
        "169.254.20.10 is not intercepted: the supervisor was started without it",
    ]
    prover.local = frozenset({ABSENT, "169.254.20.10"})
    assert len(list(prover.reasons())) == 1
