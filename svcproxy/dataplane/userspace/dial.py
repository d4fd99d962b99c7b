# SPDX-License-Identifier: Apache-2.0
"""An accepted connection on its way to a backend: at most `connect_attempts` distinct ones, one after the other."""

import asyncio
import errno
import socket
from typing import Protocol

from svcproxy.config import UserspaceConfig
from svcproxy.dataplane.userspace.balancer import Balancer
from svcproxy.dataplane.userspace.counters import FrontendCounters
from svcproxy.dataplane.userspace.poller import WRITE, Poller
from svcproxy.dataplane.userspace.sockets import EXHAUSTED, open_towards
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Backend, FrontendKey, Refusal
from svcproxy.model.meta import Protocol as Transport


class Switchboard(Protocol):
    """What a dial needs of the engine, and tells it."""

    loop: asyncio.AbstractEventLoop
    poller: Poller
    balancer: Balancer
    config: UserspaceConfig

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def connected(self, dial: "Dial", backend: socket.socket) -> None:
        """`backend` is connected; it and `dial.client` have a new owner, who watches them."""
        ...

    def ended(self, flow: "Dial") -> None:
        """The client was reset."""
        ...

    def reset(self, client: socket.socket) -> None:
        """Reset and close."""
        ...

    def exhausted(self, error: OSError) -> None:
        """There was no descriptor for the backend's side."""
        ...


class Dial:
    """Owns the client's socket until a backend takes the connection or the client is reset."""

    __slots__ = ("_attempt", "_board", "_ip", "_key", "_kind", "_timer", "_tried", "client", "counters")

    def __init__(
        self,
        board: Switchboard,
        key: FrontendKey,
        client: socket.socket,
        ip: str,
        kind: SourceKind,
        counters: FrontendCounters,
    ) -> None:
        self.client = client
        self.counters = counters
        self._board = board
        self._key = key
        self._ip = ip
        self._kind = kind
        self._tried: list[Backend] = []
        self._attempt: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def next_backend(self) -> None:
        """Begin with a backend not tried before; reset the client when there is none left."""
        board = self._board
        while len(self._tried) < board.config.connect_attempts:
            frontend = board.balancer.table.frontends.get(self._key)
            if frontend is None:
                break
            choice = board.balancer.choose(frontend, self._ip, self._kind, board.clock(), self._tried)
            if isinstance(choice, Refusal):
                break
            self._tried.append(choice.backend)
            if self._connect(choice.backend):
                return
        if self._tried:
            self.counters.flows_failed += 1
        else:
            self.counters.no_backend += 1
        self.abort()

    def abort(self) -> None:
        """Give up and reset the client."""
        self._end_attempt()
        self._board.reset(self.client)
        self._board.ended(self)

    def _connect(self, backend: Backend) -> bool:
        """Whether the attempt succeeded or is under way."""
        try:
            sock = open_towards(backend.ip, Transport.TCP)
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                self._board.exhausted(exc)
            self.counters.connect_failures += 1
            return False
        try:
            code = sock.connect_ex((backend.ip, backend.port))
        except OSError as exc:  # an address that cannot be used at all
            code = exc.errno or errno.EINVAL
        if code == 0:
            self._board.connected(self, sock)
            return True
        if code == errno.EINPROGRESS:
            self._attempt = sock
            self._board.poller.watch(sock, WRITE, self._on_settled)
            self._timer = self._board.loop.call_later(self._board.config.connect_timeout, self._failed)
            return True
        self._board.poller.close_socket(sock)
        self.counters.connect_failures += 1
        return False

    def _on_settled(self, _events: int) -> None:
        """The kernel knows the outcome of the attempt."""
        sock = self._attempt
        if sock is None:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            self._failed()
            return
        self._attempt = None
        self._end_attempt()
        self._board.connected(self, sock)

    def _failed(self) -> None:
        self._end_attempt()
        self.counters.connect_failures += 1
        self.next_backend()

    def _end_attempt(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._attempt is not None:
            self._board.poller.close_socket(self._attempt)
            self._attempt = None
