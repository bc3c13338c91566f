"""A checkpoint of MMEngine's Runner, taken into an updater of the same recipe. Nothing of the file is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import Tensor

from gradchain.adapters.taking.of_torch import fill_optimizer, fill_scale
from gradchain.adapters.taking.reader import read
from gradchain.core.readable import as_name
from gradchain.updater import Updater
from gradchain.updater.state_dict import LoadReport

_OWNER = "load_mmengine"


def load_mmengine(
    updater: Updater, path: str | PathLike[str], *, optimizer: str | None = None, order: Sequence[str] | None = None
) -> LoadReport:
    """Take up what MMEngine's Runner saved: weights, buffers, moments, counts, position, loss scale and average.

    The chain is the recipe, as `gradchain.adapters.mmengine.from_config` makes it: hyperparameters are its own. The
    clock "micro" is the Runner's iteration, and "step" the optimizer's updates. An EMAHook's file has the averages
    in place of the weights, which are put where they belong. What the Runner itself forgets stays forgotten: an open
    window of accumulation. Nothing changes on an error.

    Nothing in the file is unpickled, imported or called but what makes tensors and dicts: its message hub, of objects
    of MMEngine's, is passed over. MMEngine is not needed.

    Args:
        updater: of the chain, bound to the model.
        path: the file.
        optimizer: which of several optimizers, where the file has some by name.
        order: as for `gch.load_torch`; None: the model's parameters in their order, as MMEngine's constructors go.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint, or is of another model or rule.

    >>> import tempfile, torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> model(torch.ones(2)).backward()
    >>> optimizer.step()
    >>> runner = {"meta": {"iter": 1}, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    >>> path = tempfile.mkdtemp() + "/iter_1.pth"
    >>> torch.save(runner, path)
    >>> updater = gch.adamw(1e-3).bind(model)
    >>> report = gch.load_mmengine(updater, path)
    >>> updater.num_updates
    1
    """
    contents = read(str(path), _OWNER)
    missing = next(
        (key for key in ("meta", "state_dict", "optimizer") if not isinstance(contents.get(key), dict)), None
    )
    if missing is not None:
        raise ValueError(
            f"{_OWNER}: {str(path)!r} must have {missing!r}, as a Runner saves it. Set save_optimizer=True; weights "
            "alone are for the model's own load_state_dict."
        )
    part = updater.contents()
    weights, average = _models(contents)
    for places, what in ((part["weights"], "weight"), (part["buffers"], "buffer")):
        for name in places:
            if not isinstance(weights.get(name), Tensor):
                raise ValueError(f"{_OWNER}: {str(path)!r} must have the {what} {name!r}, got none. Bind that model.")
            places[name] = weights[name]
    state, saved = part["state"], contents["optimizer"]
    if "param_groups" not in saved:
        if optimizer not in saved:
            raise ValueError(f"{_OWNER}: optimizer must be one of {sorted(map(as_name, saved))}, got {optimizer!r}.")
        saved = saved[optimizer]
    steps = fill_optimizer(_OWNER, updater, state, saved, order)
    if isinstance(saved.get("loss_scaler"), Mapping) and "scale" in saved["loss_scaler"]:
        fill_scale(_OWNER, state, saved["loss_scaler"])
    iteration = contents["meta"].get("iter")
    if type(iteration) is not int:
        raise ValueError(f"{_OWNER}: {str(path)!r} must say its iteration in 'meta', got {type(iteration).__name__}.")
    state["clocks"] |= {"step": steps or iteration, "micro": iteration}
    if average is not None:
        _fill_average(state, average)
    commit = updater.stage_contents(part)
    return commit()


def _models(contents: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The weights and buffers, and what an EMAHook averaged: it saves each in the other's place."""
    weights, averaged = contents["state_dict"], contents.get("ema_state_dict")
    if not isinstance(averaged, Mapping):
        return dict(weights), None
    live = {name.removeprefix("module."): t for name, t in averaged.items() if name.startswith("module.")}
    return {**weights, **live}, {**{n: weights[n] for n in live if n in weights}, "steps": averaged.get("steps", 0)}


def _fill_average(state: dict[str, Any], average: Mapping[str, Any]) -> None:
    addresses = [a for a, f in state["links"].items() if "average" in f]
    if len(addresses) != 1:
        raise ValueError(
            f"{_OWNER}: the file has the average of an EMAHook, and the chain {len(addresses)} average_params. Bind a "
            "chain with one."
        )
    fields = state["links"][addresses[0]]
    fields["average"] = {n: average[n].to(place.dtype) for n, place in fields["average"].items()}
    if "num_averaged" in fields:
        fields["num_averaged"] = int(average["steps"])
