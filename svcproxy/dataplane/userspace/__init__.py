# SPDX-License-Identifier: Apache-2.0
"""A data plane of sockets: works everywhere, without privileges, for the addresses this node has."""

from svcproxy.dataplane.userspace.counters import FrontendCounters
from svcproxy.dataplane.userspace.notice import Notice, Report
from svcproxy.dataplane.userspace.plane import UserspaceDataplane

__all__ = ["FrontendCounters", "Notice", "Report", "UserspaceDataplane"]
