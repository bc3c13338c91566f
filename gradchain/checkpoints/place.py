"""Where each rank of a run is: its random numbers and its place in the loader, saved by one number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from gradchain.checkpoints import randomness, ranks
from gradchain.checkpoints.arguments import is_count
from gradchain.checkpoints.feed import Feed


def are_ranks(saved: Any) -> bool:
    """Whether it is what each of some ranks had, all of which can be taken up. Nothing is, before that is known."""
    return isinstance(saved, list) and bool(saved) and all(map(_is_own, saved))


def _is_own(own: Any) -> bool:
    return isinstance(own, dict) and randomness.is_state(own.get("random")) and _is_feed(own.get("feed"))


def _is_feed(feed: Any) -> bool:
    if feed is None:
        return True
    if not isinstance(feed, dict) or not {"epoch", "batch", "begin", "place"} <= set(feed):
        return False
    items = feed.get("items")
    counts = feed["epoch"], feed["batch"], 0 if items is None else items
    return all(is_count(count, 0) for count in counts) and _is_begin(feed["begin"])


def _is_begin(begin: Any) -> bool:
    if begin is None:
        return True
    if not isinstance(begin, dict) or not isinstance(begin.get("generators"), list):
        return False
    return randomness.is_state(begin.get("random")) and all(map(_is_of_generator, begin["generators"]))


def _is_of_generator(state: Any) -> bool:
    return torch.is_tensor(state) and state.dtype == torch.uint8 and not state.is_meta


def are_records(best: Any) -> bool:
    """Whether it is metric → the best so far."""
    return isinstance(best, dict) and all(type(n) is str and type(value) in (int, float) for n, value in best.items())


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
