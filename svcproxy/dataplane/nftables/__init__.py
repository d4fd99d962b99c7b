# SPDX-License-Identifier: Apache-2.0
"""The data plane in the kernel's nftables, programmed over netlink. See the package's parent for the contract.

`netlink` knows frames and attributes, `expressions` and `messages` encode nf_tables requests, `answers` decodes what
comes back, all without I/O; `transaction` owns the sockets.
"""
