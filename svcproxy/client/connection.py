# SPDX-License-Identifier: Apache-2.0
"""Questions to an instance over its Unix socket, one at a time, with errors for people."""

import http.client
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from svcproxy import api
from svcproxy.errors import SvcproxyError
from svcproxy.process.instance import InstancePaths, RunDirectory
from svcproxy.process.sockets import connect_unix

TIMEOUT = 10.0
"""Seconds that one question may take; an agent that takes a list of a whole cluster in still answers within one."""
ANSWER_MAX = 64 << 20
"""Octets of one answer."""
PAGE_LIMIT = 1000
"""Items asked for at once."""

T = TypeVar("T", bound=api.Answer)
P = TypeVar("P", api.ServicePage, api.EndpointsPage, api.FrontendPage)


class ClientError(SvcproxyError):
    """No answer, or not one that helps. Reaction: print the message, exit with 1."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An HTTP answer as it came."""

    status: int
    body: bytes


class StatusClient:
    """Asks the HTTP server behind one Unix socket."""

    def __init__(self, socket_path: Path, timeout: float = TIMEOUT) -> None:
        self._path = socket_path
        self._timeout = timeout

    def get(self, path: str, answer: type[T], question: Mapping[str, str | Sequence[str]] | None = None) -> T:
        """The answer to a question. Raises `ClientError` if there is none, or if it is a refusal."""
        raw = self.ask(path, question)
        if raw.status != http.client.OK:
            raise ClientError(_failure(raw))
        try:
            return msgspec.json.decode(raw.body, type=answer)
        except msgspec.DecodeError as exc:
            raise ClientError(f"the instance at {self._path} answers {path} with something else: {exc}") from exc

    def get_json(self, path: str) -> Any:
        """The answer as plain values."""
        raw = self.ask(path)
        if raw.status != http.client.OK:
            raise ClientError(_failure(raw))
        return msgspec.json.decode(raw.body)

    def get_text(self, path: str) -> str:
        """The answer as text. Raises `ClientError` if there is none, or if it is a refusal."""
        raw = self.ask(path)
        if raw.status != http.client.OK:
            raise ClientError(_failure(raw))
        return raw.body.decode(errors="replace")

    def pages(self, path: str, answer: type[P], question: Mapping[str, str]) -> Iterator[P]:
        """Every page of a list. What changes meanwhile may or may not be in it."""
        page = self.get(path, answer, {**question, "limit": str(PAGE_LIMIT)})
        yield page
        while page.next:
            page = self.get(path, answer, {**question, "limit": str(PAGE_LIMIT), "continue": page.next})
            yield page

    def ask(self, path: str, question: Mapping[str, str | Sequence[str]] | None = None) -> RawAnswer:
        """The answer as it comes, whatever its status. Raises `ClientError` if there is none."""
        connection = _UnixConnection(self._path, self._timeout)
        try:
            connection.request("GET", f"{path}?{urlencode(question, doseq=True)}" if question else path)
            response = connection.getresponse()
            body = response.read(ANSWER_MAX + 1)
        except TimeoutError as exc:
            raise ClientError(f"the instance at {self._path} did not answer within {self._timeout:g} s") from exc
        except PermissionError as exc:
            raise ClientError(_not_allowed(self._path)) from exc
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise ClientError(f"nobody listens at {self._path}: the instance has ended, or is just starting") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise ClientError(f"cannot talk to the instance at {self._path}: {str(exc) or type(exc).__name__}") from exc
        finally:
            connection.close()
        if len(body) > ANSWER_MAX:
            raise ClientError(f"the instance at {self._path} answers with more than {ANSWER_MAX >> 20} MiB")
        return RawAnswer(response.status, body)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = connect_unix(self._path)
        self.sock.settimeout(self.timeout)


def find_instance(run_dir: Path, name: str = "") -> InstancePaths:
    """The instance of that name; else the one that answers as the node; else the only one there is.

    Raises `ClientError` if there is none to choose.
    """
    run = RunDirectory(run_dir)
    try:
        instances = run.instances()
        active = run.active()
    except PermissionError as exc:
        raise ClientError(_not_allowed(run_dir)) from exc
    except OSError as exc:
        raise ClientError(f"cannot look into {run_dir}: {exc.strerror}") from exc
    names = [each.name for each in instances]
    if name:
        chosen = next((each for each in instances if each.name == name), None)
        if chosen is None:
            raise ClientError(f"no svcproxy instance {name!r} under {run_dir}; there are: {', '.join(names) or 'none'}")
        return chosen
    if active is not None:
        return active
    if not instances:
        raise ClientError(
            f"no svcproxy instance under {run_dir}: start one with `svcproxy run`, or name its directory with --run-dir"
        )
    if len(instances) > 1:
        raise ClientError(f"no instance under {run_dir} holds the node; choose with --instance: {', '.join(names)}")
    return instances[0]


def worker_instances(run_dir: Path, role: str, name: str = "") -> list[InstancePaths]:
    """One instance of each worker process of a role, chosen as by `find_instance`.

    A worker process has a run directory of its own, `<run_dir>/<role>-<number>`; one without an instance is left over
    from a time with more workers. Raises `ClientError` if there is no instance at all.
    """
    try:
        directories = sorted(each for each in run_dir.glob(f"{role}-*") if RunDirectory(each).instances())
    except PermissionError as exc:
        raise ClientError(_not_allowed(run_dir)) from exc
    if not directories:
        raise ClientError(f"no {role} worker runs under {run_dir}")
    return [find_instance(directory, name) for directory in directories]


def _not_allowed(path: Path) -> str:
    try:
        owner = f"root or uid {path.stat().st_uid}"
    except OSError:
        owner = "root, or the user that svcproxy runs as"
    return f"not allowed to use {path} as uid {os.geteuid()}: ask as {owner}"


def _failure(raw: RawAnswer) -> str:
    try:
        return msgspec.json.decode(raw.body, type=api.Failure).message
    except msgspec.DecodeError:
        return f"the instance answers with HTTP status {raw.status}"
