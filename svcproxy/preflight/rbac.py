# SPDX-License-Identifier: Apache-2.0
"""What the agent's role must allow. `deploy/base/rbac.yaml` has the same, and a test holds the two together. Pure."""

from dataclasses import dataclass

from svcproxy.config import Config, PodNames
from svcproxy.kube.resources import resources


@dataclass(frozen=True, slots=True)
class Permission:
    """One thing to be allowed, over all namespaces."""

    verb: str
    resource: str
    group: str
    """API group, empty for core."""
    optional: bool = False
    """Whether everything but what `purpose` says works without."""
    purpose: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


_PURPOSES = {
    "servicecidrs": "addresses of no Service are not met with silence",
    "events": "conflicts are not told as Events",
}


def _names_clients(config: Config) -> bool:
    """Whether Pods are followed for the query log alone."""
    return config.dns.query_log.pods and config.dns.pods is not PodNames.VERIFIED


def permissions(config: Config) -> tuple[Permission, ...]:
    """Everything that the agent asks of the API server with this configuration."""
    followed = resources(config.node_name, pods=config.dns.pods is PodNames.VERIFIED)
    needed = [
        Permission(verb, each.plural, each.group, each.optional, _PURPOSES.get(each.plural, ""))
        for each in followed
        for verb in ("list", "watch")
    ]
    if _names_clients(config):
        purpose = "the query log does not name the Pods that ask"
        needed += [Permission(verb, "pods", "", optional=True, purpose=purpose) for verb in ("list", "watch")]
    return (*needed, Permission("create", "events", "", optional=True, purpose=_PURPOSES["events"]))
