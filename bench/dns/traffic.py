# SPDX-License-Identifier: Apache-2.0
"""Load by dnsperf, and what it costs the server that is asked."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.dns.peers import HOST, Server

OUTSTANDING = 200
"""Questions in flight at saturation: several times what any of the servers takes at once."""
CLIENTS = 8
"""Sockets that they come from."""
LOST_AFTER = 2
"""Seconds after which a question counts as lost."""
DEVIATION_MAX = 0.02
"""Of the share of each rcode: some questions are lost, and the last round through a file is not complete."""
PRIORITY = 20
"""Of a prober, which shares its core with others and must not wait for them (SCHED_FIFO)."""
PARENT = ("setpriv", "--pdeathsig", "KILL")
ENDLESS = 600.0
"""Seconds; a prober that is ended."""


@dataclass(frozen=True)
class Load:
    """What dnsperf is to do. Without `seconds` each question is asked once."""

    questions: Path
    binary: bool = False
    """Whether the file holds messages, see dnsperf's -B."""
    seconds: float | None = None
    rate: int | None = None
    """Questions a second; None: as many as are answered."""
    outstanding: int = OUTSTANDING
    denied: float = 0.0
    """The share of the questions whose names do not exist."""

    def command(self, port: int) -> list[str]:
        """The command line."""
        options = {"-s": HOST, "-p": port, "-d": self.questions, "-q": self.outstanding, "-t": LOST_AFTER}
        options |= {"-c": CLIENTS} if self.outstanding >= CLIENTS else {}
        options |= {"-l": self.seconds} if self.seconds is not None else {"-n": 1}
        options |= {"-Q": self.rate} if self.rate is not None else {}
        flags = ["-B"] * self.binary
        return [*PARENT, "dnsperf", *flags, *(str(word) for pair in options.items() for word in pair)]


@dataclass(frozen=True)
class Outcome:
    """What came of a load, and what it cost the server."""

    completed: int
    lost: int
    rcodes: dict[str, int]
    seconds: float
    cpu: float
    """Seconds of CPU of the server."""
    latencies: Sequence[float] = field(default=(), repr=False)
    """Seconds, sorted, if somebody has measured them."""

    @property
    def cost(self) -> float:
        """Seconds of CPU for one answer."""
        return self.cpu / self.completed

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.completed / self.seconds

    @property
    def busy(self) -> float:
        """The share of its core that the server used."""
        return self.cpu / self.seconds

    def share(self, rcode: str) -> float:
        return self.rcodes.get(rcode, 0) / self.completed

    def latency(self, share: float) -> float:
        """Seconds within which that share of the answers came."""
        return percentile(self.latencies, share)


def percentile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))]


def ask_many(server: Server, load: Load) -> Outcome:
    """Put the load on the server, to its end."""
    before = server.cpu()
    done = subprocess.run(load.command(server.port), capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    outcome = _read(done.stdout + done.stderr, server.cpu() - before)
    _check(outcome, load, server)
    return outcome


class Probing:
    """Questions at even intervals."""

    outcome: Outcome


@contextmanager
def probing(server: Server, questions: Path, rate: int) -> Iterator[Probing]:
    """Ask while the block runs, one question at a time."""
    running = Probing()
    before, began = server.cpu(), time.monotonic()
    script = [sys.executable, str(Path(__file__).with_name("prober.py"))]
    words = [HOST, str(server.port), str(questions), str(rate), str(ENDLESS)]
    command = [*PARENT, "chrt", "--fifo", str(PRIORITY), *script, *words]
    with tempfile.TemporaryFile("w+") as report, subprocess.Popen(command, stdout=report) as child:
        try:
            yield running
            seconds, used = time.monotonic() - began, server.cpu() - before
            child.send_signal(signal.SIGINT)
            assert not child.wait()
        except BaseException:
            child.kill()
            raise
        report.seek(0)
        told = json.load(report)
    latencies = sorted(told["latencies"])
    running.outcome = Outcome(len(latencies), told["lost"], {}, seconds, used, latencies)


def _read(text: str, cpu: float) -> Outcome:
    """dnsperf's report."""
    figures = dict(re.findall(r"^ +(.+?): +(\S+)", text, re.MULTILINE))
    (codes,) = re.findall(r"Response codes: +(.*)", text)
    return Outcome(
        completed=int(figures["Queries completed"]),
        lost=int(figures["Queries lost"]),
        rcodes={code: int(count) for code, count in re.findall(r"(\w+) (\d+) \(", codes)},
        seconds=float(figures["Run time (s)"]),
        cpu=cpu,
    )


def _check(outcome: Outcome, load: Load, server: Server) -> None:
    """All servers must do the same work. Raises `AssertionError` if the responses are not those that were to come."""
    shares = outcome.share("NXDOMAIN"), outcome.share("NOERROR")
    wanted = load.denied, 1 - load.denied
    deviation = max(abs(share - each) for share, each in zip(shares, wanted, strict=True))
    assert deviation <= DEVIATION_MAX, f"{server.name} answered {outcome.rcodes}"
