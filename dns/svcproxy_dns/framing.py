# SPDX-License-Identifier: Apache-2.0
"""DNS messages in a TCP stream: each behind its length in two octets (RFC 1035 §4.2.2). Pure."""

LENGTH_OCTETS = 2


class MessageReader:
    """Cuts a stream into messages. However it is fragmented, the messages are the same.

    Whoever feeds only when `next_message` has returned None holds at most one message and what was fed last.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, octets: bytes) -> None:
        """Take the next octets of the stream in."""
        self._pending += octets

    @property
    def pending(self) -> int:
        """Octets of messages that have not been returned."""
        return len(self._pending)

    def next_message(self) -> bytes | None:
        """The next complete message, None until there is one."""
        if len(self._pending) < LENGTH_OCTETS:
            return None
        end = LENGTH_OCTETS + int.from_bytes(self._pending[:LENGTH_OCTETS], "big")
        if len(self._pending) < end:
            return None
        message = bytes(self._pending[LENGTH_OCTETS:end])
        del self._pending[:end]
        return message


def frame(message: bytes) -> bytes:
    """A message as it goes into a stream."""
    return len(message).to_bytes(LENGTH_OCTETS, "big") + message
