"""A progress bar, where somebody watches and tqdm is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from gradchain.loop.logs import WHEN, shown


class Bar:
    """tqdm's, or none.

    Args:
        asked: True for one, False for none, None for one on a terminal.
        done: where it begins.
        total: how far it goes, None where nobody knows.
        unit: what it counts.
    """

    def __init__(self, asked: bool | None, done: int, total: int | None, unit: str) -> None:
        self._bar: Any = None
        there = importlib.util.find_spec("tqdm") is not None
        if asked and not there:
            raise ModuleNotFoundError(
                "loop: bar=True needs the package tqdm, which is not installed. Install it: pip install "
                "gradchain[loop]."
            )
        if asked or (asked is None and there and sys.stderr.isatty()):
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, unit=f" {unit}{'es' if unit == 'batch' else 's'}", dynamic_ncols=True
            )

    @property
    def shown(self) -> bool:
        """Whether there is one."""
        return self._bar is not None

    def go_to(self, count: int) -> None:
        """Where it is now."""
        if self._bar is not None and count > self._bar.n:
            self._bar.update(count - self._bar.n)

    def show(self, record: Mapping[str, Any]) -> None:
        """Numbers beside it: those of one word, which are the user's own."""
        if self._bar is not None:
            own = {n: v for n, v in record.items() if n not in (*WHEN, "eta") and "." not in n and "time" not in n}
            self._bar.set_postfix_str(", ".join(f"{name}: {shown(name, v)}" for name, v in own.items()), refresh=False)

    def close(self) -> None:
        """Leave it as it stands."""
        if self._bar is not None:
            self._bar.close()
