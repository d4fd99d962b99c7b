# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel's tables hold for a connection what the agent wants there. Pure."""

from collections.abc import Iterator

from svcproxy import api
from svcproxy.dataplane.nftables.inspection import Seen


def kernel_view(wanted: api.Trace, seen: Seen) -> api.KernelView:
    """Compare a trace with what was read from the kernel."""
    difference = "; ".join(_differences(wanted, seen))
    backends = tuple(sorted(map(str, seen.backends)))
    return api.KernelView(seen.verdict, seen.path, backends, agrees=not difference, difference=difference)


def _differences(wanted: api.Trace, seen: Seen) -> Iterator[str]:
    if wanted.verdict == "not-ours":
        # Other ports of a ClusterIP are refused, and addresses of the Service ranges that no Service has are silent.
        if seen.verdict not in ("not-ours", "reject", "drop"):
            yield f"no frontend is wanted, the kernel has {seen.verdict}"
        return
    if seen.verdict != wanted.verdict:
        yield f"wanted is {wanted.verdict}, the kernel has {seen.verdict}"
        return
    if seen.missing:
        yield f"slots without a backend: {', '.join(map(str, seen.missing))}"
    if seen.slots != wanted.backends_total:
        yield f"{wanted.backends_total} backends are wanted, the kernel has {seen.slots}"
    elif len(wanted.backends) == wanted.backends_total:
        held, asked = set(map(str, seen.backends)), set(wanted.backends)
        if held - asked:
            yield f"not wanted: {', '.join(sorted(held - asked))}"
        if asked - held:
            yield f"not in the kernel: {', '.join(sorted(asked - held))}"
