"""What an optimizer keeps, as a checkpoint can hold it: sets, queues, enums and helpers of its package as dicts."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from gradchain.core.slots import is_plain

_SET, _QUEUE, _SIZE, _MEMBER, _HELPER = "<set>", "<queue>", "<size>", "<member>", "<helper>"


def written(value: Any, package: str, of_tensor: Callable[[Tensor], Tensor]) -> Any:
    """A value in plain ones, tensors by `of_tensor`. TypeError for what has no such form.

    Args:
        value: what an optimizer keeps.
        package: the optimizer's own, whose helpers are written by their attributes.
        of_tensor: what stands for a tensor.
    """
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, dict):
        return {key: written(inner, package, of_tensor) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(written(inner, package, of_tensor) for inner in value)
    if isinstance(value, deque):
        return {_QUEUE: [written(inner, package, of_tensor) for inner in value], "maxlen": value.maxlen}
    if isinstance(value, (set, frozenset)):
        return {_SET: sorted(value, key=repr), "frozen": isinstance(value, frozenset)}
    if isinstance(value, torch.Size):
        return {_SIZE: list(value)}
    return _written_object(value, package, of_tensor)


def _written_object(value: Any, package: str, of_tensor: Callable[[Tensor], Tensor]) -> Any:
    cls = type(value)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(value, Enum) and _enum(name, package) is cls:
        return {_MEMBER: name, "value": value.value}
    for plain in (int, float, str):
        if isinstance(value, plain) and not isinstance(value, bool):
            return plain(value)  # numpy's numbers are floats too, and no checkpoint holds them as they are
    if is_plain(value):
        return value
    if _helper(name, package) is cls:
        return {_HELPER: name, **{k: written(v, package, of_tensor) for k, v in vars(value).items()}}
    raise TypeError(f"it keeps a {cls.__name__}, which no checkpoint can hold")


def read(value: Any, package: str) -> Any:
    """What `written` made plain. A helper is made without running its constructor, and only where its class is loaded.

    TypeError for a helper that is no class of the package's.
    """
    if isinstance(value, Mapping):
        return _read_dict({key: read(inner, package) for key, inner in value.items()}, package)
    if type(value) in (list, tuple):
        return type(value)(read(inner, package) for inner in value)
    return value


def _read_dict(value: dict[Any, Any], package: str) -> Any:
    if _SET in value:
        return (frozenset if value.get("frozen") else set)(value[_SET])
    if _QUEUE in value:
        return deque(value[_QUEUE], value.get("maxlen"))
    if _SIZE in value:
        return torch.Size(value[_SIZE])
    if _MEMBER in value:
        return _class_for(_enum, value[_MEMBER], package)(value.get("value"))
    if _HELPER not in value:
        return value
    helper = object.__new__(_class_for(_helper, value[_HELPER], package))
    vars(helper).update({k: v for k, v in value.items() if k != _HELPER})
    return helper


def _class_for(look_up: Callable[[Any, str], type[Any] | None], name: Any, package: str) -> type[Any]:
    found = look_up(name, package)
    if found is None:
        raise TypeError(f"its memory has a {name!r}, which is no class of {package}'s")
    return found


def _loaded_class(name: Any, package: str) -> type[Any] | None:
    """The class of that name, if the package has loaded it."""
    module, _, short = str(name).rpartition(".")
    found = getattr(sys.modules.get(module), short, None)
    own = isinstance(found, type) and found.__module__ == module and module.partition(".")[0] == package
    return found if own else None


def _enum(name: Any, package: str) -> type[Enum] | None:
    found = _loaded_class(name, package)
    return found if found is not None and issubclass(found, Enum) else None


def _helper(name: Any, package: str) -> type[Any] | None:
    """That class, if its objects are no more than their attributes."""
    found = _loaded_class(name, package)
    plain = found is not None and not any({"__new__", "__slots__"} & vars(base).keys() for base in found.__mro__[:-1])
    return found if plain else None
