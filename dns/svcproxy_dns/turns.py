# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is, where clients have several connections each: client by client, connection by connection. Pure."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Connections with something to answer. Each is in it once at most; whoever has the turn is out of it.

    However many connections a client has, another client's comes after one of them.
    """

    def __init__(self) -> None:
        self._clients: deque[str] = deque()
        self._connections: dict[str, deque[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._clients)

    def add(self, client: str, connection: T) -> None:
        """Have a connection wait for its turn."""
        queued = self._connections.get(client)
        if queued is None:
            self._connections[client] = deque((connection,))
            self._clients.append(client)
        else:
            queued.append(connection)

    def take(self) -> T:
        """The connection whose turn it is. Raises `IndexError` if there is none."""
        client = self._clients.popleft()
        queued = self._connections[client]
        connection = queued.popleft()
        if queued:
            self._clients.append(client)
        else:
            del self._connections[client]
        return connection
