"""Modules that are slow to import, imported when a test first uses them: collecting the tests imports none."""

from importlib import import_module
from types import ModuleType
from typing import Any


class later(ModuleType):
    """Stands for the module of this name until one of its attributes is asked for, and gives the module's.

    What is made at module level, a row of a table or a base class, asks for attributes at once: put it in a function.
    """

    def __getattr__(self, name: str) -> Any:
        if name[0] == "_":  # what pytest and inspect ask of anything is no use of it
            raise AttributeError(name)
        return getattr(import_module(self.__name__), name)
