"""What is said once and asks nothing of anybody: to the logger "gradchain", for programs that listen to it.

What a user should act on is a warning instead, and what cannot go on an error. Nothing here is configured: without a
handler of the program's own, notices are not seen.
"""

from __future__ import annotations

import logging

MOST = 256
"""How many notices are remembered; one more begins anew, so that sentences with names in them fill no memory."""

_said: set[tuple[str, str]] = set()

logging.getLogger("gradchain").addHandler(logging.NullHandler())


def notice(room: str, sentence: str, level: int = logging.INFO) -> None:
    """Tell the logger "gradchain.<room>" of something, the first time in this process."""
    if (room, sentence) in _said:
        return
    if len(_said) >= MOST:
        _said.clear()
    _said.add((room, sentence))
    logging.getLogger(f"gradchain.{room}").log(level, "%s", sentence)
