# SPDX-License-Identifier: Apache-2.0
"""What is made of settings, and what is said about them."""

import json
from dataclasses import dataclass
from typing import Any

from svcproxy.config import Config
from svcproxy.document import read
from svcproxy.migrate.draft import Draft, Remark, Treatment
from svcproxy.migrate.inputs import Inputs, Subject
from svcproxy.migrate.result import as_yaml, migrate, nested
from svcproxy.options import check

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"


@dataclass(frozen=True)
class Made:
    """The outcome of a migration."""

    inputs: Inputs
    draft: Draft

    @property
    def config(self) -> dict[str, Any]:
        """Values by dotted key."""
        return self.draft.values

    @property
    def text(self) -> str:
        """As YAML."""
        return as_yaml(self.inputs, self.draft)

    def said(self, setting: str) -> list[Remark]:
        """The remarks on a setting."""
        return [each for each in self.draft.remarks if each.place.setting == setting]

    def of(self, setting: str) -> Remark:
        """The one remark on a setting."""
        [found] = self.said(setting)
        return found

    def treatments(self) -> dict[str, set[Treatment]]:
        """By setting."""
        found: dict[str, set[Treatment]] = {}
        for each in self.draft.remarks:
            found.setdefault(each.place.setting, set()).add(each.treatment)
        return found


def made(**files: str) -> Made:
    """What becomes of files, named as the flags are with `_` for `-`; `env_X` is the variable X of Corefiles.

    What is printed is valid, and says what the draft says.
    """
    variables = {name.removeprefix("env_"): value for name, value in files.items() if name.startswith("env_")}
    inputs = Inputs()
    for name, text in files.items():
        if not name.startswith("env_"):
            inputs.take(Subject(name.replace("_", "-")), text.encode(), name, variables)
    draft = migrate(inputs)
    outcome = Made(inputs, draft)
    config = config_of(outcome.text)
    assert config == config_of(json.dumps(nested(draft.values)))
    return outcome


def config_of(text: str) -> Config:
    """The configuration that a text holds, with nothing wrong."""
    documents = read(text.encode(), "svcproxy.yaml")
    if not documents:
        return Config()
    [document] = documents
    config, problems = check(document)
    assert problems == ()
    assert config is not None
    return config


def kube_proxy(**fields: Any) -> Made:
    """What becomes of a KubeProxyConfiguration."""
    return made(kube_proxy=json.dumps({"apiVersion": API_VERSION, "kind": "KubeProxyConfiguration", **fields}))


def command(*flags: str, config: dict[str, Any] | None = None) -> Made:
    """What becomes of a DaemonSet with this command line, behind a configuration if there is one."""
    container = {"name": "kube-proxy", "command": ["kube-proxy", *flags]}
    daemonset = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    objects: list[dict[str, Any]] = [daemonset]
    if config is not None:
        text = json.dumps({"apiVersion": API_VERSION, "kind": "KubeProxyConfiguration", **config})
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "data": {"config.conf": text}})
    return made(kube_proxy=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
