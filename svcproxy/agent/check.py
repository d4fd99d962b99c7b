# SPDX-License-Identifier: Apache-2.0
"""`svcproxy check-config`: everything that is wrong with a configuration and with the manifests that it names."""

import argparse

from svcproxy.client.check import show
from svcproxy.errors import ConfigError, Problem
from svcproxy.kube.manifests import check
from svcproxy.options import from_arguments


def run(arguments: argparse.Namespace) -> int:
    """Read the configuration as a role would, and the manifests. Raises `ConfigError` with everything that is wrong."""
    config = from_arguments(arguments)
    if config.kube.manifests is not None:
        try:
            found = check(config.kube.manifests)
        except OSError as exc:
            message = f"{config.kube.manifests}: {exc.strerror}"
            raise ConfigError([Problem(message, path="kube.manifests")]) from exc
        problems = [Problem(f"{report.kind or 'object'} {report.name}: {report.reason}") for report in found]
        if problems:
            raise ConfigError(problems)
    show(arguments, config)
    return 0
