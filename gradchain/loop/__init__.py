"""Loops: `for batch in gch.loop(loader, updater, …)` around a forward of one's own, with what a runner does besides.

`gch.loop` is the class `loop`. After `import gradchain.loop` that name is this room, as Python has it for a module that
was imported; so the room can be called and read as its class.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from gradchain.loop.run import loop

__all__ = ["loop"]


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return loop(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(loop, name):
            raise AttributeError(f"gch.loop: there is no {name!r}.")
        return getattr(loop, name)


sys.modules[__name__].__class__ = _Room
