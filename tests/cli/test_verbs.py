# SPDX-License-Identifier: Apache-2.0
"""What each verb prints, word by word (golden/), and how it exits.

To accept new output: `SVCPROXY_GOLDEN=write pytest tests/cli`, then read the difference.
"""

import json
import os
from pathlib import Path

import pytest

from svcproxy.cli import VERBS, main
from svcproxy.process.instance import Instance, RunDirectory
from svcproxy.testing.admin import example_state, serving

GOLDEN = Path(__file__).parent / "golden"


def check(name: str, actual: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SVCPROXY_GOLDEN") == "write":
        path.write_text(actual, encoding="utf-8")
    assert actual == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "command", "code"),
    [
        pytest.param("status.txt", ["status"], 0, id="status"),
        pytest.param("services.txt", ["services"], 0, id="services"),
        pytest.param("services-shop.txt", ["services", "-n", "shop"], 0, id="services of a namespace"),
        pytest.param("service.txt", ["services", "shop/edge"], 0, id="one Service"),
        pytest.param("endpoints.txt", ["endpoints"], 0, id="endpoints"),
        pytest.param("endpoints-web.txt", ["endpoints", "web", "-n", "shop"], 0, id="endpoints of one Service"),
        pytest.param("trace.txt", ["trace", "10.96.0.10:80", "--from", "10.244.1.9"], 0, id="trace: forward"),
        pytest.param("trace-drop.txt", ["trace", "198.51.100.7:443/tcp"], 1, id="trace: drop"),
        pytest.param("trace-nothing.txt", ["trace", "10.96.9.9:80/UDP"], 1, id="trace: not ours"),
        pytest.param("render.nft", ["render"], 0, id="render"),
        pytest.param("env.txt", ["env", "web", "-n", "shop"], 0, id="env"),
        pytest.param("status.json", ["status", "-o", "json"], 0, id="status as JSON"),
        pytest.param("services.json", ["services", "-o", "json"], 0, id="services as JSON"),
        pytest.param("endpoints-web.json", ["endpoints", "shop/web", "-o", "json"], 0, id="endpoints as JSON"),
        pytest.param("trace.json", ["trace", "10.96.0.10:80", "-o", "json"], 0, id="trace as JSON"),
        pytest.param("env.json", ["env", "web", "-n", "shop", "-o", "json"], 0, id="env as JSON"),
    ],
)
def test_output(served: Path, capsys: pytest.CaptureFixture[str], name: str, command: list[str], code: int) -> None:
    assert main([*command, "--run-dir", str(served)]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    check(name, captured.out)


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([verb, "--help"])
    assert exited.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: svcproxy {verb} ")
    for example in next(each for each in VERBS if each.name == verb).examples:
        assert example in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(["services", "a/b/c"], "SERVICE: 'a/b/c' is not NAME or NAMESPACE/NAME", id="two slashes"),
        pytest.param(["services", "/web"], "SERVICE: '/web' is not NAME or NAMESPACE/NAME", id="empty namespace"),
        pytest.param(
            ["render", "--node-name", "n2"],
            "--node-name: only with --manifests: an agent serves its own node",
            id="another node's rules",
        ),
        pytest.param(
            ["render", "--manifests", "/nothing/here"],
            "kube.manifests: /nothing/here: No such file or directory",
            id="rules of manifests that are not there",
        ),
        pytest.param(["resolve", "web", "NONSENSE"], "TYPE: 'NONSENSE' is not a record type", id="record type"),
        pytest.param(
            ["resolve", "web", "--server", "dns.example"],
            "--server: 'dns.example' is not ADDRESS or ADDRESS:PORT with an IP address, IPv6 in brackets",
            id="server by name",
        ),
    ],
)
def test_an_unusable_argument_exits_with_2(
    served: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert main([*command, "--run-dir", str(served)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"svcproxy: {message}\n")


@pytest.mark.parametrize(
    "command", [[], ["no-such-verb"], ["status", "--no-such-flag"], ["trace"], ["env", "-o", "xml"]]
)
def test_an_unusable_command_line_exits_with_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(command)
    assert exited.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: svcproxy")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(["services", "shop/none"], "no Service shop/none", id="unknown Service"),
        pytest.param(["env", "none", "-n", "shop"], "no Service shop/none", id="env of an unknown Service"),
        pytest.param(["trace", "web:80"], "not an IP address: 'web'", id="trace to a name"),
        pytest.param(
            ["trace", "10.0.0.1"], "address: '10.0.0.1' is not ADDRESS:PORT[/PROTO], IPv6 in brackets", id="no port"
        ),
    ],
)
def test_what_the_instance_refuses_is_passed_on(
    served: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert main([*command, "--run-dir", str(served)]) == 1
    assert capsys.readouterr().err == f"svcproxy: {message}\n"


def failure(run_dir: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["status", "--run-dir", str(run_dir), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_no_instance(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(run_dir, capsys) == (
        f"svcproxy: no svcproxy instance under {run_dir}: start one with `svcproxy run`, "
        "or name its directory with --run-dir\n"
    )


def test_an_instance_that_has_ended(run_dir: Path, instance: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(run_dir, capsys) == (
        f"svcproxy: nobody listens at {instance.paths.admin_socket}: the instance has ended, or is just starting\n"
    )


def test_an_instance_of_another_name(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(served, capsys, "--instance", "other") == (
        f"svcproxy: no svcproxy instance 'other' under {served}; there are: 7-100\n"
    )


def test_two_instances_that_wait(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(run_dir)
    first, second = run.open_instance("a"), run.open_instance("b")
    assert failure(run_dir, capsys) == (
        f"svcproxy: no instance under {run_dir} holds the node; choose with --instance: a, b\n"
    )
    first.close()
    second.close()


def test_the_only_instance_is_asked_while_it_waits(run_dir: Path) -> None:
    waiting = RunDirectory(run_dir).open_instance("b")
    state = example_state()
    state.holds_node = False
    with serving(state, waiting.paths.admin_socket):
        assert main(["status", "--run-dir", str(run_dir), "--probe", "livez"]) == 0
        assert main(["status", "--run-dir", str(run_dir), "--probe", "readyz"]) == 1
    waiting.close()


@pytest.mark.parametrize(
    ("holds", "programmed", "snapshot", "probe", "code", "reason"),
    [
        pytest.param(True, True, False, "readyz", 0, "", id="ready"),
        pytest.param(True, True, False, "livez", 0, "", id="alive"),
        pytest.param(True, True, True, "readyz", 0, "", id="stale is ready"),
        pytest.param(
            True,
            False,
            False,
            "readyz",
            1,
            "instances/7-100/admin.sock: readyz: 503: nothing has been programmed completely yet\n",
            id="starting",
        ),
    ],
)
def test_probes_of_the_agent(
    instance: Instance,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    holds: bool,
    programmed: bool,
    snapshot: bool,
    probe: str,
    code: int,
    reason: str,
) -> None:
    state = example_state()
    state.holds_node, state.programmed, state.snapshot = holds, programmed, snapshot
    with serving(state, instance.paths.admin_socket):
        assert main(["status", "--run-dir", str(run_dir), "--probe", probe]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", reason)


def test_probes_of_the_dns_workers_ask_every_worker(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["status", "--run-dir", str(run_dir), "--role", "dns", "--probe", "readyz"]
    assert main(command) == 1
    assert capsys.readouterr().err == f"svcproxy: no dns worker runs under {run_dir}\n"
    first, second = (RunDirectory(run_dir / worker).open_instance("w") for worker in ("dns-0", "dns-1"))
    (run_dir / "dns-supervisor.json").touch()
    waiting = example_state()
    waiting.holds_node = False
    with serving(example_state(), first.paths.admin_socket):
        with serving(waiting, second.paths.admin_socket):
            assert main(command) == 1
        second.close()
        assert main(command) == 0, "a directory without an instance is left over"
    first.close()
    assert capsys.readouterr().err == (
        "dns-1/instances/w/admin.sock: readyz: 503: waiting for the node: another instance holds it\n"
    )


def test_cleanup_refuses_while_an_instance_runs(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cleanup", "--run-dir", str(served)]) == 1
    assert capsys.readouterr().err == (
        f"svcproxy: instance 7-100 runs under {served}: stop it first; use --force to go on all the same\n"
    )


MANIFESTS = """
{apiVersion: v1, kind: Node, metadata: {name: n3}, spec: {podCIDRs: [10.244.3.0/24]},
 status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort, clusterIP: 10.96.0.10,
 externalTrafficPolicy: Local, ports: [{name: http, port: 80, nodePort: 30080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: http, port: 8080}],
 metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}},
 endpoints: [{addresses: [10.244.3.9], nodeName: n3}, {addresses: [10.244.4.9], nodeName: n4}]}
---
{apiVersion: v1, kind: Service, metadata: {name: odd}, spec: {ports: 7}}
"""


def test_render_without_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The node is another machine, known by its Node object; what is left out is told."""
    config = tmp_path / "config.yaml"
    config.write_text("dataplane: {masquerade_all: true, service_cidrs: [10.96.0.0/12]}\n", encoding="utf-8")
    manifests = tmp_path / "objects.yaml"
    manifests.write_text(MANIFESTS, encoding="utf-8")
    command = ["render", "--config", str(config), "--manifests", str(manifests), "--node-name", "n3"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"svcproxy: left out: Service default/odd: {manifests}:12: spec.ports: ")
    check("render-manifests.nft", captured.out)


def test_render_is_not_silent_about_what_another_proxy_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, manifests = tmp_path / "config.yaml", tmp_path / "services.yaml"
    config.write_text("dataplane: {service_cidrs: [10.96.0.0/31]}")
    manifests.write_text(
        "{apiVersion: v1, kind: Service, metadata: {name: theirs, namespace: shop, labels:"
        " {service.kubernetes.io/service-proxy-name: x}}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}"
    )
    assert main(["render", "--config", str(config), "--manifests", str(manifests), "--node-name", "n3"]) == 0
    silent = capsys.readouterr().out.partition("set svccidr {")[2].partition("}")[0]
    assert "10.96.0.0" in silent
    assert "10.96.0.1" not in silent
    assert "10.96.0.0/31" not in silent


def test_render_with_a_configuration_needs_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.touch()
    assert main(["render", "--config", str(config)]) == 2
    assert capsys.readouterr().err == (
        "svcproxy: --manifests: needed beside --config; without both, the running agent is asked\n"
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("svcproxy ")
    assert main(["version", "-o", "json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"version", "python"}


def test_check_config_finds_every_error_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("dns:\n  ttl: -1\n  colour: red\nlog:\n  level: loud\n", encoding="utf-8")
    assert main(["check-config", "--config", str(bad), "--dns-listen", "nowhere"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 4
    for place in (f"{bad}:2: dns.ttl", f"{bad}:3: dns.colour", f"{bad}:5: log.level", "--dns-listen"):
        assert any(place in line for line in lines), (place, lines)


def test_check_config_prints_the_tree_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("dns:\n  ttl: 7\n", encoding="utf-8")
    assert main(["check-config", "--config", str(good), "--node-name", "n9"]) == 0
    assert capsys.readouterr().out == f"{good}: ok\n"
    assert main(["check-config", "--config", str(good), "--node-name", "n9", "-o", "json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["dns"]["ttl"], tree["node_name"], tree["dns"]["zones"][0]) == (7, "n9", "cluster.local")
