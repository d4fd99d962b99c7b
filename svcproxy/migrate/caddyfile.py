# SPDX-License-Identifier: Apache-2.0
"""Corefiles as server blocks and directives. Pure.

The syntax is that of the Caddyfile as CoreDNS 1.14 reads it (coredns/caddy `caddyfile/lexer.go`, `parse.go`): words
between blanks or in double quotes, `#` to the end of the line, `{$NAME}` and `{%NAME%}` for environment variables,
`(NAME) { … }` for snippets and `import NAME` for their use.

Other files are not read: an `import` of one is noted and left out. So is a variable that nobody gives a value, which
stays in its word as it is written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from svcproxy.errors import ConfigError, Problem

OCTETS_MAX = 1 << 20
"""Size of one Corefile."""
TOKENS_MAX = 20_000
"""Words of one Corefile with every snippet in its place."""
EXPANSIONS_MAX = 1000
"""Uses of snippets."""
DEPTH_MAX = 16
"""Blocks within blocks."""

_VARIABLE = re.compile(r"\{\$([^}]+)\}|\{%(.+?)%\}")
_SNIPPET = re.compile(r"\((.*)\)")


@dataclass(frozen=True, slots=True)
class Token:
    """One word."""

    text: str
    line: int
    """1-based: where it begins."""
    starts: bool
    """Whether it is the first of its line."""


@dataclass(frozen=True, slots=True)
class Directive:
    """One line of a block, with the block that it may have itself."""

    name: str
    args: tuple[str, ...]
    line: int
    block: tuple["Directive", ...] = ()

    @property
    def words(self) -> str:
        """The line as one text, without its block."""
        return " ".join((self.name, *self.args))


@dataclass(frozen=True, slots=True)
class ServerBlock:
    """What is served for some zones."""

    keys: tuple[str, ...]
    line: int
    directives: tuple[Directive, ...]


@dataclass(frozen=True, slots=True)
class Corefile:
    """A Corefile that could be read."""

    file: str
    blocks: tuple[ServerBlock, ...]
    imports: tuple[Directive, ...]
    """Imports of other files, which are left out."""
    unknown: Mapping[str, int]
    """Variables without a value, and the line where each is used first."""


def unresolved(text: str) -> bool:
    """Whether a word has a variable without a value."""
    return _VARIABLE.search(text) is not None


def parse(text: str, file: str, variables: Mapping[str, str]) -> Corefile:
    """The blocks of a Corefile. `variables`: the environment. Raises `ConfigError` naming `file` and the line."""
    if len(text.encode("utf-8", "surrogatepass")) > OCTETS_MAX:
        raise ConfigError([Problem(f"larger than {OCTETS_MAX >> 20} MiB", file)])
    return _Parser(tokens(text, file), file, variables).corefile()


def tokens(text: str, file: str) -> list[Token]:
    """The words of a Corefile. Raises `ConfigError`."""
    lexer = _Lexer(text.removeprefix("\ufeff"), file)
    found: list[Token] = []
    while (token := lexer.next()) is not None:
        found.append(token)
        if len(found) > TOKENS_MAX:
            raise ConfigError([Problem(f"more than {TOKENS_MAX} words", file, token.line)])
    return found


class _Lexer:
    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._at = 0
        self._line = 1
        self._last = 0
        """The line where the word before ends."""

    def next(self) -> Token | None:
        """The next word, None at the end."""
        word: list[str] = []
        begins, comment = self._line, False
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == "\r":
                continue
            if char.isspace():
                self._line += char == "\n"
                comment = comment and char != "\n"
                if word:
                    return self._token(word, begins, begins)
                continue
            comment = comment or char == "#"
            if comment:
                continue
            if not word:
                begins = self._line
                if char == '"':
                    return self._quoted(begins)
            word.append(char)
        return self._token(word, begins, begins) if word else None

    def _quoted(self, begins: int) -> Token:
        """The rest of a word in quotes. A backslash escapes a quote, and stands for itself before anything else."""
        word: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == '"':
                return self._token(word, begins, self._line)
            if char == "\\" and self._at < len(self._text):
                following = self._text[self._at]
                self._at += 1
                char = following if following == '"' else char + following
            self._line += char.count("\n")
            word.append(char)
        raise ConfigError([Problem("the quote that is opened here is never closed", self._file, begins)])

    def _token(self, word: list[str], begins: int, ends: int) -> Token:
        starts, self._last = begins > self._last, ends
        return Token("".join(word), begins, starts)


@dataclass(slots=True)
class _Parser:
    tokens: list[Token]
    file: str
    variables: Mapping[str, str]
    at: int = 0
    expansions: int = 0
    snippets: dict[str, list[Token]] = field(default_factory=dict)
    imports: list[Directive] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)

    def corefile(self) -> Corefile:
        """Everything."""
        blocks: list[ServerBlock] = []
        while self._peek() is not None:
            block = self._server_block()
            if block is not None:
                blocks.append(block)
        return Corefile(self.file, tuple(blocks), tuple(self.imports), self.unknown)

    def _peek(self) -> Token | None:
        """The token at hand, with imports at the beginning of a line already replaced."""
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if not (token.starts and token.text == "import"):
                return token
            self._import(token)
        return None

    def _refuse(self, message: str, line: int) -> ConfigError:
        return ConfigError([Problem(message, self.file, line)])

    def _end(self) -> ConfigError:
        last = self.tokens[-1]
        return self._refuse("the file ends before the block does: a } is missing", last.line)

    def _server_block(self) -> ServerBlock | None:
        """One server block; None for a snippet or an import."""
        first = self._peek()
        if first is None:
            return None
        keys = self._keys()
        opened = self._peek()
        braces = opened is not None and opened.text == "{"
        if braces:
            self.at += 1
        if len(keys) == 1 and (match := _SNIPPET.fullmatch(keys[0])):
            self._define(match[1], first.line, braces=braces)
            return None
        directives: list[Directive] = []
        while (token := self._peek()) is not None and token.text != "}":
            directives.append(self._directive(0))
        # CoreDNS lets the last } of a file close both a directive's block and the server block around it.
        if braces and token is None and self.tokens[-1].text != "}":
            raise self._end()
        if token is not None:
            if not braces:
                raise self._refuse("a } without a {", token.line)
            self.at += 1
        return ServerBlock(tuple(keys), first.line, tuple(directives)) if keys else None

    def _keys(self) -> list[str]:
        """The zones of a server block; they end at a {, or with the line unless that ends in a comma."""
        keys: list[str] = []
        another = False
        begun = False
        while (token := self._peek()) is not None:
            if token.text == "{":
                if another:
                    raise self._refuse("a zone is missing between , and {", token.line)
                break
            if begun and token.starts and not another:
                break
            begun = True
            if token.text == "}":
                raise self._refuse("a } without a {", token.line)
            self.at += 1
            text = self._resolved(token)
            another = text.endswith(",")
            if text:
                keys.append(text.removesuffix(","))
        if another and token is None:
            raise self._end()
        return keys

    def _define(self, name: str, line: int, *, braces: bool) -> None:
        """Keep the words of a snippet."""
        if not braces:
            raise self._refuse(f"the snippet ({name}) has no block", line)
        if name in self.snippets:
            raise self._refuse(f"the snippet ({name}) is there twice", line)
        depth, begin = 1, self.at
        while self.at < len(self.tokens):
            text = self.tokens[self.at].text
            depth += (text == "{") - (text == "}")
            self.at += 1
            if depth == 0:
                self.snippets[name] = self.tokens[begin : self.at - 1]
                return
        raise self._end()

    def _import(self, token: Token) -> None:
        """Put the words of a snippet in place of its import; note an import of a file."""
        following = self.tokens[self.at + 1 : self.at + 3]
        if not following or following[0].starts:
            raise self._refuse("import needs the name of a snippet or a file", token.line)
        if len(following) > 1 and not following[1].starts and following[1].text != "}":
            raise self._refuse("import takes one name", token.line)
        name = self._resolved(following[0])
        body = self.snippets.get(name)
        if body is None:
            self.imports.append(Directive("import", (name,), token.line))
            body = []
        self.expansions += 1
        if self.expansions > EXPANSIONS_MAX:
            raise self._refuse(f"more than {EXPANSIONS_MAX} imports, or one that imports itself", token.line)
        after = self.tokens[self.at + 2 :]
        begun = [Token(each.text, each.line, each.starts or index == 0) for index, each in enumerate(body)]
        if after:
            after[0] = Token(after[0].text, after[0].line, starts=True)
        self.tokens[self.at :] = [*begun, *after]
        if len(self.tokens) > TOKENS_MAX:
            raise self._refuse(f"more than {TOKENS_MAX} words with this snippet in its place", token.line)

    def _directive(self, depth: int) -> Directive:
        """The directive at hand, with its block."""
        first = self.tokens[self.at]
        self.at += 1
        args: list[str] = []
        while (token := self._peek()) is not None:
            if token.text == "{":
                self.at += 1
                block = self._block(first, depth + 1)
                return Directive(self._resolved(first), tuple(args), first.line, block)
            if token.starts or token.text == "}":
                break
            args.append(self._resolved(token))
            self.at += 1
        return Directive(self._resolved(first), tuple(args), first.line)

    def _block(self, of: Token, depth: int) -> tuple[Directive, ...]:
        """The lines up to the } that closes the block."""
        if depth > DEPTH_MAX:
            raise self._refuse(f"blocks nested deeper than {DEPTH_MAX} levels", of.line)
        lines: list[Directive] = []
        while (token := self._peek()) is not None:
            if token.text == "}":
                self.at += 1
                return tuple(lines)
            lines.append(self._directive(depth))
        raise self._end()

    def _resolved(self, token: Token) -> str:
        """The text with variables replaced by their values; those without one stay."""

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in self.variables:
                self.unknown.setdefault(name, token.line)
                return match[0]
            return self.variables[name]

        return _VARIABLE.sub(value, token.text)
