"""Tables for notebooks: what a chain, an updater or an info is, in HTML.

All text is escaped. There are no colours but a grey that is seen on white and on black, and nothing is fetched.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gradchain.core.transform import Transform, holds_link
from gradchain.selectors.source import code

_CELL = (
    "text-align:left;vertical-align:top;padding:0.15em 1.2em 0.15em 0;border-bottom:1px solid #8886;"
    "white-space:pre-wrap;font-family:monospace"
)


def table(rows: Iterable[Sequence[str]], *, head: Sequence[str] = (), title: str = "") -> str:
    """Rows of text as a table."""
    caption = f'<caption style="text-align:left;caption-side:top">{html.escape(title)}</caption>' if title else ""
    lines = [*([_row("th", head)] if head else []), *(_row("td", row) for row in rows)]
    return f'<table style="border-collapse:collapse">{caption}{"".join(lines)}</table>'


def text(lines: str) -> str:
    """Text as it is, line by line."""
    return f'<pre style="white-space:pre-wrap">{html.escape(lines)}</pre>'


def of_link(link: Transform, title: str = "") -> str:
    """A link and those that it holds, a row each."""
    return table(_rows(link, "", 0), title=title)


def _row(kind: str, cells: Sequence[str]) -> str:
    inside = (f'<{kind} style="{_CELL}">{html.escape(cell)}</{kind}>' for cell in cells)
    return f"<tr>{''.join(inside)}</tr>"


def _rows(link: Transform, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """The name of a link with its arguments, and below it what it holds, further in."""
    arguments = [*link.as_call()]
    own = [f"{key}={code(value)}" if key else code(value) for key, value in arguments if not holds_link(value)]
    yield _inwards(depth, f"{name}{type(link).__name__}"), ", ".join(own)
    for _, value in arguments:
        if holds_link(value):
            yield from _held(value, depth + 1)


def _held(value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """A link that is held: alone, with its name, or as a branch, after what says whose it is."""
    if isinstance(value, Transform):
        yield from _rows(value, "", depth)
        return
    *says, link = value
    if all(isinstance(one, str) for one in says):
        yield from _rows(link, "".join(f"{name}: " for name in says), depth)
        return
    yield _inwards(depth, ", ".join(one if isinstance(one, str) else code(one) for one in says)), ""
    yield from _rows(link, "", depth + 1)


def _inwards(depth: int, name: str) -> str:
    return f"{'    ' * depth}{name}"
