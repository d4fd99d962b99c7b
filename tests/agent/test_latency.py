# SPDX-License-Identifier: Apache-2.0
from svcproxy.agent.latency import CHANGES_KEPT, DATAPLANE, FRONTENDS, WORKERS_KEPT, ChangeLog, ack_stage


def observed() -> tuple[ChangeLog, list[tuple[str, float]]]:
    seen: list[tuple[str, float]] = []
    return ChangeLog(lambda stage, seconds: seen.append((stage, seconds))), seen


def test_a_change_is_timed_from_its_event_at_every_stage() -> None:
    changes, seen = observed()
    number = changes.derived(10.0, 10.25, programs=True, revision=1)
    changes.programmed(number, 10.5)
    changes.acknowledged("dns-0", 0, 1, 11.0)
    assert seen == [(FRONTENDS, 0.25), (DATAPLANE, 0.5), (ack_stage("dns-0"), 1.0)]


def test_one_programming_times_every_change_that_it_holds_and_none_twice() -> None:
    changes, seen = observed()
    first = changes.derived(1.0, 1.0, programs=True, revision=None)
    changes.programmed(first, 2.0)
    changes.derived(3.0, 3.0, programs=True, revision=None)
    changes.derived(3.5, 3.5, programs=False, revision=None)
    last = changes.derived(4.0, 4.0, programs=True, revision=None)
    changes.derived(4.5, 4.5, programs=True, revision=None)
    seen.clear()
    changes.programmed(last, 5.0)
    assert seen == [(DATAPLANE, 1.0), (DATAPLANE, 2.0)]


def test_acknowledgements_are_cumulative_and_what_a_worker_had_before_is_not_timed() -> None:
    changes, seen = observed()
    for revision in (1, 2, 3):
        changes.derived(float(revision), float(revision), programs=False, revision=revision)
    seen.clear()
    changes.acknowledged("dns-0", 1, 3, 5.0)
    assert seen == [(ack_stage("dns-0"), 2.0), (ack_stage("dns-0"), 3.0)]


def test_triggers_are_timed_for_every_worker_that_has_acknowledged_them_and_once() -> None:
    seen: list[tuple[str, float]] = []
    changes = ChangeLog(lambda *_: None, lambda kind, seconds: seen.append((kind, seconds)))
    changes.derived(10.0, 10.0, programs=True, revision=None, triggers=[("cluster_ip", 1.0)])
    changes.derived(10.0, 10.0, programs=True, revision=1, triggers=[("cluster_ip", 9.0), ("headless", 8.5)])
    assert seen == []
    changes.acknowledged("dns-0", 0, 1, 11.0)
    assert seen == [("cluster_ip", 2.0), ("headless", 2.5)]
    changes.acknowledged("dns-1", 0, 1, 13.0)
    changes.acknowledged("dns-1", 1, 1, 14.0)
    assert seen[2:] == [("cluster_ip", 4.0), ("headless", 4.5)]


def test_what_is_kept_is_bounded() -> None:
    changes, seen = observed()
    for revision in range(1, CHANGES_KEPT + 11):
        changes.derived(0.0, 0.0, programs=True, revision=revision)
    seen.clear()
    changes.acknowledged("w", 0, CHANGES_KEPT + 10, 1.0)
    assert len(seen) == CHANGES_KEPT
    for worker in range(WORKERS_KEPT):
        changes.acknowledged(f"w{worker}", CHANGES_KEPT + 9, CHANGES_KEPT + 10, 1.0)
    assert ack_stage("w") not in changes.summaries(), "the one that was silent for longest"
    assert len(changes.summaries()) == 1 + WORKERS_KEPT


def test_summaries_are_in_the_order_in_which_a_change_passes_the_stages() -> None:
    changes, _ = observed()
    for revision in range(1, 101):
        changes.derived(0.0, revision / 100, programs=True, revision=revision)
    changes.programmed(100, 2.0)
    changes.acknowledged("dns-0", 0, 100, 3.0)
    summaries = changes.summaries()
    assert list(summaries) == [FRONTENDS, DATAPLANE, ack_stage("dns-0")]
    assert summaries[FRONTENDS].p50 == 0.51
    assert summaries[FRONTENDS].p99 == 0.99
    assert summaries[FRONTENDS].count == 100


def test_a_first_list_is_numbered_and_not_timed() -> None:
    changes, seen = observed()
    assert changes.untimed() == 1
    number = changes.derived(1.0, 1.5, programs=True, revision=None)
    changes.programmed(number, 2.0)
    assert (number, seen) == (2, [(FRONTENDS, 0.5), (DATAPLANE, 1.0)])
