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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_KINDS = ("weights", "buffers", "state")  # of tensors of an updater
_DEEPEST = 64  # keys that lead to a tensor, and dimensions of one


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
    parts = contents["parts"]
    if not _is_index(contents.get(KEY)) or not all(map(_is_left, parts.values())):
        raise _another(owner, path)
    if not all(row[0][0] in parts for row in contents[KEY]["tensors"]):
        raise _another(owner, path)


def _another(owner: str, path: Path) -> ValueError:
    return ValueError(f"{owner}: {str(path)!r} must be an index as gch.Checkpointer writes it, and is another file.")


def _is_left(part: Any) -> bool:
    """Whether it is what `parted` leaves of an updater."""
    return isinstance(part, dict) and isinstance(part.get("buffers"), dict) and isinstance(part.get("state"), dict)


def _is_index(shards: Any) -> bool:
    if not isinstance(shards, dict) or set(shards) != {"folder", "ranks", "files", "tensors", "buffers"}:
        return False
    files, rows = shards["files"], shards["tensors"]
    if not isinstance(shards["folder"], str) or not _FOLDER.fullmatch(shards["folder"]):
        return False
    if not isinstance(files, dict) or not isinstance(rows, list) or not _are_buffers(shards["buffers"]):
        return False
    if not all(isinstance(n, str) and _FILE.fullmatch(n) and _are(f, int, str) for n, f in files.items()):
        return False
    return type(shards["ranks"]) is int and all(_is_row(row, files) for row in rows) and _are_apart(rows, files)


def _are_buffers(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(of_rank, dict) and all(isinstance(buffers, dict) for buffers in of_rank.values())
        for of_rank in found.values()
    )


def _are(found: Any, *kinds: type) -> bool:
    return isinstance(found, (list, tuple)) and [*map(type, found)] == [*kinds]


def _is_row(row: Any, files: Mapping[str, Any]) -> bool:
    if not _are(row, list, torch.dtype, list, list):
        return False
    path, dtype, shape, chunks = row
    if not 3 <= len(path) <= _DEEPEST or not all(isinstance(key, str) for key in path) or path[1] not in _KINDS:
        return False
    if len(chunks) > len(files) or not _are_sizes(shape):  # a rank has one box of a tensor, and one file
        return False
    if not all(_is_chunk(chunk, shape, dtype, files) for chunk in chunks):
        return False
    boxes = sorted([*zip(*chunk[:2], strict=True)] for chunk in chunks if 0 not in chunk[1])
    covered = sum(math.prod(chunk[1]) for chunk in chunks)
    return bool(covered == math.prod(shape)) and not _overlap(boxes)


def _is_chunk(chunk: Any, shape: list[int], dtype: torch.dtype, files: Mapping[str, Any]) -> bool:
    """Whether it lies in a tensor of this shape, and in its file."""
    if not _are(chunk, list, list, str, int, int) or chunk[2] not in files:
        return False
    offsets, sizes, file, begin, length = chunk
    if not _are_sizes(offsets) or not _are_sizes(sizes) or len(offsets) != len(shape) or len(sizes) != len(shape):
        return False
    if any(at + size > whole for at, size, whole in zip(offsets, sizes, shape, strict=True)):
        return False
    bytes_ = math.prod(sizes) * dtype.itemsize
    return bool(begin >= 0 and length >= bytes_ and begin + length <= files[file][0])


def _overlap(boxes: Sequence[Sequence[tuple[int, int]]]) -> bool:
    """Whether any two boxes have an element in common; each is where it begins and its size, by dimension, in order."""
    for number, box in enumerate(boxes):
        for other in boxes[number + 1 :]:
            if box and other[0][0] >= box[0][0] + box[0][1]:
                break  # so are all behind it
            if all(at < b + n and b < at + size for (at, size), (b, n) in zip(box, other, strict=True)):
                return True
    return False


def _are_apart(rows: Sequence[Any], files: Mapping[str, Any]) -> bool:
    """Whether each tensor has a place of its own in the tree, and bytes of its own in the files.

    Else a small file could ask for any memory: for many tensors of the same bytes.
    """
    paths = {tuple(row[0]) for row in rows}
    if len(paths) != len(rows) or any(path[:n] in paths for path in paths for n in range(2, len(path))):
        return False
    read = dict.fromkeys(files, 0)
    for row in rows:
        for chunk in row[3]:
            read[chunk[2]] += chunk[4]
    return all(read[name] <= files[name][0] for name in files)


def _are_sizes(found: Any) -> bool:
    return (
        isinstance(found, list) and len(found) <= _DEEPEST and all(type(n) is int and 0 <= n < 1 << 62 for n in found)
    )


def damage(path: Path, contents: Mapping[str, Any], owner: str, number: int = 0, of: int = 1) -> str:
    """What is wrong with the files of an index, or with this one's share of them; "" where nothing is."""
    shards = contents[KEY]
    for name in sorted(shards["files"])[number::of]:
        file = path.parent / shards["folder"] / name
        try:
            with sealed.opened(file, owner) as there:
                right = sealed.has_checksum(there, *shards["files"][name])
            problem = "" if right else "its checksum is not that of its contents"
        except OSError as error:
            problem = error.strerror or str(error)
        except ValueError as error:  # it is no file
            problem = str(error).partition("must be ")[2].rstrip(".")
        if problem:
            return f"{owner}: {str(path)!r} cannot be read: {str(file)!r} is damaged or missing ({problem})."
    return ""


def verify(path: Path, owner: str) -> None:
    """Look through the files of an index, where it is one. ValueError where one is not whole."""
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise _unreadable(owner, path, error) from error
    if isinstance(contents, dict) and contents.get("format") == FORMAT and isinstance(contents.get("parts"), dict):
        check(owner, path, contents)
        if problem := damage(path, contents, owner):
            raise ValueError(problem)


def _unreadable(owner: str, path: Path, error: Exception) -> ValueError:
    why = f"it is damaged, or no checkpoint of gradchain ({type(error).__name__})"
    return ValueError(f"{owner}: {str(path)!r} cannot be read: {why}.")


def whole(path: Path, contents: Mapping[str, Any], owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and the extra of a file, as one process has them: its tensors are read, whole."""
    return _filled(path, contents, lambda name, row: torch.empty(row.shape, dtype=row.dtype), _plain, owner)


def shares(
    path: Path, contents: Mapping[str, Any], updaters: Mapping[str, Any], rank: int, ranks: int, owner: str
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

    def state_of(name: str, state: dict[str, Any]) -> dict[str, Any]:
        return state if name in places else _plain(name, state)

    parts, extra = _filled(path, contents, place, state_of, owner)
    own = contents[KEY]["buffers"].get(rank, {}) if contents[KEY]["ranks"] == ranks else {}
    for name, buffers in own.items():
        if name in parts:
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
    owner: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    trees: dict[str, Any] = {name: {"weights": {}, "buffers": {}, "state": {}} for name in contents["parts"]}
    for row, tensor in _read(path, contents[KEY], place, owner):
        *keys, last = row.path
        at = trees
        for step in keys:
            at = at.setdefault(step, {})
        at[last] = tensor
    parts = {}
    for name, part in contents["parts"].items():
        read = trees[name]
        state = {**part["state"], "tensors": read["state"]}
        buffers = {**part["buffers"], **read["buffers"]}
        parts[name] = {**part, "weights": read["weights"], "buffers": buffers, "state": state_of(name, state)}
    return parts, dict(contents["extra"])


def _read(
    path: Path, shards: Mapping[str, Any], place: Callable[[str, Row], Tensor], owner: str
) -> list[tuple[Row, Tensor]]:
    """The tensors of an index, each where `place` has it. ValueError where files are not what the index says."""
    from gradchain.updater import dcp  # only where there are parts: importing it takes time

    folder, seals = path.parent / shards["folder"], shards["files"]
    table = {str(number): dcp.Row(*row) for number, row in enumerate(shards["tensors"])}
    try:
        for name, (size, _) in seals.items():  # before there is memory for what they say that they have
            if os.stat(folder / name).st_size != size:
                raise dcp.DamagedError(f"{name!r} has another size")
        tensors = {key: place(row.path[0], row) for key, row in table.items()}
        real = {key: tensor for key, tensor in tensors.items() if not tensor.is_meta}
        with torch.no_grad():
            dcp.fill(real, folder, table, seals, owner)
    except dcp.DamagedError as error:
        raise ValueError(
            f"{owner}: {str(path)!r} cannot be read: {str(folder)!r} is damaged or missing ({error})."
        ) from None
    except OSError as error:
        raise ValueError(
            f"{owner}: {str(path)!r} cannot be read: {str(folder)!r} is damaged or missing ({error.strerror or error})."
        ) from error
    except Exception as error:
        raise _unreadable(owner, path, error) from error
    return [(row, tensors[key]) for key, row in table.items()]
