# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from svcproxy.kube.manifest_reader import Gone, Unreadable
from svcproxy.kube.manifests import ManifestSource, check, scan
from svcproxy.kube.source import InvalidObject
from svcproxy.model import Changes, EndpointSlice, Namespace, NamespacedName, Node, Pod, Service, ServiceCIDR, Store
from svcproxy.process.follow import FileFollower

PATIENCE = 10.0
"""Seconds after which something that does not happen fails the test."""
SETTLED = 1e11
"""A time long after any file was written."""


def service(name: str, ip: str = "10.0.0.1") -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
    )


class Sink:
    """Keeps what a source tells, and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.store = Store()
        self.kinds: list[type] = []
        self.reports: list[InvalidObject] = []
        self.read_at: list[float] = []
        self._news = asyncio.Event()

    def changed(self, changes: Changes[Any], read_at: float) -> None:
        self.store.apply(changes)
        self.read_at.append(read_at)
        self._news.set()

    def synced(self, kind: type) -> None:
        self.kinds.append(kind)
        self._news.set()

    def invalid(self, report: InvalidObject) -> None:
        self.reports.append(report)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as the condition holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def services(self) -> dict[str, str | None]:
        return {key.name: service.spec.cluster_ip for key, service in self.store.services.items()}


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[ManifestSource, Sink]]:
    source, sink = ManifestSource(str(path), FileFollower(str(path), quiet=0.01)), Sink()
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(source.run(sink), name="manifests")
        try:
            yield source, sink
        finally:
            run.cancel()


def replace(path: Path, text: str) -> None:
    fresh = path.with_name(".fresh")
    fresh.write_text(text)
    fresh.rename(path)


async def test_a_directory_is_listed_and_followed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("a"))
    (tmp_path / "b.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "empty"}}')
    (tmp_path / "c.txt").write_text(service("c"))
    (tmp_path / ".hidden.yaml").write_text(service("hidden"))
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "d.yaml").write_text(service("d"))
    async with running(tmp_path) as (source, sink):
        await sink.until(lambda: len(sink.kinds) == 6)
        assert set(sink.kinds) == {Service, EndpointSlice, Node, Namespace, Pod, ServiceCIDR}
        assert sink.services() == {"a": "10.0.0.1"}
        assert NamespacedName("", "empty") in sink.store.namespaces
        assert all(status.synced and not status.error for status in source.status())

        replace(tmp_path / "a.yaml", service("a", "10.0.0.2"))
        await sink.until(lambda: sink.services() == {"a": "10.0.0.2"})
        (tmp_path / "e.yml").write_text(service("e"))
        await sink.until(lambda: "e" in sink.services())
        (tmp_path / "a.yaml").unlink()
        await sink.until(lambda: sink.services() == {"e": "10.0.0.1"})
    assert sink.reports == []
    assert sink.read_at == sorted(sink.read_at)


async def test_a_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "all"
    path.write_text(service("a") + service("b"))
    async with running(path) as (_, sink):
        await sink.until(lambda: sink.services() == {"a": "10.0.0.1", "b": "10.0.0.1"})
        path.write_text(service("b"))
        await sink.until(lambda: sink.services() == {"b": "10.0.0.1"})


async def test_a_configmap_volume_is_followed_through_its_swaps(tmp_path: Path) -> None:
    def publish(generation: int, ip: str) -> None:
        data = tmp_path / f"..{generation}"
        data.mkdir()
        (data / "s.yaml").write_text(service("a", ip))
        (tmp_path / "..tmp").symlink_to(data.name)
        (tmp_path / "..tmp").rename(tmp_path / "..data")

    publish(1, "10.0.0.1")
    (tmp_path / "s.yaml").symlink_to("..data/s.yaml")
    async with running(tmp_path) as (_, sink):
        await sink.until(lambda: sink.services() == {"a": "10.0.0.1"})
        for generation in (2, 3):
            publish(generation, f"10.0.0.{generation}")
            await sink.until(lambda ip=f"10.0.0.{generation}": sink.services() == {"a": ip})  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
    assert sink.reports == []


async def test_a_bad_document_is_reported_and_its_object_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(service("a") + service("b"))
    async with running(tmp_path) as (_, sink):
        await sink.until(lambda: len(sink.kinds) == 6)
        replace(path, service("a", "10.0.0.300") + service("b", "10.0.0.3"))
        await sink.until(lambda: sink.services() == {"a": "10.0.0.1", "b": "10.0.0.3"})
        (report,) = sink.reports
        reason = f"{path}:4: spec.clusterIP: '10.0.0.300' is not an IP address"
        assert report == InvalidObject("Service", "default/a", reason)


async def test_a_directory_that_vanishes_removes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "a.yaml").write_text(service("a"))
    async with running(directory) as (source, sink):
        await sink.until(lambda: len(sink.kinds) == 6)
        directory.rename(tmp_path / "elsewhere")
        async with asyncio.timeout(PATIENCE):
            while not source.status()[0].error:  # noqa: ASYNC110  (the source tells nobody, it shows)
                await asyncio.sleep(0.001)
        assert source.status()[0].error == "cannot be read: No such file or directory"
        assert source.status()[0].synced
        assert sink.services() == {"a": "10.0.0.1"}

        directory.mkdir()
        (directory / "b.yaml").write_text(service("b"))
        await sink.until(lambda: sink.services() == {"b": "10.0.0.1"})
        assert source.status()[0].error == ""


async def test_a_path_that_appears_late_is_not_synced_before(tmp_path: Path) -> None:
    directory = tmp_path / "x" / "manifests"
    async with running(directory) as (source, sink):
        async with asyncio.timeout(PATIENCE):
            while source.status()[0].error == "not read yet":  # noqa: ASYNC110  (the source tells nobody, it shows)
                await asyncio.sleep(0.001)
        assert not any(status.synced for status in source.status())
        assert sink.kinds == []
        directory.mkdir(parents=True)
        (directory / "a.yaml").write_text(service("a"))
        await sink.until(lambda: sink.services() == {"a": "10.0.0.1"})


async def test_many_objects_come_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("".join(service(f"s{number}") for number in range(1200)))
    async with running(tmp_path) as (_, sink):
        await sink.until(lambda: len(sink.kinds) == 6)
        assert len(sink.store.services) == 1200
        assert len(sink.read_at) == 4, "one namespace, Services in three pieces"


def test_only_what_may_have_changed_is_read(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("# 1")
    b.write_text("# 1")
    first = scan(str(tmp_path), {}, SETTLED)
    assert first.contents == {str(a): b"# 1", str(b): b"# 1"}
    assert scan(str(tmp_path), first.signatures, SETTLED).contents == {}
    replace(a, "# 2")
    b.unlink()
    second = scan(str(tmp_path), first.signatures, SETTLED)
    assert second.contents == {str(a): b"# 2", str(b): Gone.GONE}


def test_a_file_written_a_moment_ago_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# 1")
    now = path.stat().st_mtime + 0.1
    first = scan(str(tmp_path), {}, now)
    assert scan(str(tmp_path), first.signatures, now).contents == {str(path): b"# 1"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda path: path.mkdir(), "cannot be read: not a regular file", id="directory"),
        pytest.param(os.mkfifo, "cannot be read: not a regular file", id="FIFO: nobody writes into it"),
        pytest.param(
            lambda path: path.symlink_to("none"), "cannot be read: No such file or directory", id="dangling link"
        ),
        pytest.param(
            lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links", id="circle"
        ),
    ],
)
def test_what_is_no_file_keeps_its_objects(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(service("a"))
    known = scan(str(tmp_path), {}, SETTLED).signatures
    path.unlink()
    make(path)
    assert scan(str(tmp_path), known, SETTLED).contents == {str(path): Unreadable(reason)}


def test_check_lists_everything_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("A") + service("b", "x"))
    (tmp_path / "b.yaml").write_text("{")
    assert [report.reason.removeprefix(f"{tmp_path}/").split(" ")[0] for report in check(str(tmp_path))] == [
        "a.yaml:3:",
        "a.yaml:9:",
        "b.yaml:1:",
    ]
    assert [report.reason for report in check("/nowhere")] == ["/nowhere: cannot be read: No such file or directory"]


def test_no_kubernetes_client_is_loaded() -> None:
    code = "import sys, svcproxy.kube.manifests; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    banned = ["kubernetes_asyncio", "aiohttp", "pyroute2", "dnslib", "prometheus_client", "rich"]
    run = subprocess.run([sys.executable, "-c", code, *banned], check=True, capture_output=True, text=True)
    assert run.stdout == "[]\n"
