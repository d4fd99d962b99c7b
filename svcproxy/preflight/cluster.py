# SPDX-License-Identifier: Apache-2.0
"""The API server as the agent meets it: reachable, willing, in time, and with what it says of this node. A shell.

Every look is a request with the agent's own credentials. Reviews of access are answered, and change nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

import msgspec

from svcproxy.config import Config, DetectLocalMode
from svcproxy.errors import ApiForbidden, ApiUnauthorized, ApiUnavailable, ConfigError, DecodeError
from svcproxy.kube.resources import NotServed
from svcproxy.kube.servers import endpoint_urls
from svcproxy.model import EndpointSlice, Node
from svcproxy.preflight.checks import Check, Finding, Role, failure, ok, warning
from svcproxy.preflight.ports import own_addresses
from svcproxy.preflight.rbac import Permission, permissions
from svcproxy.preflight.servers import Servers, servers
from svcproxy.syntax import split_address

AGENT = frozenset({Role.AGENT})
TIMEOUT = 15.0
"""Seconds for a check: connecting takes 5 at most, an answer 10."""
SKEW_WARNING, SKEW_FAILURE = 5.0, 300.0
"""Seconds between the clocks of node and API server."""


def _check(use: Callable[[Config, Servers], Awaitable[Finding]]) -> Callable[[Config], Finding]:
    """A check that asks the API server; that it cannot be asked is another check's business."""

    async def ask(config: Config) -> Finding:
        async with servers(config) as there:
            return await use(config, there)

    def look(config: Config) -> Finding:
        if config.kube.manifests is not None:
            return ok("not needed: objects come from kube.manifests")
        try:
            return asyncio.run(ask(config))
        except (ApiUnavailable, ApiUnauthorized, ConfigError):
            return warning("not looked at: the API server cannot be asked", "see the check api-server")
        except ApiForbidden as exc:
            return warning(f"not looked at: {exc}", "see the check rbac")

    return look


def api_server(config: Config) -> Finding:
    """Whether an API server answers, and takes the credentials."""
    if config.kube.manifests is not None:
        return ok("not needed: objects come from kube.manifests")
    try:
        return asyncio.run(_who(config))
    except ConfigError as exc:
        return failure(str(exc), "give --kubeconfig, --api-server or a service account (deploy/base mounts one)")
    except ApiUnauthorized as exc:
        return failure(f"the credentials are refused: {exc}", "renew the token or certificate; look at the clock, too")
    except (ApiUnavailable, ApiForbidden) as exc:
        advice = (
            "the agent serves what it has saved, if anything, until it answers: look at address, firewall and "
            "certificate; through a Service address it answers only while something serves Services"
        )
        return failure(str(exc), advice)


async def _who(config: Config) -> Finding:
    """Who we are to the first that answers, and who else does."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    name = ""
    async with servers(config) as there:
        try:
            path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
            answer = await there.ask("POST", path, msgspec.json.encode(review))
            name = str(_field(answer.body, "status", "userInfo", "username") or "")
        except NotServed:
            answer = await there.ask("GET", "/api")
        await there.probe()
        return judge_server(answer.server, name, there.silent, through_service=there.through_service)


def judge_server(server: str, name: str, silent: Mapping[str, str], *, through_service: bool) -> Finding:
    """What it means that `server` answers to `name`, and others do not."""
    found = f"{server} answers" + (f" to {name}" if name else "")
    if name == "system:anonymous":
        advice = "no credentials are sent, or none that it knows: give a kubeconfig or a service account"
        return failure(f"{found}: the credentials are nobody's", advice)
    if silent:
        advice = "the agent goes to another while one does not answer: put it right, or take it from kube.api_servers"
        return warning(f"{found}; not so {'; '.join(silent.values())}", advice)
    if through_service:
        advice = (
            "this is a Service address: a node that starts afresh reaches it only while something serves Services. "
            "Name the API servers' own addresses in kube.api_servers"
        )
        return warning(found, advice)
    return ok(found)


async def _rbac(config: Config, there: Servers) -> Finding:
    missing = [each for each in permissions(config) if not await _allowed(there, each)]
    return judge_permissions(missing)


async def _allowed(there: Servers, permission: Permission) -> bool:
    attributes = {"verb": permission.verb, "resource": permission.resource, "group": permission.group}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = await there.ask("POST", path, msgspec.json.encode(review))
    return _field(answer.body, "status", "allowed") is True


def judge_permissions(missing: Sequence[Permission]) -> Finding:
    """What does not work without."""
    needed = [str(each) for each in missing if not each.optional]
    optional = {str(each): each.purpose for each in missing if each.optional}
    advice = "add the rules to the ClusterRole svcproxy (deploy/base/rbac.yaml)"
    if needed:
        return failure(f"not allowed: {', '.join([*needed, *optional])}", advice)
    if optional:
        effects = "; ".join(dict.fromkeys(optional.values()))
        return warning(f"not allowed: {', '.join(optional)}", f"{advice}; without, {effects}")
    return ok("every rule is there")


async def _clock(_: Config, there: Servers) -> Finding:
    answer = await there.ask("GET", "/api")
    return judge_clock(answer.date, answer.before, answer.after)


def judge_clock(date: str, before: float, after: float) -> Finding:
    """How far the clocks are apart. The header (RFC 9110 §6.6.1) has whole seconds; `before`, `after`: Unix seconds."""
    try:
        there = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return warning(f"the API server does not tell the time: Date is {date!r}", "compare the clocks yourself")
    skew = before - (there + 1) if before > there + 1 else after - there if after < there else 0.0
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the API server" if skew else "together"
    advice = "synchronise the node's clock (chrony, systemd-timesyncd)"
    if abs(skew) >= SKEW_FAILURE:
        return failure(text, f"{advice}: certificates and tokens are refused before their time or after it")
    if abs(skew) >= SKEW_WARNING:
        return warning(text, f"{advice}: latencies are wrong by as much, and ages in the logs")
    return ok(text)


async def _node_object(config: Config, there: Servers) -> Node | None:
    """The own Node. The role allows to list Nodes, not to get one."""
    selector = quote(f"metadata.name={config.node_name}", safe="")
    answer = await there.ask("GET", f"/api/v1/nodes?fieldSelector={selector}")
    found = _items(answer.body, Node)
    return found[0] if found else None


def _items(body: bytes, type_: type[Any]) -> list[Any]:
    """The objects of a list. Raises `ApiUnavailable` for what is none."""
    try:
        listed = msgspec.json.decode(body)["items"]
        return [msgspec.convert(each, type_, strict=False) for each in listed or ()]
    except (msgspec.MsgspecError, DecodeError, KeyError, TypeError) as exc:
        raise ApiUnavailable(f"not a list of {type_.__name__}: {exc}") from exc


async def _node(config: Config, there: Servers) -> Finding:
    return judge_node(config.node_name, await _node_object(config, there), own_addresses())


def judge_node(name: str, node: Node | None, own: Collection[str]) -> Finding:
    """Whether the Node is there, and is this machine."""
    if node is None:
        advice = (
            "set node_name (or $NODE_NAME) to the name that `kubectl get nodes` shows: without, no endpoint is local "
            "and NodePorts have no address"
        )
        return failure(f"there is no Node {name}", advice)
    listed = _addresses(node)
    if not listed:
        return warning(f"the Node {name} has no addresses yet", "the kubelet or the cloud provider sets them")
    if not any(each in own for each in listed):
        advice = "run it on that node, with hostNetwork: true, or set node_name to the name of this one"
        return failure(f"the Node {name} has {', '.join(listed)}, none of which is an address here", advice)
    return ok(f"{name}: {', '.join(listed)}")


def _addresses(node: Node) -> list[str]:
    found: list[str] = []
    for each in node.status.addresses or ():
        with suppress(ValueError):
            found.append(str(ip_address(each.address)))
    return list(dict.fromkeys(found))


async def _pod_cidrs(config: Config, there: Servers) -> Finding:
    return judge_pod_cidrs(config, await _node_object(config, there))


def judge_pod_cidrs(config: Config, node: Node | None) -> Finding:
    """Whether what tells pods from others is there."""
    mode = config.dataplane.local_mode
    cidrs = ", ".join((node.spec.pod_cidrs or ()) if node is not None else ())
    if mode is not DetectLocalMode.NODE_CIDR:
        return ok(f"pods are known by {mode}" + (f"; the Node has {cidrs}" if cidrs else ""))
    if cidrs:
        return ok(cidrs)
    advice = (
        "nothing tells pods from others: all keep their source address, and externalTrafficPolicy Local binds pods "
        "too. Set dataplane.cluster_cidrs, or another dataplane.detect_local_mode"
    )
    return warning("the Node has no podCIDRs", advice)


async def _families(config: Config, there: Servers) -> Finding:
    node = await _node_object(config, there)
    return judge_families(config, _addresses(node) if node is not None else [])


def judge_families(config: Config, addresses: Sequence[str]) -> Finding:
    """Whether what listens does so in the families that the node has. `addresses`: the Node's."""
    families = {"IPv6" if ":" in each else "IPv4" for each in addresses}
    if families != {"IPv6"}:
        return ok(" and ".join(sorted(families)) or "not known")
    listening = {
        "admin.health_listen": [config.admin.health_listen] if config.admin.health_listen else [],
        "dns.listen": config.dns.sockets,
    }
    only_ipv4 = [
        key for key, listed in listening.items() if listed and not any(":" in split_address(each)[0] for each in listed)
    ]
    if only_ipv4:
        advice = f'give {" and ".join(only_ipv4)} an IPv6 address, such as "[::]:10256"'
        return warning(f"the node has IPv6 alone, but these are IPv4: {', '.join(only_ipv4)}", advice)
    return ok("IPv6")


async def _endpoints(_: Config, there: Servers) -> Finding:
    selector = quote("kubernetes.io/service-name=kubernetes", safe="")
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    answer = await there.ask("GET", f"{path}?labelSelector={selector}")
    return judge_endpoints(endpoint_urls(_items(answer.body, EndpointSlice)), answer.server)


def judge_endpoints(urls: Sequence[str], server: str) -> Finding:
    """Whether there is another API server to go to."""
    if not urls:
        advice = "the agent stays with the address that it has; have API servers advertise theirs (--advertise-address)"
        return warning("the Service default/kubernetes has no ready endpoints", advice)
    return ok(f"{', '.join(urls)} besides {server}" if server not in urls else ", ".join(urls))


def _field(body: bytes, *path: str) -> Any:
    """A value inside of JSON; None if it is not there."""
    try:
        at: Any = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    for step in path:
        at = at.get(step) if isinstance(at, Mapping) else None
    return at


CHECKS = (
    Check("api-server", api_server, AGENT, TIMEOUT),
    Check("rbac", _check(_rbac), AGENT, TIMEOUT),
    Check("clock", _check(_clock), AGENT, TIMEOUT),
    Check("node", _check(_node), AGENT, TIMEOUT),
    Check("pod-cidrs", _check(_pod_cidrs), AGENT, TIMEOUT),
    Check("families", _check(_families), AGENT, TIMEOUT),
    Check("api-servers", _check(_endpoints), AGENT, TIMEOUT),
)
