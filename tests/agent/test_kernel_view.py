# SPDX-License-Identifier: Apache-2.0
"""What `trace` says about the kernel."""

import pytest

from svcproxy import api
from svcproxy.agent.kernel_view import kernel_view
from svcproxy.dataplane.nftables.inspection import Seen
from svcproxy.frontends.keys import Backend

HERE, THERE = Backend("10.244.1.5", 8080), Backend("10.244.2.6", 8080)


def traced(verdict: str, *backends: Backend, total: int | None = None) -> api.Trace:
    return api.Trace(
        destination="10.96.0.10:80/TCP",
        source=None,
        source_kind="other",
        verdict=verdict,
        steps=(),
        frontend=None,
        kind=None,
        service=None,
        service_port=None,
        policy=None,
        scope=None,
        backends=tuple(map(str, backends)),
        backends_total=len(backends) if total is None else total,
        endpoints=(),
        endpoints_total=0,
        affinity_timeout=None,
    )


def seen(verdict: str, *backends: Backend, slots: int | None = None, missing: tuple[int, ...] = ()) -> Seen:
    return Seen(("class: …",), verdict, backends, len(backends) if slots is None else slots, missing)


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        pytest.param(traced("forward", HERE, THERE), seen("forward", THERE, HERE), id="the same backends"),
        pytest.param(traced("reject"), seen("reject"), id="refused"),
        pytest.param(traced("not-ours"), seen("reject"), id="another port of a ClusterIP"),
        pytest.param(traced("not-ours"), seen("drop"), id="an address that no Service has"),
        pytest.param(traced("forward", HERE, total=300), seen("forward", THERE, slots=300), id="more than are listed"),
    ],
)
def test_agrees(wanted: api.Trace, held: Seen) -> None:
    view = kernel_view(wanted, held)
    assert (view.agrees, view.difference) == (True, "")


@pytest.mark.parametrize(
    ("wanted", "held", "difference"),
    [
        pytest.param(
            traced("drop"), seen("forward", HERE), "wanted is drop, the kernel has forward", id="another verdict"
        ),
        pytest.param(
            traced("not-ours"), seen("forward", HERE), "no frontend is wanted, the kernel has forward", id="unwanted"
        ),
        pytest.param(
            traced("forward", HERE, THERE), seen("forward", HERE), "2 backends are wanted, the kernel has 1", id="fewer"
        ),
        pytest.param(
            traced("forward", HERE),
            seen("forward", THERE),
            f"not wanted: {THERE}; not in the kernel: {HERE}",
            id="another backend",
        ),
        pytest.param(
            traced("forward", HERE, THERE),
            seen("forward", HERE, slots=2, missing=(1,)),
            f"slots without a backend: 1; not in the kernel: {THERE}",
            id="a hole",
        ),
    ],
)
def test_differs(wanted: api.Trace, held: Seen, difference: str) -> None:
    view = kernel_view(wanted, held)
    assert (view.agrees, view.difference) == (False, difference)
