# SPDX-License-Identifier: Apache-2.0
"""The command line: verbs, their flags, and where each one is carried out.

Exit codes: 0 success, 1 failure (an instance that cannot be asked, a probe that says no, a name without records), 2 a
command line or configuration that cannot be used. What was asked for goes to standard output, everything else to
standard error.

A verb's module is loaded when the verb is used: an exec probe must start within a blink, and an agent that reads
manifests must not load what only a cluster needs.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from svcproxy import __version__
from svcproxy.errors import ConfigError, SvcproxyError

SUCCESS, FAILURE, USAGE = 0, 1, 2
INTERRUPTED = 130
"""As a shell reports SIGINT."""
RUN_DIR = "/run/svcproxy"
"""Default of `run_dir`, as in `svcproxy.config`."""
STATE_DIR = "/var/lib/svcproxy"
"""Default of `state_dir`."""

_FLAGS_OF_A_ROLE = "svcproxy.options:add_flags"
_LAUNCH_OF_A_ROLE = "svcproxy.options:Launch"


Call = Callable[[Callable[..., int], argparse.Namespace], int]


def _with_arguments(function: Callable[..., int], arguments: argparse.Namespace) -> int:
    return function(arguments)


def _with_launch(function: Callable[..., int], arguments: argparse.Namespace) -> int:
    return function(load_entry(_LAUNCH_OF_A_ROLE)(arguments))


def _with_keep(function: Callable[..., int], arguments: argparse.Namespace) -> int:
    return function(arguments.keep)


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb of the command line."""

    name: str
    entry: str
    """`module:function` that carries it out and returns the exit code."""
    help: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...] = ()
    configured: bool = False
    """Takes `--config` and every flag that sets a key."""
    call: Call = _with_arguments
    """How the function wants to be called."""


def _no_arguments(_: argparse.ArgumentParser) -> None:
    """The verb has none of its own."""


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how to print (default: text)")


def _instance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", metavar="DIR", default=RUN_DIR, help=f"where the instance has its sockets (default: {RUN_DIR})"
    )
    parser.add_argument(
        "--instance",
        metavar="NAME",
        default=os.environ.get("SVCPROXY_INSTANCE", ""),
        help="which instance to ask (default: $SVCPROXY_INSTANCE, else the one that answers as the node)",
    )


def _asks(parser: argparse.ArgumentParser) -> None:
    _output(parser)
    _instance(parser)


def _namespace(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAMESPACE", default="", help=text)


def _status(parser: argparse.ArgumentParser) -> None:
    _asks(parser)
    parser.add_argument(
        "--probe", choices=("livez", "readyz", "healthz"), help="print nothing, answer by the exit code"
    )
    parser.add_argument(
        "--role", choices=("agent", "dns"), default="agent", help="whom to ask (default: agent, and the DNS workers)"
    )


def _listing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", nargs="?", default="", metavar="SERVICE", help="[NAMESPACE/]NAME; default: list all")
    _namespace(parser, "only this namespace (with SERVICE: its namespace, default: default)")
    _asks(parser)


def _resolve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="short names are completed as in a Pod; a final dot prevents that")
    parser.add_argument("type", metavar="TYPE", nargs="?", default="A", help="record type (default: A)")
    _namespace(parser, "namespace whose Pods would ask (default: default)")
    parser.add_argument(
        "--server",
        metavar="ADDRESS[:PORT]",
        action="append",
        help="whom to ask (repeatable; default: where the instance listens)",
    )
    parser.add_argument("--cluster-domain", metavar="ZONE", default="", help="zone to complete short names with")
    _asks(parser)


def _trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS:PORT[/PROTO]", help="destination; PROTO is TCP, UDP or SCTP")
    parser.add_argument("--from", dest="source", metavar="IP", default="", help="source (default: somebody outside)")
    _asks(parser)


def _environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", nargs="*", metavar="SERVICE", help="only these Services (default: all)")
    _namespace(parser, "namespace of the Pod (default: default)")
    _asks(parser)


_WITHOUT_AGENT = """\
What an agent with these would program. The node's addresses are those of this machine, if they include one that the
Node object names or if there is no Node object; else those that it names."""


def _render(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("without an agent", _WITHOUT_AGENT)
    group.add_argument("--manifests", metavar="PATH", help="YAML/JSON file or directory with the objects")
    group.add_argument("--node-name", metavar="NAME", help="which node (default: $NODE_NAME, else the host name)")
    group.add_argument("--config", metavar="FILE", help="configuration file; its keys dataplane.* count")
    _instance(parser)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C, to try things by hand")


def _cleanup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kube-proxy", action="store_true", help="also remove the rules that a kube-proxy has left on this node"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on while an agent runs here or a kube-proxy answers; either puts its rules back",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", default=RUN_DIR, help=f"where instances have their sockets (default: {RUN_DIR})"
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        default=STATE_DIR,
        help=f"where it is noted which kernel parameters were changed (default: {STATE_DIR})",
    )


def _migrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml", help="how to print (default: yaml)")
    parser.add_argument("-w", "--write", metavar="FILE", help="write to this file (default: standard output)")
    files = parser.add_argument_group(
        "files", "As they are, or the objects that hold them in YAML or JSON; - is standard input. None: the cluster."
    )
    files.add_argument(
        "--kube-proxy", metavar="FILE", help="KubeProxyConfiguration; ConfigMap, DaemonSet of kube-proxy"
    )
    files.add_argument("--corefile", metavar="FILE", help="Corefile, or ConfigMap, of CoreDNS")
    files.add_argument("--node-local-dns", metavar="FILE", help="the same, or DaemonSet, of NodeLocal DNSCache")
    files.add_argument("--kube-dns", metavar="FILE", help="ConfigMap and Service kube-dns")
    files.add_argument(
        "--env", metavar="NAME=VALUE", action="append", help="value of {$NAME} in Corefiles (repeatable)"
    )
    cluster = parser.add_argument_group(
        "cluster", "Read from kube-system; needs get of ConfigMaps, DaemonSets, Services."
    )
    cluster.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig (default: $KUBECONFIG, else the Pod's)")
    cluster.add_argument("--api-server", metavar="URL", action="append", help="API server in place of the kubeconfig's")


def _preflight(parser: argparse.ArgumentParser) -> None:
    _output(parser)
    parser.add_argument("--role", choices=("agent", "dns", "all"), default="all", help="who is to run (default: all)")


_PREFLIGHT = """\
Looks at everything that svcproxy needs on this node: configuration, kernel, privileges, directories, ports, API server,
role, Node object, resolvers; and at what stands in its way: kube-proxy, other programs, clocks. For each check it says
what was found and, if need be, what to do. Nothing is changed. Run it as the agent or the DNS role would run, with its
configuration and flags: as an init container, or before a node is handed over.

ok: all is well · warning: svcproxy serves, but not all or not as well as it could · FAILURE: it does not serve

Exit codes: 0 no failures, 1 failures."""

_MIGRATE = """\
Reads how kube-proxy, CoreDNS and NodeLocal DNSCache are set up, and prints the configuration of svcproxy that means the
same. What svcproxy does in another way, or cannot do, is said in comments, each with the file and line that it is
about; with -o json the same for programs. Nothing is changed. docs/migrate.md goes through a whole migration.

Exit codes: 0 printed, 1 the cluster cannot be read, 2 arguments or files unusable."""

_RENDER = """\
Prints a script for `nft -f` (tried with nft 1.0.6) under which new connections meet what they meet under the nftables
data plane. It is made of what the agent wants to be in force, not read from the kernel: compare with `nft list
ruleset`. Nothing is changed. Without --manifests the running agent is asked.

How to read it. A new connection is looked up in `class` by destination (address, protocol, port), then in `npclass` on
the node's own addresses (NodePorts); the Service is named behind each line there. What follows ` : ` decides:

  goto n3          one of 3 backends, in `ep` under the same destination; np-: of a NodePort, local-: of this node
  goto a3-10800    the same, and a client keeps its backend for 10800 s (`pick`, `aff`)
  goto refuse      no backend anywhere: refused (the kernel's own table has `reject` for it)
  drop             backends, but none that the traffic policy allows here
  goto firewall    only from the sources in `srcok`, then on in `admitted`
  goto split       on in `near` for pods and the node itself, in `far` for all others

Backends see the node's address for what is in `masq`, for ClusterIPs from outside `podcidr`, and for pods that reach
themselves (`hairpin`).

In an emergency, with no agent running, the script can be loaded: `svcproxy render --manifests DIR | nft -f -`. It
replaces the tables `ip svcproxy` and `ip6 svcproxy`; an agent that starts later replaces them with its own. While an
agent owns the tables, nft refuses and nothing changes. It differs from the agent's own rules in that the first packet
of a connection carries a mark on its way through the node, and that an IPv6 client with affinity is known by a hash.

Exit codes: 0 printed, 1 no agent to ask or it does not know everything yet, 2 arguments or manifests unusable."""

VERBS: tuple[Verb, ...] = (
    Verb(
        "run",
        "svcproxy.supervisor.run:main",
        "start every role on this machine and keep them running",
        "Starts the agent and the DNS workers as children, restarts those that end, and stops them on SIGTERM. In\n"
        "Kubernetes the kubelet does that: there each role is a container of its own.",
        _no_arguments,
        (
            "svcproxy run --manifests ./services --dns-listen 127.0.0.1:5353",
            "svcproxy run --config /etc/svcproxy/config.yaml",
        ),
        configured=True,
        call=_with_launch,
    ),
    Verb(
        "agent",
        "svcproxy.agent.agent:main",
        "follow Services and endpoints, balance, publish (one role)",
        "Follows the API server or a manifests directory, programs the data plane, publishes names to the DNS workers\n"
        "and answers health, metrics and status.",
        _no_arguments,
        ("svcproxy agent --kubeconfig ~/.kube/config --node-name worker-3",),
        configured=True,
        call=_with_launch,
    ),
    Verb(
        "dns",
        "svcproxy.supervisor.run:dns",
        "answer cluster DNS from the agent's feed (one role)",
        "Answers DNS on the configured addresses with what the agent of the same run directory publishes. It goes on\n"
        "with what it knows while no agent runs.",
        _no_arguments,
        ("svcproxy dns --dns-listen 169.254.20.10:53",),
        configured=True,
        call=_with_launch,
    ),
    Verb(
        "demo",
        "svcproxy.demo:main",
        "see it work in a minute: no privileges, no cluster",
        "Starts a few backends, a manifests directory and svcproxy itself on loopback addresses, sends requests while\n"
        "it scales and rolls the Service, and reports how many failed.",
        _demo,
        ("svcproxy demo", "svcproxy demo --keep"),
        call=_with_keep,
    ),
    Verb(
        "status",
        "svcproxy.client.status:run",
        "show how the instance is, or answer a probe",
        "Shows readiness and why, sources, data plane, workers, latencies, DNS and its upstreams, and everything that\n"
        "is wrong. With --probe it prints nothing and exits with 0 or 1.",
        _status,
        (
            "svcproxy status",
            "svcproxy status -o json | jq .readiness",
            "svcproxy status --role dns                   # the DNS workers alone",
            "svcproxy status --probe readyz               # exec probe of the agent",
            "svcproxy status --role dns --probe livez     # exec probe of the DNS workers",
        ),
    ),
    Verb(
        "services",
        "svcproxy.client.listing:services",
        "list Services, or show one with frontends and endpoints",
        "Lists the Services that the instance knows, or shows everything about one.",
        _listing,
        ("svcproxy services -n shop", "svcproxy services shop/web"),
    ),
    Verb(
        "endpoints",
        "svcproxy.client.listing:endpoints",
        "list endpoints, or show those of one Service with their conditions",
        "Lists the ready endpoints of every Service, or shows each endpoint of one with conditions and hints.",
        _listing,
        ("svcproxy endpoints", "svcproxy endpoints shop/web -o json"),
    ),
    Verb(
        "resolve",
        "svcproxy.client.resolve:run",
        "ask the node's DNS, and explain the answer",
        "Sends a real DNS query to the addresses that the instance listens on (UDP, and TCP if the answer is cut) and\n"
        "prints the records; then, step by step, why: which object the name is about, why it does not exist, which\n"
        "upstream is asked, what is kept. The DNS worker explains its answer, the agent tells of the Service and its\n"
        "slices; each is of use without the other. With --server somebody else is asked and nothing is explained.\n"
        "Exits with 1 if there are no records.",
        _resolve,
        (
            "svcproxy resolve web.shop",
            "svcproxy resolve web -n shop AAAA",
            "svcproxy resolve web.shop.svc.cluster.local. --server 127.0.0.1:5353",
        ),
    ),
    Verb(
        "trace",
        "svcproxy.client.trace:run",
        "explain what becomes of a connection",
        "Says step by step what this node does with a new connection to an address: which Service takes it, which\n"
        "policy applies, which backends it may go to. Nothing is sent. Exits with 1 if it would not reach a backend.",
        _trace,
        ("svcproxy trace 10.96.0.10:53/UDP", "svcproxy trace 198.51.100.7:80 --from 203.0.113.5"),
    ),
    Verb(
        "env",
        "svcproxy.client.trace:environment",
        "print the Service variables that a Pod gets",
        "Prints the {NAME}_SERVICE_HOST, {NAME}_SERVICE_PORT and Docker-style variables that the kubelet would set in\n"
        "a new Pod of a namespace, one NAME=value on each line.",
        _environment,
        ("svcproxy env -n shop", "svcproxy env -n shop web db"),
    ),
    Verb(
        "render",
        "svcproxy.agent.render:run",
        "print the nftables rules of this node as a script",
        _RENDER,
        _render,
        (
            "svcproxy render | less",
            "svcproxy render | grep '10[.]96[.]0[.]10 '    # one Service address, in every set",
            "svcproxy render --manifests ./services --node-name worker-3 | nft -c -f -",
        ),
    ),
    Verb(
        "check-config",
        "svcproxy.agent.check:run",
        "find every error of a configuration",
        "Reads the configuration, and the manifests it names, as the roles do and prints everything that is wrong.\n"
        "With -o json it prints the whole tree in force, defaults included. Exits with 2 if anything is wrong.",
        _output,
        ("svcproxy check-config --config config.yaml", "svcproxy check-config --config config.yaml -o json"),
        configured=True,
    ),
    Verb(
        "preflight",
        "svcproxy.preflight.verb:run",
        "say whether this node has what svcproxy needs",
        _PREFLIGHT,
        _preflight,
        (
            "svcproxy preflight --config config.yaml --kubeconfig ~/.kube/config --node-name worker-3",
            "svcproxy preflight --role dns --config config.yaml    # in the container of the DNS role",
            "svcproxy preflight -o json | jq '.checks[] | select(.verdict != \"ok\")'",
        ),
        configured=True,
    ),
    Verb(
        "migrate",
        "svcproxy.migrate.verb:run",
        "turn the configuration of kube-proxy and CoreDNS into svcproxy's",
        _MIGRATE,
        _migrate,
        (
            "svcproxy migrate > config.yaml               # from the cluster of the current kubeconfig",
            "svcproxy migrate --kube-proxy config.conf --corefile Corefile --write config.yaml",
            "kubectl -n kube-system get configmap coredns -o yaml | svcproxy migrate --corefile -",
            "svcproxy migrate -o json | jq '.remarks[] | select(.treatment == \"none\")'",
        ),
    ),
    Verb(
        "cleanup",
        "svcproxy.cleanup:run",
        "remove from this node what svcproxy has left on it",
        "Removes svcproxy's nftables tables, of whatever version, takes back the kernel parameters it has set,\n"
        "removes what dead instances left in the run directory, and prints a line for each. New connections to\n"
        "Services fail from then on until something else serves them; established ones go on. Needs CAP_NET_ADMIN\n"
        "in the node's network namespace.\n"
        "\n"
        "An agent leaves its rules in force when it ends, so that a restart interrupts nothing: this is for nodes\n"
        "that svcproxy leaves. It refuses while an agent runs; stop that first. With --kube-proxy it removes\n"
        "kube-proxy's rules as well: its nftables tables and its chains in the tables of iptables, never the\n"
        "kubelet's. What it has to leave to you it names. Exits with 1 if anything is left that should not be;\n"
        "doing it twice is harmless.",
        _cleanup,
        (
            "svcproxy cleanup",
            "svcproxy cleanup --kube-proxy                # when kube-proxy has been removed from the cluster",
        ),
    ),
    Verb("version", "svcproxy.client.check:version", "print the version", "Prints the version.", _output),
)

_EPILOG = """examples:
  svcproxy demo                                            see it work, without privileges or a cluster
  svcproxy run --manifests DIR --dns-listen 127.0.0.1:5353 serve the Services of a directory of YAML files
  svcproxy status                                          how is the instance on this node?

exit codes: 0 success, 1 failure, 2 unusable command line or configuration
`svcproxy VERB --help` explains each verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        code = arguments.verb.call(load_entry(arguments.verb.entry), arguments)
        sys.stdout.flush()
    except ConfigError as exc:
        for problem in exc.problems:
            print(f"svcproxy: {problem}", file=sys.stderr)
        return USAGE
    except SvcproxyError as exc:
        print(f"svcproxy: {exc}", file=sys.stderr)
        return FAILURE
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    return int(code)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line, with its `verb`. Exits with 2 (argparse's own way) if it is wrong.

    Only the verb that is asked for gets its flags, so that the others' need not be loaded.
    """
    asked = next((word for word in argv if not word.startswith("-")), "")
    parser = argparse.ArgumentParser(
        prog="svcproxy",
        description="Services, endpoints and cluster DNS of Kubernetes, served on every node, straight to pod IPs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"svcproxy {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        own = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=verb.description,
            epilog="\n  ".join(("examples:", *verb.examples)) if verb.examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        own.set_defaults(verb=verb)
        if verb.name == asked:
            verb.arguments(own)
            if verb.configured:
                load_entry(_FLAGS_OF_A_ROLE)(own)
    return parser.parse_args(argv)


def load_entry(entry: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, function = entry.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
