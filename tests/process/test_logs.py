# SPDX-License-Identifier: Apache-2.0
import io
import json
import logging
import warnings
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config import LogConfig, LogFormat
from svcproxy.process.logs import FACTS_MAX, VALUE_MAX, JsonFormatter, LogfmtFormatter, configure, timestamp


class Colour(StrEnum):
    RED = "red"


def record(message: str = "watch interrupted", /, **facts: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "svcproxy.kube", "levelname": "INFO", "levelno": 20, "msg": message, **facts})
    made.created = 1700000000.25
    return made


HEAD = "time=2023-11-14T22:13:20.250000Z level=info role=agent logger=svcproxy.kube"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"cause": "timed out"}, ' cause="timed out"', id="text with a space is quoted"),
        pytest.param({"server": "https://10.0.0.1:6443"}, " server=https://10.0.0.1:6443", id="a URL stays bare"),
        pytest.param({"cause": ""}, ' cause=""', id="the empty string is quoted"),
        pytest.param({"a": 1, "b": 2.5, "c": True, "d": None}, " a=1 b=2.5 c=true d=null", id="JSON's other scalars"),
        pytest.param({"cause": 'a "b"=c'}, ' cause="a \\"b\\"=c"', id="quotes are escaped"),
        pytest.param({"cause": "x\nlevel=error"}, ' cause="x\\nlevel=error"', id="a line end cannot start a record"),
        pytest.param({"cause": "\u202ex\x9b\u2028"}, ' cause="\\u202ex\\u009b\\u2028"', id="marks and C1 are escaped"),
        pytest.param({"cause": "\ud800"}, ' cause="\\ud800"', id="a lone surrogate can be written"),
        pytest.param({"a b=": 1}, " a_b_=1", id="keys are plain"),
        pytest.param({"level": "x"}, " level_=x", id="a fact never stands for what a line says itself"),
        pytest.param({"colour": Colour.RED}, " colour=red", id="enumerations by value"),
        pytest.param({"ports": (80, 443)}, " ports=80,443", id="sequences"),
        pytest.param({"labels": {"a": "b c"}}, ' labels="{\\"a\\": \\"b c\\"}"', id="mappings"),
        pytest.param({"error": ValueError("bad")}, " error=bad", id="anything else as text"),
        pytest.param({"ratio": float("nan")}, " ratio=nan", id="not a number"),
    ],
)
def test_logfmt(facts: dict[str, Any], expected: str) -> None:
    assert LogfmtFormatter("agent").format(record(**facts)) == f'{HEAD} msg="watch interrupted"{expected}'


def test_json_keeps_types() -> None:
    line = JsonFormatter("dns").format(record(attempts=3, cause=None, ratio=float("inf"), colour=Colour.RED))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250000Z",
        "level": "info",
        "role": "dns",
        "logger": "svcproxy.kube",
        "msg": "watch interrupted",
        "attempts": 3,
        "cause": None,
        "ratio": "inf",
        "colour": "red",
    }


@given(message=st.text(), value=st.text(), key=st.text(min_size=1))
def test_a_record_is_one_printable_line(message: str, value: str, key: str) -> None:
    made = record("%s", args=(message,))
    vars(made)[f"x{key}"] = value
    for formatter in (JsonFormatter("agent"), LogfmtFormatter("agent")):
        line = formatter.format(made)
        assert len(line.splitlines()) == 1
        line.encode()
    assert json.loads(JsonFormatter("agent").format(made))["msg"] == message


@given(value=st.text())
def test_a_quoted_value_reads_back(value: str) -> None:
    text = LogfmtFormatter("agent").format(record(cause=value)).partition(" cause=")[2]
    assert (json.loads(text) if text.startswith('"') else text) == value


def test_long_values_say_how_much_is_left_out() -> None:
    line = LogfmtFormatter("agent").format(record(cause="x" * (VALUE_MAX + 5)))
    assert line.endswith('x… (5 characters left out)"')
    assert len(line) < VALUE_MAX + 300


def test_many_facts_are_counted() -> None:
    line = json.loads(JsonFormatter("agent").format(record(**{f"fact{n}": n for n in range(FACTS_MAX + 3)})))
    assert line["facts_left_out"] == 3
    assert f"fact{FACTS_MAX}" not in line


def test_a_trace_stays_on_the_line() -> None:
    error = ValueError("two\nlines")
    with pytest.raises(ValueError, match="two") as caught:
        raise error
    made = record(exc_info=(caught.type, caught.value, caught.tb))
    line = LogfmtFormatter("agent").format(made)
    assert len(line.splitlines()) == 1
    assert "Traceback (most recent call last):\\n" in line
    assert "ValueError: two\\nlines" in line


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        pytest.param(0.0, "1970-01-01T00:00:00.000000Z", id="epoch: the fraction is always there"),
        pytest.param(1700000000.123456, "2023-11-14T22:13:20.123456Z", id="microseconds"),
    ],
)
def test_timestamp(created: float, expected: str) -> None:
    assert timestamp(created) == expected


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logging.captureWarnings(capture=False)
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_configure_writes_records_and_warnings(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure(LogConfig(level="info"), "agent", stream)
    logging.getLogger("svcproxy.x").debug("unseen")
    logging.getLogger("svcproxy.x").info("seen", extra={"n": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("look", UserWarning, stacklevel=1)
    first, second = stream.getvalue().splitlines()
    assert first.endswith("level=info role=agent logger=svcproxy.x msg=seen n=1")
    assert "level=warning role=agent logger=py.warnings" in second
    assert "UserWarning: look" in second


def test_configuring_again_replaces_only_its_own_handler(root: logging.Logger) -> None:
    foreign = logging.NullHandler()
    root.addHandler(foreign)
    old, new = io.StringIO(), io.StringIO()
    configure(LogConfig(), "agent", old)
    configure(LogConfig(level="debug", format=LogFormat.JSON), "agent", new)
    logging.getLogger("svcproxy.x").debug("now")
    assert old.getvalue() == ""
    assert json.loads(new.getvalue())["msg"] == "now"
    assert foreign in root.handlers
