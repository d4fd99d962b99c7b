# SPDX-License-Identifier: Apache-2.0
"""The other side of the status API: what the command line asks a running instance, and how it shows the answers.

Each verb is a module that is loaded when the verb is used, so that `svcproxy status` starts fast.
"""
