# SPDX-License-Identifier: Apache-2.0
"""The snapshot and delta protocol between the agent and its workers."""
