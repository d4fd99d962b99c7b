# SPDX-License-Identifier: Apache-2.0
"""The data plane in the kernel's nftables, programmed over netlink. See the package's parent for the contract.

`netlink` knows frames and attributes, `expressions` and `messages` encode nf_tables requests, `answers` decodes what
comes back, all without I/O; `transaction` owns the sockets. `probes` asks what the kernel can do, with the rules of
`features`. `foreign` looks for others that serve Services (`traces`, `kube_proxy` and `legacy` say how they are told),
`takeover` removes what a kube-proxy left, and `removal` our own tables.
"""
