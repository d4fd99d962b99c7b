# SPDX-License-Identifier: Apache-2.0
import gc
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.rendered import ENTRY_OCTETS
from svcproxy_dns.sections import Records, settled, with_opt
from svcproxy_dns.wire import HEADER_OCTETS, OPT_OCTETS, TC, TCP_MAX_OCTETS

QUESTION = b"\1a\0\0\1\0\1"
OPT = b"\0\0\x29" + bytes(OPT_OCTETS - 3)
sizes = st.lists(st.integers(1, 60), max_size=5)


def records(lengths: list[int]) -> list[bytes]:
    return [bytes([number]) * length for number, length in enumerate(lengths, 1)]


@given(sizes, sizes, sizes, st.integers(60, 600), st.sampled_from([b"", OPT]))
def test_what_is_cut_is_cut_between_records_and_from_the_end(
    answers: list[int], authorities: list[int], additionals: list[int], limit: int, opt: bytes
) -> None:
    sections = [records(each) for each in (answers, authorities, additionals)]
    response = b"id" + Records(0, QUESTION, *sections).render(limit, opt)
    assert len(response) <= limit
    counts = [int.from_bytes(response[place : place + 2], "big") for place in (6, 8, 10)]
    counts[2] -= bool(opt)
    kept = [each for section, count in zip(sections, counts, strict=True) for each in section[:count]]
    body = response[HEADER_OCTETS + len(QUESTION) : len(response) - len(opt)]
    assert body == b"".join(kept)
    whole = [each for section in sections for each in section]
    assert kept == whole[: len(kept)]
    assert bool(int.from_bytes(response[2:4], "big") & TC) == (len(kept) < len(whole))
    if len(kept) < len(whole):
        assert len(response) + len(whole[len(kept)]) > limit, "the next one would not have fitted"


@given(sizes, sizes)
def test_a_small_response_is_octets_and_takes_an_opt(answers: list[int], additionals: list[int]) -> None:
    sections = records(answers), records(additionals)
    found = settled(0, QUESTION, *sections)
    large = Records(0, QUESTION, sections[0], (), sections[1])
    if isinstance(found, bytes):
        assert found == large.render(TCP_MAX_OCTETS, b"")
        assert with_opt(found, OPT) == large.render(512, OPT)
        assert with_opt(found, b"") == found
    else:
        assert len(large.render(TCP_MAX_OCTETS, b"")) > 512 - 2 - OPT_OCTETS


def test_the_estimate_covers_what_a_large_response_takes() -> None:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = [Records(0, QUESTION, [bytes(70)] * 400) for _ in range(50)]
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= sum(each.octets + ENTRY_OCTETS for each in held)
