"""What torch's objects remember, moved into the state of a chain."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradchain.adapters.adopting.schedulers import refused

Slots: TypeAlias = "tuple[tuple[str, str], ...]"
AVERAGE, PLATEAU, SCALE = "average_params", "reduce_on_plateau", "amp_scale"


def fill_rule(links: dict[str, Any], memory: Mapping[str, Mapping[str, Any]], slots: Slots) -> None:
    """Put what an optimizer remembers of each parameter into the states of its links.

    Args:
        links: the states of a chain by address, as `state_dict` has them; they are changed.
        memory: what the optimizer has of each parameter, by name.
        slots: keys of the optimizer, each with a field of a state, or "" where the chain has it otherwise.
    """
    placed = {key for key, field in slots if not field}
    for address, state in links.items():
        if address.rpartition("/")[2] in (AVERAGE, PLATEAU, SCALE):
            continue
        names = _names(state)
        for key, field in slots:
            if state.get(field) is None:
                continue
            placed.add(key)
            known = {n: memory[n][key] for n in names if memory.get(n, {}).get(key) is not None}
            state[field] = _counts(key, known, names) if field == "count" else _slots(known, state[field])
    _refuse_left(memory, placed)


def _refuse_left(memory: Mapping[str, Mapping[str, Any]], placed: set[str]) -> None:
    """ValueError where the optimizer remembers what the chain has no place for."""
    held = {key for of in memory.values() for key, value in of.items() if value is not None}
    nowhere = sorted(held - placed)
    if nowhere:
        raise refused(f"optimizer must remember what its class does, got {nowhere}, for which the chain has no place.")


def _names(state: Mapping[str, Any]) -> list[str]:
    """The parameters of a link, by what it has of each."""
    return next((list(value) for name, value in state.items() if isinstance(value, Mapping) and name != "buffers"), [])


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
    links[SCALE] |= {"scale": float(saved["scale"]), "growth_tracker": int(saved["_growth_tracker"])}


def fill_plateau(links: dict[str, Any], plateau: Any, rates: Sequence[float]) -> None:
    """Where a ReduceLROnPlateau stands; each link has the rate of its own groups."""
    states = [state for address, state in links.items() if address.rpartition("/")[2] == PLATEAU]
    for state, rate in zip(states, rates, strict=True):
        best, bad, left = float(plateau.best), int(plateau.num_bad_epochs), int(plateau.cooldown_counter)
        state |= {"value": rate, "best": best, "num_bad": bad, "cooldown_left": left}


def fill_average(links: dict[str, Any], average: Any, names: Sequence[str]) -> None:
    """The weights of an AveragedModel, and how many went into them."""
    state = links[AVERAGE]
    count = int(average.n_averaged)
    if not count:
        return  # its first update copies
    averaged = dict(average.module.named_parameters(remove_duplicate=False))
    state["average"] = _slots({name: averaged[name] for name in names}, state["average"])
    if state["buffers"]:
        buffers = dict(average.module.named_buffers(remove_duplicate=False))
        state["buffers"] = {name: buffers[name].detach().clone() for name in state["buffers"]}
    state["num_averaged"] = count


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
