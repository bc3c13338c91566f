"""Values as the code that makes them: what selectors print in their reprs and in errors."""

import re

import torch


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
        return f"({', '.join(map(code, value))}{',' if len(value) == 1 else ''})"
    return _function_name(value) or repr(value)


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
