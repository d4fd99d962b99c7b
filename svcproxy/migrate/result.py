# SPDX-License-Identifier: Apache-2.0
"""From what was read to a configuration that svcproxy takes, and its text. Pure."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from svcproxy.config import Config, dump
from svcproxy.document import Document, Value, plain
from svcproxy.migrate import corefile, kube_proxy
from svcproxy.migrate.corefile_scope import Scope, Words
from svcproxy.migrate.draft import Draft, Place, Remark, Source, Treatment
from svcproxy.migrate.inputs import Inputs
from svcproxy.migrate.node_local_dns import listen, migrate_kube_dns, migrate_node_local_dns, migrate_upstreams
from svcproxy.options import check

WIDTH = 110
"""Columns of a comment."""

_HEADINGS = {
    Treatment.NONE: "svcproxy cannot do this:",
    Treatment.DIFFERS: "svcproxy does this in another way:",
    Treatment.NEEDLESS: "svcproxy has no need of this:",
}


def migrate(inputs: Inputs) -> Draft:
    """The configuration that means what was read, and what there is to say about it. `check-config` takes it."""
    draft = Draft()
    if inputs.kube_proxy is not None:
        kube_proxy.migrate(inputs.kube_proxy, draft)
    if inputs.corefile is not None:
        corefile.migrate(inputs.corefile, Scope(draft, Source.COREDNS, inputs.corefile.file, Words()))
    cache, config_map = inputs.node_local_dns, inputs.kube_dns
    if config_map is not None:
        migrate_kube_dns(config_map, draft, read=cache is not None or inputs.corefile is None)
        if cache is None and inputs.corefile is None:
            migrate_upstreams(config_map, draft)
    addresses = list(inputs.cluster_ips)
    source, setting = Source.KUBE_DNS, "Service kube-dns"
    if cache is not None:
        addresses = [*migrate_node_local_dns(cache, config_map, inputs.cluster_ips, draft), *addresses]
        source, setting = Source.NODE_LOCAL_DNS, "-localip"
    if addresses:
        listen(list(dict.fromkeys(addresses)), draft, Place(source, setting))
    elif inputs.corefile is not None or cache is not None:
        text = (
            "where pods ask is not known (the ClusterIP of the Service kube-dns, or NodeLocal DNSCache's addresses): "
            "set dns.listen and dns.intercept"
        )
        draft.say(Place(Source.RESULT, "dns.listen"), Treatment.NONE, text)
    _settle(draft)
    return draft


def _settle(draft: Draft) -> None:
    """Leave out what svcproxy would refuse."""
    for _ in range(len(draft.values) + 1):
        _, problems = check(Document("", 0, _value(nested(draft.values))))
        if not problems:
            return
        found = [(problem, problem.path.partition("[")[0]) for problem in problems]
        keys = {_cause(path, draft.values): str(problem.message) for problem, path in found}
        for key, message in keys.items():
            draft.unset(key, Treatment.NONE, f"cannot be carried over: {message}")


def _value(content: Any) -> Value:
    """Built-in values as if they had been read."""
    match content:
        case dict():
            return Value(0, {key: _value(each) for key, each in content.items()})
        case list():
            return Value(0, [_value(each) for each in content])
        case _:
            return Value(0, content)


def _cause(path: str, values: Mapping[str, Any]) -> str:
    """The key that was set and leads to a problem at `path`."""
    at = path
    while at and at not in values:
        at = at.rpartition(".")[0]
    return at or next(cause for cause in _CAUSES.get(path, ()) if cause in values)


_CAUSES = {
    "dataplane.pod_bridge_interface": ("dataplane.detect_local_mode",),
    "dataplane.pod_interface_name_prefix": ("dataplane.detect_local_mode",),
    "dataplane.cluster_cidrs": ("dataplane.detect_local_mode",),
    "admin.metrics_listen": ("admin.health_listen",),
}
"""By key that is at its default: which others may be what it does not go together with."""


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as a tree, in the order of the configuration."""
    tree: dict[str, Any] = {}
    for key in _in_order(values):
        at = tree
        *sections, last = key.split(".")
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = values[key]
    return tree


def _in_order(values: Mapping[str, Any]) -> list[str]:
    order = {key: number for number, key in enumerate(_keys(dump(Config()), ""))}
    return sorted(values, key=lambda key: order.get(key, len(order)))


def _keys(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Dotted paths of a tree, values before sections."""
    sections = {key: value for key, value in tree.items() if isinstance(value, dict) and value}
    for key in tree:
        if key not in sections:
            yield prefix + key
    for key, value in sections.items():
        yield from _keys(value, f"{prefix}{key}.")


def as_json(inputs: Inputs, draft: Draft) -> dict[str, Any]:
    """For programs."""
    return {
        "sources": [{"subject": subject.value, "from": file} for subject, file in inputs.read],
        "config": nested(draft.values),
        "remarks": [
            {
                "source": each.place.source.value,
                "setting": each.place.setting,
                "file": each.place.file,
                "line": each.place.line or None,
                "value": each.value,
                "treatment": each.treatment.value,
                "key": each.key,
                "text": each.text,
            }
            for each in draft.remarks
        ],
    }


def as_yaml(inputs: Inputs, draft: Draft) -> str:
    """For people and for svcproxy: remarks are comments."""
    lines = ["# Made by `svcproxy migrate` from:"]
    lines += [f"#   {subject.value}: {file}" for subject, file in inputs.read]
    for treatment, heading in _HEADINGS.items():
        about = [each for each in draft.remarks if each.treatment is treatment and each.key not in draft.values]
        if about:
            lines += ["#", f"# {heading}"]
            lines += _comments(about, "", bullet="- ")
    lines += _section(nested(draft.values), draft, "", "")
    return "\n".join(lines) + "\n"


def _section(tree: Mapping[str, Any], draft: Draft, prefix: str, indent: str) -> list[str]:
    lines: list[str] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key not in draft.values:
            lines += ["", f"{indent}{name}:"] if not indent else [f"{indent}{name}:"]
            lines += _section(value, draft, f"{key}.", f"{indent}  ")
            continue
        lines += _comments(draft.about(key), indent)
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{name}:")
            lines += [f"{indent}  {_scalar(each)}: {_flow(value[each])}" for each in value]
        else:
            lines.append(f"{indent}{name}: {_flow(value)}")
    return lines


def _comments(remarks: Iterable[Remark], indent: str, bullet: str = "") -> list[str]:
    """The remarks as comments; the same one about several places is made once."""
    places: dict[tuple[Source, str, str, str], list[Place]] = {}
    for each in remarks:
        places.setdefault((each.place.source, each.place.setting, each.value, each.text), []).append(each.place)
    lines: list[str] = []
    for (source, setting, value, text), found in places.items():
        where = ", ".join(_where(found))
        said = (
            setting if not value or value == setting else value if value.startswith(setting) else f"{setting} {value}"
        )
        told = f"{source} {said}" + (f" ({where})" if where else "") + (f": {text}" if text else "")
        told = " ".join(told.split())  # what comes from outside must not end the comment
        first, following = f"{indent}# {bullet}", f"{indent}# {' ' * len(bullet)}"
        lines += textwrap.wrap(
            _visible(told), WIDTH, initial_indent=first, subsequent_indent=following, break_on_hyphens=False
        )
    return lines


def _where(places: Iterable[Place]) -> Iterator[str]:
    """Each file with the lines in it."""
    lines: dict[str, dict[int, None]] = {}
    for place in places:
        lines.setdefault(place.file, {})[place.line] = None
    for file, numbers in lines.items():
        known = ", ".join(str(number) for number in numbers if number)
        if file:
            yield f"{file}:{known}" if known else file


def _visible(text: str) -> str:
    """Characters that YAML takes in a comment, others replaced."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return _scalar(value)


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")


def _scalar(value: Any) -> str:
    """A scalar in one line; strings are quoted where YAML would take them for something else."""
    simple = isinstance(value, str) and value[:1] not in ("", "-", ".") and _PLAIN.issuperset(value)
    if simple and isinstance(plain(value), str):
        return str(value)
    text = msgspec.json.encode(value).decode()
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
