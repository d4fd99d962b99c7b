# SPDX-License-Identifier: Apache-2.0
"""From what the cluster says to what DNS may answer: records, one per name-bearing fact. Pure."""
