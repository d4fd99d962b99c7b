# SPDX-License-Identifier: Apache-2.0
"""`svcproxy check-config` and `svcproxy version`: answers that need no running instance."""

import argparse
import platform

from svcproxy import __version__
from svcproxy.client.console import console
from svcproxy.config import Config, dump


def show(arguments: argparse.Namespace, config: Config) -> None:
    """A configuration with which nothing is wrong."""
    if arguments.output == "json":
        console().json(dump(config))
    else:
        console().line(f"{arguments.config}: ok" if arguments.config else "ok")


def version(arguments: argparse.Namespace) -> int:
    """Print the version."""
    if arguments.output == "json":
        console().json({"version": __version__, "python": platform.python_version()})
    else:
        console().line(f"svcproxy {__version__}")
    return 0
