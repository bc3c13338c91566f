"""What torch's objects remember, moved into the state of a chain."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradchain.adapters.adopting.schedulers import refused
from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.updater.target import Target

Slots: TypeAlias = "tuple[tuple[str, str], ...]"


class Averaged(NamedTuple):
    """What an AveragedModel holds, by the names that the model has.

    Attributes:
        taken: how many weights went into it.
        weights: of the model's parameters.
        buffers: of the averaged module; empty where they are copied, not averaged.
    """

    taken: int
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]


def within(states: Mapping[str, Any], made: chain, links: Sequence[Transform]) -> dict[str, Any]:
    """The states of these links of a chain, and of what is in them, by address."""
    wanted = {name for name, link in made.named if any(link is one for one in links)}
    return {address: state for address, state in states.items() if address.partition("/")[0] in wanted}


def fill_rule(links: dict[str, Any], memory: Mapping[str, Mapping[str, Any]], slots: Slots) -> None:
    """Put what an optimizer remembers of each parameter into the states of its links.

    Args:
        links: the states of the rule's links by address, as `state_dict` has them; they are changed.
        memory: what the optimizer has of each parameter, by name.
        slots: keys of the optimizer, each with a field of a state, or "" where the chain has it otherwise.
    """
    elsewhere = {key for key, field in slots if not field}
    placed = {(name, key) for name in memory for key in elsewhere}
    branches = _names(links)
    for address, state in links.items():
        names = branches[address.rpartition("/")[0]]
        for key, field in slots:
            if state.get(field) is None:
                continue
            places = names if field == "count" else state[field]
            known = {n: memory[n][key] for n in places if memory.get(n, {}).get(key) is not None}
            placed |= {(name, key) for name in known}
            state[field] = _counts(key, known, names) if field == "count" else _slots(known, state[field])
    _refuse_left(memory, placed)


def _refuse_left(memory: Mapping[str, Mapping[str, Any]], placed: set[tuple[str, str]]) -> None:
    """ValueError where the optimizer remembers what the chain has no place for."""
    held = {(name, key) for name, of in memory.items() for key, value in of.items() if value is not None}
    nowhere = sorted({f"{key} of {name}" for name, key in held - placed})
    if nowhere:
        raise refused(
            f"optimizer must remember what its class does, got {', '.join(nowhere[:3])}, for which the chain has no "
            "place."
        )


def _names(links: Mapping[str, Any]) -> dict[str, list[str]]:
    """The parameters of each branch, by what its links have of them: one that counts may have nothing else."""
    out: dict[str, dict[str, None]] = {}
    for address, state in links.items():
        known = out.setdefault(address.rpartition("/")[0], {})
        for value in state.values():
            known |= dict.fromkeys(value) if isinstance(value, Mapping) else {}
    return {branch: [*known] for branch, known in out.items()}


def _counts(key: str, known: Mapping[str, Any], names: Sequence[str]) -> int | dict[str, int]:
    """Updates of each parameter; one where all that is known is that there was any."""
    counts = {name: (int(known[name]) if key == "step" else 1) if name in known else 0 for name in names}
    alike = set(counts.values())
    return alike.pop() if len(alike) == 1 else counts


def _slots(known: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(before)
    for name, value in known.items():
        if isinstance(before[name], Tensor):
            laid = torch.empty_like(before[name])
            out[name] = laid.copy_(value.detach())
        else:
            out[name] = float(value)
    return out


def fill_scale(links: dict[str, Any], scaler: Any) -> None:
    """The scale of a GradScaler, and how many updates went well since it changed."""
    saved = scaler.state_dict()
    links["amp_scale"] |= {"scale": float(saved["scale"]), "growth_tracker": int(saved["_growth_tracker"])}


def fill_plateau(links: dict[str, Any], plateau: Any, rates: Sequence[float]) -> None:
    """Where a ReduceLROnPlateau stands; each link has the rate of its own groups."""
    states = [state for address, state in links.items() if address.rpartition("/")[2] == "reduce_on_plateau"]
    for state, rate in zip(states, rates, strict=True):
        best, bad, left = float(plateau.best), int(plateau.num_bad_epochs), int(plateau.cooldown_counter)
        state |= {"value": rate, "best": best, "num_bad": bad, "cooldown_left": left}


def average_of(average: Any, names: Sequence[str]) -> Averaged | None:
    """What there is to take over, or None: before its first update, which copies, there is nothing."""
    if average is None or not int(average.n_averaged):
        return None
    module = Target(average.module)
    held = {fact.name: fact.parameter for fact in module.index.facts}
    missing = [name for name in names if name not in held]
    if missing:
        raise refused(f"average must be of the model's parameters, got one that has no {missing[0]!r}.")
    buffers = module.buffers() if average.use_buffers else {}
    return Averaged(int(average.n_averaged), {name: held[name] for name in names}, buffers)


def fill_average(links: dict[str, Any], averaged: Averaged) -> None:
    """The weights of an AveragedModel, and how many went into them."""
    (state,) = links.values()
    state["average"] = _slots(averaged.weights, state["average"])
    if averaged.buffers:
        state["buffers"] = {name: buffer.detach().clone() for name, buffer in averaged.buffers.items()}
    state["num_averaged"] = averaged.taken


def decay_of(average: Any) -> Any:
    """What an AveragedModel averages by: "mean", or the decay that one of torch's functions was made with."""
    functions = [f for f in (average.avg_fn, average.multi_avg_fn) if f is not None]
    if not functions:
        return "mean"
    function = inspect.unwrap(functions[0])  # from the mode without gradients
    made_by = getattr(function, "__qualname__", "").partition(".")[0]
    if getattr(function, "__module__", "") == "torch.optim.swa_utils":
        if made_by in ("get_ema_avg_fn", "get_ema_multi_avg_fn"):
            return inspect.getclosurevars(function).nonlocals["decay"]
        if made_by in ("get_swa_avg_fn", "get_swa_multi_avg_fn"):
            return "mean"
    raise refused(
        f"average must average by one of torch.optim.swa_utils' functions, got {function!r}. Adopt without it, and put "
        "gch.average_params into a chain of your own."
    )
