"""Arguments of other libraries that somebody gives to a link, an alias, a schedule or a selector."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TypedDict, TypeVar

from typing_extensions import ParamSpec

P = ParamSpec("P")
R = TypeVar("R")


class Nothing(TypedDict):
    """What `**options` may hold to a checker, where they are taken only to be refused in a sentence."""


OUR_WORDS: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate", "step_size", "step_size_fn", "start", "value"),
    "rate": ("learning_rate", "step_size"),
    "factor": ("gamma", "step_size", "value"),
    "lr_schedule": ("learning_rate",),
    "step_size": ("learning_rate", "step_size_fn", "decay"),
    "schedule": ("learning_rate", "step_size_fn"),
    "learning_rate": ("lr", "step_size", "start", "value"),
    "betas": ("b1 b2", "betas[0] betas[1]"),
    "beta1": ("b1", "betas[0]", "betas"),
    "beta2": ("b2", "betas[1]", "betas"),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "b1": ("betas[0]", "betas", "decay"),
    "b2": ("betas[1]", "betas"),
    "etas": ("eta_minus eta_plus",),
    "step_sizes": ("min_step_size max_step_size",),
    "epsilon": ("eps",),
    "adam_eps": ("eps",),
    "wd": ("weight_decay",),
    "clip": ("max_norm", "max_value"),
    "decay": ("weight_decay", "gamma"),
    "weight_decay_rate": ("weight_decay",),
    "momentum": ("decay", "b1", "betas[0]"),
    "dtype": ("mu_dtype", "accumulator_dtype"),
    "momentum_dtype": ("mu_dtype", "accumulator_dtype"),
    "state_dtype": ("mu_dtype", "accumulator_dtype"),
    "weight_decay_mask": ("mask",),
    "mask_fn": ("mask", "selector"),
    "mask": ("selector",),
    "params": ("selector",),
    "filter": ("selector",),
    "link": ("inner",),
    "optimizer": ("inner",),
    "transform": ("inner",),
    "max_grad_norm": ("max_norm",),
    "max_delta": ("max_value",),
    "clip_value": ("max_value",),
    "value": ("max_norm", "max_value", "step_size"),
    "norm_type": ("p",),
    "norm": ("max_norm",),
    "clip_norm": ("max_norm",),
    "grad_norm": ("norm",),
    "every_k_schedule": ("every",),
    "k_steps": ("every",),
    "k": ("every", "sync_period"),
    "steps": ("every",),
    "accumulation_steps": ("every",),
    "accumulate_grad_batches": ("every",),
    "gradient_accumulation_steps": ("every",),
    "accumulative_counts": ("every",),
    "update_every": ("every",),
    "update_after_step": ("start",),
    "start_step": ("start",),
    "ema_decay": ("decay",),
    "loss_scale": ("init_scale",),
    "max_consecutive_errors": ("max_consecutive",),
    "min_lr": ("min_value", "end"),
    "key": ("seed",),
    "rng_key": ("seed",),
    "metric": ("observed",),
    "monitor": ("observed",),
    # schedules
    "T_max": ("steps",),
    "total_iters": ("steps", "intervals"),
    "total_steps": ("steps",),
    "transition_steps": ("steps", "step_size"),
    "num_training_steps": ("steps",),
    "decay_steps": ("steps",),
    "updates": ("steps",),
    "T_0": ("period",),
    "T_mult": ("period_multiplier",),
    "eta_min": ("end",),
    "start_factor": ("start",),
    "end_factor": ("end",),
    "initial_lr": ("start", "value"),
    "base_lr": ("start", "value"),
    "init_value": ("start", "value"),
    "peak_value": ("peak",),
    "max_lr": ("peak",),
    "end_value": ("end",),
    "decay_rate": ("gamma",),
    "drop_rate": ("gamma",),
    "alpha": ("end", "decay", "slow_step_size"),
    "boundaries": ("milestones", "intervals"),
    "milestones": ("intervals",),
    "warmup": ("warmup_steps",),
    "num_warmup_steps": ("warmup_steps",),
    "warmup_iters": ("warmup_steps",),
    "pct_start": ("warmup_steps",),
    "pct_final": ("return_steps",),
    "three_phase": ("return_steps",),
    "div_factor": ("start",),
    "final_div_factor": ("end",),
    "steps_per_epoch": ("n", "steps"),
    "epochs": ("steps",),
    "max_norm": ("max_value",),
    "anneal_strategy": ("shape",),
    "interpolate_type": ("shape", "absolute"),
    "boundaries_and_scales": ("milestones", "windows"),
    "schedulers": ("intervals",),
    "schedules": ("intervals",),
    "f": ("fn",),
    "avg_fn": ("decay",),
    "multi_avg_fn": ("decay",),
    "update_period": ("every",),
    "rtol": ("threshold",),
    "atol": ("threshold",),
    "accumulator_dtype": ("dtype",),
    "should_transform_fn": ("predicate", "until", "selector"),
    "beta": ("b1", "decay", "momentum"),
    "min": ("low",),
    "max": ("high",),
    "axis": ("dim",),
    "clip_value_fn": ("clip_exponent",),
}
"""Word → our arguments for it, in the order in which they are tried; of several at once, with a space between."""

INSTEAD: dict[str, str] = {
    "set_to_none": "leave it out: gradients become None",
    "closure": "it goes to update, in place of the loss: update(closure)",
    "scaler": "write amp_scale() in the chain, and bind(model, autocast=torch.float16)",
    "params": "the model goes to bind, as in chain(…).bind(model)",
    "lr": "the learning rate is a link of its own: scale_by_learning_rate(…)",
    "learning_rate": "the learning rate is a link of its own: scale_by_learning_rate(…)",
    "weight_decay": "decay is a link of its own: add_decayed_weights(…), which adamw has after scale_by_adam",
    "mask": "write masked(link, selector)",
    "momentum": "momentum is a link of its own: trace(…)",
    "nesterov": "trace(…, nesterov=True) and scale_by_adam(nesterov=True) have it",
    "dampening": "it belongs to momentum: trace(…, dampening=…), or sgd(…, dampening=…)",
    "amsgrad": "rules.scale_by_amsgrad(…) and adam(…, amsgrad=True) have it",
    "bias_correction_mu": "rules.scale_by_amsgrad(…, bias_correction_mu=…) has it",
    "bias_correction_nu": "rules.scale_by_amsgrad(…, bias_correction_nu=…) has it",
    "centered": "rules.scale_by_stddev(…) and rmsprop(…, centered=True) have it",
    "decoupled_weight_decay": "leave it out: adamw decouples the decay; that of adam is an L2 penalty",
    "foreach": "leave it out: a chain runs fused where it can",
    "fused": "leave it out: a chain runs fused where it can",
    "capturable": "leave it out: updater.capturing() is for CUDA graphs",
    "maximize": "write rules.maximize() in front, or give update(-loss)",
    "differentiable": "leave it out: the links' own update has derivatives under torch.func",
    "error_if_nonfinite": "leave it out: skip_nonfinite() in front holds where something is not finite",
    "clip_grad": "write clip_by_norm(…) in front",
    "max_grad_norm": "write clip_by_norm(…) in front",
    "eps": "it belongs to the link that divides: scale_by_adam(eps=…)",
    "eps_root": "it belongs to the link that divides: scale_by_adam(eps_root=…)",
    "betas": "they belong to the link that averages: scale_by_adam(b1=…, b2=…)",
    **{
        f"{method}.keepdim": "leave it out: dimensions are kept, with size 1"
        for method in ("mean", "sum", "amax", "norms")
    },
    "norm.dim": "norms, with an s, is along dimensions",
    "verbose": "leave it out: updater.hyperparams() and updater.metrics tell",
    "last_epoch": "leave it out: updater.load brings the clocks back",
    "enabled": "leave the link out of the chain instead",
    "device": "leave it out: state lies where the parameter lies",
    "use_grad_mean": 'write reduce="mean"',
    "grad_mean": 'write reduce="mean"',
    "param_labels": "write a pair (selector, link) for each group",
    "transforms": "write a pair (selector, link) for each group",
    "inner": "the link is one of the same chain, behind it",
    "opt": "the links are of the same chain, behind it",
    "forward_extra_args": "leave it out: every link is given a Context",
    "mask_compatible_extra_args": "leave it out: every link is given a Context",
    "gradient_step": "leave it out: the updater counts",
    "should_skip_update_fn": "skip_nonfinite() is a link of its own",
    "old_tensors": "leave it out: the weights come with the update",
    "transition_begin": "write constant(start).take(begin).then(…)",
    "transition_steps": "the parts have their own: linear(…).then(schedules.exponential(…))",
    "warmup_steps": "the parts have their own: linear(0.0, peak, steps).then(…)",
    "peak_value": "the parts have their own: linear(0.0, peak, steps).then(…)",
    "init_value": "the parts have their own: linear(start, peak, steps).then(…)",
    "end_value": "the parts have their own: linear(…).then(schedules.exponential(…))",
    "decay_rate": "the parts have their own: linear(…).then(schedules.exponential(…))",
    "staircase": "write schedules.step_decay(start, step_size, gamma), which falls in steps",
    "total_iters": "write constant(factor).take(steps).then(constant(1.0))",
    "cosine_kwargs": "write join(…) of schedules.warmup_cosine(…) for cycles that differ",
    "cycle_momentum": "the momentum is another number: give b1 or decay a schedule of its own",
    "base_momentum": "the momentum is another number: give b1 or decay a schedule of its own",
    "max_momentum": "the momentum is another number: give b1 or decay a schedule of its own",
    "beta": "momentum is a link of its own: trace(…)",
    "accumulator_dtype": "momentum is a link of its own: trace(…, accumulator_dtype=…)",
    "accumulation_size": "leave it out: every call of updater.observe counts once",
    "mode": "leave it out: there is one",
    "adv_optimizer": "leave it out: the step uphill is rho along the gradient",
    "sync_period": "leave it out: every update is a step uphill and one down",
    "reset_state": "leave it out: nothing is reset",
    "fast_optimizer": "the rule is of the same chain, in front of it",
    "base_optimizer": "the rule is of the same chain, in front of it",
    "opaque_mode": "leave it out: give update a closure",
    "batch_axis_name": "leave it out: a module under DDP reduces by itself",
    "init_scale": "it belongs to amp_scale(init_scale=…)",
    "autocast": "it goes to bind(model, autocast=…)",
    "adaptive": "leave it out: rules.scale_by_adamuon is that rule",
    "preconditioning": "leave it out: products are of the whole matrix",
    "weight_dimension_numbers": "leave it out: conv says how weights of more dimensions are matrices",
    "muon_weight_dimension_numbers": "leave it out: conv says how weights of more dimensions are matrices",
}
"""Word → what to write where what was called has no argument for it."""

FORMS: dict[str, str] = {
    "masked": "The form is masked(link, selector), as in masked(add_decayed_weights(0.1), min_ndim(2)); where a "
    "function gives numbers, write multiply(0.1, function) in place of the number.",
    "partition": "The form is partition((selector, link), (rest, link)): selectors are in the place of labels.",
    "lookahead": "It stands behind the rule: chain(adam(…), rules.lookahead(5, 0.5)).",
    "schedule_free": "It stands behind the rule, at its rate: chain(scale_by_adam(b1=0.0), rules.schedule_free(0.1)).",
    "sam": "It stands in front of the rule: chain(sam(0.05), sgd(0.1)).",
    "accumulate": "It stands in front of the rule: chain(accumulate(4), adam(…)).",
    "skip_nonfinite": "It stands in front of the rule: chain(skip_nonfinite(5), adam(…)).",
    "average_params": "It stands behind the rule: chain(adam(…), average_params(0.999)).",
    "freeze": "The form is freeze(selector).",
    "mean": "Of each whole tensor it is its sums over its numels, numbers per parameter.",
    "Updater": "The form is chain(…).bind(model). An optimizer for a trainer is updater.as_optimizer(), and a class of "
    "them, for those who make it themselves, adapters.zero.optimizer_class(chain(…), model).",
}
"""What a call should look like, where it was given too few arguments or too many, or a link in place of a number."""


def answering(make: Callable[P, R]) -> Callable[P, R]:
    """A function or an `__init__` whose sentence about an argument that it does not take has a cure."""

    @functools.wraps(make)
    def answered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return make(*args, **kwargs)
        except TypeError:
            owner = type(args[0]).__name__ if make.__name__ == "__init__" else make.__name__
            sentence = _problem(owner, make, args, kwargs)
            if sentence is None:
                raise
            raise TypeError(sentence) from None

    return answered


def _problem(owner: str, make: Callable[..., object], args: Iterable[object], kwargs: dict[str, object]) -> str | None:
    """What is wrong with a call, in a sentence; None where the arguments fit."""
    signature = inspect.signature(make)
    try:
        signature.bind(*args, **kwargs)
        return None
    except TypeError as error:
        mismatch = str(error)
    takes = [n for n, p in signature.parameters.items() if n != "self" and p.kind not in (p.VAR_KEYWORD,)]
    listed = f" It takes {', '.join(takes) or 'no argument'}."
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = None if open_ended else next((name for name in kwargs if name not in signature.parameters), None)
    if unknown is not None:
        return not_taken(owner, unknown, takes)
    return f"{owner}: {mismatch}.{' ' + FORMS[owner] if owner in FORMS else ''}{listed}"


def not_taken(owner: str, word: str, takes: Iterable[str]) -> str:
    """The sentence for an argument that is not taken."""
    names = list(takes)
    return f"{owner}: does not take {word!r}{cure(word, names, owner)}. It takes {', '.join(names) or 'no argument'}."


def cure(word: str, takes: Iterable[str], owner: str = "") -> str:
    """What to write in place of an argument that is not taken, behind a colon; nothing where nothing is known."""
    taken = set(takes)
    found = our_words(word, taken)
    instead = INSTEAD.get(f"{owner}.{word}", INSTEAD.get(word))
    if not found and instead is None:
        found = difflib.get_close_matches(word, taken, n=1, cutoff=0.7)
    if found:
        return f": write {' and '.join(f'{name}=' for name in found)}"
    return "" if instead is None else f": {instead}"


def our_words(word: str, taken: Iterable[str]) -> list[str]:
    """Which of the names that are known are ours for this word of another library."""
    there = set(taken)
    return next((names for names in (part.split() for part in OUR_WORDS.get(word, ())) if there.issuperset(names)), [])
