"""What a folder has, in the order in which it was saved: a small file beside the others, written after them.

It is JSON with a checksum of its own. Where it is missing, damaged or of another day it is made anew by looking: names
say the order then, and the end of a file its seal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gradchain.updater import sealed

FORMAT = 1


class Entry(NamedTuple):
    """A file that was whole when it was written.

    Attributes:
        file: its name.
        number: how many updates, batches or epochs it is of.
        size: its bytes.
        seal: the checksum in it.
    """

    file: str
    number: int
    size: int
    seal: str


def read(path: Path) -> list[Entry] | None:
    """The entries, from the first that was saved to the last; None where they cannot be believed."""
    try:
        found = json.loads(path.read_bytes())
        entries = [Entry(*row) for row in found["files"]]
        typed = all(list(map(type, entry)) == [str, int, int, str] for entry in entries)
        if found["format"] == FORMAT and found["checksum"] == _checksum(entries) and typed:
            return entries
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # it is only a help: what the files are they say themselves
    return None


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Put them in place of those before."""
    rows: dict[str, Any] = {"format": FORMAT, "files": [list(entry) for entry in entries]}
    text = json.dumps({**rows, "checksum": _checksum(entries)}, indent=1)

    def put(file: BinaryIO) -> None:
        file.write(text.encode())

    sealed.write(path, put)


def _checksum(entries: Sequence[Entry]) -> str:
    return hashlib.blake2b(json.dumps([FORMAT, *map(list, entries)]).encode(), digest_size=16).hexdigest()
