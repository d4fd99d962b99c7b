# SPDX-License-Identifier: Apache-2.0
"""From what the cluster says to what this node serves: frontends and their backend sets. Pure."""
