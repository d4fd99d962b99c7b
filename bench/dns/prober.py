# SPDX-License-Identifier: Apache-2.0
"""Asks at even intervals and tells how long each answer took, as JSON, when it is interrupted or its time is over.

    prober.py HOST PORT QUESTIONS RATE SECONDS

One question at a time, and asleep in between: what else runs on the core has its turn, whatever this one's priority is.
"""

import json
import signal
import socket
import sys
import time
from pathlib import Path

import dns.message

LOST_AFTER = 2.0
"""Seconds after which a question counts as lost."""
_OCTETS = 4096


def probe(server: tuple[str, int], questions: list[bytes], rate: float, seconds: float) -> tuple[list[float], int]:
    """Latencies in seconds, and how many questions were lost."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGINT, stop)
    latencies: list[float] = []
    lost = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server)
        client.settimeout(LOST_AFTER)
        start = due = time.perf_counter()
        while not stopped and due < start + seconds:
            if (ahead := due - time.perf_counter()) > 0:
                time.sleep(ahead)
            question = questions[len(latencies) % len(questions)]
            asked = time.perf_counter()
            client.send(question)
            try:
                while not client.recv(_OCTETS).startswith(question[:2]):
                    pass
            except TimeoutError:
                lost += 1
            else:
                latencies.append(time.perf_counter() - asked)
            due = max(due + 1 / rate, time.perf_counter())
    return latencies, lost


def main(host: str, port: str, path: str, rate: str, seconds: str) -> None:
    pairs = [line.split() for line in Path(path).read_text().splitlines()]
    questions = [dns.message.make_query(name, rrtype).to_wire() for name, rrtype in pairs]
    latencies, lost = probe((host, int(port)), questions, float(rate), float(seconds))
    json.dump({"latencies": latencies, "lost": lost}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
