# SPDX-License-Identifier: Apache-2.0
"""The query log on standard error: CoreDNS' lines, or with `log.format: json` objects with the same facts."""

import json
import random
import sys
import time

from svcproxy.config import Config, DnsQueryLogConfig, LogFormat
from svcproxy.process import logs
from svcproxy.process.lines import LineWriter
from svcproxy.workers.dns_metrics import QueryLogStatistics
from svcproxy_dns.query_log import Entry, QueryLog
from svcproxy_dns.worker import DnsWorker


class QueryLogOutput:
    """Keeps a worker's query log as configured. Nothing here waits for whoever reads the log."""

    def __init__(self, worker: DnsWorker, writer: LineWriter | None = None) -> None:
        self._worker = worker
        self._writer = writer or LineWriter(sys.stderr.fileno())
        self._json = False
        self._log: QueryLog | None = None
        self._lines = self._over = 0
        """Those of earlier logs."""

    def use(self, config: Config) -> None:
        """Log as this configuration says from now on."""
        self._json = config.log.format is LogFormat.JSON
        wanted = config.dns.query_log
        if (self._log.config if self._log is not None else DnsQueryLogConfig(pods=wanted.pods)) == wanted:
            return
        now = self.statistics()
        self._lines, self._over = now.lines, now.over
        rng = random.Random()  # noqa: S311  # chooses what is logged, guards nothing
        self._log = QueryLog(wanted, self._worker.pod_of, self._write, time.monotonic, rng) if wanted.classes else None
        self._worker.use_query_log(self._log)

    def statistics(self) -> QueryLogStatistics:
        """What has been counted."""
        lines, over = (self._log.lines, self._log.over) if self._log is not None else (0, 0)
        return QueryLogStatistics(self._lines + lines, self._over + over, self._writer.dropped, self._writer.failed)

    def close(self) -> None:
        """Write what waits, and end."""
        self._worker.use_query_log(None)
        self._writer.close()

    def _write(self, entry: Entry) -> None:
        if self._json:
            head = {"time": logs.timestamp(time.time()), "level": "info", "role": "dns", "msg": "query"}
            self._writer.put(json.dumps(head | entry.facts(), ensure_ascii=True))
        else:
            self._writer.put(entry.line())
