# SPDX-License-Identifier: Apache-2.0
"""What the command line says of DNS, with a real worker on loopback beside the example agent (golden/dns-*)."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from svcproxy import api
from svcproxy.admin.worker import WorkerAnswers, WorkerServer
from svcproxy.cli import main
from svcproxy.client.connection import StatusClient, find_instance
from svcproxy.config import DnsConfig
from svcproxy.feed.frames import SourceState
from svcproxy.feed.subscriber import FeedState, Phase
from svcproxy.names.builder import NameBuilder
from svcproxy.process.instance import Instance, RunDirectory
from svcproxy.testing.admin import example_state, serving
from svcproxy.workers.dns import socket_name
from svcproxy.workers.dns_status import DnsStatusApi, Surroundings
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.worker import DnsWorker
from tests.cli.test_verbs import check

CONFIG = DnsConfig(listen=("127.0.0.1:0",))
READY = api.Readiness(ready=True, stale=False, waiting=False)


def in_thread(serve: Callable[[asyncio.Event, threading.Event], Any]) -> contextlib.AbstractContextManager[None]:
    """Run `serve(stop, started)` on a loop of its own."""

    @contextlib.contextmanager
    def running() -> Iterator[None]:
        started, stop = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=lambda: loop.run_until_complete(serve(stop, started)))
        thread.start()
        assert started.wait(10)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()

    return running()


class Upstream(asyncio.DatagramProtocol):
    """Says of every name that it does not exist."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        cast("asyncio.DatagramTransport", self._transport).sendto(data[:2] + b"\x81\x83" + data[4:], addr)


async def serve_worker(instance: Instance, stop: asyncio.Event, started: threading.Event) -> None:
    """A worker that knows the names of the example state; its upstream knows none."""
    loop = asyncio.get_running_loop()
    upstream, _ = await loop.create_datagram_endpoint(Upstream, local_addr=("127.0.0.1", 0))
    worker = DnsWorker(CONFIG)
    worker.sink.begin_snapshot()
    worker.sink.change(list(NameBuilder(example_state().store).records()), ())
    for _ in worker.sink.sweep(1000):
        pass
    await worker.start(bind_listeners(CONFIG.listen))
    about = Surroundings(
        name="dns-0",
        instance="7-100",
        config=lambda: CONFIG,
        readiness=lambda: READY,
        feed=lambda: FeedState(Phase.LIVE, "e", 17, True, SourceState(synced=True)),
        feed_error=lambda: "",
        listen=lambda: [socket_name(each) for each in worker.sockets()],
        config_errors=lambda: (),
    )

    async def metrics() -> bytes:
        return b""

    answers = WorkerAnswers(lambda: READY, lambda: READY, metrics, more=DnsStatusApi(worker, about).routes())
    worker.use_upstreams([":".join(map(str, upstream.get_extra_info("sockname")))])
    async with WorkerServer(answers).serve_socket(instance.paths.admin_socket):
        started.set()
        await stop.wait()
    await worker.drain(0)
    worker.close()
    upstream.close()


@pytest.fixture
def dns(run_dir: Path) -> Iterator[Path]:
    """The run directory of a node with a DNS worker."""
    opened = RunDirectory(run_dir / "dns-0").open_instance("7-100")
    opened.make_current()
    with in_thread(lambda stop, started: serve_worker(opened, stop, started)):
        yield run_dir
    opened.close()


@pytest.fixture
def agent(instance: Instance, run_dir: Path) -> Iterator[Path]:
    """The run directory of a node with an agent."""
    with serving(example_state(), instance.paths.admin_socket):
        yield run_dir


def printed(capsys: pytest.CaptureFixture[str], run_dir: Path, *command: str, code: int = 0) -> str:
    """What goes to standard output, with a port that does not change."""
    assert main([*command, "--run-dir", str(run_dir)]) == code
    return re.sub(r"127\.0\.0\.1:\d{4,}", "127.0.0.1:PORT", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "command", "code"),
    [
        pytest.param("dns-cluster-ip.txt", ["resolve", "web.shop"], 0, id="ClusterIP"),
        pytest.param("dns-no-data.txt", ["resolve", "web.shop", "AAAA"], 1, id="NODATA"),
        pytest.param("dns-nothing-ready.txt", ["resolve", "web-metrics", "-n", "shop"], 1, id="nothing ready"),
        pytest.param("dns-endpoint.txt", ["resolve", "10-244-1-5.web.shop"], 0, id="endpoint"),
        pytest.param("dns-external-name.txt", ["resolve", "docs", "CNAME"], 0, id="ExternalName"),
        pytest.param("dns-address.txt", ["resolve", "10.0.96.10.in-addr.arpa.", "PTR"], 0, id="address"),
        pytest.param("dns-elsewhere.txt", ["resolve", "www.example.org."], 1, id="upstreams"),
        pytest.param("dns-status.txt", ["status", "--role", "dns"], 0, id="status"),
    ],
)
def test_output(
    agent: Path, dns: Path, capsys: pytest.CaptureFixture[str], name: str, command: list[str], code: int
) -> None:
    check(name, printed(capsys, dns, *command, code=code))


def test_json_has_the_answer_the_explanation_and_the_service(
    agent: Path, dns: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(printed(capsys, dns, "resolve", "web.shop", "-o", "json"))
    assert [each["data"] for each in found["records"]] == ["10.96.0.10"]
    assert found["explanation"]["rcode"] == found["rcode"] == "NOERROR"
    assert found["explanation"]["service"] == "shop/web"
    assert {each["slice"] for each in found["service"]["endpoints"]} == {"web-1"}
    assert found["notes"] == []


def test_a_worker_alone_explains_its_answers(dns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "web.shop", "--run-dir", str(dns)]) == 0
    captured = capsys.readouterr()
    assert "the Service shop/web, ClusterIP 10.96.0.10" in captured.out
    assert captured.err.startswith("no agent to ask: no svcproxy instance under ")


def test_an_agent_alone_tells_what_the_answer_would_be_made_of(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "web.shop.svc.cluster.local.", "--run-dir", str(agent)]) == 1
    captured = capsys.readouterr()
    assert "Endpoints of shop/web" in captured.out
    assert "no DNS worker to ask: no dns worker runs under" in captured.err
    assert "svcproxy: no DNS answer for web.shop.svc.cluster.local.: 127.0.0.1:53: " in captured.err


def test_nobody_to_ask(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "web.shop", "--run-dir", str(run_dir)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no agent to ask" in captured.err
    assert "no DNS worker to ask" in captured.err


def test_the_status_of_a_node_has_its_dns(agent: Path, dns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, dns, "status").endswith((Path(__file__).parent / "golden" / "dns-status.txt").read_text())
    found = json.loads(printed(capsys, dns, "status", "-o", "json"))
    assert [(each["name"], each["feed"], each["revision"]) for each in found["dns"]] == [("dns-0", "live", 17)]
    assert [each["suspect"] for each in found["dns"][0]["upstreams"]] == [False]


def test_without_an_agent_the_status_has_dns_and_fails(dns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "dns-0" in printed(capsys, dns, "status", code=1)


def test_dns_that_does_not_run_has_no_status(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--role", "dns", "--run-dir", str(run_dir)]) == 1
    assert capsys.readouterr().err == f"svcproxy: no dns worker runs under {run_dir}\n"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"name": "a..b"}, "bad label in 'a..b'"),
        ({"name": f"{'a' * 64}.b"}, f"bad label in '{'a' * 64}.b'"),
        ({"name": "a.b", "type": "NONSENSE"}, "'NONSENSE' is not a record type"),
        ({"name": "a.b", "type": "TYPE65536"}, "'TYPE65536' is not a record type"),
        ({"nam": "a.b"}, "unknown parameter 'nam'; it takes name, type"),
    ],
)
def test_questions_that_make_no_sense_are_refused(dns: Path, question: dict[str, str], message: str) -> None:
    answer = StatusClient(find_instance(dns / "dns-0").admin_socket).ask("/v1/resolve", question)
    assert (answer.status, json.loads(answer.body)["message"]) == (400, message)
