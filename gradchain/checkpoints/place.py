"""Where each rank of a run is: its random numbers and its place in the loader, saved by one number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from gradchain.checkpoints import randomness, ranks
from gradchain.checkpoints.feed import Feed


def own_of(owner: str, saved: Sequence[dict[str, Any]], cure: str) -> dict[str, Any]:
    """What this rank takes up of what each had; without random numbers where there were more ranks or fewer.

    Raises:
        ValueError: the ranks are others, and in the middle of an epoch.
    """
    here = len(ranks.gathered(None))
    if here == len(saved):
        return saved[ranks.rank()]
    if any(of_one["feed"] is not None and of_one["feed"]["batch"] for of_one in saved):
        raise ValueError(
            f"{owner}: ranks must be the {len(saved)} that the checkpoint was saved with, to go on in the middle of "
            f"an epoch, got {here}. {cure}"
        )
    warnings.warn(
        f"{owner}: the checkpoint is of {len(saved)} ranks, and here are {here}: random numbers begin anew.",
        stacklevel=4,
    )
    return {**saved[0], "random": None}


def put(own: dict[str, Any], feed: Feed | None) -> None:
    """Be there."""
    if feed is not None and own["feed"] is not None:
        feed.load(own["feed"])
    if own["random"] is not None:
        randomness.put(own["random"])
