"""A file of safetensors: weights under the model's names for whoever reads it, and all else behind a prefix, sealed.

Such a file is a header of JSON and then the bytes of tensors, up to its end. So the seal stands in the header, among
the metadata: the BLAKE2b checksum of the whole file with zeros in place of the seal. What is no tensor is JSON in the
metadata, where a tensor is `{"$tensor": name}`. What JSON has no word for is a dict with one key that begins with "$".
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from gradchain.core.readable import is_readable

SUFFIX = ".safetensors"
PREFIX = "gradchain/"
_TREE, _SEAL = "gradchain", "gradchain.seal"
_DIGITS = 2 * hashlib.blake2b(digest_size=32).digest_size
_SEALED = re.compile(rb'"gradchain\.seal":"([0-9a-f]{%d})"' % _DIGITS)
_CHUNK = 1 << 20
_DEEPEST = 250  # levels of dicts and lists, so that what is written is read under any stack
_DTYPES = {
    getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
        "uint64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2",
    )
}  # fmt: skip


class Contents(NamedTuple):
    """What is to be written: tensors by name, and metadata, without the seal."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def check_installed(owner: str, path: Path) -> None:
    """ModuleNotFoundError, with its cure, where the package is not there."""
    if importlib.util.find_spec("safetensors") is None:
        raise ModuleNotFoundError(
            f"{owner}: {str(path)!r} needs the package safetensors, which is not installed. Install it: pip install "
            "gradchain[safetensors]."
        )


# writing


def parted(contents: Mapping[str, Any]) -> Contents:
    """The contents of a file as tensors and metadata. TypeError, ValueError for what the format cannot hold."""
    parting = _Parting(contents)
    tree = json.dumps(parting.tree)
    tied = {name: first for part in contents["parts"].values() for name, first in part["model"]["tied"].items()}
    metadata = {name: first for name, first in tied.items() if len(contents["parts"]) == 1}
    return Contents(parting.tensors, {**metadata, "format": "pt", _TREE: tree})


class _Parting:
    """Takes tensors out of a tree.

    Attributes:
        tensors: those, by the names that they have in the file.
        tree: what is left, as JSON has it.
    """

    def __init__(self, contents: Mapping[str, Any]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names = {id(tensor): name for name, tensor in _of_the_model(contents)}
        self._memory: set[int] = set()
        self.tree = self._written(contents, ())

    def _written(self, value: Any, path: tuple[str, ...]) -> Any:
        if len(path) > _DEEPEST:
            where = _told(path[:2])
            raise ValueError(f"save: {where} must not be nested deeper than {_DEEPEST} levels in safetensors.")
        kind = type(value)
        if kind is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        if kind is int:
            return value if value.bit_length() <= 64 else {"$int": hex(value)}
        if kind in (str, bool) or value is None:
            return value
        if kind in (Tensor, nn.Parameter):
            return self._tensor(value, path)
        if kind is dict and all(type(key) is str and key[:1] != "$" for key in value):
            return {key: self._written(item, (*path, key)) for key, item in value.items()}
        if kind in (dict, OrderedDict):
            pairs = [[self._written(k, (*path, "key")), self._written(v, (*path, str(k)))] for k, v in value.items()]
            return {"$dict" if kind is dict else "$ordered": pairs}
        if kind in (list, tuple, torch.Size):
            items = [self._written(item, (*path, str(i))) for i, item in enumerate(value)]
            return items if kind is list else {"$tuple" if kind is tuple else "$size": items}
        raise TypeError(f"save: {_told(path)} is a {kind.__name__}, which safetensors cannot hold. {_CURE}")

    def _tensor(self, value: Tensor, path: tuple[str, ...]) -> dict[str, Any]:
        if not is_readable(value) or value.dtype not in _DTYPES:
            what = str(value.dtype).removeprefix("torch.") if is_readable(value) else "not dense, or without values"
            raise ValueError(f"save: {_told(path)} is {what}, and safetensors holds no such tensors. {_CURE}")
        name = self._name(value, path)
        order = _order(value)
        tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in self._memory:
            tensor = tensor.clone()  # the package refuses names that share memory
        self._memory.add(tensor.untyped_storage().data_ptr())
        self.tensors[name] = tensor
        more = {
            "order": order if order != sorted(order) else None,
            "parameter": isinstance(value, nn.Parameter) or None,
            "requires_grad": value.requires_grad or None,
            "attributes": self._written(dict(vars(value)), (*path, "attributes")) if vars(value) else None,
        }
        return {"$tensor": name, **{key: said for key, said in more.items() if said is not None}}

    def _name(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        """A name that no other has: the model's, or the path behind the prefix."""
        name = self._names.get(id(tensor), "")
        if not name or name in self.tensors or name.startswith((PREFIX, "__metadata__")):
            name = PREFIX + "/".join(path)
        while name in self.tensors:
            name += "'"
        return name


_CURE = 'Save it under another suffix, or with format="torch".'


def _of_the_model(contents: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The weights and buffers that other tools read, under the names of the model; in a group, behind the updater's."""
    parts = contents["parts"]
    for updater, part in parts.items():
        front = "" if len(parts) == 1 else f"{updater}."
        for tensors in (part["weights"], part["buffers"]):
            yield from ((front + n, t) for n, t in tensors.items() if n not in part["model"]["transient"])


def _told(path: tuple[str, ...]) -> str:
    """Where something lies, as a sentence has it: an extra, or a place in a part."""
    return ".".join(path[1:] if path[:1] in (("extra",), ("parts",)) else path)


def _order(tensor: Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost, where it is dense; else as they are."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda dim: -strides[dim])
    return order if tensor.permute(order).is_contiguous() and not tensor.is_contiguous() else [*range(tensor.ndim)]


def write(contents: Contents, file: BinaryIO) -> None:
    """Write the file, and its seal into it."""
    from safetensors.torch import save  # a package of an extra: only where it is used

    data = save(contents.tensors, {**contents.metadata, _SEAL: "0" * _DIGITS})
    view = memoryview(data)
    place = _place_of_seal(bytes(view[8 : 8 + int.from_bytes(view[:8], "little")]))
    assert place is not None
    seal = hashlib.blake2b(view, digest_size=32).hexdigest().encode()
    for piece in (view[: place[0]], seal, view[place[1] :]):
        file.write(piece)


def _place_of_seal(header: bytes) -> tuple[int, int] | None:
    """Where in the file the digits of the seal stand. No string in the JSON can look so: its quotes are escaped."""
    found = _SEALED.search(header)
    return None if found is None else (8 + found.start(1), 8 + found.end(1))


# reading


def is_one(file: BinaryIO, size: int) -> bool:
    """Whether a file begins as one of safetensors does: with the length of a header, and JSON."""
    file.seek(0)
    head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def problem(file: BinaryIO, size: int) -> str:
    """Why a file cannot be what was written, "" where it is."""
    file.seek(0)
    start = file.read(8)
    header = file.read(int.from_bytes(start, "little"))
    place = _place_of_seal(header)
    if place is None:
        return "it is damaged, or no checkpoint of gradchain: it has no checksum"
    found = hashlib.blake2b(start, digest_size=32)
    found.update(header[: place[0] - 8] + b"0" * _DIGITS + header[place[1] - 8 :])
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    right = header[place[0] - 8 : place[1] - 8] == found.hexdigest().encode()
    return "" if right else "it is damaged, its checksum is not that of its contents"


def contents(file: BinaryIO) -> Any:
    """What was parted, put together again; of a file without a problem. Any error for one that somebody made."""
    from safetensors import safe_open  # a package of an extra: only where it is used

    with safe_open(file.name, framework="pt") as tensors:
        if not os.path.samestat(os.stat(file.name), os.fstat(file.fileno())):
            raise ValueError("it was replaced while it was read")
        return _read(json.loads(tensors.metadata()[_TREE]), tensors.get_tensor)


def _read(value: Any, tensor_of: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return [_read(item, tensor_of) for item in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if kind == "$tensor":
        return _read_tensor(value, tensor_of)
    if kind[:1] != "$":
        return {key: _read(item, tensor_of) for key, item in value.items()}
    return _READERS[kind](_read(value[kind], tensor_of))


_READERS: dict[str, Callable[[Any], Any]] = {
    "$dict": dict,
    "$float": float,
    "$int": lambda digits: int(digits, 16),
    "$ordered": OrderedDict,
    "$size": torch.Size,
    "$tuple": tuple,
}


def _read_tensor(said: Mapping[str, Any], tensor_of: Callable[[str], Tensor]) -> Tensor:
    tensor = tensor_of(said["$tensor"])
    order = said.get("order", [*range(tensor.ndim)])
    back = sorted(range(tensor.ndim), key=order.__getitem__)
    # a copy, for the package may hand out memory that is the file's
    made = tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(back)
    if said.get("parameter"):
        made = nn.Parameter(made, requires_grad=False)
    vars(made).update(_read(said.get("attributes", {}), tensor_of))
    return made.requires_grad_() if said.get("requires_grad") else made
