"""What of one updater lies in a file: weights, buffers, the state, and what the model says of their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from gradchain.core.readable import as_name, is_readable
from gradchain.updater.memory import fits_repeats
from gradchain.updater.state_dict import kind_of
from gradchain.updater.target import Target

Which = Literal["all", "trainable", "none"]


def check_which(owner: str, weights: object) -> None:
    """ValueError for what no part of the weights is called."""
    if weights not in get_args(Which):
        raise ValueError(f"{owner}: weights must be 'all', 'trainable' or 'none', got {weights!r}.")


def part_of(
    target: Target,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Any],
    averages: Collection[str],
    weights: Which,
) -> dict[str, Any]:
    """The part of a file that is of one updater.

    Args:
        target: the model.
        parameters: its parameters, by name.
        state: the state, as plain data.
        averages: the addresses of the links that average.
        weights: "all", those that require a gradient, or "none"; buffers are in it but for "none".
    """
    chosen = {n: p for n, p in parameters.items() if weights == "all" or (weights == "trainable" and p.requires_grad)}
    buffers = {} if weights == "none" else target.buffers()
    return {
        "weights": {name: p.detach() for name, p in chosen.items()},
        "buffers": {name: b.detach() for name, b in buffers.items()},
        "state": state,
        "model": {
            "saved": weights,
            "left": [name for name in parameters if name not in chosen],
            "tied": target.tied(),
            "transient": target.transient(),
            "averages": list(averages),
        },
    }


class Part(NamedTuple):
    """The part of a file that is of one updater, checked.

    Attributes:
        weights: those that were saved, by name.
        buffers: the buffers; none where no weights were saved.
        state: the state, as plain data that nobody has checked.
        saved: which weights were.
        left: the names of those that were not.
        tied: further name → name of a parameter that has several.
        transient: the names of the buffers that are no part of the model's own state_dict.
        averages: the addresses of the links that average, or None in older files, which do not say.
    """

    weights: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    state: Any
    saved: str = "all"
    left: Collection[str] = ()
    tied: Mapping[str, str] = {}  # never written to
    transient: Collection[str] = ()
    averages: Collection[str] | None = None

    @classmethod
    def read(cls, owner: str, contents: Any) -> Part:
        """A part as `part_of` makes it, or as earlier versions made it. ValueError for anything else."""
        if not isinstance(contents, Mapping) or not {"weights", "buffers", "state"} <= set(contents):
            found = sorted(map(as_name, contents)) if isinstance(contents, Mapping) else type(contents).__name__
            raise ValueError(f"{owner}: expected weights, buffers and state of an updater, found {found}.")
        weights, buffers, model = contents["weights"], contents["buffers"], contents.get("model", {})
        for what, tensors in (("weight", weights), ("buffer", buffers)):
            if not _are_tensors(tensors):
                raise ValueError(f"{owner}: expected a tensor for every {what}, found something else.")
        if not _is_model(model):
            raise ValueError(f"{owner}: expected names of the model as updater.save writes them, found something else.")
        if (model.get("saved") == "none") and (weights or buffers):
            raise ValueError(f"{owner}: expected no weights, for none were saved, found {len(weights)}.")
        return cls(weights, buffers, contents["state"], **model)

    def check(self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """ValueError unless it can be loaded into these parameters and buffers."""
        problems = _misfits("weight", weights, self.weights, self.left)
        if self.saved != "none":
            problems += _misfits("buffer", buffers, self.buffers, self.left)
        problems += [
            f"weight {name!r} is unexpected" for name in self.left if name not in weights and name not in buffers
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ValueError(f"load: the file is of another model: {'; '.join(problems[:3])}{more}.")


def _are_tensors(found: Any) -> bool:
    if not isinstance(found, Mapping):
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items())


def _is_model(model: Any) -> bool:
    """Whether it is made as `part_of` makes it, or was left out."""
    if not isinstance(model, Mapping):
        return False
    if not model:
        return True
    if set(model) != {"saved", "left", "tied", "transient", "averages"} or model["saved"] not in (*get_args(Which),):
        return False
    lists = [model[name] for name in ("left", "transient", "averages")]
    tied = model["tied"]
    if not isinstance(tied, Mapping) or not all(isinstance(names, list) for names in lists):
        return False
    return all(isinstance(name, str) for names in (*lists, tied, tied.values()) for name in names)


def _misfits(
    what: str, places: Mapping[str, Tensor], saved: Mapping[str, Tensor], left: Collection[str] = ()
) -> list[str]:
    """A clause for everything that cannot be copied to its place, or has none; `left` is meant to be missing."""
    missing = [f"{what} {name!r} is missing" for name in places if name not in saved and name not in left]
    return [
        *missing,
        *(f"{what} {name!r} is unexpected" for name in saved if name not in places),
        *(
            f"{what} {name!r}: expected {kind_of(place)}, found {kind_of(saved[name])}"
            for name, place in places.items()
            if name in saved and not _can_be_copied(saved[name], place)
        ),
    ]


def _can_be_copied(tensor: Tensor, place: Tensor) -> bool:
    if tensor.is_nested or (is_readable(tensor), tensor.layout) != (is_readable(place), place.layout):
        return False
    if tensor.shape != place.shape or tensor.dtype != place.dtype:
        return False
    return fits_repeats(tensor, place)
