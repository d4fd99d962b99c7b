# SPDX-License-Identifier: Apache-2.0
import pytest

from svcproxy.config import DnsConfig
from svcproxy.workers.dns_metrics import DnsMetrics
from svcproxy_dns.worker import DnsWorker


@pytest.mark.parametrize("stale", [True, False])
async def test_whether_what_is_served_may_be_out_of_date_is_told(stale: bool) -> None:
    config = DnsConfig()
    text = await DnsMetrics(DnsWorker(config).statistics, lambda: stale, config).render()
    assert f"svcproxy_dns_stale {float(stale)}".encode() in text.splitlines()
