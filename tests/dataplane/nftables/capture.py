# SPDX-License-Identifier: Apache-2.0
"""Record what `nft` itself sends: `unshare -n python3 capture.py captures/NAME.nft...` writes `captures/NAME.hex`.

Needs nft, strace and root. The files of one command share a network namespace, so a later one may build on an earlier
one. One line of the output is one netlink message, in hexadecimal; BATCH_BEGIN and BATCH_END are left out.
"""

import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

DUMPED = re.compile(r"^ \| [0-9a-f]+  ((?:[0-9a-f]{2} {1,2})+)", re.MULTILINE)
"""A line of `strace -e write`."""
BATCH_TYPES = (0x10, 0x11)


def record(script: Path) -> list[bytes]:
    """The messages by which nft 1.0.6 loads a script."""
    with tempfile.NamedTemporaryFile("r") as trace:
        subprocess.run(
            ["strace", "-e", "trace=sendmsg", "-e", "write=3", "-o", trace.name, "nft", "-f", str(script)], check=True
        )
        text = trace.read()
    # One sendmsg at a time: each dump starts at offset 0 again.
    octets = b"".join(bytes.fromhex(line) for line in DUMPED.findall(text))
    return [message for message in split(octets) if struct.unpack_from("=H", message, 4)[0] not in BATCH_TYPES]


def split(octets: bytes) -> list[bytes]:
    messages = []
    while octets:
        (length,) = struct.unpack_from("=I", octets)
        messages.append(octets[:length])
        octets = octets[(length + 3) & ~3 :]
    return messages


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.with_suffix(".hex").write_text("".join(message.hex() + "\n" for message in record(path)))
