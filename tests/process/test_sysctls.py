# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters: which are wanted, on a tree of files, and in a network namespace."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.config import ConntrackConfig
from svcproxy.errors import StateError
from svcproxy.process.sysctls import FILE_NAME, ROOT, Sysctl, Wanted, apply, restore, wanted
from tests.netns.namespaces import Namespace

CLOSE_WAIT, LIBERAL, MAX = "nf_conntrack_tcp_timeout_close_wait", "nf_conntrack_tcp_be_liberal", "nf_conntrack_max"
BUCKETS = "nf_conntrack_buckets"


@pytest.mark.parametrize(
    ("config", "cpus", "expected"),
    [
        pytest.param(
            ConntrackConfig(),
            8,
            {
                MAX: 262144,
                BUCKETS: 65536,
                "nf_conntrack_tcp_timeout_established": 86400,
                CLOSE_WAIT: 3600,
                LIBERAL: 1,
            },
            id="as kube-proxy, and liberal",
        ),
        pytest.param(
            ConntrackConfig(tcp_timeout_established=0, tcp_timeout_close_wait=0, tcp_be_liberal=False),
            2,
            {MAX: 131072, BUCKETS: 32768},
            id="min is the least",
        ),
        pytest.param(
            ConntrackConfig(max_per_core=0, tcp_be_liberal=False, udp_timeout=30, udp_timeout_stream=180),
            8,
            {
                "nf_conntrack_tcp_timeout_established": 86400,
                CLOSE_WAIT: 3600,
                "nf_conntrack_udp_timeout": 30,
                "nf_conntrack_udp_timeout_stream": 180,
            },
            id="0 leaves the maximum",
        ),
    ],
)
def test_what_is_wanted(config: ConntrackConfig, cpus: int, expected: dict[str, int]) -> None:
    assert {each.name: each.value for each in wanted(config, cpus)} == expected


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "netfilter"
    root.mkdir()
    for name, value in ((CLOSE_WAIT, 60), (LIBERAL, 0), (MAX, 500)):
        (root / name).write_text(f"{value}\n")
    return root


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def value(root: Path, name: str) -> int:
    return int((root / name).read_text())


def test_a_parameter_is_set_noted_and_taken_back(root: Path, record: Path) -> None:
    values = [Wanted(CLOSE_WAIT, 3600), Wanted(LIBERAL, 1)]
    assert apply(values, record, root) == (Sysctl(CLOSE_WAIT, 3600, 60, 3600), Sysctl(LIBERAL, 1, 0, 1))
    assert apply(values, record, root) == (Sysctl(CLOSE_WAIT, 3600, 3600, 3600), Sysctl(LIBERAL, 1, 1, 1))
    assert restore(record, root) == (Sysctl(CLOSE_WAIT, 60, 3600, 60), Sysctl(LIBERAL, 0, 1, 0))
    assert not record.exists()
    assert restore(record, root) == ()


def test_another_configuration_later_does_not_hide_what_it_was_at_first(root: Path, record: Path) -> None:
    for seconds in (3600, 1800):
        apply([Wanted(CLOSE_WAIT, seconds)], record, root)
    restore(record, root)
    assert value(root, CLOSE_WAIT) == 60


def test_what_somebody_else_has_set_since_stays(root: Path, record: Path) -> None:
    apply([Wanted(CLOSE_WAIT, 3600)], record, root)
    (root / CLOSE_WAIT).write_text("90")
    assert restore(record, root) == (Sysctl(CLOSE_WAIT, 60, 90, 90),)
    assert not record.exists()


def test_what_somebody_else_has_set_before_the_next_start_is_what_it_goes_back_to(root: Path, record: Path) -> None:
    apply([Wanted(CLOSE_WAIT, 3600)], record, root)
    (root / CLOSE_WAIT).write_text("90")
    apply([Wanted(CLOSE_WAIT, 3600)], record, root)
    restore(record, root)
    assert value(root, CLOSE_WAIT) == 90


@pytest.mark.parametrize(
    ("size", "after"), [pytest.param(1000, 1000, id="raised"), pytest.param(400, 500, id="never lowered")]
)
def test_a_size_is(size: int, after: int, root: Path, record: Path) -> None:
    assert apply([Wanted(MAX, size, at_least=True)], record, root) == (Sysctl(MAX, size, 500, after),)
    restore(record, root)
    assert value(root, MAX) == 500


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(None, "No such file or directory", id="the kernel has none"),
        pytest.param("yes\n", "not a number: 'yes'", id="not a number"),
    ],
)
def test_a_parameter_that_cannot_be_read_stops_nothing(
    content: str | None, error: str, root: Path, record: Path
) -> None:
    path = root / MAX
    path.unlink()
    if content is not None:
        path.write_text(content)
    found = apply([Wanted(MAX, 1000), Wanted(LIBERAL, 1)], record, root)
    assert found == (Sysctl(MAX, 1000, None, None, f"{path}: {error}"), Sysctl(LIBERAL, 1, 0, 1))


def test_a_parameter_stays_when_nobody_could_take_it_back(root: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / FILE_NAME
    (found,) = apply([Wanted(LIBERAL, 1)], missing, root)
    assert (found.before, found.after) == (0, 0)
    assert "No such file or directory" in found.error


BROKEN = [
    pytest.param(b"{", id="truncated"),
    pytest.param(b'{"nf_conntrack_max": {"before": "x", "after": 1}}', id="not numbers"),
    pytest.param(b'{"../../ipv4/ip_forward": {"before": 1, "after": 1}}', id="another place"),
    pytest.param(b" " * (65 << 10), id="too large"),
]


@pytest.mark.parametrize("octets", BROKEN)
def test_a_broken_record_is_begun_anew_by_a_start_and_named_by_a_clean_up(
    octets: bytes, root: Path, record: Path
) -> None:
    record.write_bytes(octets)
    with pytest.raises(StateError, match=FILE_NAME):
        restore(record, root)
    assert record.read_bytes() == octets
    apply([Wanted(LIBERAL, 1)], record, root)
    restore(record, root)
    assert value(root, LIBERAL) == 0


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace, namespace.entered():
        yield namespace


@pytest.mark.netns
def test_timeouts_of_a_namespace_are_set_and_taken_back(namespace: Namespace, record: Path) -> None:
    """The sizes belong to the first namespace: here they are read-only, unless they are large enough."""
    values = wanted(ConntrackConfig(max_per_core=1 << 22, udp_timeout=31, udp_timeout_stream=181), cpus=1)
    names = [each.name for each in values]
    before = [value(ROOT, name) for name in names]
    found = apply(values, record)
    assert [each.before for each in found] == before
    assert [(each.name, each.error) for each in found if each.error] == [
        (name, f"{ROOT / name}: Permission denied") for name in (MAX, BUCKETS)
    ]
    assert [each.after for each in found if not each.error] == [86400, 3600, 1, 31, 181]
    assert [value(ROOT, name) for name in names] == [each.after for each in found]
    assert apply(values, record)[2:] == tuple(
        Sysctl(each.name, each.wanted, each.wanted, each.wanted) for each in found[2:]
    )
    restore(record)
    assert [value(ROOT, name) for name in names] == before
    assert not record.exists()


@pytest.mark.netns
def test_a_value_that_the_kernel_refuses_stops_nothing(namespace: Namespace, record: Path) -> None:
    found = apply([Wanted("nf_conntrack_tcp_loose", 1 << 40), Wanted(LIBERAL, 1)], record)
    assert [(each.after, each.error) for each in found] == [
        (1, f"{ROOT / 'nf_conntrack_tcp_loose'}: Invalid argument"),
        (1, ""),
    ]
    restore(record)
    assert (value(ROOT, "nf_conntrack_tcp_loose"), value(ROOT, LIBERAL)) == (1, 0)
