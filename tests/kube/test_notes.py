# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

from svcproxy.kube.notes import (
    BURST,
    MESSAGE_MAX,
    REFILL,
    REMEMBERED_MAX,
    REPEAT_AFTER,
    Note,
    NoteLimiter,
    event_body,
    event_path,
)

NOTE = Note("v1", "Service", "shop", "web", "uid-1", "AddressConflict", "taken")


def test_a_note_is_not_repeated_before_its_time() -> None:
    limiter = NoteLimiter()
    assert limiter.admit(NOTE, 0.0) is True
    assert limiter.admit(NOTE, REPEAT_AFTER - 1) is False
    assert limiter.admit(NOTE, REPEAT_AFTER) is True


def test_a_burst_is_bounded_and_refills() -> None:
    limiter = NoteLimiter()
    notes = [replace(NOTE, name=f"s{number}") for number in range(int(BURST) + 5)]
    assert [limiter.admit(note, 0.0) for note in notes].count(True) == int(BURST)
    assert limiter.admit(replace(NOTE, name="later"), 1 / REFILL) is True


def test_what_is_remembered_is_bounded() -> None:
    limiter = NoteLimiter()
    for number in range(REMEMBERED_MAX + 1):
        assert limiter.admit(replace(NOTE, name=f"s{number}"), number / REFILL)
    assert limiter.admit(replace(NOTE, name="s0"), REMEMBERED_MAX / REFILL + 1 / REFILL), "the oldest was forgotten"


def test_an_event_names_its_object_and_keeps_to_the_apis_bounds() -> None:
    body = json.loads(event_body(replace(NOTE, message="x" * 5000), "n1", "2026-01-01T00:00:00Z", 1))
    assert body["involvedObject"] == {
        "apiVersion": "v1", "kind": "Service", "name": "web", "namespace": "shop", "uid": "uid-1"
    }  # fmt: skip
    assert len(body["message"]) == MESSAGE_MAX
    assert body["source"]["host"] == "n1"
    assert event_path(NOTE) == "/api/v1/namespaces/shop/events"
    assert event_path(replace(NOTE, namespace="")) == "/api/v1/namespaces/default/events"


def test_two_events_never_have_one_name() -> None:
    names = {json.loads(event_body(NOTE, "n1", "", unique))["metadata"]["name"] for unique in range(100)}
    assert len(names) == 100
