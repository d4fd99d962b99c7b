# SPDX-License-Identifier: Apache-2.0
"""Lines to a descriptor that may be slow, such as a log nobody reads, without ever waiting for it.

A thread of its own writes. What does not fit into its queue is left out and counted.
"""

import os
import select
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue

QUEUED_MAX = 8192
"""Lines waiting to be written."""
CLOSE_TIMEOUT = 1.0
"""Seconds that lines waiting have at the end."""


class LineWriter:
    """Writes lines to a descriptor that stays its owner's. The thread begins with the first line."""

    def __init__(self, descriptor: int, queued_max: int = QUEUED_MAX) -> None:
        self._descriptor = descriptor
        self._queued_max = queued_max
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Lines left out because too many waited."""
        self.failed = 0
        """Lines that could not be written."""

    def put(self, line: str) -> None:
        """Have a line written, its end is added. Returns at once."""
        if self._queue.qsize() >= self._queued_max:
            self.dropped += 1
            return
        self._queue.put(line.encode("utf-8", "backslashreplace") + b"\n")
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="line writer", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what waits, for up to `CLOSE_TIMEOUT`, and end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_TIMEOUT)
            self._thread = None

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            batch = [line]
            octets = len(line)
            # A pipe takes so much in one piece, so that nobody else's lines get in between (pipe(7)).
            with suppress(Empty):
                while octets < select.PIPE_BUF:
                    following = self._queue.get_nowait()
                    if following is None:
                        self._queue.put(None)
                        break
                    batch.append(following)
                    octets += len(following)
            try:
                self._write_whole(batch)
            except OSError:
                self.failed += len(batch)

    def _write_whole(self, batch: list[bytes]) -> None:
        """Write lines in pieces that each fit into a pipe at once. Raises `OSError`."""
        piece = b""
        for line in batch:
            if piece and len(piece) + len(line) > select.PIPE_BUF:
                os.write(self._descriptor, piece)
                piece = b""
            piece += line
        os.write(self._descriptor, piece)
