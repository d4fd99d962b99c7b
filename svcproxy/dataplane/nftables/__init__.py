# SPDX-License-Identifier: Apache-2.0
"""The data plane in the kernel's nftables, programmed over netlink. See the package's parent for the contract.

`netlink` knows frames and attributes, `expressions` and `messages` encode nf_tables requests, `answers` decodes what
comes back, all without I/O; `transaction` owns the sockets. `probes` asks what the kernel can do, with the rules of
`features`. `foreign` looks for others that serve Services (`traces`, `kube_proxy` and `legacy` say how they are told),
`takeover` removes what a kube-proxy left, and `removal` our own tables.

Flows that lead to nobody are removed beside that: `ctnetlink` and `listing` know what connection tracking says, `flows`
which flows are stale and when to look, all without I/O; `conntrack` owns the socket, `cleaner` the task. `netfilter` is
what both kinds of socket have in common.
"""
