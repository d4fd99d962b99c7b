# SPDX-License-Identifier: Apache-2.0
"""A Corefile on its way into a draft: where things stand, what words stand for, what to say. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from svcproxy.migrate.caddyfile import Directive, ServerBlock
from svcproxy.migrate.corefile_plugins import BY_OPTION
from svcproxy.migrate.draft import Draft, Place, Source, Treatment
from svcproxy.migrate.values import integer

NOT_CARRIED_OVER = "cannot be carried over: "


@dataclass(frozen=True, slots=True)
class Words:
    """What the words of a Corefile stand for where it is made from a template, as NodeLocal DNSCache's is."""

    stand_for: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cluster_dns: frozenset[str] = frozenset()
    """Upstreams, as words, that are the cluster's own DNS: what goes there svcproxy answers itself."""

    def of(self, words: Iterable[str]) -> list[str]:
        """The words with templates replaced."""
        return [each for word in words for each in self.stand_for.get(word, (word,))]


@dataclass(slots=True)
class Scope:
    """One Corefile on its way into a draft."""

    draft: Draft
    source: Source
    file: str
    words: Words
    binds: list[str] = field(default_factory=list)
    """Addresses of `bind`, in order."""
    defers: bool = False
    """Whether names outside the zones are asked of the cluster's own DNS."""

    def place(self, directive: Directive, setting: str = "") -> Place:
        """Where a directive stands; `setting`: its name for people."""
        return Place(self.source, setting or directive.name, self.file, directive.line)

    def say(self, directive: Directive, treatment: Treatment, text: str) -> None:
        """Remark on a directive."""
        self.draft.say(self.place(directive), treatment, text, directive.words)

    def set_number(self, key: str, directive: Directive, text: str) -> None:
        """Set a key to the directive's first argument; `text` tells what is different."""
        try:
            value = integer(first(directive))
        except ValueError as exc:
            self.say(directive, Treatment.NONE, f"{NOT_CARRIED_OVER}{exc}")
        else:
            self.draft.set(key, value, self.place(directive), text, was=directive.words, differs=True)

    def options(self, directive: Directive, rule: Callable[["Scope", Directive, Place], None]) -> None:
        """What becomes of the lines of a directive's block.

        `rule` takes those that the table has as such; it may raise ValueError.
        """
        for line in directive.block:
            option = BY_OPTION.get((directive.name, line.name))
            place = self.place(line, f"{directive.name}.{line.name}")
            value = " ".join(line.args)
            if option is None:
                text = f"the plugin {directive.name} of CoreDNS 1.14.7 has no such option"
                self.draft.say(place, Treatment.NONE, text, value)
                continue
            try:
                if option.rule:
                    rule(self, line, place)
                elif option.take is not None:
                    self.draft.set(option.key, option.take(first(line)), place, option.text, was=value)
                elif option.text:
                    self.draft.say(place, option.treatment, option.text, value)
            except ValueError as exc:
                self.draft.say(place, Treatment.NONE, f"{NOT_CARRIED_OVER}{exc}", value)


def has(block: ServerBlock, name: str) -> bool:
    """Whether a block has a directive."""
    return any(each.name == name for each in block.directives)


def first(line: Directive) -> str:
    """The first argument. Raises ValueError if there is none."""
    if not line.args:
        raise ValueError("an argument is missing")
    return line.args[0]


def one_of(word: str, choices: Sequence[str]) -> str:
    """The word. Raises ValueError if it is none of the choices."""
    if word not in choices:
        raise ValueError(f"{word!r} is not one of {', '.join(choices)}")
    return word
