# SPDX-License-Identifier: Apache-2.0
"""What /livez, /healthz and /readyz answer. Ids carry the acceptance case of kube-proxy that they are about."""

import msgspec
import pytest

from svcproxy.admin.health import (
    PROGRAMMING_TIMEOUT,
    DataplaneHealth,
    Instant,
    KindFreshness,
    Progress,
    healthz,
    livez,
    node_eligible,
    readiness,
)
from svcproxy.api import Readiness
from svcproxy.model import Node
from svcproxy.model.meta import Family

V4, V6 = Family.IPV4, Family.IPV6
NEVER = "0001-01-01T00:00:00Z"


def at(seconds: float) -> Instant:
    return Instant(seconds, 1_700_000_000.0 + seconds)


def health_after(*events: tuple[str, Family, float]) -> DataplaneHealth:
    dataplane = DataplaneHealth()
    for what, family, when in events:
        if what == "queued":
            dataplane.queued([family], when)
        else:
            dataplane.programmed([family], at(when))
    return dataplane


@pytest.mark.parametrize(
    ("events", "now", "status"),
    [
        pytest.param((), 1e6, 200, id="46: before the first programming, however long"),
        pytest.param((("programmed", V4, 1.0),), 1e6, 200, id="46: idle is healthy"),
        pytest.param((("queued", V4, 0.0),), PROGRAMMING_TIMEOUT - 0.1, 200, id="waiting, not too long"),
        pytest.param((("queued", V4, 0.0),), PROGRAMMING_TIMEOUT, 503, id="49: waiting for 60 s"),
        pytest.param(
            (("queued", V4, 0.0), ("queued", V4, 59.0)), PROGRAMMING_TIMEOUT, 503, id="the oldest change counts"
        ),
        pytest.param((("queued", V4, 0.0), ("programmed", V4, 59.0)), 1e6, 200, id="programmed in time"),
        pytest.param((("queued", V6, 0.0), ("programmed", V4, 59.0)), 61.0, 503, id="one stale family is enough"),
    ],
)
def test_livez(events: tuple[tuple[str, Family, float], ...], now: float, status: int) -> None:
    assert livez(health_after(*events), at(now)).status == status


def test_body_when_healthy_shows_the_current_time_as_the_last_update() -> None:
    answer = healthz(health_after(("programmed", V4, 10.0)), at(20.0), eligible=True)
    assert answer.body == {
        "lastUpdated": "2023-11-14T22:13:40Z",
        "currentTime": "2023-11-14T22:13:40Z",
        "healthy": True,
        "nodeEligible": True,
        "status": {
            "IPv4": {"lastUpdated": "2023-11-14T22:13:30Z", "healthy": True},
            "IPv6": {"lastUpdated": NEVER, "healthy": True},
        },
    }


def test_body_when_stale_shows_the_newest_real_update_of_any_family() -> None:
    dataplane = health_after(("programmed", V4, 10.0), ("programmed", V6, 5.0), ("queued", V6, 6.0))
    answer = livez(dataplane, at(100.0))
    assert answer.status == 503
    assert answer.body["lastUpdated"] == "2023-11-14T22:13:30Z"
    assert answer.body["healthy"] is False
    assert answer.body["status"]["IPv4"]["healthy"] is True
    assert answer.body["status"]["IPv6"] == {"lastUpdated": "2023-11-14T22:13:25Z", "healthy": False}
    assert "nodeEligible" not in answer.body


def test_case_47_an_ineligible_node_fails_healthz_alone_and_its_data_plane_stays_healthy() -> None:
    dataplane = health_after(("programmed", V4, 10.0))
    answer = healthz(dataplane, at(20.0), eligible=False)
    assert (answer.status, answer.body["healthy"], answer.body["nodeEligible"]) == (503, True, False)
    assert answer.body["lastUpdated"] == "2023-11-14T22:13:30Z"
    assert livez(dataplane, at(20.0)).status == 200


@pytest.mark.parametrize(
    ("node", "required", "eligible"),
    [
        pytest.param('{"metadata":{"name":"n1"}}', True, True, id="an ordinary Node"),
        pytest.param(
            '{"metadata":{"name":"n1"},"spec":{"taints":[{"key":"node.kubernetes.io/unschedulable"}]}}',
            True,
            True,
            id="cordoned does not matter",
        ),
        pytest.param(
            '{"metadata":{"name":"n1"},"spec":{"taints":[{"key":"ToBeDeletedByClusterAutoscaler"}]}}',
            True,
            False,
            id="47: about to be removed",
        ),
        pytest.param(
            '{"metadata":{"name":"n1","deletionTimestamp":"2023-11-14T22:13:40Z"}}', False, False, id="being deleted"
        ),
        pytest.param(None, True, False, id="no Node object although Nodes are known"),
        pytest.param(None, False, True, id="Nodes are not known"),
    ],
)
def test_eligibility(node: str | None, required: bool, eligible: bool) -> None:
    decoded = None if node is None else msgspec.json.decode(node, type=Node)
    assert node_eligible(decoded, required=required) is eligible


SYNCED = KindFreshness("Service", synced=True, contact_age=3.0)
UNSYNCED = KindFreshness("EndpointSlice", synced=False, contact_age=None)
SILENT = KindFreshness("Service", synced=True, contact_age=91.0, error="connection refused")
FILES = KindFreshness("Service", synced=True, contact_age=None)


@pytest.mark.parametrize(
    ("holds", "programmed", "snapshot", "kind", "expected"),
    [
        pytest.param(True, True, False, SYNCED, Readiness(ready=True, stale=False, waiting=False), id="serving"),
        pytest.param(True, True, False, FILES, Readiness(ready=True, stale=False, waiting=False), id="serving files"),
        pytest.param(
            True,
            False,
            False,
            UNSYNCED,
            Readiness(
                ready=False,
                stale=False,
                waiting=False,
                reasons=("not synced: EndpointSlice", "nothing has been programmed completely yet"),
            ),
            id="46: starting",
        ),
        pytest.param(
            True,
            False,
            False,
            SYNCED,
            Readiness(ready=False, stale=False, waiting=False, reasons=("nothing has been programmed completely yet",)),
            id="46: synced, not programmed",
        ),
        pytest.param(
            True,
            False,
            True,
            UNSYNCED,
            Readiness(
                ready=False,
                stale=True,
                waiting=False,
                reasons=(
                    "not synced: EndpointSlice; a saved snapshot is served",
                    "nothing has been programmed completely yet",
                ),
            ),
            id="a snapshot that is not programmed yet",
        ),
        pytest.param(
            True,
            True,
            True,
            UNSYNCED,
            Readiness(
                ready=True,
                stale=True,
                waiting=False,
                reasons=("not synced: EndpointSlice; a saved snapshot is served",),
            ),
            id="a snapshot in force: ready and stale",
        ),
        pytest.param(
            True,
            True,
            False,
            SILENT,
            Readiness(
                ready=True,
                stale=True,
                waiting=False,
                reasons=("Service: no contact for 91 s (connection refused)",),
            ),
            id="46: a silent source: ready and stale",
        ),
        pytest.param(
            False,
            True,
            False,
            SYNCED,
            Readiness(
                ready=False,
                stale=False,
                waiting=True,
                reasons=("waiting for the node: another instance holds it",),
            ),
            id="another instance holds the node",
        ),
        pytest.param(
            False,
            False,
            False,
            UNSYNCED,
            Readiness(
                ready=False,
                stale=False,
                waiting=False,
                reasons=("not synced: EndpointSlice", "nothing has been programmed completely yet"),
            ),
            id="it asks nobody for the node before it could serve",
        ),
    ],
)
def test_readiness(holds: bool, programmed: bool, snapshot: bool, kind: KindFreshness, expected: Readiness) -> None:
    assert readiness(Progress(holds, programmed, snapshot, [kind], silence_timeout=90.0)) == expected


def test_a_moment_is_the_same_whenever_its_wall_time_is_asked_for() -> None:
    early, late = Instant(100.0, 1_700_000_100.2), Instant(107.0001, 1_700_000_107.2)
    assert early.wall_at(90.0) == late.wall_at(90.0) == 1_700_000_090.0
