# SPDX-License-Identifier: Apache-2.0
"""`svcproxy render`: the nftables script of a node, from its agent or from manifests. Nothing is changed."""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from svcproxy.agent.node import frontend_options, node_view, primary_addresses
from svcproxy.agent.surroundings import SurroundingsBuilder
from svcproxy.client.connection import StatusClient, find_instance
from svcproxy.config import Config
from svcproxy.dataplane.nftables.script import script
from svcproxy.errors import ConfigError, Problem
from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.node import NodeView
from svcproxy.kube.manifest_reader import ManifestReader, Update
from svcproxy.kube.manifests import scan
from svcproxy.model import NamespacedName, Node, Store
from svcproxy.options import from_arguments
from svcproxy.process.addresses import AddressFollower

TIMEOUT = 120.0
"""Seconds that the agent may take; two or three for ten thousand Services."""


def run(arguments: argparse.Namespace) -> int:
    """Print the script. Raises `ConfigError` for arguments or manifests that cannot be used, `ClientError`."""
    if arguments.manifests is None and arguments.config is None:
        if arguments.node_name is not None:
            raise ConfigError([Problem("only with --manifests: an agent serves its own node", path="--node-name")])
        instance = find_instance(Path(arguments.run_dir), arguments.instance)
        text = StatusClient(instance.admin_socket, TIMEOUT).get_text("/v1/ruleset")
    else:
        text = from_manifests(from_arguments(arguments))
    sys.stdout.write(text)
    return 0


def from_manifests(config: Config) -> str:
    """The script that the agent of this configuration would print. What it would leave out is told on standard error.

    Raises `ConfigError` if no manifests are configured, or if their path cannot be read.
    """
    options = frontend_options(config.dataplane)
    found = _read(config)
    store = Store()
    builder = FrontendBuilder(store, NodeView(config.node_name), options)
    for changes in found.changes:
        builder.update(store.apply(changes))
    node = store.nodes.get(NamespacedName("", config.node_name))
    addresses = _addresses(node).difference(config.dns.intercept)
    builder.node_changed(node_view(config.node_name, node, addresses))
    derived = SurroundingsBuilder(config.dataplane, config.node_name, store).derived
    left_out = (f"left out: {each.kind or 'object'} {each.name}: {each.reason}" for each in found.invalid)
    sys.stderr.writelines(f"svcproxy: {message}\n" for message in (*options.warnings, *left_out, *derived.warnings))
    return script(builder.table, derived.surroundings, derived.hairpin_cidrs)


def _read(config: Config) -> Update:
    if config.kube.manifests is None:
        message = "needed beside --config; without both, the running agent is asked"
        raise ConfigError([Problem(message, path="--manifests")])
    try:
        return ManifestReader().apply(scan(config.kube.manifests, {}, time.time()).contents)
    except OSError as exc:
        raise ConfigError([Problem(f"{config.kube.manifests}: {exc.strerror}", path="kube.manifests")]) from exc


def _addresses(node: Node | None) -> frozenset[str]:
    """This machine's addresses, if it may be the node; else those that the Node says it has."""
    own, listed = asyncio.run(_local_addresses()), frozenset(primary_addresses(node))
    return own if not listed or own & listed else listed


async def _local_addresses() -> frozenset[str]:
    known: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()

    def take(addresses: frozenset[str]) -> None:
        if not known.done():
            known.set_result(addresses)

    async with asyncio.TaskGroup() as group:
        following = group.create_task(AddressFollower().run(take), name="addresses")
        addresses = await known
        following.cancel()
    return addresses
