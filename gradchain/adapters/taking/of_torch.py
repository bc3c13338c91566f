"""What a torch.optim optimizer, its scheduler and its scaler saved, taken into an updater of the same recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gradchain.adapters.adopting import moved
from gradchain.adapters.adopting.rules import RULES
from gradchain.core.readable import as_name
from gradchain.updater import Updater
from gradchain.updater.state_dict import LoadReport


def load_torch(
    updater: Updater,
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None = None,
    scaler: Mapping[str, Any] | None = None,
    *,
    order: Sequence[str] | None = None,
    clock: str = "step",
) -> LoadReport:
    """Take up what torch's objects gave as `state_dict()`: moments, counts, position and scale.

    The chain is the recipe: hyperparameters are its own, and the saved ones are not looked at. `gch.adopt` makes a
    chain of them. Weights are the model's to load. Nothing changes on an error.

    Args:
        updater: of a chain with the same rule, in any place: `gch.adamw(…)` for torch's AdamW.
        optimizer: what `optimizer.state_dict()` gave.
        scheduler: what the scheduler's gave, for its position; None where it goes by the optimizer's steps.
        scaler: what a GradScaler's gave, for `amp_scale`; None where there was none.
        order: the names of the parameters in the order in which the optimizer had them, groups one after the other.
            None: by the names in the state, else all of the model's in their order.
        clock: the clock that the chain's schedules read where the scheduler was stepped: "step", or as "epoch".

    Raises:
        ValueError: the state is of another rule, of another number of parameters or of other shapes.

    >>> import torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> model(torch.ones(2)).backward()
    >>> optimizer.step()
    >>> updater = gch.adamw(1e-3).bind(model)
    >>> report = gch.load_torch(updater, optimizer.state_dict())
    >>> updater.num_updates
    1
    """
    state = updater.state_dict()
    steps = fill_optimizer("load_torch", updater, state, optimizer, order)
    if scaler:
        fill_scale("load_torch", state, scaler)
    at = steps if scheduler is None else int(scheduler["last_epoch"])
    if clock not in ("step", *state["clocks"]):
        raise ValueError(f"load_torch: clock must be one that the chain reads, got {clock!r}.")
    state["clocks"] |= {"step": steps, "micro": steps, clock: at}
    return updater.load_state_dict(state)


def fill_optimizer(
    owner: str, updater: Updater, state: dict[str, Any], saved: Mapping[str, Any], order: Sequence[str] | None
) -> int:
    """Put what an optimizer remembers into a plain state, which is changed; how many updates it has done."""
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
        raise ValueError(f"{owner}: optimizer must be what optimizer.state_dict() gave, got {type(saved).__name__}.")
    names = _names(owner, updater, saved["param_groups"], order)
    numbers = [k for group in saved["param_groups"] for k in group["params"]]
    memory = {name: saved["state"][k] for name, k in zip(names, numbers, strict=True) if saved["state"].get(k)}
    keys = {key for of in memory.values() for key, value in of.items() if value is not None}
    problem = f"{owner}: the chain has no rule that remembers {', '.join(sorted(map(as_name, keys)))}."
    for rule in RULES.values():
        if not keys <= {key for key, _ in rule.slots}:
            continue
        links = copy.deepcopy(state["links"])
        try:
            moved.fill_rule(links, memory, rule.slots)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            problem = f"{owner}: {str(error).removeprefix('adopt: ')} Give the chain the rule that the state is of."
            continue
        if not _is_whole(links, memory, rule.slots):
            continue
        state["links"] = links
        return max((int(of["step"]) for of in memory.values() if "step" in of), default=0)
    raise ValueError(problem)


def _is_whole(links: Mapping[str, Any], memory: Mapping[str, Mapping[str, Any]], slots: moved.Slots) -> bool:
    """Whether the links that took slots have no others, and every tensor of the optimizer went into one."""
    fields = {field for _, field in slots if field}
    for state in links.values():
        held = {name: [*value.values()] for name, value in state.items() if isinstance(value, Mapping)}
        tensors = {name for name, values in held.items() if any(isinstance(value, Tensor) for value in values)}
        if "count" in state and tensors & fields and tensors - fields:
            return False
    there = {name for state in links.values() for name in state} - {"count"}
    kept = {key for of in memory.values() for key, v in of.items() if isinstance(v, Tensor) and v.ndim}
    return all(any(field in there for k, field in slots if k == key) for key in kept)


def _names(owner: str, updater: Updater, groups: Sequence[Any], order: Sequence[str] | None) -> list[str]:
    """The name of each parameter of an optimizer, in its order."""
    count = sum(len(group["params"]) for group in groups)
    if order is not None:
        names = [*order]
    elif all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    else:
        names = [*updater.names]
    unknown = next((name for name in names if name not in updater.names), None)
    if unknown is not None:
        raise ValueError(f"{owner}: order must have names of the model's parameters, got {unknown!r}.")
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"{owner}: order must name the {count} parameters of the optimizer, got {len(names)} names. Write them in "
            "the order of its groups."
        )
    return names


def fill_scale(owner: str, state: dict[str, Any], scaler: Mapping[str, Any]) -> None:
    """Put the scale of a GradScaler into the plain state of a chain with `amp_scale`."""
    if "amp_scale" not in state["links"]:
        raise ValueError(f"{owner}: the chain has no amp_scale() for the scaler's scale. Give it one, or leave it out.")
    state["links"]["amp_scale"] |= {
        "scale": float(scaler["scale"]),
        "growth_tracker": int(scaler["_growth_tracker"]),
    }
