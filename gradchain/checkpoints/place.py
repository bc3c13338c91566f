"""Where each rank of a run is: its random numbers and its place in the loader, saved by one number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from gradchain.checkpoints import randomness, ranks
from gradchain.checkpoints.feed import Feed


def own_of(owner: str, saved: Sequence[dict[str, Any]], cure: str, feed: Feed | None = None) -> dict[str, Any]:
    """What this rank takes up of what each had; without random numbers where there were more ranks or fewer.

    In the middle of an epoch that `gch.loop.sampler` orders, what was seen is the first so many items of the order,
    whoever saw them: other ranks share out the rest, where it comes out even in their batches.

    Raises:
        ValueError: the ranks are others, in the middle of an epoch of which nobody can say what is left.
    """
    here = len(ranks.gathered(None))
    if here == len(saved):
        return saved[ranks.rank()]
    own = {**saved[0], "random": None, "loader": None}
    in_epoch = any(of_one["feed"] is not None and of_one["feed"]["batch"] for of_one in saved)
    if in_epoch or any(of_one.get("loader") is not None for of_one in saved):
        behind = [None if of_one["feed"] is None else of_one["feed"].get("items") for of_one in saved]
        own["feed"] = None if feed is None else feed.shared_out(saved[0]["feed"], behind, here)
        if own["feed"] is None:
            raise ValueError(
                f"{owner}: ranks must be the {len(saved)} that the checkpoint was saved with, to go on in the middle "
                f"of an epoch, got {here}. {cure} Or give the loader a gch.loop.sampler, and save where what all have "
                "seen is a multiple of what all see in a batch."
            )
    warnings.warn(
        f"{owner}: the checkpoint is of {len(saved)} ranks, and here are {here}: random numbers begin anew.",
        stacklevel=4,
    )
    return own


def put(own: dict[str, Any], feed: Feed | None) -> None:
    """Be there."""
    if feed is not None and own["feed"] is not None:
        feed.load(own["feed"])
    if own["random"] is not None:
        randomness.put(own["random"])
