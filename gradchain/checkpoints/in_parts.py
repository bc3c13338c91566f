"""A checkpoint in parts, written by all ranks of a run: a folder of their files, and then the index that makes it one.

The folder is `<stem of the index>.<8 digits>.dcp`, new for each save. What no index names was left by a run that was
killed, and is removed by whoever may write here next.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gradchain.checkpoints import ranks
from gradchain.updater import in_parts, sealed

_NAME = re.compile(r"(?P<stem>.+)\.[0-9a-f]{8}" + re.escape(in_parts.SUFFIX))


def write(contents: Mapping[str, Any], index: Path, owner: str, group: Any) -> dict[str, Any]:
    """Have all ranks write their parts; what is to stand in the index. All call it, and raise where one cannot write.

    Raises:
        OSError: this rank cannot.
        RuntimeError: another one cannot.
    """
    from gradchain.updater import dcp  # only where there are parts: importing it takes time

    made = ranks.by_first(owner, partial(_made, index), group)
    folder = index.with_name(ranks.of_first(made, group) or "")
    try:
        tree, left = ranks.by_all(owner, partial(in_parts.parted, contents), group)
        try:
            table, seals = dcp.write(tree, folder, group)
        except dcp.FailedError as failed:
            _raise(owner, folder, failed)
        files = {name: seal for of_rank in ranks.gathered(seals, group) for name, seal in of_rank.items()}
        others = _others(in_parts.buffers_of(left), owner, group)
        ranks.by_first(owner, partial(sealed.sync_folder, folder), group)
    except BaseException:
        if ranks.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    rows = [[*row[:3], [[*chunk] for chunk in row.chunks]] for row in table]
    listed = {name: [*seal] for name, seal in sorted(files.items()) if not name.startswith(".")}
    more = {"folder": folder.name, "ranks": ranks.many(), "files": listed, "tensors": rows, "buffers": others}
    return {**left, in_parts.KEY: more}


def _made(index: Path) -> str:
    folder = index.with_name(f"{index.stem}.{os.urandom(4).hex()}{in_parts.SUFFIX}")
    with sealed.in_words("save", folder):
        folder.mkdir()
    sealed.sync_folder(folder.parent)
    return folder.name


def _raise(owner: str, folder: Path, failed: Any) -> None:
    own = failed.errors.get(ranks.rank())
    if own is not None:
        with sealed.in_words("save", folder):
            raise own
    error = failed.errors[failed.rank]
    raise RuntimeError(f"{owner}: rank {failed.rank} failed, and with it all. {type(error).__name__}: {error}")


def _others(buffers: dict[str, Any], owner: str, group: Any) -> dict[int, dict[str, Any]]:
    """The buffers of ranks that have others than the first, as running statistics that are not reduced."""
    sums = ranks.gathered(ranks.by_all(owner, partial(in_parts.checksum, buffers), group), group)
    if all(one == sums[0] for one in sums):
        return {}
    mine = buffers if sums[ranks.rank()] != sums[0] else None
    return {rank: given for rank, given in enumerate(ranks.gathered(mine, group)) if given is not None}


def remove(index: Path, but: str = "") -> None:
    """Remove the folders of parts that belong to an index; but for the one of this name."""
    for folder in index.parent.glob(f"{index.stem}.*{in_parts.SUFFIX}"):
        match = _NAME.fullmatch(folder.name)
        if match and match["stem"] == index.stem and folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, own: re.Pattern[str]) -> None:
    """Remove what was being written as a run was killed: parts whose index, by such a name, is not there."""
    with contextlib.suppress(OSError):
        for parts in [*folder.iterdir()]:
            match = _NAME.fullmatch(parts.name)
            index = None if match is None else f"{match['stem']}.pt"
            if index is not None and own.fullmatch(index) and not (folder / index).exists():
                shutil.rmtree(parts, ignore_errors=True)
