# SPDX-License-Identifier: Apache-2.0
"""Fakes, conformance suites and fixtures. Imported by tests and benchmarks only."""
