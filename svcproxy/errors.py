# SPDX-License-Identifier: Apache-2.0
"""The errors svcproxy raises on purpose: one root, one class per reaction.

A peer's fault, a caller's fault and a bug of ours are three things: the first two are below, the third is any other
exception. Facts travel as attributes; the message is for people.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class SvcproxyError(Exception):
    """Root of everything that svcproxy raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration or manifest, and where."""

    message: str
    file: str = ""
    line: int | None = None
    """1-based."""
    path: str = ""
    """Dotted path of the key, such as `dns.ttl` or `spec.ports[0].port`."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ConfigError(SvcproxyError):
    """The caller's configuration or command line cannot be used. Reaction: print every problem, exit with 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class DecodeError(SvcproxyError):
    """Bytes from outside are not what they should be. Reaction: count, log, leave this object out, go on."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name
        """`namespace/name` of the object, as far as it could be read."""


class ApiUnavailable(SvcproxyError):
    """An API server did not answer as one: network, 5xx, 429, silence, not JSON. Reaction: back off, try the next."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the server asked to wait (RFC 9110 §10.2.3), if it did."""


class ApiUnauthorized(SvcproxyError):
    """401: the credentials are refused. Reaction: read them again, then back off."""


class ApiForbidden(SvcproxyError):
    """403: the credentials are good and the role lacks a rule. Reaction: say which, back off."""


class ApiGone(SvcproxyError):
    """410: the resource version is too old. Reaction: list again."""


class FeedError(SvcproxyError):
    """The other end of a feed broke the protocol. Reaction: drop the connection."""


class DataplaneLost(SvcproxyError):
    """What the data plane holds is unknown. Reaction: resync from the desired table."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class ConntrackError(SvcproxyError):
    """Connection tracking refuses, or its answer is lost. Reaction: count, back off, list the flows again."""


class StateError(SvcproxyError):
    """A state snapshot cannot be used: absent, damaged, of another version, too old. Reaction: start without it."""


class LockedError(SvcproxyError):
    """Another live instance holds the node, or the instance's directory. Reaction: wait and stay not ready."""

    def __init__(self, message: str, *, pid: int | None = None, instance: str = "", since: float | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        """Of the holder, in its own pid namespace; None where it is not known."""
        self.instance = instance
        """Name of the holder's instance; empty where it is not known."""
        self.since = since
        """Unix seconds; None where it is not known."""


class HandoverError(SvcproxyError):
    """Sockets did not pass from one instance to the other. Reaction: the old one keeps its own, the new one binds."""


class PrivilegeError(SvcproxyError):
    """The process cannot become what it was told to be. Reaction: do not start."""
