# SPDX-License-Identifier: Apache-2.0
"""The svcproxy node agent: Services, EndpointSlices and cluster DNS, served on every Kubernetes node."""

__version__ = "0.1.0"
