"""An optimizer of torch's made again from its state_dict, for a model that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.adapters.adopting.rules import RULES
from gradchain.adapters.adopting.schedulers import refused
from gradchain.core.readable import as_name
from gradchain.updater.target import Target


def optimizer_of(saved: Any, kind: Any, model: Target) -> Any:
    """The optimizer itself where it is one, else what was saved as an optimizer of this class over the model.

    Args:
        saved: an optimizer, or what its `state_dict()` gave.
        kind: the class, or its name in torch.optim, where it was saved.
        model: what holds the parameters that it had.
    """
    if not isinstance(saved, Mapping):
        if kind is not None:
            raise refused(f"kind must be left out where the optimizer is there, got {kind!r}.")
        return saved
    named = {known.__name__: known for known in RULES}
    found = named.get(kind) if isinstance(kind, str) else kind
    if found not in RULES:
        raise refused(f"kind must name the class that the state is of, one of {', '.join(named)}, got {kind!r}.")
    groups: Any = saved.get("param_groups")
    if not isinstance(groups, list) or "state" not in saved:
        raise refused(
            "optimizer must be an optimizer or what its state_dict() gave, got a dict of "
            f"{sorted(map(as_name, saved))}."
        )
    _check_fields(saved["state"], groups, found)
    members = _members(groups, model)
    _check_shapes(saved["state"], groups, members)
    made = found([{"params": some} for some in members])
    made.load_state_dict(saved)
    return made


def _check_fields(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]], kind: type) -> None:
    """ValueError where a group lacks a number of the class, or something is remembered that the class has not."""
    rule = RULES[kind]
    needed, known = {"params", "lr", *rule.numbers}, {key for key, _ in rule.slots}
    problems = [f"no {name!r} in group {i}" for i, group in enumerate(groups) for name in sorted(needed - {*group})]
    problems += [f"{key!r} of parameter {n}" for n, of in state.items() for key in sorted({*of} - known - {"step"})]
    if problems:
        raise refused(f"optimizer must be the state of a {kind.__name__}, got {problems[0]}. Give the kind it is of.")


def _members(groups: Sequence[Mapping[str, Any]], model: Target) -> list[list[Tensor]]:
    """The parameters of each group: by the names in the state, else those of the model in their order."""
    parameters = {fact.name: fact.parameter for fact in model.index.facts}
    if all("param_names" in group for group in groups):
        unknown = [name for group in groups for name in group["param_names"] if name not in parameters]
        if unknown:
            raise refused(f"model must have the parameters that the state names, got none called {unknown[0]!r}.")
        return [[parameters[name] for name in group["param_names"]] for group in groups]
    count = sum(len(group["params"]) for group in groups)
    if len(groups) > 1 or count != len(parameters):
        raise refused(
            f"optimizer must be one group of all {len(parameters)} parameters, or have names, where it is a state: got "
            f"{len(groups)} groups of {count}. Make the optimizer as you did, load the state into it, and adopt that."
        )
    return [list(parameters.values())]


def _check_shapes(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]], members: list[list[Tensor]]) -> None:
    """ValueError where what is remembered of a parameter has another shape: the model is another one."""
    flat = [parameter for some in members for parameter in some]
    for number, parameter in zip((k for group in groups for k in group["params"]), flat, strict=True):
        for key, value in state.get(number, {}).items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                raise refused(
                    f"model must be the one that was trained, got a parameter of shape {tuple(parameter.shape)} where "
                    f"the state has {key!r} of shape {tuple(value.shape)}."
                )
