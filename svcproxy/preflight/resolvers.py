# SPDX-License-Identifier: Apache-2.0
"""Whom the DNS role forwards to. A shell; nobody is asked, nothing changed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from svcproxy.config import Config
from svcproxy.preflight.checks import Check, Finding, Role, failure, ok, warning
from svcproxy.preflight.ports import EVERYWHERE, own_addresses
from svcproxy.syntax import split_address
from svcproxy_dns.upstreams import RESOLV_CONF_OCTETS_MAX, parse_resolv_conf

DNS = frozenset({Role.DNS})


def resolv_conf(config: Config) -> Finding:
    """Whether there is somebody to forward to, who does not come back here."""
    if config.dns.upstreams:
        return judge_resolvers(config.dns.upstreams, (), "dns.upstreams", _own(config))
    path = config.dns.resolv_conf
    if path is None:
        return warning("dns.resolv_conf is null", "names outside the zones are refused; set dns.upstreams if not meant")
    advice = (
        f"mount the node's resolv.conf there (its directory, to follow changes), or set dns.upstreams; read: {path}"
    )
    try:
        with Path(path).open("rb") as file:
            octets = file.read(RESOLV_CONF_OCTETS_MAX)
    except OSError as exc:
        return failure(f"{path} cannot be read: {exc.strerror}", advice)
    upstreams, problems = parse_resolv_conf(octets.decode("utf-8", "replace"))
    if not upstreams:
        return failure(f"{path} lists no nameserver", advice)
    return judge_resolvers(upstreams, problems, path, _own(config))


def _own(config: Config) -> Callable[[str], bool]:
    """Whether ADDRESS:PORT is the DNS role itself."""
    listed = set(config.dns.sockets)
    everywhere = {split_address(each)[1] for each in listed if split_address(each)[0] in EVERYWHERE}
    local = own_addresses() if everywhere else frozenset()

    def is_own(upstream: str) -> bool:
        host, port = split_address(upstream)
        return upstream in listed or (port in everywhere and (host in local or host.startswith("127.")))

    return is_own


def judge_resolvers(
    upstreams: Sequence[str], problems: Sequence[str], where: str, is_own: Callable[[str], bool]
) -> Finding:
    """Whether the upstreams that `where` lists are others than this server."""
    own = [each for each in upstreams if is_own(each)]
    others = [each for each in upstreams if each not in own]
    loopback = [
        each
        for each in others
        if split_address(each)[0].partition("%")[0].startswith("127.") or split_address(each)[0] == "::1"
    ]
    text = f"{where}: {', '.join(upstreams)}"
    if not others:
        advice = "it leads back to svcproxy itself: name resolvers outside the node in dns.upstreams"
        return failure(text, advice)
    if own:
        return warning(text, f"{', '.join(own)} is svcproxy itself and is left out")
    if loopback:
        advice = (
            f"{', '.join(loopback)} answers on this node alone, such as systemd-resolved: make sure that it does not "
            "forward to svcproxy, or name its own upstreams, which are in /run/systemd/resolve/resolv.conf"
        )
        return warning(text, advice)
    if problems:
        return warning(text, f"what cannot be used is left out: {'; '.join(problems)}")
    return ok(text)


CHECKS = (Check("resolvers", resolv_conf, DNS),)
