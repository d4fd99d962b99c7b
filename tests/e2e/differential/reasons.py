# SPDX-License-Identifier: Apache-2.0
"""Where svcproxy is meant to differ from kube-proxy, and why. Whatever else differs is a bug of one of them. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.e2e.differential.cluster import ENDPOINTS, PROXY_NAME
from tests.e2e.differential.tries import LEAK, Try
from tests.e2e.objects import Object
from tests.netns.probes import TIMEOUT, Outcome, Served

Outcomes = frozenset[Outcome]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was tried, of which Service if any, and what came of it on each side."""

    attempt: Try
    service: Object | None
    kube_proxy: Outcomes
    svcproxy: Outcomes

    @property
    def alike(self) -> bool:
        """Whether both sides did the same.

        Which backend a client with affinity got is chance, and with it whom that sees; and whether it answers at all,
        where the client is an endpoint itself: it may be sent to itself, or from another node to a neighbour.
        """
        if self.kube_proxy == self.svcproxy:
            return True
        if not self.attempt.sticky or len(self.kube_proxy) != 1 or len(self.svcproxy) != 1:
            return False
        (theirs,), (ours,) = self.kube_proxy, self.svcproxy
        if isinstance(theirs, Served) and isinstance(ours, Served):
            return theirs.by != ours.by
        mute = TIMEOUT in (theirs, ours) and self.attempt.place in ENDPOINTS
        return mute and (isinstance(theirs, Served) or isinstance(ours, Served))


def _served(outcomes: Outcomes) -> frozenset[Served]:
    return frozenset(each for each in outcomes if isinstance(each, Served))


@dataclass(frozen=True, slots=True)
class Reason:
    """A way to differ that is meant."""

    text: str
    explains: Callable[[Comparison], bool]


def _of_another_proxy(comparison: Comparison) -> bool:
    service = comparison.service
    return (
        service is not None
        and PROXY_NAME in service["metadata"]["labels"]
        and comparison.attempt.frontend.startswith("ClusterIP")
        and comparison.kube_proxy == {TIMEOUT}
        and {each.by for each in _served(comparison.svcproxy)} == {LEAK}
    )


def _reaches_itself(comparison: Comparison) -> bool:
    place = comparison.attempt.place
    itself = {each for each in _served(comparison.svcproxy) if each.by.partition(":")[0] == place}
    return (
        bool(itself)
        and comparison.kube_proxy - {TIMEOUT} == comparison.svcproxy - itself - {TIMEOUT}
        and TIMEOUT in comparison.kube_proxy
    )


REASONS: Final = (
    Reason(
        "kube-proxy drops what is for the ClusterIP of a Service that it leaves to another proxy; so nobody serves it",
        _of_another_proxy,
    ),
    Reason(
        "kube-proxy leaves the source of who reaches itself, unless its endpoint is known to be on this node; "
        "so it gets no answer",
        _reaches_itself,
    ),
)


def reason_for(comparison: Comparison) -> Reason | None:
    """Why it is meant; None if it is not."""
    return next((reason for reason in REASONS if reason.explains(comparison)), None)
