# SPDX-License-Identifier: Apache-2.0
"""Data planes: what makes connections to a frontend arrive at a backend."""
