# SPDX-License-Identifier: Apache-2.0
"""DNS messages in a TCP stream: each behind its length in two octets (RFC 1035 §4.2.2). Pure."""

LENGTH_OCTETS = 2
MESSAGE_MAX_OCTETS = 65535


class MessageReader:
    """Cuts a stream into messages. However it is fragmented, the messages are the same.

    Of a message longer than `kept` octets only the first so many are returned. Whoever feeds only when `next_message`
    has returned None holds at most so many and what was fed last.
    """

    def __init__(self, kept: int = MESSAGE_MAX_OCTETS) -> None:
        self._pending = bytearray()
        self._kept = kept
        self._dropped = 0
        """Octets of the first message that are no longer held."""

    def feed(self, octets: bytes | memoryview) -> None:
        """Take the next octets of the stream in."""
        self._pending += octets
        surplus = len(self._pending) - LENGTH_OCTETS - self._kept
        if surplus > 0 and not self.ready:
            self._dropped += surplus
            del self._pending[-surplus:]

    @property
    def pending(self) -> int:
        """Octets held of messages that have not been returned."""
        return len(self._pending)

    @property
    def ready(self) -> bool:
        """Whether there is a complete message."""
        return len(self._pending) >= LENGTH_OCTETS and len(self._pending) >= self._end()

    def next_message(self) -> bytes | None:
        """The next complete message, None until there is one."""
        if not self.ready:
            return None
        end = self._end()
        message = bytes(self._pending[LENGTH_OCTETS : min(end, LENGTH_OCTETS + self._kept)])
        del self._pending[:end]
        self._dropped = 0
        return message

    def _end(self) -> int:
        """Where the first message ends among the octets held."""
        return LENGTH_OCTETS + int.from_bytes(self._pending[:LENGTH_OCTETS], "big") - self._dropped


def frame(message: bytes) -> bytes:
    """A message as it goes into a stream."""
    return len(message).to_bytes(LENGTH_OCTETS, "big") + message
