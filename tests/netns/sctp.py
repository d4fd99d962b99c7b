# SPDX-License-Identifier: Apache-2.0
"""SCTP as far as a kernel without it goes: whole packets over raw sockets (RFC 9260), one INIT and its answer."""

import struct
from dataclasses import dataclass

PROTOCOL = 132
INIT, INIT_ACK = 1, 2
_COMMON = struct.Struct(">HHII")
"""Source port, destination port, verification tag, checksum."""
_CHUNK = struct.Struct(">BBHIIHHI")
"""Type, flags, length, initiate tag, window, streams out and in, initial sequence number."""
_CRC32C = 0x82F63B78


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet with one chunk, INIT or INIT ACK."""

    source_port: int
    port: int
    chunk: int
    tag: int
    """Verification tag: 0 with INIT."""
    initiate_tag: int

    def encode(self) -> bytes:
        """With its checksum."""
        body = _CHUNK.pack(self.chunk, 0, _CHUNK.size, self.initiate_tag, 65535, 1, 1, 1)
        head = _COMMON.pack(self.source_port, self.port, self.tag, 0)
        return head[:8] + _crc32c(head + body).to_bytes(4, "little") + body


def decode(packet: bytes) -> Packet:
    """Raises ValueError if the checksum is wrong."""
    source_port, port, tag, _ = _COMMON.unpack_from(packet)
    if _crc32c(packet[:8] + bytes(4) + packet[12:]).to_bytes(4, "little") != packet[8:12]:
        raise ValueError("checksum")
    chunk, _, _, initiate_tag, *_ = _CHUNK.unpack_from(packet, _COMMON.size)
    return Packet(source_port, port, chunk, tag, initiate_tag)


def _crc32c(octets: bytes) -> int:
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
