"""A checkpoint in parts: each rank writes what it has of weights and state, and an index says where everything lies.

The index is a file as `files` writes it, with its seal; it has all but the tensors of parameters, and of those a table,
and the checksum of every file. These lie in a folder beside it, as torch.distributed.checkpoint writes them. A part is
found by where it lies in the whole, so any number of ranks may read it.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradchain.core._torch import is_dtensor
from gradchain.updater import sealed
from gradchain.updater.fixed import from_fixed

if TYPE_CHECKING:
    from gradchain.updater.dcp import Row
    from gradchain.updater.updater import Updater

FORMAT = 3
KEY = "shards"
SUFFIX = ".dcp"
_FOLDER = re.compile(r"[^/\\\0]+\.[0-9a-f]{8}\.dcp")
_FILE = re.compile(r"[A-Za-z0-9_]+\.distcp")


def has_parts(updater: Updater) -> bool:
    """Whether this rank has a part only of the weights, or of the state."""
    bound = updater._bound
    return bound.shares is not None or any(map(is_dtensor, bound.target.last_seen))


# out


def parted(contents: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors that ranks write, and what is left of the contents of a file for the index."""
    tree: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for name, part in contents["parts"].items():
        spread = {n: b for n, b in part["buffers"].items() if is_dtensor(b)}
        state = dict(part["state"])
        tree[name] = {"weights": part["weights"], "buffers": spread, "state": state.pop("tensors")}
        left[name] = {
            **part,
            "weights": {},
            "buffers": {n: b for n, b in part["buffers"].items() if n not in spread},
            "state": state,
        }
    return tree, {**contents, "format": FORMAT, "parts": left}


def buffers_of(index: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """What each rank has for itself: the buffers of every updater."""
    return {name: part["buffers"] for name, part in index["parts"].items()}


def checksum(tensors: Mapping[str, Any]) -> str:
    """That of tensors, by which ranks tell whether they have the same."""
    sealing = sealed.Sealing(io.BytesIO())
    torch.save(tensors, sealing)  # type: ignore[arg-type]  # it writes to it, and no more
    return sealing.checksum()


# in


def check(owner: str, path: Path, contents: Mapping[str, Any]) -> None:
    """ValueError for what is no index: nothing outside of its folder is read, and no more than lies there."""
    if not _is_index(contents.get(KEY)):
        raise ValueError(f"{owner}: {str(path)!r} must be an index as gch.Checkpointer writes it, and is another file.")


def _is_index(shards: Any) -> bool:
    if not isinstance(shards, dict) or set(shards) != {"folder", "ranks", "files", "tensors", "buffers"}:
        return False
    files, rows = shards["files"], shards["tensors"]
    if not isinstance(shards["folder"], str) or not _FOLDER.fullmatch(shards["folder"]):
        return False
    if not isinstance(files, dict) or not isinstance(rows, list) or not isinstance(shards["buffers"], dict):
        return False
    if not all(isinstance(n, str) and _FILE.fullmatch(n) and _are(f, int, str) for n, f in files.items()):
        return False
    return type(shards["ranks"]) is int and all(_is_row(row, files) for row in rows)


def _are(found: Any, *kinds: type) -> bool:
    return isinstance(found, (list, tuple)) and [*map(type, found)] == [*kinds]


def _is_row(row: Any, files: Mapping[str, Any]) -> bool:
    if not _are(row, list, torch.dtype, list, list):
        return False
    path, dtype, shape, chunks = row
    if len(path) < 3 or not all(isinstance(key, str) for key in path) or not _are_sizes(shape):
        return False
    covered = 0
    for chunk in chunks:
        if not _are(chunk, list, list, str, int, int) or chunk[2] not in files:
            return False
        offsets, sizes, file, begin, length = chunk
        if not _are_sizes(offsets) or not _are_sizes(sizes) or len(offsets) != len(shape) or len(sizes) != len(shape):
            return False
        bytes_ = math.prod(sizes) * dtype.itemsize
        if begin < 0 or length < bytes_ or begin + length > files[file][0]:
            return False
        covered += math.prod(sizes)
    return bool(covered == math.prod(shape))


def _are_sizes(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)


def damage(path: Path, contents: Mapping[str, Any], owner: str, number: int = 0, of: int = 1) -> str:
    """What is wrong with the files of an index, or with this one's share of them; "" where nothing is."""
    shards = contents[KEY]
    for name in sorted(shards["files"])[number::of]:
        size, expected = shards["files"][name]
        file = path.parent / shards["folder"] / name
        try:
            right = sealed.has_checksum(file, size, expected)
            problem = "" if right else "its checksum is not that of its contents"
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            return f"{owner}: {str(path)!r} cannot be read: {str(file)!r} is damaged or missing ({problem})."
    return ""


def verify(path: Path, owner: str) -> None:
    """Look through the files of an index, where it is one. ValueError where one is not whole."""
    if not [*path.parent.glob(f"{path.stem}.*{SUFFIX}")]:
        return
    contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(contents, dict) and contents.get("format") == FORMAT:
        check(owner, path, contents)
        if problem := damage(path, contents, owner):
            raise ValueError(problem)


def whole(path: Path, contents: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and the extra of a file, as one process has them: its tensors are read, whole."""
    return _filled(path, contents, lambda name, row: torch.empty(row.shape, dtype=row.dtype), _plain)


def shares(
    path: Path, contents: Mapping[str, Any], updaters: Mapping[str, Any], rank: int, ranks: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, with this rank's part of what these updaters have in parts; no rank talks to another."""
    places = {name: _places(updater) for name, updater in updaters.items() if has_parts(updater)}

    def place(name: str, row: Row) -> Tensor:
        if name not in places:
            return torch.empty(row.shape, dtype=row.dtype)
        there = places[name].get(tuple(row.path[1:]))
        if there is None or [*there.shape] != row.shape or there.dtype != row.dtype:
            return torch.empty(row.shape, dtype=row.dtype, device="meta")  # which is refused where it is looked at
        return there

    parts, extra = _filled(path, contents, place, lambda name, state: state if name in places else _plain(name, state))
    own = contents[KEY]["buffers"].get(rank, {}) if contents[KEY]["ranks"] == ranks else {}
    for name, buffers in own.items():
        parts[name]["buffers"].update(buffers)
    return parts, extra


def _places(updater: Updater) -> dict[tuple[str, ...], Tensor]:
    """Memory for what this rank reads, by path: of weights, buffers and state as they are laid out here."""
    bound, part = updater._bound, updater.contents("all", "fixed")
    weights = part["weights"] if bound.shares is None else bound.parameters()
    spread = {n: b for n, b in part["buffers"].items() if is_dtensor(b)}
    found = {"weights": weights, "buffers": spread}
    like: dict[tuple[str, ...], Tensor] = {(kind, n): t for kind, tensors in found.items() for n, t in tensors.items()}
    like.update(_flat(part["state"]["tensors"], ("state",)))
    return {path: torch.empty_like(tensor.detach()) for path, tensor in like.items()}


def _flat(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, key))
        else:
            yield (*path, key), value


def _plain(name: str, state: dict[str, Any]) -> dict[str, Any]:
    made, absent = from_fixed(state)
    if absent:
        raise ValueError(f"load: the state of {name!r} lacks {'.'.join(absent[0])}: the checkpoint is damaged.")
    return made


def _filled(
    path: Path,
    contents: Mapping[str, Any],
    place: Callable[[str, Row], Tensor],
    state_of: Callable[[str, dict[str, Any]], dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    from gradchain.updater import dcp  # only where there are parts: importing it takes time

    shards = contents[KEY]
    table = {str(number): dcp.Row(*row) for number, row in enumerate(shards["tensors"])}
    tensors = {key: place(row.path[0], row) for key, row in table.items()}
    real = {key: tensor for key, tensor in tensors.items() if not tensor.is_meta}
    with torch.no_grad():
        dcp.fill(real, path.parent / os.fspath(shards["folder"]), table)
    trees: dict[str, Any] = {name: {"weights": {}, "buffers": {}, "state": {}} for name in contents["parts"]}
    for key, row in table.items():
        *keys, last = row.path
        at = trees
        for step in keys:
            at = at.setdefault(step, {})
        at[last] = tensors[key]
    parts = {}
    for name, part in contents["parts"].items():
        read = trees[name]
        state = {**part["state"], "tensors": read["state"]}
        buffers = {**part["buffers"], **read["buffers"]}
        parts[name] = {**part, "weights": read["weights"], "buffers": buffers, "state": state_of(name, state)}
    return parts, dict(contents["extra"])
