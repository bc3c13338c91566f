"""Where numbers of a run go: a console, a file of JSON lines, TensorBoard, or any function of a record."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

Record = dict[str, Any]
"""Plain numbers by name: "mode" is "train" or "val"; "epoch", "iter" and "update" say when."""

WHEN = ("mode", "epoch", "iter", "update")


class Sink:
    """Where records go. One of your own derives from it, or is a plain function of a record."""

    def open(self, resumed: Record | None) -> None:
        """The run begins; `resumed` says where it goes on, and whether the validation there is still to come."""

    def __call__(self, record: Record) -> None:
        """Take a record."""
        raise NotImplementedError

    def close(self) -> None:
        """The run ended, well or not."""


class json_lines(Sink):
    """A file with one record a line, which is whole on disk after each.

    A run that begins adds to what is there; one that is resumed first removes the lines that it will write again. What
    is no finite number is null: JSON has no NaN.

    Args:
        path: the file.

    >>> import gradchain as gch
    >>> gch.loop.json_lines("run.jsonl").path.name
    'run.jsonl'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def open(self, resumed: Record | None) -> None:
        """Open the file, without what came after the place that the run is resumed at."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resumed is not None and self.path.exists():
            self._cut(resumed)
        self._file = self.path.open("a", encoding="utf-8")

    def _cut(self, resumed: Record) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        while lines and _comes_after(lines[-1], resumed):
            lines.pop()
        beside = self.path.with_name(f".{self.path.name}.tmp")
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(beside, self.path)

    def __call__(self, record: Record) -> None:
        """Write a line."""
        if self._file is None:
            raise RuntimeError("loop.json_lines: not open: the loop that it was given to opens it.")
        self._file.write(json.dumps({name: _finite(value) for name, value in record.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _comes_after(line: str, resumed: Record) -> bool:
    """Whether a run that is resumed writes this line again; one that is torn it does."""
    try:
        record = json.loads(line)
        at = record["iter"]
        return bool(at > resumed["iter"] or (at == resumed["iter"] and record["mode"] == "val" and resumed["pending"]))
    except (ValueError, KeyError, TypeError):
        return True


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class console(Sink):
    """A line a record, above the bar where there is one.

    Args:
        stream: where to; None is the standard error output, as it is when a line is written.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def __call__(self, record: Record) -> None:
        """Write a line."""
        line = f"{said(record)}\n"
        stream = self._stream or sys.stderr
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            stream.write(line)
        else:
            tqdm.tqdm.write(line, file=stream, end="")


def said(record: Mapping[str, Any]) -> str:
    """A record as a line to read: when, and each number by the last part of its name."""
    when = f"{record['mode']} epoch {record['epoch']} iter {record['iter']} update {record['update']}"
    numbers = [f"{name}: {shown(name, value)}" for name, value in record.items() if name not in WHEN]
    return f"{when}  {', '.join(numbers)}"


def shown(name: str, value: Any) -> str:
    """A number in few characters; what is left of the run in hours, minutes and seconds."""
    if name == "eta" and math.isfinite(value):
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class tensorboard(Sink):
    """TensorBoard's files in a folder: `train/loss`, `val/accuracy`, … by update. Needs the package tensorboard.

    Args:
        folder: where to.
        by: "update", "iter" or "epoch": what the horizontal axis counts.
    """

    def __init__(self, folder: str | os.PathLike[str], *, by: str = "update") -> None:
        if by not in WHEN[1:]:
            raise ValueError(f"loop.tensorboard: by must be 'update', 'iter' or 'epoch', got {by!r}.")
        self._folder, self._by = os.fspath(folder), by
        self._writer: Any = None

    def open(self, resumed: Record | None) -> None:
        """Open the files. What was written after the place that the run is resumed at is not shown any more."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "loop.tensorboard: needs the package tensorboard, which is not installed. Install it: pip install "
                "gradchain[tensorboard]."
            ) from error
        purge = None if resumed is None else resumed[self._by] + 1
        self._writer = SummaryWriter(self._folder, purge_step=purge)

    def __call__(self, record: Record) -> None:
        """Write each number."""
        for name, value in record.items():
            if name not in WHEN and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{record['mode']}/{name}", value, record[self._by])

    def close(self) -> None:
        """Write what is left, and close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _Function(Sink):
    def __init__(self, function: Callable[[Record], object]) -> None:
        self._function = function

    def __call__(self, record: Record) -> None:
        self._function(record)


def sinks(given: Any) -> list[Sink]:
    """What a user gave as `log`: a path ending in .jsonl, a sink, a function, or a list of them."""
    several = given if isinstance(given, Iterable) and not isinstance(given, (str, os.PathLike)) else [given]
    return [_sink(one) for one in several]


def _sink(given: Any) -> Sink:
    if isinstance(given, Sink):
        return given
    if isinstance(given, (str, os.PathLike)) and os.fspath(given).endswith((".jsonl", ".json")):
        return json_lines(given)
    if callable(given) and not isinstance(given, type):
        return _Function(given)
    raise TypeError(
        "loop: log must be a path that ends in .jsonl, loop.console(), loop.tensorboard(folder), a function of a "
        f"record, or a list of these, got {given!r}."
    )


class Meter:
    """Means of what was logged since they were last taken. Tensors are added where they lie: nothing waits for them."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Count each number once. TypeError for what is none."""
        for name, value in values.items():
            number = _number(name, value)
            self._sums[name] = self._sums[name] + number if name in self._sums else number
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, and begin anew. Here a device is waited for."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def __bool__(self) -> bool:
        return bool(self._sums)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, (int, float)) or (hasattr(value, "__float__") and not isinstance(value, torch.Tensor)):
        return float(value)
    raise TypeError(f"loop: log({name}=…) must be a number or a tensor of one, got {type(value).__name__}.")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of some values that are numbers, as floats."""
    found = {}
    for name, value in values.items():
        if not isinstance(value, str):
            try:
                found[str(name)] = float(_number(str(name), value))
            except TypeError:
                continue  # a table, a list: it is in run.metrics
    return found
