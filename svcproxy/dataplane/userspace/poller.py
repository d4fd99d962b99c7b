# SPDX-License-Identifier: Apache-2.0
"""Readiness of many descriptors through one registration with the event loop.

An epoll of our own, itself watched by the loop: a change of interest is one system call and no loop object, a paused
descriptor still tells errors and hang-ups (a loop's `remove_reader` is deaf to them), and events arrive in bounded
batches. Level-triggered. A callback gets the epoll event mask.
"""

import asyncio
import select
import socket
from collections.abc import Callable

EVENTS_PER_TURN = 128
"""Events taken in one turn of the loop; further ones wait for the next, so that others get their turn."""

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
ERROR = select.EPOLLERR
HANG_UP = select.EPOLLHUP
"""Errors and hang-ups come whether asked for or not."""

Callback = Callable[[int], None]


class Poller:
    """Watches sockets. A descriptor freed within a batch is not reused before its end, so no event meets a stranger."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._dispatching = False
        self._closing: list[socket.socket] = []
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, sock: socket.socket, interest: int, callback: Callback) -> None:
        """Call `callback` on the events of `interest`, from now on in place of what was watched for before."""
        descriptor = sock.fileno()
        if descriptor in self._callbacks:
            self._epoll.modify(descriptor, interest)
        else:
            self._epoll.register(descriptor, interest)
        self._callbacks[descriptor] = callback

    def change(self, sock: socket.socket, interest: int) -> None:
        """Another interest for a watched socket."""
        self._epoll.modify(sock.fileno(), interest)

    def forget(self, sock: socket.socket) -> None:
        """No event of the socket is delivered from now on. Fine for a socket that is not watched."""
        if self._callbacks.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def forget_closed(self, descriptor: int, callback: Callback) -> None:
        """As `forget`, for a descriptor that somebody else closed and the kernel may have given out again."""
        if self._callbacks.get(descriptor) == callback:
            del self._callbacks[descriptor]

    def close_socket(self, sock: socket.socket) -> None:
        """Forget and close."""
        self.forget(sock)
        if self._dispatching:
            self._closing.append(sock)
        else:
            sock.close()

    def close(self) -> None:
        """Stop watching. The sockets stay open."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()

    def _dispatch(self) -> None:
        callbacks = self._callbacks
        self._dispatching = True
        try:
            for descriptor, events in self._epoll.poll(0, EVENTS_PER_TURN):
                if (callback := callbacks.get(descriptor)) is not None:
                    callback(events)
        finally:
            self._dispatching = False
            for sock in self._closing:
                sock.close()
            self._closing.clear()
