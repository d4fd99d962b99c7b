# SPDX-License-Identifier: Apache-2.0
"""What every svcproxy process does the same way: logs, locks, sockets handed over, files followed, back-off."""
