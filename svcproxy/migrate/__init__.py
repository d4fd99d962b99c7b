# SPDX-License-Identifier: Apache-2.0
"""`svcproxy migrate`: the configuration that means what kube-proxy's, CoreDNS' and NodeLocal DNSCache's mean."""
