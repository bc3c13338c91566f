"""Text of a program that is no code: comments and docstrings in lines of a readable length."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

__all__ = ["commented", "documented"]

WIDTH = 110


def commented(notes: Iterable[str], before: str = "") -> list[str]:
    """Sentences as comments, each from a line of its own; what is continued stands in a little more."""
    return [line for note in notes for line in _wrapped(note, f"# {before}", f"#   {before}")]


def documented(sentence: str, indent: int) -> list[str]:
    """A docstring in lines."""
    space = " " * indent
    text = sentence.replace("\\", "\\\\").replace('"', '\\"')
    lines = _wrapped(f'"""{text}', space, space)
    return [*lines[:-1], f'{lines[-1]}"""'] if len(lines) == 1 else [*lines, f'{space}"""']


def _wrapped(text: str, first: str, others: str) -> list[str]:
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return [line.rstrip() for line in lines] or [first.rstrip()]
