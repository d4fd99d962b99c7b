# SPDX-License-Identifier: Apache-2.0
"""Log records as one line of logfmt or JSON each, on standard error.

Code logs a constant message with its facts beside it, as KEP-1602 asks:

    log.info("watch interrupted", extra={"cause": str(exc), "kind": "Service"})

Every attribute of a record that `logging` does not put there itself is a fact. `logging` refuses facts named like its
own attributes (`name`, `args`, `module`, `process`, …): use `object`, `worker` or the like. Whatever a value holds, a
record stays one line: control characters, line separators and direction marks are escaped.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TextIO

from svcproxy.config import LogConfig, LogFormat

VALUE_MAX = 8192
"""Characters of one value; what is longer ends with a note of how much was left out."""
FACTS_MAX = 64
"""Facts of one record; further ones are counted in `facts_left_out`."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TAKEN = frozenset({"time", "level", "role", "logger", "msg", "trace", "facts_left_out"})
_BARE = re.compile(r"[A-Za-z0-9_./:@+,%*()\[\]<>|~^$#!?;&-]+")
_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_.-]")
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_TRACE_FORMATTER = logging.Formatter()


def fields(record: logging.LogRecord, role: str) -> dict[str, Any]:
    """What a line says, in order. Facts keep their type if JSON has it and become text otherwise."""
    line: dict[str, Any] = {
        "time": timestamp(record.created),
        "level": record.levelname.lower(),
        "role": role,
        "logger": record.name,
        "msg": _bounded(record.getMessage()),
    }
    facts = [(key, value) for key, value in vars(record).items() if key not in _OWN]
    for key, value in facts[:FACTS_MAX]:
        line[f"{key}_" if key in _TAKEN else key] = _plain(value)
    if len(facts) > FACTS_MAX:
        line["facts_left_out"] = len(facts) - FACTS_MAX
    if record.exc_info:
        line["trace"] = _bounded(_TRACE_FORMATTER.formatException(record.exc_info))
    elif record.stack_info:
        line["trace"] = _bounded(record.stack_info)
    return line


def timestamp(created: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LogfmtFormatter(logging.Formatter):
    """`key=value` pairs; a value that is not plain is a JSON string."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        pairs = fields(record, self._role).items()
        return " ".join(f"{_NOT_IN_KEY.sub('_', key) or '_'}={_logfmt_value(value)}" for key, value in pairs)


class JsonFormatter(logging.Formatter):
    """One JSON object (RFC 8259)."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        return _escaped(json.dumps(fields(record, self._role), ensure_ascii=False))


class _Handler(logging.StreamHandler[TextIO]):
    """The handler that `configure` installs, and the only one it replaces."""


def configure(config: LogConfig, role: str, stream: TextIO | None = None) -> None:
    """Send every record and every warning of this process to `stream`, standard error if there is none.

    May be called again to change level and format; it never leaves the process without a handler.
    """
    root = logging.getLogger()
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter(role) if config.format is LogFormat.JSON else LogfmtFormatter(role))
    before = [installed for installed in root.handlers if isinstance(installed, _Handler)]
    root.addHandler(handler)
    for installed in before:
        root.removeHandler(installed)
    root.setLevel(config.level.upper())
    logging.captureWarnings(capture=True)


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return _plain(value.value)
        case None | bool() | int():
            return value
        case float():
            return value if abs(value) < float("inf") else str(value)
        case str():
            return _bounded(value)
        case Mapping():
            return _bounded(json.dumps({str(key): str(item) for key, item in value.items()}, ensure_ascii=False))
        case list() | tuple() | set() | frozenset():
            return _bounded(",".join(map(str, value)))
        case _:
            return _bounded(str(value))


def _bounded(text: str) -> str:
    if len(text) <= VALUE_MAX:
        return text
    return f"{text[:VALUE_MAX]}… ({len(text) - VALUE_MAX} characters left out)"


def _logfmt_value(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str() if _BARE.fullmatch(value):
            return value
        case str():
            return _escaped(json.dumps(value, ensure_ascii=False))
        case _:
            return str(value)


def _escaped(text: str) -> str:
    """JSON text with what could end a line or reorder it on a terminal written as escapes."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
