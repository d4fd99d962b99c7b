# SPDX-License-Identifier: Apache-2.0
"""Texts that Go programs read: durations, quantities, lists. Pure. Each raises ValueError with a message for people."""

import re
from typing import Any

_DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_MAX = 64
"""Characters of a duration."""


def duration(text: Any) -> float:
    """Seconds of a duration as Go's time.ParseDuration reads it, such as `1h30m` or `500ms`."""
    if not isinstance(text, str) or len(text) > _DURATION_MAX or not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration such as 1h30m or 5s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return -seconds if text.startswith("-") else seconds


def whole_seconds(text: Any) -> int:
    """A duration in whole seconds, rounded up."""
    seconds = duration(text)
    return -int(-seconds // 1)


def integer(text: Any) -> int:
    """A whole number."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if isinstance(text, str) and re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return int(text)
    raise ValueError(f"{text!r} is not a whole number")


def boolean(value: Any) -> bool:
    """True or false; of a flag, as Go's strconv.ParseBool reads it."""
    if isinstance(value, bool):
        return value
    words = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"{value!r} is neither true nor false")


def string(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")  # noqa: TRY004  # what the caller of every function here expects
    return value


def items(value: Any) -> list[str]:
    """A list of texts, or one text with commas between them."""
    if isinstance(value, str):
        return [each.strip() for each in value.split(",") if each.strip()]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    raise ValueError(f"{value!r} is not a list of strings")
