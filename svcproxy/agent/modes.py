# SPDX-License-Identifier: Apache-2.0
"""Which data plane serves, from the configuration and from what the kernel can do."""

from svcproxy.config import Config, DataplaneMode
from svcproxy.dataplane.nftables.probes import Probes, probe
from svcproxy.errors import ConfigError, Problem


def ask_kernel(config: Config) -> Probes | None:
    """What the kernel can do, where that matters; None where it does not."""
    mode = config.dataplane.mode
    if mode is DataplaneMode.NFTABLES or (mode is DataplaneMode.AUTO and config.kube.manifests is None):
        return probe()
    return None


def choose_mode(config: Config, probes: Probes | None) -> DataplaneMode:
    """The mode that serves, never `auto`. Raises `ConfigError` if the kernel cannot do what the configuration asks for.

    `auto` is nftables for a cluster, where the kernel lets it, and userspace for manifests, which nobody expects to
    change a machine's network.
    """
    mode = config.dataplane.mode
    usable = probes is not None and bool(probes.families)
    if mode is DataplaneMode.AUTO:
        return DataplaneMode.NFTABLES if usable else DataplaneMode.USERSPACE
    if mode is DataplaneMode.NFTABLES and not usable:
        failed = (
            [f"{each.name} ({each.detail})" for each in probes.results if not each.ok] if probes is not None else []
        )
        raise ConfigError([Problem(f"nftables does not work here: {', '.join(failed)}", path="dataplane.mode")])
    return mode
