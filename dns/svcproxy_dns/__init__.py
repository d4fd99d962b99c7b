# SPDX-License-Identifier: Apache-2.0
"""Cluster DNS: names to rendered answers, and the worker that serves them."""
