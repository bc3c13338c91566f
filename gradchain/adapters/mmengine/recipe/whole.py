"""A whole recipe of MMEngine's as a chain, bound to its model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from gradchain.adapters.mmengine.curves.hook_schedules import read_scheduler_hook
from gradchain.adapters.mmengine.curves.schedules import Fields, clock_of, schedules
from gradchain.adapters.mmengine.entries import OWNER, Entry, listed
from gradchain.adapters.mmengine.groups.params import One, optimizers
from gradchain.adapters.mmengine.groups.rules import Rules
from gradchain.adapters.mmengine.groups.written import Parameters
from gradchain.adapters.mmengine.recipe.group_values import Numbers, Recipe
from gradchain.adapters.mmengine.recipe.hooks import read_hooks
from gradchain.adapters.mmengine.recipe.optimizers import Optimizer
from gradchain.adapters.mmengine.recipe.plateaus import Plateau, plateaus, reducing
from gradchain.adapters.mmengine.recipe.wrappers import SCHEDULES, Around, as_wrapper, is_old, read_wrapper, window
from gradchain.combinators.freeze import freeze
from gradchain.core.chain import chain
from gradchain.core.hyper import Hyper
from gradchain.core.transform import Transform, walk
from gradchain.schedules import Schedule, by
from gradchain.selectors import named
from gradchain.selectors.rules import starts_of
from gradchain.updater import Group, Updater

__all__ = ["Unbound", "from_config", "read_recipe", "unbound"]


def from_config(
    model: nn.Module,
    optim_wrapper: Mapping[str, Any],
    param_scheduler: Any = None,
    *,
    max_epochs: int | None = None,
    max_iters: int | None = None,
    epoch_length: int,
    auto_scale_lr: Mapping[str, Any] | None = None,
    custom_hooks: Any = None,
    default_hooks: Any = None,
    strict: bool = True,
) -> Any:
    """Read the optimization part of an MMEngine config as a chain, and bind it to the model.

        one update here = one OptimWrapper.update_params there, its schedulers and EMAHook included

    `print(updater.chain)` is the code that replaces the config. Where iterations are not updates, in a window of
    accumulation or under a loss scale, schedules read the "micro" clock. What differs on purpose is in the docstring
    of `gradchain.adapters.mmengine`.

    Args:
        model: the model, wrapped or not.
        optim_wrapper: OptimWrapper, AmpOptimWrapper or ApexOptimWrapper (O0, O1), with paramwise_cfg and constructor;
            or one of those for each submodule (MultiOptimWrapperConstructor). Or the old format: a dict of
            `optimizer`, `optimizer_config`, `fp16`, `lr_config`, `momentum_config`.
        param_scheduler: as in `schedules`, and ReduceOnPlateau's, which read `updater.observe(monitor, value)`.
        max_epochs: epochs of the run, where its loop is one of epochs.
        max_iters: micro-batches of the run, where its loop is one of iterations. One of the two is given.
        epoch_length: micro-batches per epoch, `len(train_dataloader)`.
        auto_scale_lr: MMEngine's dict, with one key more where it is enabled: `batch_size`, over all ranks, which the
            learning rate is scaled by.
        custom_hooks: the list; an EMAHook becomes `average_params`, others are named in a warning. In the old format
            also MMDetection 2.x's ExpMomentumEMAHook and LinearMomentumEMAHook.
        default_hooks: the dict, of which `param_scheduler` is read: MMYOLO's YOLOv5ParamSchedulerHook and
            PPYOLOEParamSchedulerHook set the schedules themselves.
        strict: True, what cannot be meant is an error; False, a warning where there is a meaning without it.

    Returns:
        An Updater; for several optimizers a group of them by name, each of which steps by itself.

    Raises: ValueError, TypeError or KeyError, with the place in the config; the model is left as it was.
        UserWarning: what is legal and most likely a slip.

    Equals: MMEngine 0.10.7, weight by weight in float64 at 1e-12.

    >>> import torch
    >>> from gradchain.adapters import mmengine
    >>> updater = mmengine.from_config(
    ...     torch.nn.Linear(2, 1),
    ...     dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9), clip_grad=dict(max_norm=35)),
    ...     dict(type="MultiStepLR", milestones=[8, 11]),
    ...     max_epochs=12,
    ...     epoch_length=100,
    ... )
    >>> updater.chain
    chain(clip_by_norm(35), trace(0.9), scale_by_learning_rate(0.1 * per_epoch(multi_step(1.0, (8, 11)), 100)))
    """
    lengths = {"max_epochs": max_epochs, "max_iters": max_iters, "epoch_length": epoch_length}
    parts = read_recipe(
        model, optim_wrapper, param_scheduler, lengths, auto_scale_lr, (custom_hooks, default_hooks), strict
    )
    bound = {str(part.key): part.bound() for part in parts}
    return Group(bound) if parts[0].key is not None else bound["None"]


@dataclass(frozen=True)
class Unbound:
    """One optimizer of a recipe as a chain.

    key: its name among several, None for the only one; of: its modules, or without a model the name of the submodule,
    None for the model itself; autocast: the dtype of the forward; zero_redundancy: whether ranks share its state out;
    waits: why the chain, which is then without its rules per parameter, can only be made with a model at hand.
    """

    key: str | None
    of: Any
    chain: chain
    autocast: torch.dtype | None
    zero_redundancy: bool = False
    waits: str = ""

    def bound(self) -> Updater:
        """The chain bound to its modules."""
        return self.chain.bind(self.of, autocast=self.autocast, zero_redundancy=self.zero_redundancy)


def unbound(
    optim_wrapper: Mapping[str, Any],
    param_scheduler: Any = None,
    *,
    max_epochs: int | None = None,
    max_iters: int | None = None,
    epoch_length: int,
    auto_scale_lr: Mapping[str, Any] | None = None,
    custom_hooks: Any = None,
    default_hooks: Any = None,
    strict: bool = True,
) -> list[Unbound]:
    """Read a recipe as `from_config` does, for a model that is not at hand.

    Rules per parameter become selectors for any model. Where the chain is bound, one that selects nothing is an error,
    as every selector is; MMEngine is silent there. A tied weight is taken once, where it comes first; with a model and
    without `bypass_duplicate` it is an error, as there.

    Args: as `from_config`; with strict=False a custom key that matches nothing is a warning where the chain is bound.

    Returns:
        The chain of each optimizer.

    Raises: as `from_config`; NotImplementedError: rules that depend on the model, which are those of TSM, of one's own
        and of layer decay but MMPose's, and several optimizers but for submodules by name; rules by layer or by several
        keys under a schedule with an absolute value.

    >>> from gradchain.adapters import mmengine
    >>> wrapper = dict(
    ...     optimizer=dict(type="SGD", lr=0.1, weight_decay=1e-4),
    ...     paramwise_cfg=dict(bias_decay_mult=0.0, custom_keys={"head": dict(lr_mult=10, decay_mult=1)}),
    ... )
    >>> [part] = mmengine.unbound(wrapper, max_iters=100, epoch_length=10)
    >>> part.chain
    chain(
        add_decayed_weights(multiply(0.0001, first((named("*head*"), 1.0), (bias, 0.0)))),
        scale_by_learning_rate(multiply(0.1, (named("*head*"), 10.0))),
    )
    """
    lengths = {"max_epochs": max_epochs, "max_iters": max_iters, "epoch_length": epoch_length}
    given = (optim_wrapper, param_scheduler, lengths, auto_scale_lr, (custom_hooks, default_hooks), strict)
    parts = read_recipe(None, *given)
    for part in parts:
        if part.waits:
            raise NotImplementedError(part.waits)
    return parts


def read_recipe(
    model: nn.Module | None,
    optim_wrapper: Mapping[str, Any],
    param_scheduler: Any,
    lengths: dict[str, Any],
    auto_scale_lr: Mapping[str, Any] | None,
    hooks: tuple[Any, Any],
    strict: bool,
) -> list[Unbound]:
    """The chains of a recipe, none of them bound yet.

    Of what depends on a model that is not at hand, the rest is read and checked, and `waits` says so.
    """
    clock = clock_of(**lengths, owner=OWNER)
    read = partial(schedules, strict=strict, **lengths)
    entry = Entry("optim_wrapper", {}, strict, OWNER)
    if not isinstance(optim_wrapper, Mapping):
        entry.refuse(f"it must be a dict, got {type(optim_wrapper).__name__}.", TypeError)
    for key, value in (("auto_scale_lr", auto_scale_lr), ("default_hooks", hooks[1])):
        if value is not None and not isinstance(value, Mapping):
            Entry(key, {}, strict, OWNER).refuse(f"it must be a dict, got {value!r}.", TypeError)
    given: Mapping[str, Any] = optim_wrapper
    old = is_old(optim_wrapper)
    if old:
        if param_scheduler is not None:
            entry.refuse("param_scheduler must not come with lr_config: one format at a time.")
        read = partial(read, **{key: given.get(key) for key in SCHEDULES})
        given = as_wrapper(optim_wrapper, strict)
    setting = read_scheduler_hook(hooks[1] or {}, clock, strict, param_scheduler is not None)
    averaging = read_hooks(hooks[0], hooks[1] or {}, strict, old)
    recipe = Recipe(old, clock, read, _ratio(auto_scale_lr, strict), averaging, setting, strict)
    ones = _ones(model, Entry(recipe.name, given, strict, OWNER), param_scheduler)
    return [_unbound(one, mine, recipe) for one, mine in ones]


def _unbound(one: One, schedulers: Any, recipe: Recipe) -> Unbound:
    """One optimizer's chain; without rules per parameter where these can only be read with a model."""
    try:
        made = _chain(one, schedulers, recipe)
    except NotImplementedError as error:
        if one.parameters.waits or one.parameters.settings is not None:
            raise
        bare = Parameters(Rules(one.parameters.rules.paramwise), waits=str(error))
        return _unbound(replace(one, parameters=bare), schedulers, recipe)
    return Unbound(one.key, one.target, *made, waits=one.parameters.waits)


def _ratio(auto_scale_lr: Mapping[str, Any] | None, strict: bool) -> float:
    """What every learning rate is multiplied by before the schedules see it."""
    if auto_scale_lr is None:
        return 1.0
    entry = Entry("auto_scale_lr", auto_scale_lr, strict, OWNER)
    entry.only(("enable", "base_batch_size", "batch_size"), belongs={})
    if not entry.flag("enable", False):
        return 1.0
    for key, what in (("base_batch_size", "that the learning rate is for"), ("batch_size", "of this run, all ranks")):
        if key not in auto_scale_lr:
            entry.refuse(f"{key} must be given where it is enabled: the batch size {what}.")
    return entry.positive("batch_size", None) / entry.positive("base_batch_size", None)


# the optimizers of a recipe


def _ones(model: nn.Module | None, entry: Entry, schedulers: Any) -> list[tuple[One, Any]]:
    """The optimizers of a recipe, each with its schedulers."""
    by_key = schedulers if isinstance(schedulers, Mapping) and "type" not in schedulers else None
    ones = optimizers(model, entry)
    keys = [one.key for one in ones if one.key is not None]
    if by_key is not None and not keys:
        entry.refuse(f"param_scheduler must be a list for one optimizer, got a dict of {listed(by_key)}.")
    if by_key is not None and (unknown := [key for key in by_key if key not in entry.items]):
        entry.refuse(f"param_scheduler must be by the optimizers {listed(keys)}, got {listed(unknown)}.")
    return [(one, schedulers if by_key is None else by_key.get(one.key)) for one in ones]


# one chain


def _chain(one: One, schedulers: Any, recipe: Recipe) -> tuple[chain, torch.dtype | None, bool]:
    """The chain of one optimizer, the dtype of its forward, and whether ranks share its state out."""
    name = recipe.name if one.key is None else f"{recipe.name}[{one.key!r}]"
    around = read_wrapper(one.config, name, recipe.strict)
    optimizer = Optimizer(one.config["optimizer"], f"{name}.optimizer", recipe.strict)
    others, reading = plateaus(schedulers, recipe.strict)
    fields = dict(recipe.schedules(others))
    if (setting := recipe.setting) is not None:
        fields["lr"] = setting.lr
        if setting.momentum is not None and "momentum" in optimizer.parameters():  # groups have one by that name
            fields["momentum"] = setting.momentum
    of_lr = reading.pop("lr", None)
    numbers, rule = _rule(one, optimizer, fields, reading, around, recipe)
    if of_lr and not (optimizer.is_times_rate and isinstance(rule[-1], chain)):
        reading["lr"], of_lr = of_lr, None  # smaller updates are not what a smaller rate makes
        numbers, rule = _rule(one, optimizer, fields, reading, around, recipe)
    links: Iterable[Transform | None] = [
        window(around.counts, recipe.clock.iters if one.key is None else None),
        around.amp,
        *_left_out(one),
        around.clip,
        *(plateau.tick() for plateau in reading.values() if _reduces(plateau, rule)),
        *rule,
        *(
            reducing(of_lr, numbers.base("lr"), recipe.ratio, numbers.curve("lr", 1.0), numbers.by_group)
            if of_lr
            else ()
        ),
        None if recipe.averaging is None else recipe.averaging(recipe.clock, around.counts),
    ]
    made = chain(*(link for link in links if link is not None))
    _check_ranges(made, optimizer.entry, recipe)
    return made, around.autocast, optimizer.zero_redundancy


def _reduces(plateau: Plateau, rule: list[Transform]) -> bool:
    """Whether a number of the rule falls with it."""
    reads = any(plateau.clock in schedule.clocks for _, _, schedule in _moving(chain(*rule)))
    if not reads:
        plateau.entry.remark("it never reduces: eps and min_value leave nothing of the number to lose.")
    return reads


def _check_ranges(made: chain, entry: Entry, recipe: Recipe) -> None:
    """A number that its schedulers will have led out of its range is refused before the run."""
    places = "lr_config or momentum_config makes" if recipe.is_old else "param_scheduler makes"
    for link, hyper, schedule in _moving(made):
        inner = schedule.schedule if isinstance(schedule, by) and schedule.clock == "micro" else schedule
        steps = recipe.clock.looks() if isinstance(inner, Schedule) and inner.clocks == {"step"} else []
        values = ((t, inner(t)) for t in steps)
        if (out := next(((t, value) for t, value in values if not hyper.accepts(value)), None)) is not None:
            entry.refuse(
                f"{hyper.name} of {type(link).__name__} must stay {hyper.interval.rule} over the run; {places} it "
                f"{out[1]!r} at iteration {out[0]}. Change what it begins or ends with."
            )


def _moving(made: chain) -> Iterator[tuple[Transform, Hyper, Schedule]]:
    """The numbers that schedules move."""
    for _, link, _ in walk(made, None):
        for hyper in link.hypers.values():
            for start in starts_of(link.__dict__[hyper.name]):
                if isinstance(start, Schedule):
                    yield link, hyper, start


def _rule(
    one: One, optimizer: Optimizer, fields: Fields, reading: dict[str, Plateau], around: Around, recipe: Recipe
) -> tuple[Numbers, list[Transform]]:
    """The numbers of the optimizer's rule, and its links."""
    numbers = Numbers(one, optimizer, fields, reading, around, recipe)
    return numbers, optimizer.links(numbers.all(), numbers.where)


def _left_out(one: One) -> list[Transform]:
    """What is never optimised though it has gradients."""
    settings = one.parameters.settings or {}
    out = [name for name, p, _ in one.parameters.facts if p.requires_grad and settings.get(name) is None]
    return [freeze(named(*out))] if out else []
