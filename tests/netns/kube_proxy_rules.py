# SPDX-License-Identifier: Apache-2.0
"""The rules of a kube-proxy and of a kubelet, as they dump them: one Service, three endpoints, a NodePort.

`iptables` is what `iptables-restore` takes (kube-proxy 1.27 to 1.34), `nft` what `nft -f` takes (1.33).
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from svcproxy.dataplane.nftables.foreign import detect
from svcproxy.dataplane.nftables.takeover import Outcome, remove_kube_proxy
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.model.meta import Family
from tests.netns.namespaces import Namespace

VIP = {Family.IPV4: "10.96.0.1", Family.IPV6: "fd96::1"}
BACKENDS = {
    Family.IPV4: ("10.1.2.2", "10.1.2.3", "10.1.2.4"),
    Family.IPV6: ("fd01:2::2", "fd01:2::3", "fd01:2::4"),
}
PORT = 80
BACKEND_PORT = 8080
NODE_PORT = 30080
_PREFIX = {Family.IPV4: 32, Family.IPV6: 128}
_POD_CIDR = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:244::/64"}
_SERVICE = "KUBE-SVC-TCOU7JCQXEZGVUNU"
_EXTERNAL = "KUBE-EXT-TCOU7JCQXEZGVUNU"
_ENDPOINTS = ("KUBE-SEP-AAAAAAAAAAAAAAA2", "KUBE-SEP-BBBBBBBBBBBBBBB3", "KUBE-SEP-CCCCCCCCCCCCCCC4")
_NAME = "shop/web:http"

KUBELET = """\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
"""
"""What a kubelet makes."""

STRANGERS = """\
*nat
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m comment --comment "not -j KUBE-SERVICES" -j CNI-HOSTPORT
-A CNI-HOSTPORT -p tcp -m tcp --dport 9999 -j RETURN
COMMIT
*filter
-A FORWARD -p tcp -m tcp --dport 25 -j DROP
COMMIT
"""
"""What a CNI and an administrator made."""


def iptables(family: Family) -> str:
    """The rules of iptables mode."""
    endpoints = "".join(
        f'-A {chain} -s {ip}/{_PREFIX[family]} -m comment --comment "{_NAME}" -j KUBE-MARK-MASQ\n'
        f'-A {chain} -p tcp -m comment --comment "{_NAME}" -m tcp '
        f"-j DNAT --to-destination {f'[{ip}]' if ':' in ip else ip}:{BACKEND_PORT}\n"
        f'-A {_SERVICE} -m comment --comment "{_NAME} -> {ip}:{BACKEND_PORT}" '
        f"{'' if last else f'-m statistic --mode random --probability {probability} '}-j {chain}\n"
        for chain, ip, probability, last in zip(
            _ENDPOINTS, BACKENDS[family], ("0.33333333349", "0.5", ""), (False, False, True), strict=True
        )
    )
    nat_chains = "".join(f":{chain} - [0:0]\n" for chain in (_SERVICE, _EXTERNAL, *_ENDPOINTS))
    vip, pods = f"{VIP[family]}/{_PREFIX[family]}", _POD_CIDR[family]
    return f"""\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack \
--ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
{nat_chains}\
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -d {vip} -p tcp -m comment --comment "{_NAME} cluster IP" -m tcp --dport {PORT} -j {_SERVICE}
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" \
-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "{_NAME}" -m tcp --dport {NODE_PORT} -j {_EXTERNAL}
-A {_EXTERNAL} -m comment --comment "masquerade traffic for {_NAME} external destinations" -j KUBE-MARK-MASQ
-A {_EXTERNAL} -j {_SERVICE}
-A {_SERVICE} ! -s {pods} -d {vip} -p tcp -m comment --comment "{_NAME} cluster IP" -m tcp --dport {PORT} \
-j KUBE-MARK-MASQ
{endpoints}\
COMMIT
"""


def nft(family: Family) -> str:
    """The rules of nftables mode."""
    keyword, address = ("ip", "ipv4_addr") if family is Family.IPV4 else ("ip6", "ipv6_addr")
    hook = "type {} hook {} priority {}; policy accept;".format
    chains = [
        f"endpoint-{number}-shop/web/tcp/http__{ip.replace(':', '.')}/{BACKEND_PORT}"
        for number, ip in enumerate(BACKENDS[family])
    ]
    endpoints = "".join(
        f"""
    chain {name} {{
        {keyword} saddr {ip} jump mark-for-masquerade
        meta l4proto tcp dnat to {f"[{ip}]" if ":" in ip else ip}:{BACKEND_PORT}
    }}"""
        for name, ip in zip(chains, BACKENDS[family], strict=True)
    )
    picks = ", ".join(f"{number} : goto {name}" for number, name in enumerate(chains))
    return f"""
table {keyword} kube-proxy {{
    comment "rules for kube-proxy"
    set cluster-ips {{ type {address}; elements = {{ {VIP[family]} }} }}
    map no-endpoint-services {{ type {address} . inet_proto . inet_service : verdict; }}
    map service-ips {{
        type {address} . inet_proto . inet_service : verdict
        elements = {{ {VIP[family]} . tcp . {PORT} : goto service-web }}
    }}
    map service-nodeports {{
        type inet_proto . inet_service : verdict
        elements = {{ tcp . {NODE_PORT} : goto external-web }}
    }}
    chain mark-for-masquerade {{ mark set mark or 0x4000; }}
    chain masquerading {{
        mark and 0x4000 == 0 return
        mark set mark xor 0x4000
        masquerade fully-random
    }}
    chain services {{
        {keyword} daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local meta l4proto . th dport vmap @service-nodeports
    }}
    chain reject-chain {{ reject; }}
    chain service-endpoints-check {{
        {keyword} daddr . meta l4proto . th dport vmap @no-endpoint-services
    }}
    chain cluster-ips-check {{ {keyword} daddr @cluster-ips reject comment "Reject traffic to invalid ports"; }}
    chain filter-forward {{ {hook("filter", "forward", "-110")} ct state new jump service-endpoints-check; }}
    chain filter-output {{ {hook("filter", "output", "-110")} ct state new jump service-endpoints-check; }}
    chain nat-prerouting {{ {hook("nat", "prerouting", "dstnat")} jump services; }}
    chain nat-output {{ {hook("nat", "output", "-100")} jump services; }}
    chain nat-postrouting {{ {hook("nat", "postrouting", "srcnat")} jump masquerading; }}
    chain external-web {{ jump mark-for-masquerade; goto service-web; }}
    chain service-web {{
        {keyword} daddr {VIP[family]} tcp dport {PORT} {keyword} saddr != {_POD_CIDR[family]} jump mark-for-masquerade
        numgen random mod {len(chains)} vmap {{ {picks} }}
    }}{endpoints}
}}
"""


@dataclass(frozen=True)
class Program:
    """One variant of iptables."""

    variant: str

    def command(self, family: Family, what: str) -> str:
        return f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{self.variant}-{what}"

    def load(self, node: Namespace, family: Family, text: str) -> None:
        node.run(self.command(family, "restore"), "--noflush", text=text)

    def saved(self, node: Namespace, family: Family) -> list[str]:
        lines = node.run(self.command(family, "save")).splitlines()
        return [line for line in lines if not line.startswith("#")]

    def run(self, node: Namespace, *words: str) -> None:
        node.run(f"iptables-{self.variant}", *words)


NFT, LEGACY = Program("nft"), Program("legacy")
PROGRAMS = [pytest.param(NFT, id="iptables-nft"), pytest.param(LEGACY, id="iptables-legacy")]


def take_over(node: Namespace) -> list[Outcome]:
    with node.entered(), Kernel() as kernel:
        return list(remove_kube_proxy(kernel, detect(kernel)))


def found(node: Namespace) -> dict[str, tuple[str, ...]]:
    with node.entered(), Kernel() as kernel:
        return {each.implementation: each.evidence for each in detect(kernel)}


@contextmanager
def live(node: Namespace, folder: Path) -> Iterator[int]:
    """A process that is called kube-proxy; yields its id."""
    program = folder / "kube-proxy"
    shutil.copy("/bin/cat", program)
    with (
        node.entered(),
        subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"?\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"?\n"  # it has its name by now
        yield process.pid
