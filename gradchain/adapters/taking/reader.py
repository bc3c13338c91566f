"""torch's zip read without running anything of it: what is no tensor, container or plain value becomes nothing.

A pickle names functions and classes to be called. Here a name is looked up in a short list of those that make tensors
and dicts, each behind a wrapper that cannot be written to; for every other name there is an empty object, that takes
whatever is done to it and does nothing. So a file with MMEngine's HistoryBuffer in it can be read where
`torch.load(weights_only=True)` refuses, and without that package.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch


class Nothing:
    """What stands in place of an object that is not made."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Nothing:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Nothing:
        return Nothing()

    def append(self, value: object) -> None:
        """Nothing."""

    def extend(self, values: object) -> None:
        """Nothing."""

    def add(self, value: object) -> None:
        """Nothing."""


class _Call:
    """A function that a file may call, and not write to."""

    __slots__ = ("_made_by",)

    def __init__(self, made_by: Callable[..., Any]) -> None:
        self._made_by = made_by

    def __call__(self, *args: Any) -> Any:
        return self._made_by(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a function has no state")


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Any:
    """A tensor over a storage, inside it: torch would make the storage as large as is asked."""
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    held = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if offset < 0 or any(n < 0 for n in size) or any(s < 0 for s in stride) or (0 not in size and last >= held):
        raise pickle.UnpicklingError("a tensor lies outside of its storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


_MADE: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MADE:
            return _Call(_MADE[module, name])
        return type("Nothing", (Nothing,), {})


_PICKLE = SimpleNamespace(Unpickler=_Unpickler, __name__="pickle")


def read(path: str | Path, owner: str) -> dict[str, Any]:
    """What `torch.save` wrote into a file, as a dict. ValueError for what is none, or cannot be read."""
    try:
        with open(path, "rb") as file:
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
            plain = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            if not plain or any(part.filename.endswith("constants.pkl") for part in parts):
                raise pickle.UnpicklingError("no zip that torch.save writes")
            file.seek(0)
            contents = torch.load(file, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{owner}: {str(path)!r} cannot be read: it is damaged, or not what torch.save writes "
            f"({type(error).__name__}). Save it with torch 1.6 or later, as a zip."
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(f"{owner}: {str(path)!r} must hold a dict, got {type(contents).__name__}.")
    return contents
