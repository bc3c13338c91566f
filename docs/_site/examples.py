"""For mkdocstrings: the examples of docstrings, which stand behind `>>>` without a heading, as code."""

from __future__ import annotations

from typing import Any

import griffe


def fenced(text: str) -> str:
    """The docstring with its example in a fence; the house has it last."""
    prose, mark, example = text.partition(">>> ")
    if not mark or prose.rstrip().endswith(("Example:", "Examples:")):
        return text
    indent = prose[len(prose.rstrip(" ")) :]
    body = "\n".join(line.removeprefix(indent) for line in (mark + example).rstrip().splitlines())
    return f"{prose.rstrip()}\n\n```pycon\n{body}\n```\n"


class Examples(griffe.Extension):
    """What griffe calls with everything that it has read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the example of what has one."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
