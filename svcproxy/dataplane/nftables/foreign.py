# SPDX-License-Identifier: Apache-2.0
"""Looks for other implementations of Services in the network namespace of the calling thread.

Nothing is executed and nothing is changed. Looking takes milliseconds, with tens of thousands of chains tenths of a
second; asking whether a kube-proxy is alive takes at most `ANSWER_TIMEOUT` for each loopback address.
"""

import contextlib
import http.client
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from svcproxy.api import Foreign
from svcproxy.dataplane.nftables import kube_proxy, legacy
from svcproxy.dataplane.nftables.messages import Table
from svcproxy.dataplane.nftables.traces import Traces, recognise
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.errors import DecodeError
from svcproxy.model.meta import Family

HEALTH_PORT: Final = 10256
"""Where kube-proxy answers /healthz, unless it is told otherwise."""
ANSWER_TIMEOUT: Final = 0.5
"""Seconds for one answer on a loopback address."""
ANSWER_MAX: Final = 65536
"""Octets of an answer that are read."""

_LOOPBACKS: Final = ("127.0.0.1", "::1")
_PINNED: Final = Path("/sys/fs/bpf/tc/globals")
_KEYWORDS: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}


def detect(kernel: Kernel, own_ports: Collection[int] = (), health_port: int = HEALTH_PORT) -> tuple[Foreign, ...]:
    """Who else serves Services here. `own_ports`: those on which this process itself answers; they are not asked.

    Where a kube-proxy would answer on one of them, whether it is alive remains unknown: ask before listening. Raises
    `DataplaneLost`.
    """
    return recognise(look(kernel, own_ports, health_port))


def look(kernel: Kernel, own_ports: Collection[int] = (), health_port: int = HEALTH_PORT) -> Traces:
    """The traces of others. `own_ports`, `health_port` and errors as for `detect`."""
    tables: list[str] = []
    nft_chains: dict[str, tuple[str, ...]] = {}
    legacy_chains: dict[str, tuple[str, ...]] = {}
    unread: list[str] = []
    for family, keyword in _KEYWORDS.items():
        names = {each.table.name for each in kernel.tables(family)}
        if kube_proxy.TABLE in names:
            tables.append(f"{keyword} {kube_proxy.TABLE}")
        for name in names.intersection(kube_proxy.IPTABLES_TABLES):
            nft_chains[f"{keyword} {name}"] = tuple(each.name for each in kernel.chains(Table(family, name)))
        for name in set(legacy.tables(family)).intersection(kube_proxy.IPTABLES_TABLES):
            try:
                legacy_chains[f"{keyword} {name}"] = legacy.chains(family, name)
            except (OSError, DecodeError) as exc:
                unread.append(f"{keyword} {name}: {exc}")
    alive, evidence = _kube_proxy(own_ports, health_port)
    return Traces(
        tables=tuple(tables),
        nft_chains=nft_chains,
        legacy_chains=legacy_chains,
        legacy_removable=all(legacy.installed(family) for family in Family if legacy.tables(family)),
        legacy_unread=tuple(sorted(unread)),
        interfaces=frozenset(name for _, name in socket.if_nameindex()),
        virtual_servers=_virtual_servers(),
        pinned=_pinned(),
        kube_proxy=alive,
        kube_proxy_evidence=evidence,
    )


def _kube_proxy(own_ports: Collection[int], port: int) -> tuple[bool | None, str]:
    """Whether a kube-proxy is alive, and what says so."""
    for pid in _processes("kube-proxy"):
        return True, f"process {pid} is called kube-proxy"
    if port in own_ports:
        return None, ""
    answers = {address: _asked(address, port) for address in _LOOPBACKS}
    for address, alive in answers.items():
        if alive:
            shown = f"[{address}]" if ":" in address else address
            return True, f"{shown}:{port} answers as kube-proxy does"
    return (None if None in answers.values() else False), ""


def _asked(address: str, port: int) -> bool | None:
    """Whether it is a kube-proxy that answers there; None if it is somebody else, or nobody in time.

    svcproxy answers /healthz in the same form, and unlike kube-proxy has /readyz.
    """
    try:
        health = _get(address, port, "/healthz")
        if not isinstance(health, dict) or not {"lastUpdated", "currentTime"} <= health.keys():
            return None
        ready = _get(address, port, "/readyz")
    except ConnectionRefusedError:
        return False
    except OSError as exc:
        # EADDRNOTAVAIL: the family is switched off.
        return None if isinstance(exc, TimeoutError | ConnectionError) else False
    except http.client.HTTPException:
        return None
    return None if isinstance(ready, dict) and {"ready", "waiting"} <= ready.keys() else True


def _get(address: str, port: int, path: str) -> Any:
    """The JSON that is answered, whatever the status; None if it is none."""
    connection = http.client.HTTPConnection(address, port, timeout=ANSWER_TIMEOUT)
    try:
        connection.request("GET", path)
        return msgspec.json.decode(connection.getresponse().read(ANSWER_MAX))
    except msgspec.DecodeError:
        return None
    finally:
        connection.close()


def _processes(name: str) -> Iterator[int]:
    """Processes of that name in this network namespace, as far as they can be seen from here."""
    here = Path("/proc/thread-self/ns/net").stat()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "comm").read_bytes().strip() == name.encode() and os.path.samestat(
                (path / "ns" / "net").stat(), here
            ):
                yield int(path.name)


def _virtual_servers() -> int:
    """Virtual servers that IPVS has in this namespace."""
    try:
        lines = Path("/proc/thread-self/net/ip_vs").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(line.startswith(("TCP ", "UDP ", "SCTP ", "FWM ")) for line in lines)


def _pinned() -> tuple[str, ...]:
    """Cilium's maps of Services; none where the BPF file system cannot be seen."""
    with contextlib.suppress(OSError):
        return tuple(sorted(str(each) for each in _PINNED.glob("cilium_lb[46]_services*")))
    return ()
