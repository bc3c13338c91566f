"""Values as the code that makes them: what selectors print in their reprs and in errors."""

import re
import textwrap
from collections.abc import Iterable

import torch

LINE = 110
"""How long a line of code may be before what it holds goes to lines of its own."""


def code(value: object) -> str:
    """Returns Python source for a selector's argument.

    Classes are written with their module (`torch.nn.LayerNorm`), functions by name, strings in double quotes.

    Args:
        value: a string, number, class, function, compiled regex, tuple of these, or anything with a repr.
    """
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in value else text
    if isinstance(value, re.Pattern):
        return _regex_code(value)
    if isinstance(value, type):
        return _class_code(value)
    if isinstance(value, tuple):
        return f"({code(value[0])},)" if len(value) == 1 else call("", map(code, value))
    return _function_name(value) or repr(value)


def call(name: str, arguments: Iterable[str], wraps: bool = False) -> str:
    """A call as code: in one line, or a column with a line for each argument.

    Args:
        name: what is called; "" for a tuple.
        arguments: the code of each.
        wraps: whether a line that is too long becomes a column. One with columns in it always does.
    """
    parts = [*arguments]
    line = f"{name}({', '.join(parts)})"
    if "\n" not in line and (len(line) <= LINE or not wraps):
        return line
    column = "".join(f"{part},\n" for part in parts)
    return f"{name}(\n{textwrap.indent(column, '    ')})"


class Written:
    """Code, for printers that print what they get by its repr."""

    def __init__(self, value: object) -> None:
        self._code = code(value)

    def __repr__(self) -> str:
        return self._code


def _regex_code(pattern: re.Pattern[str]) -> str:
    # not repr(pattern), which cuts the text at 200 characters
    flags = re.RegexFlag(pattern.flags) & ~re.UNICODE
    return f"re.compile({pattern.pattern!r}{f', {flags!r}' if flags else ''})"


def _class_code(cls: type) -> str:
    if getattr(torch.nn, cls.__name__, None) is cls:
        return f"torch.nn.{cls.__name__}"
    if "<locals>" in cls.__qualname__ or cls.__module__ in ("__main__", "builtins"):
        return cls.__qualname__.rpartition("<locals>.")[2]
    return f"{cls.__module__}.{cls.__qualname__}"


def _function_name(value: object) -> str | None:
    name = getattr(value, "__qualname__", None)
    return name.rpartition("<locals>.")[2] if isinstance(name, str) else None
