# SPDX-License-Identifier: Apache-2.0
"""`svcproxy preflight`: whether a node has what svcproxy needs, and what stands in the way."""
