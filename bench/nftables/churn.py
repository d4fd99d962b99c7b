# SPDX-License-Identifier: Apache-2.0
"""Whether connections notice that endpoints change: failures and SYNs sent again, over many of both.

    PYTHONPATH=. nice python bench/nftables/churn.py [--connections N] [--rate N] [--pattern random|scale] …

Needs root: everything is in network namespaces of its own. The data plane runs in this process, clients and servers in
another. Exits with 1 if a connection failed or a SYN had to be sent again.
"""

import argparse
import asyncio
import os
import platform
import sys

from svcproxy.model.meta import Family
from tests.netns.churn import RATES, Pattern, Report, churn


def show(report: Report) -> str:
    result = report.result
    return (
        f"{sum(result.served.values())} connections to {len(result.served)} endpoints in {result.seconds:.1f} s, "
        f"slowest {result.slowest * 1000:.0f} ms; {report.changes} changes "
        f"({report.changes / result.seconds:.0f}/s) in {report.deltas} deltas "
        f"({report.deltas / result.seconds:.0f}/s); failures {result.failures or 0}, "
        f"SYNs sent again {report.syn_retransmits}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200_000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--rate", type=float, default=None, help="changes a second; by pattern")
    parser.add_argument("--pattern", type=Pattern, choices=list(Pattern), default=Pattern.RANDOM)
    parser.add_argument("--family", type=int, choices=[4, 6], default=4)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}")
    report = asyncio.run(
        churn(
            options.pattern,
            Family(options.family),
            options.connections,
            at_once=options.at_once,
            rate=options.rate or RATES[options.pattern],
        )
    )
    print(show(report))
    return 1 if report.result.failures or report.syn_retransmits else 0


if __name__ == "__main__":
    sys.exit(main())
