# SPDX-License-Identifier: Apache-2.0
"""What the kernel has to offer, and who else programs it. A shell; nothing is changed.

The features of nftables are tried out, in a network namespace that goes with the check. Where that needs more
privileges than there are, they are tried in this one, as the agent does at start: in a table that goes at once.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from svcproxy import api
from svcproxy.config import Config, DataplaneMode
from svcproxy.dataplane.nftables.foreign import detect
from svcproxy.dataplane.nftables.probes import Probes, probe
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.errors import DataplaneLost
from svcproxy.preflight.checks import Check, Finding, Role, Verdict, failure, ok, warning
from svcproxy.process.prctl import Capability, permitted_capabilities, private_network_namespace

TRIED_FROM = (5, 10)
"""The oldest Linux that svcproxy is meant for; older ones may do."""
AGENT = frozenset({Role.AGENT})


def uses_kernel(config: Config) -> bool:
    """Whether the data plane is, or may be, nftables."""
    mode = config.dataplane.mode
    return mode is DataplaneMode.NFTABLES or (mode is DataplaneMode.AUTO and config.kube.manifests is None)


def version(_: Config) -> Finding:
    """The kernel's version."""
    return judge_version(os.uname().release)


def judge_version(release: str) -> Finding:
    """Whether a kernel is new enough. Features count, not versions; this tells what to expect."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        return warning(f"Linux {release}", "its version cannot be read; see what nftables finds")
    if (int(match[1]), int(match[2])) < TRIED_FROM:
        wanted = ".".join(map(str, TRIED_FROM))
        return warning(f"Linux {release}", f"older than {wanted}, for which svcproxy is made: see what nftables finds")
    return ok(f"Linux {release}")


def nftables(config: Config) -> Finding:
    """What nftables can do here."""
    if not uses_kernel(config):
        return ok(f"not needed: dataplane.mode is {config.dataplane.mode}")
    if user_namespace(config).verdict is Verdict.OK:  # in another one, privileges would count there and not here
        with contextlib.suppress(OSError):
            private_network_namespace()
    return judge_probes(probe(), config.dataplane.mode)


def judge_probes(found: Probes, mode: DataplaneMode) -> Finding:
    """What the probes mean for a data plane."""
    lacking = [f"{each.name} ({each.detail})" for each in found.results if not each.ok]
    fallbacks = list(dict.fromkeys(each.fallback for each in found.results if not each.ok))
    if not lacking:
        return ok(f"{len(found.results)} features, all there")
    text = f"lacking: {', '.join(lacking)}"
    if found.families:
        return warning(text, "; ".join(fallbacks))
    if any(each.name == "net-admin" for each in found.results if not each.ok):
        return failure(text, "give the agent CAP_NET_ADMIN in the node's network namespace (deploy/base does)")
    if mode is DataplaneMode.AUTO:
        advice = "Services are balanced in user space, on addresses that the node has: load the module nf_tables"
        return warning(text, advice)
    return failure(text, "load the modules nf_tables and nft_chain_nat, or take a kernel that has these features")


def capabilities(config: Config) -> Finding:
    """Whether the agent may program the kernel."""
    if not uses_kernel(config):
        return ok(f"none needed: dataplane.mode is {config.dataplane.mode}")
    return judge_capabilities(permitted_capabilities(), [Capability.NET_ADMIN])


def judge_capabilities(had: Iterable[int], needed: Iterable[Capability]) -> Finding:
    """Whether nothing is missing."""
    held = frozenset(had)
    missing = [f"CAP_{each.name}" for each in needed if each not in held]
    wanted = ", ".join(f"CAP_{each.name}" for each in needed)
    if missing:
        text = f"{', '.join(missing)} is missing; needed: {wanted}"
        return failure(text, "add it to securityContext.capabilities of the container (deploy/base has it)")
    return ok(wanted)


def user_namespace(_: Config) -> Finding:
    """Whether privileges are those of the node."""
    return judge_uid_map(Path("/proc/self/uid_map").read_text(encoding="ascii"))


def judge_uid_map(text: str) -> Finding:
    """Whether users are mapped one to one (user_namespaces(7))."""
    if text.split() == ["0", "0", "4294967295"]:
        return ok("none: users are those of the node")
    advice = (
        "privileges count only for what belongs to this namespace, which the node's network does not: run the agent in "
        "the node's user namespace (hostUsers: true), as hostNetwork demands anyway"
    )
    return warning("users are mapped: this is a user namespace", advice)


def others(config: Config) -> Finding:
    """Who else serves Services here."""
    if not uses_kernel(config):
        return ok(f"not looked at: dataplane.mode is {config.dataplane.mode}")
    try:
        with Kernel() as kernel:
            return judge_others(detect(kernel), config)
    except (OSError, DataplaneLost) as exc:
        return warning(f"cannot be seen: {exc}", "see what nftables and capabilities say")


def judge_others(found: Iterable[api.Foreign], config: Config) -> Finding:
    """What the agent makes of other implementations of Services."""
    serving: list[str] = []
    leftovers: list[str] = []
    for each in found:
        evidence = f"{each.implementation} ({', '.join(each.evidence)})"
        if each.alive or (each.alive is None and not each.removable):
            serving.append(evidence)
        else:
            leftovers.append(evidence)
    if serving and config.dataplane.beside_others:
        text = f"at work: {'; '.join(serving)}"
        return warning(text, "svcproxy serves beside it, for dataplane.beside_others is set: who wins is not defined")
    if serving:
        advice = (
            "the agent waits and serves nothing until it is gone, then takes over without a gap. To let it: `kubectl "
            "-n kube-system delete daemonset kube-proxy`, or what else made it"
        )
        return warning(f"at work: {'; '.join(serving)}", advice)
    if leftovers:
        text = f"rules left behind: {'; '.join(leftovers)}"
        return ok(f"{text}; the agent removes those of kube-proxy when its own are in force")
    return ok("nobody else")


CHECKS = (
    Check("kernel", version, AGENT),
    Check("nftables", nftables, AGENT),
    Check("capabilities-agent", capabilities, AGENT),
    Check("user-namespace", user_namespace, AGENT),
    Check("other-proxies", others, AGENT),
)
