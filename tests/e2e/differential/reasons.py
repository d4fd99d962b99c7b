# SPDX-License-Identifier: Apache-2.0
"""Where svcproxy is meant to differ from kube-proxy, and why. Whatever else differs is a bug of one of them. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from svcproxy.model.meta import Family
from tests.e2e.differential.cluster import ENDPOINTS, PROXY_NAME, Object
from tests.e2e.differential.tries import Try
from tests.netns.probes import TIMEOUT, Outcome, Served

Outcomes = frozenset[Outcome]


@dataclass(frozen=True, slots=True)
class Difference:
    """What was tried, of which Service if any, and what came of it on each side."""

    attempt: Try
    service: Object | None
    kube_proxy: Outcomes
    svcproxy: Outcomes


@dataclass(frozen=True, slots=True)
class Reason:
    """A way to differ that is meant."""

    text: str
    explains: Callable[[Difference], bool]


def _of_another_proxy(difference: Difference) -> bool:
    service = difference.service
    return (
        service is not None
        and PROXY_NAME in service["metadata"]["labels"]
        and difference.attempt.frontend.startswith("ClusterIP")
        and difference.kube_proxy == {TIMEOUT}
        and all(isinstance(each, Served) and each.by == "leak" for each in difference.svcproxy)
    )


def _reaches_itself_from_another_node(difference: Difference) -> bool:
    place = difference.attempt.place
    itself = {each for each in difference.svcproxy if isinstance(each, Served) and each.by.partition(":")[0] == place}
    return (
        ENDPOINTS.get(place) == "n2"
        and bool(itself)
        and difference.kube_proxy - {TIMEOUT} == difference.svcproxy - itself
        and TIMEOUT in difference.kube_proxy
    )


REASONS: Final = (
    Reason("kube-proxy leaves the source of who reaches itself by way of another node", _reaches_itself_from_another_node),
    Reason("kube-proxy drops what is for the ClusterIP of a Service that it leaves to another proxy", _of_another_proxy),
)


def reason_for(difference: Difference) -> Reason | None:
    """Why it is meant; None if it is not."""
    return next((reason for reason in REASONS if reason.explains(difference)), None)


def alike(attempt: Try, one: Outcomes, other: Outcomes) -> bool:
    """Whether both sides did the same. Which backend a client with affinity got is chance, and whom that sees."""
    if not attempt.sticky:
        return one == other
    served = [frozenset(each for each in outcomes if isinstance(each, Served)) for outcomes in (one, other)]
    same_backend = {each.by for each in served[0]} == {each.by for each in served[1]}
    return one - served[0] == other - served[1] and (
        served[0] == served[1] if same_backend else len(served[0]) == len(served[1])
    )
