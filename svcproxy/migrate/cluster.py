# SPDX-License-Identifier: Apache-2.0
"""The objects of a cluster that `svcproxy migrate` reads. A shell."""

import argparse
import asyncio
import time
from collections.abc import Iterator

from svcproxy.errors import ApiUnavailable
from svcproxy.kube.client import ApiClient
from svcproxy.kube.credentials import Authenticator, loader_for
from svcproxy.kube.resources import NotServed
from svcproxy.migrate.inputs import OCTETS_MAX, Subject
from svcproxy.options import from_arguments

TIMEOUT = 10.0
"""Seconds without an octet that end an answer."""

_CORE, _APPS = "/api/v1/namespaces/kube-system", "/apis/apps/v1/namespaces/kube-system"
OBJECTS = (
    (Subject.KUBE_PROXY, "ConfigMap kube-proxy", f"{_CORE}/configmaps/kube-proxy"),
    (Subject.KUBE_PROXY, "DaemonSet kube-proxy", f"{_APPS}/daemonsets/kube-proxy"),
    (Subject.COREFILE, "ConfigMap coredns", f"{_CORE}/configmaps/coredns"),
    (Subject.NODE_LOCAL_DNS, "ConfigMap node-local-dns", f"{_CORE}/configmaps/node-local-dns"),
    (Subject.NODE_LOCAL_DNS, "DaemonSet node-local-dns", f"{_APPS}/daemonsets/node-local-dns"),
    (Subject.KUBE_DNS, "ConfigMap kube-dns", f"{_CORE}/configmaps/kube-dns"),
    (Subject.KUBE_DNS, "Service kube-dns", f"{_CORE}/services/kube-dns"),
)
"""Where the settings usually are, in order: what it is about, its name for people, its path in the API."""


def read(arguments: argparse.Namespace) -> Iterator[tuple[Subject, bytes, str]]:
    """Those of the objects that there are. Raises `ConfigError`, and what `ApiClient` does."""
    yield from asyncio.run(_read(arguments))


async def _read(arguments: argparse.Namespace) -> list[tuple[Subject, bytes, str]]:
    config = from_arguments(arguments).kube
    authenticator = Authenticator(loader_for(config), time.monotonic)
    client = ApiClient(authenticator, silence_timeout=TIMEOUT, body_limit=OCTETS_MAX)
    try:
        credentials = await authenticator.current()
        server = next(iter(config.api_servers), credentials.server)
        if not server:
            raise ApiUnavailable("no API server is named: give --kubeconfig or --api-server")
        found: list[tuple[Subject, bytes, str]] = []
        for subject, name, path in OBJECTS:
            try:
                found.append((subject, await client.page(server, path, {}), f"{name} in kube-system"))
            except NotServed:
                continue
        return found
    finally:
        await client.close()
