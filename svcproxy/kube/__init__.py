# SPDX-License-Identifier: Apache-2.0
"""Objects from outside: list and watch of API servers, and manifest files."""
