# SPDX-License-Identifier: Apache-2.0
"""An agent's feed without an agent: the records of a cluster, served in a run directory until killed.

    python bench/dns/feeder.py RUN_DIR SERVICES ENDPOINTS

For clusters whose size an API server takes long to be filled with.
"""

import asyncio
import sys
from pathlib import Path

from bench.agent.bench import address
from bench.dns.objects import Cluster, cluster_ip
from svcproxy.feed.codec import NAMES
from svcproxy.feed.frames import SourceState
from svcproxy.feed.publisher import Publisher
from svcproxy.feed.server import FeedServer
from svcproxy.model.meta import Protocol
from svcproxy.names.records import EndpointRecord, NamedPort, NamespaceRecord, Record, ServiceRecord
from svcproxy.process.instance import RunDirectory
from svcproxy.process.sockets import listen_unix

SERVICE_PORTS = (NamedPort("http", Protocol.TCP, 80),)
ENDPOINT_PORTS = (NamedPort("http", Protocol.TCP, 8080),)


def records_of(cluster: Cluster) -> dict[Record, None]:
    """What the agent makes of the cluster's objects."""
    records: dict[Record, None] = {NamespaceRecord("default"): None}
    for number in range(cluster.services):
        ips = () if number in cluster.headless() else (cluster_ip(number),)
        records[ServiceRecord("default", f"s{number}", ips, SERVICE_PORTS)] = None
        for index in range(number * cluster.endpoints, (number + 1) * cluster.endpoints):
            pod = f"s{number}-pod-{index - number * cluster.endpoints}"
            records[EndpointRecord("default", f"s{number}", address(index), "", pod, ENDPOINT_PORTS)] = None
    return records


async def serve(run_dir: Path, cluster: Cluster) -> None:
    """Until cancelled."""
    records = records_of(cluster)
    publisher = Publisher(NAMES, "bench", lambda: records)
    publisher.source_changed(SourceState(synced=True))
    instance = RunDirectory(run_dir).open_instance("bench")
    with listen_unix(instance.paths.feed_socket) as listener:
        instance.make_current()
        await FeedServer(publisher, lambda peer: peer.trusted).run(listener)


def main() -> None:
    run_dir, services, endpoints = sys.argv[1:]
    asyncio.run(serve(Path(run_dir), Cluster(int(services), int(endpoints))))


if __name__ == "__main__":
    main()
