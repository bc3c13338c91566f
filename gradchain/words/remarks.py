"""Warnings from the line of the user's program that led to them."""

from __future__ import annotations

import sys
import warnings


def remark(sentence: str) -> None:
    """Warn of something legal that is most likely a slip, from the last line that is not of this package."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("gradchain."):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(sentence, UserWarning, stacklevel=depth)
