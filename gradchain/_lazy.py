"""Names that load on first use: a package says where each lives; that module is imported when a name is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

DOORS = ("gradchain", "gradchain.rules")
"""The packages that list everything a user may name."""


def on_first_use(
    package: str, homes: Mapping[str, str], rooms: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package whose names live elsewhere in gradchain (PEP 562).

    What was asked for becomes an attribute of the package: the next time it is as if it had been imported there.

    Args:
        package: the package's `__name__`.
        homes: name → the module of gradchain that has it, "core.chain".
        rooms: modules inside the package that are attributes of it before anybody has imported them.
    """
    there = vars(sys.modules[package])

    def load_name(name: str) -> Any:
        if name in homes:
            there[name] = at_home(homes[name], name)
        elif name in rooms:
            import_module(f"{package}.{name}")  # which makes it an attribute
        else:
            from gradchain.words.names import answers  # only where something is missing

            return answers(package)(name)
        return there[name]

    def names() -> list[str]:
        own = (name for name in there if name in there["__all__"] or name[:1] == "_")
        return sorted({*own, *homes, *rooms})

    return load_name, names


def at_home(home: str, name: str) -> Any:
    """What a module of gradchain has under a name; it is imported now."""
    return getattr(import_module(f"gradchain.{home}"), name)


def load(name: str) -> None:
    """Load what the front door or the room of rules lists under this name, if one of them does: nothing else."""
    for door in DOORS:
        if find_spec(door) is not None and name in import_module(door).__all__:
            getattr(import_module(door), name)
