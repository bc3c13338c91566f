"""What a config's `custom_imports` bring: modules of the user's, imported only where that is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import gradchain as gch
from gradchain.adapters.torch_names import registered

__all__ = ["imported", "named_modules"]


def named_modules(custom_imports: Any) -> list[str]:
    """The modules that a `custom_imports` names."""
    given = custom_imports.get("imports") if isinstance(custom_imports, Mapping) else None
    names = [given] if isinstance(given, str) else given
    return list(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else []


def imported(custom_imports: Any) -> list[str]:
    """Import its modules, and return the lines that a program needs to know what they register.

    Optimizers that they register with MMEngine are registered here too, by the same names.

    Raises: ValueError: a module that cannot be imported, unless the config allows that.
    """
    lines, before = [], _of_mmengine()
    for name in named_modules(custom_imports):
        try:
            importlib.import_module(name)
        except ImportError as error:
            if custom_imports.get("allow_failed_imports"):
                continue
            raise ValueError(
                f"convert: custom_imports: {name!r} cannot be imported: {error}. Without --custom-imports it is not "
                "needed: its hooks are named only, and classes that it registers are not known."
            ) from error
        lines.append(f"import {name}")
    for name, cls in _of_mmengine().items():
        if name not in before and name not in registered and isinstance(cls, type):
            gch.register(name)(cls)
            lines.append(f"gch.register({name!r})({cls.__module__}.{cls.__qualname__})".replace("'", '"'))
    return lines


def _of_mmengine() -> dict[str, Any]:
    """MMEngine's optimizers by name, and those of projects on it, where something imported it."""
    registry: Any = sys.modules.get("mmengine.registry")
    found: dict[str, Any] = {}
    waiting = [] if registry is None else [registry.OPTIMIZERS]
    for one in waiting:
        found |= one.module_dict
        waiting += one.children.values()
    return found
