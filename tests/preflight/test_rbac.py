# SPDX-License-Identifier: Apache-2.0
"""The permissions that are looked for are those that deploy/base gives."""

from pathlib import Path

import yaml

from svcproxy.config import Config, DnsConfig, PodNames
from svcproxy.preflight.rbac import Permission, permissions

RBAC = Path(__file__).parents[2] / "deploy" / "base" / "rbac.yaml"
PODS = {("list", "pods", ""), ("watch", "pods", "")}


def deployed() -> set[tuple[str, str, str]]:
    [role] = [each for each in yaml.safe_load_all(RBAC.read_text()) if each["kind"] == "ClusterRole"]
    return {
        (verb, resource, group)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }


def asked(config: Config) -> set[tuple[str, str, str]]:
    return {(each.verb, each.resource, each.group) for each in permissions(config)}


def test_they_are_the_cluster_roles() -> None:
    assert asked(Config(node_name="n1")) == deployed()


def test_pods_only_where_names_are_made_of_them() -> None:
    assert asked(Config(node_name="n1", dns=DnsConfig(pods=PodNames.VERIFIED))) == deployed() | PODS


def test_they_read_as_kubectl_writes_them() -> None:
    assert str(Permission("list", "services", "")) == "list services"
    assert str(Permission("watch", "endpointslices", "discovery.k8s.io")) == "watch endpointslices.discovery.k8s.io"
