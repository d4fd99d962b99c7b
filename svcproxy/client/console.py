# SPDX-License-Identifier: Apache-2.0
"""What the command line prints: tables, text and JSON on standard output, everything else on standard error."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import msgspec

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), " ")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


class Console:
    """Where a verb writes to. `terminal`: tables are dressed up with rich."""

    def __init__(self, out: TextIO, *, terminal: bool) -> None:
        self._out = out
        self._terminal = terminal

    def line(self, text: str = "") -> None:
        """One line of text."""
        self._out.write(f"{text}\n")

    def json(self, value: Any) -> None:
        """Anything msgspec can encode, as indented JSON."""
        self._out.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")

    def table(self, table: Table) -> None:
        """A table: aligned text, or rich's on a terminal. Control characters from outside become spaces."""
        rows = [[cell.translate(_CONTROL) for cell in row] for row in table.rows]
        clean = Table(table.columns, rows, table.title)
        self._out.write(_rich(clean) if self._terminal else plain(clean))


def console() -> Console:
    """The console of this process."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return Console(sys.stdout, terminal=terminal)


def plain(table: Table) -> str:
    """Columns padded to their widest cell, three spaces apart, as kubectl does."""
    lines = [list(table.columns), *map(list, table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([table.title, *text] if table.title else text) + "\n"


def _rich(table: Table) -> str:
    # rich costs more than everything else here together: it is loaded for a terminal alone.
    from rich.console import Console as RichConsole  # noqa: PLC0415
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    dressed = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in table.columns:
        dressed.add_column(column, overflow="fold")
    for row in table.rows:
        dressed.add_row(*map(Text, row))
    printer = RichConsole(force_terminal=True)
    with printer.capture() as captured:
        if table.title:
            printer.print(Text(table.title, style="bold cyan"))
        printer.print(dressed)
    return captured.get()


def duration(seconds: float | None) -> str:
    """For people, as kubectl writes ages: `5s`, `3m12s`, `4h5m`, `12d`."""
    if seconds is None:
        return "-"
    rest = int(max(0.0, seconds))
    for index, (size, unit) in enumerate(_UNITS):
        if rest >= size or size == 1:
            whole, rest = divmod(rest, size)
            finer = _UNITS[index + 1 : index + 2]
            if finer and rest >= finer[0][0] and whole < 10:
                return f"{whole}{unit}{rest // finer[0][0]}{finer[0][1]}"
            return f"{whole}{unit}"
    raise AssertionError("every duration has a unit")


def milliseconds(seconds: float) -> str:
    """A latency: `0.42 ms`."""
    return f"{seconds * 1000:.2f} ms"


def or_dash(items: Sequence[str], most: int | None = None) -> str:
    """Joined by commas; a dash if there are none, `+ n more` past `most`."""
    if not items:
        return "-"
    shown = items if most is None else items[:most]
    rest = len(items) - len(shown)
    return ",".join(shown) + (f" + {rest} more" if rest else "")
