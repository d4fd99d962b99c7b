# SPDX-License-Identifier: Apache-2.0
"""The agent role put together: the only package that knows every part."""
