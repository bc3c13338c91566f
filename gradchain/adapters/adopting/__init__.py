"""A live training by torch's own objects, taken over in the middle of the run by the chain that continues it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gradchain.adapters.adopting import moved
from gradchain.adapters.adopting.arguments import check_arguments
from gradchain.adapters.adopting.bodies import Groups, front_of
from gradchain.adapters.adopting.groups import selector
from gradchain.adapters.adopting.rules import RULES
from gradchain.adapters.adopting.saved import optimizer_of
from gradchain.adapters.adopting.schedulers import curves, refused
from gradchain.combinators.accumulate import accumulate
from gradchain.combinators.freeze import freeze
from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.selectors import ParameterFacts
from gradchain.transforms.average import average_params
from gradchain.updater import Updater
from gradchain.updater.target import Target

__all__ = ["adopt"]


def adopt(
    optimizer: torch.optim.Optimizer | Mapping[str, Any],
    scheduler: Any = None,
    scaler: Any = None,
    average: Any = None,
    *,
    model: nn.Module,
    kind: str | type[torch.optim.Optimizer] | None = None,
    clock: str | None = None,
    step: int | None = None,
    observed: str = "val_loss",
    front: Sequence[Transform] = (),
    autocast: torch.dtype | None = None,
) -> Updater:
    """Take over a live torch training: the chain that continues it, bound to its model in the middle of the run.

    Groups become numbers per parameter, the scheduler a schedule, the scaler `amp_scale`, the average
    `average_params`; moments, counts, scale, positions and what is averaged so far are taken over. The next updates are
    those that the others would have made. `print(updater)` shows the chain that one would write for the next run,
    names without their module; `python -m gradchain show run.pt`, of a file that `updater.save` wrote, prints it as
    code that runs after `import gradchain as gch`.
    Nothing is changed: the optimizer and the rest may go on, or be dropped. The rule that is called ADOPT is
    `gch.rules.adopt`.

    Args:
        optimizer: of a class of torch.optim; one that cannot be said yet is refused by name. Or what its `state_dict()`
            gave, with `kind`. A class of somebody else's goes into a chain by `gch.from_torch`.
        scheduler: of torch.optim.lr_scheduler, or None. LambdaLR's functions stay functions. A ChainedScheduler may
            have factors and cosines, which stay at their floor where torch's climb back.
        scaler: a `torch.amp.GradScaler`, or None.
        average: a `torch.optim.swa_utils.AveragedModel` that is updated after every step, or None.
        model: what the optimizer's parameters are of. Those that it has not are frozen.
        kind: the class that a state is of, or its name: "AdamW".
        clock: what the scheduler was stepped at: "step" for every update, "micro" for every call, those that a scaler
            skips too, or a name such as "epoch", at which `updater.tick("epoch")` then takes the place of
            `scheduler.step()`. None: "step" where the optimizer has counted as many updates as the scheduler was
            stepped, and with a warning where it keeps no count, as SGD; under a scaler "micro" where it has not done
            more, and nothing is accumulated.
        step: how many updates were done, where neither the optimizer nor a scheduler says it, as SGD by itself: for
            schedules of your own to go on from there. Without, clocks begin at 0; of a state from a file a warning
            says so.
        observed: by which name `updater.observe` is told what ReduceLROnPlateau looked at.
        front: what was done by hand between backward and step: `gch.accumulate(4)`, `gch.clip_by_norm(1.0)`.
        autocast: as `bind` takes it.

    Raises:
        TypeError: an object is of a class that cannot be said as a chain. By name.
        ValueError: a learning rate that the scheduler has not set, parameters that are not the model's, a clock that
            must be given, a step that is not what was counted.

    >>> import torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    >>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    >>> for _ in range(3):
    ...     model(torch.ones(2)).backward()
    ...     optimizer.step()
    ...     scheduler.step()
    ...     optimizer.zero_grad()
    >>> updater = gch.adopt(optimizer, scheduler, model=model)
    >>> updater
    chain(scale_by_adam(), scale_by_learning_rate(cosine_wave(0.001, 0.0, 100))).bind(<2 parameters>)
    >>> updater.clocks["step"]
    3
    """
    check_arguments(scaler, average, front, clock, step)
    target = Target(model)
    live = optimizer_of(optimizer, kind, target)
    rule = RULES.get(type(live))
    if rule is None:
        known = ", ".join(named.__name__ for named in RULES)
        raise TypeError(
            f"adopt: optimizer must be a {known} of torch.optim, got a {type(live).__name__}. "
            "gch.from_torch takes other classes into a chain, from their first step on."
        )
    facts = [(fact.name, fact.parameter, fact.owner) for fact in target.index.facts]
    names = _names(live, facts)
    memory = {name: live.state[p] for name, p, _ in facts if p in live.state}
    moving = curves(scheduler, live)
    steps = max((int(of["step"]) for of in memory.values() if "step" in of), default=None)
    scaled = scaler is not None and scaler.is_enabled() and not any(isinstance(link, accumulate) for link in front)
    clock, told = _clock(clock, moving.position, steps, scaled)
    groups = Groups(rule, live.param_groups, names, facts, moving, clock, observed)
    body, rates = groups.links()
    done, more = _done(step, moving.position if clock == "step" else None, steps, live is not optimizer)
    before, behind = front_of(front, scaler, autocast), _averages(average, done)
    made = chain(*before, *_frozen(names, facts), *body, *behind)
    averaged = moved.average_of(average, [name for name, _, _ in facts])
    updater = made.bind(model, autocast=autocast)
    state = updater.state_dict()
    moved.fill_rule(moved.within(state["links"], made, body), memory, rule.slots)
    if scaler is not None and scaler.is_enabled():
        moved.fill_scale(moved.within(state["links"], made, before), scaler)
    if moving.plateau is not None:
        moved.fill_plateau(moved.within(state["links"], made, body), moving.plateau, rates)
    if averaged is not None:
        moved.fill_average(moved.within(state["links"], made, behind), averaged)
    state["clocks"] |= {"step": done, "micro": done} | ({} if moving.position is None else {clock: moving.position})
    updater.load_state_dict(state)
    for warning in filter(None, (told, more)):
        warnings.warn(f"adopt: {warning}", stacklevel=2)
    return updater


def _names(optimizer: torch.optim.Optimizer, facts: Sequence[ParameterFacts]) -> list[list[str]]:
    """The names of each group's parameters, tied ones under their first."""
    known = {id(parameter): name for name, parameter, _ in facts}
    for i, group in enumerate(optimizer.param_groups):
        for k, parameter in enumerate(group["params"]):
            if id(parameter) not in known:
                raise refused(
                    f"model must have all parameters of the optimizer, got none that is number {k} of group {i}, of "
                    f"shape {tuple(parameter.shape)}. Give what holds them all, or an nn.ModuleDict of several."
                )
    return [[known[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def _frozen(names: Sequence[Sequence[str]], facts: Sequence[ParameterFacts]) -> list[Transform]:
    """What keeps parameters still that get gradients and are none of the optimizer's."""
    taken = {name for some in names for name in some}
    left = [name for name, parameter, _ in facts if name not in taken and parameter.requires_grad]
    return [freeze(selector(left, facts))] if left else []


def _averages(average: Any, done: int) -> list[Transform]:
    if average is None:
        return []
    decay, buffers = moved.decay_of(average), "average" if average.use_buffers else "keep"
    first = done if decay == "mean" else done + 1  # its first update copies the weights: a mean of one does, too
    return [average_params(decay, start=0 if int(average.n_averaged) else first, buffers=buffers)]


def _clock(clock: str | None, position: int | None, steps: int | None, scaled: bool) -> tuple[str, str]:
    """At what the scheduler was stepped, and what is to be said of it."""
    if clock is not None or position is None:
        return "step" if clock is None else clock, ""
    if steps is None and scaled:
        raise refused(
            f"clock must be given, for nothing shows how many updates were done for the scheduler's {position} steps: "
            "'step' where it is stepped after each update, 'micro' where a scaler may have skipped some, else a "
            "name such as 'epoch'."
        )
    if steps is None:
        return "step", (
            f"clock is taken to be 'step', for nothing shows how many updates were done for the scheduler's {position} "
            "steps. Write clock='step' where it is stepped after each update, else clock='epoch'."
        )
    if scaled and steps <= position:  # torch's is stepped where an update was skipped, too
        return "micro", ""
    if steps != position:
        raise refused(
            f"clock must be given: the optimizer has done {steps} updates, and the scheduler was stepped {position} "
            "times. Write clock='epoch', and call updater.tick('epoch') where scheduler.step() was."
        )
    return "step", ""


def _done(given: int | None, position: int | None, steps: int | None, saved: bool) -> tuple[int, str]:
    """How many updates were done, and what is to be said of it.

    Args:
        given: the argument.
        position: of a scheduler that counts updates.
        steps: what the optimizer has counted.
        saved: whether the optimizer comes from a file: so some were done.
    """
    counted = position if position is not None else steps
    if given is not None and counted is not None and given != counted:
        raise refused(f"step must be left out where updates are counted, {counted} so far, got {given}.")
    if counted is None and given is None and saved:
        return 0, (
            "step is taken to be 0, for nothing that is given counts updates: clocks start there, and so does a "
            "schedule of your own. Write step=50 to go on from update 50, or give the scheduler too."
        )
    return given or 0 if counted is None else counted, ""
