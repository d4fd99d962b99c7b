# SPDX-License-Identifier: Apache-2.0
"""Limits of the process that a role changes for itself."""

import resource


def raise_file_limit() -> int:
    """Allow as many open files as the hard limit does (setrlimit(2)); returns that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
