# SPDX-License-Identifier: Apache-2.0
"""A process that holds svcproxy's data plane, to be killed: takes a delta from standard input, says so, and waits."""

import asyncio
import pickle
import sys

from svcproxy.dataplane.nftables.plane import NftablesDataplane
from svcproxy.frontends.table import FrontendTable
from tests.netns.nftables_stage import ground
from tests.netns.stage import Settings

READY = b"ready\n"


async def main() -> None:
    """Never ends."""
    table = FrontendTable()
    table.apply(pickle.load(sys.stdin.buffer))
    plane = NftablesDataplane(ground(Settings()))
    await plane.resync(table)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    await plane.run()


if __name__ == "__main__":
    asyncio.run(main())
