# SPDX-License-Identifier: Apache-2.0
import os
import threading

from svcproxy.process.lines import LineWriter


def test_lines_are_written_in_order() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    for number in range(1000):
        writer.put(f"line {number}")
    writer.close()
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        assert stream.read().decode().splitlines() == [f"line {number}" for number in range(1000)]
    assert (writer.dropped, writer.failed) == (0, 0)


def test_what_does_not_fit_is_left_out_and_counted() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, queued_max=10)
    line = "x" * 1023
    done = 0
    while not writer.dropped:  # the pipe is full before
        writer.put(line)
        done += 1
    received = bytearray()
    taker = threading.Thread(target=lambda: received.extend(_read(reading)))
    taker.start()
    writer.close()
    os.close(writing)
    taker.join()
    os.close(reading)
    assert len(received) == 1024 * (done - writer.dropped)


def test_lines_that_cannot_be_written_are_counted() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing)
    writer.put("nobody reads this")
    writer.close()
    os.close(writing)
    assert writer.failed == 1


def _read(descriptor: int) -> bytes:
    octets = b""
    while part := os.read(descriptor, 65536):
        octets += part
    return octets
