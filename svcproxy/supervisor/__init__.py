# SPDX-License-Identifier: Apache-2.0
"""`svcproxy run`: starts the roles on one machine and keeps them running, where no kubelet does."""
