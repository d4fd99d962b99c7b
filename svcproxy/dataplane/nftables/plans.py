# SPDX-License-Identifier: Apache-2.0
"""What the kernel holds for one frontend, but for its backends. Pure."""

from typing import NamedTuple

import msgspec

from svcproxy.dataplane.nftables.operations import SetName, Verdict
from svcproxy.frontends.keys import BackendSetKey, FrontendKey


class Pool(NamedTuple):
    """A backend set as a frontend holds it in `ep`."""

    backends: BackendSetKey
    affinity: bool
    """Under the backends' ids, with their slots in `pick`; otherwise under the slots themselves."""


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What the kernel holds for one frontend, as far as it costs the same whatever the number of backends."""

    key: FrontendKey
    verdicts: tuple[tuple[SetName, Verdict], ...]
    """Those a look-up may meet, the first one first."""
    pools: tuple[Pool, ...]
    """At most one of each scope."""
    sources: tuple[str, ...]
    """CIDRs in `srcok`, merged."""
    masquerade: SetName | None
    """The set of postrouting it is in."""
    cluster_ip: str
    """The address it puts into `clusterips`; empty if it is no ClusterIP."""
