# SPDX-License-Identifier: Apache-2.0
"""Who is where in the test world, by family: the addresses of nodes, pods, clients and Services.

n1 is the node under test, n2 another one. p1, a1 and a2 are pods on n1, b1 and b2 on n2; X and Y are clients outside.
The names of IPv4 addresses are those of `tests.frontends.world`.
"""

from dataclasses import dataclass
from ipaddress import ip_network

from svcproxy.model.meta import Family


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of one family."""

    family: Family
    n1: str
    """The primary address of n1; of those below, `second` is n1's too."""
    second: str
    n2: str
    p1: str
    a1: str
    a2: str
    b1: str
    b2: str
    x: str
    y: str
    gateway: str
    """Of both nodes, and the one way from X and Y to them."""
    cluster_ip: str
    other_cluster_ip: str
    unused_cluster_ip: str
    """Of no Service."""
    vip: str
    external_ip: str
    loopback: str
    pods: str
    """CIDR of all pods, as those below."""
    pods_n1: str
    pods_n2: str
    services: str
    outside: str
    """Where X is, Y is not."""
    crowd: str
    """All of it are addresses outside that clients can have."""
    nodes: str

    @property
    def prefix_length(self) -> int:
        """Of one address."""
        return 32 if self.family is Family.IPV4 else 128

    def client(self, number: int) -> str:
        """One of the crowd, from 1 on."""
        return str(ip_network(self.crowd)[number])

    @property
    def of_pods(self) -> dict[str, str]:
        """The pods' addresses by name."""
        return {name: getattr(self, name) for name in ("p1", "a1", "a2", "b1", "b2")}


IPV4 = Addresses(
    family=Family.IPV4,
    n1="192.0.2.11",
    second="10.9.9.9",
    n2="192.0.2.12",
    p1="10.244.1.9",
    a1="10.244.1.1",
    a2="10.244.1.2",
    b1="10.244.2.1",
    b2="10.244.2.2",
    x="203.0.113.5",
    y="198.18.0.1",
    gateway="192.0.2.1",
    cluster_ip="10.96.0.50",
    other_cluster_ip="10.96.0.51",
    unused_cluster_ip="10.96.9.9",
    vip="198.51.100.7",
    external_ip="198.51.100.8",
    loopback="127.0.0.1",
    pods="10.244.0.0/16",
    pods_n1="10.244.1.0/24",
    pods_n2="10.244.2.0/24",
    services="10.96.0.0/16",
    outside="203.0.113.0/24",
    crowd="100.64.0.0/14",
    nodes="192.0.2.0/24",
)
IPV6 = Addresses(
    family=Family.IPV6,
    n1="fd00:192::11",
    second="fd00:9::9",
    n2="fd00:192::12",
    p1="fd00:244:1::9",
    a1="fd00:244:1::1",
    a2="fd00:244:1::2",
    b1="fd00:244:2::1",
    b2="fd00:244:2::2",
    x="fd00:203::5",
    y="fd00:198::1",
    gateway="fd00:192::1",
    cluster_ip="fd00:96::50",
    other_cluster_ip="fd00:96::51",
    unused_cluster_ip="fd00:96::909",
    vip="fd00:51::7",
    external_ip="fd00:51::8",
    loopback="::1",
    pods="fd00:244::/32",
    pods_n1="fd00:244:1::/48",
    pods_n2="fd00:244:2::/48",
    services="fd00:96::/112",
    outside="fd00:203::/64",
    crowd="fd00:100::/64",
    nodes="fd00:192::/64",
)
AT = {each.family: each for each in (IPV4, IPV6)}
