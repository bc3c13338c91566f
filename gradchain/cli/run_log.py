"""`python -m gradchain show run.jsonl`: a run as it went, in lines of text and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradchain.see.training import panels_of, records_of, training

__all__ = ["run_log"]

HEAD = ("", "numbers", "from", "to", "first", "last", "least", "most")


def run_log(owner: str, path: str, options: Mapping[str, Any], save: str | None, title: str) -> str:
    """What a file of JSON lines has of a run: each number that `gch.see.training` draws; with `save`, the picture.

    Args:
        owner: who asks, for sentences.
        path: the file, as `gch.loop(…, log="run.jsonl")` writes it.
        options: those that are for chains, by name, of which none may be given.
        save: the picture's file.
        title: above the picture.

    Raises: ValueError, OSError, ModuleNotFoundError: in a sentence.
    """
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ValueError(f"{owner}: --{given.replace('_', '-')} is for a chain, and {path!r} is the log of a run.")
    records = records_of(path)
    rows: list[Sequence[str]] = [HEAD]
    for panel, series in panels_of(records).items():
        for name, (xs, ys) in series.items():
            if panel == "skipped":
                rows.append(("skipped updates", f"{int(sum(ys))}", f"{xs[0]:g}", f"{xs[-1]:g}", "", "", "", ""))
            else:
                xs, ys = zip(*((x, y) for x, y in zip(xs, ys, strict=True) if y == y), strict=True)
                ends = (f"{number:.5g}" for number in (ys[0], ys[-1], min(ys), max(ys)))
                rows.append((name, str(len(xs)), f"{xs[0]:g}", f"{xs[-1]:g}", *ends))
    if save is not None:
        figure = training(records, title=title)
        try:
            figure.savefig(save)
        except OSError as error:
            raise OSError(f"{owner}: {save!r} cannot be written: {error.strerror or error}.") from None
    where = "" if save is None else f"\n\nthe picture is in {save}"
    return f"a run of {len(records)} records\n\n{_table(rows)}{where}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = (
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
