"""The guide from Optax: `python tests/optax_guide.py` writes docs/optax.md, where each of Optax's names has its place.

A name's answer is that of `optax_names.py` and `gradchain/words/names.py`, or the name itself where gradchain has it.
What differs is read from the two signatures, and from `NOTES` where they do not say it.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optax_names import LOOKED_INTO, MODULES, OPTAX

import gradchain as gch
from gradchain.words import arguments

NOT = "not here, because "
PAGE = Path(__file__).parents[1] / "docs" / "optax.md"
HEAD = """# Every name of Optax

`python tests/optax_guide.py` writes this page from the tables that answer Optax's names in error sentences, and a test
holds it to them. {count} public names of Optax {version}, those of `contrib`, `schedules`, `transforms` and
`projections` included. How to read the two side by side, and a step of JAX beside ours, is in
[Coming from Optax](coming_from.md#from-optax); how far apart weights are, in [which.md](which.md).

"the same" is said where a row of the tests runs both in float64. Arguments are Optax's by name; where one has another
name, another default, or is not taken, it is told.

| Optax | gradchain | what differs |
|---|---|---|
{rows}

## Not here

{reasons}
"""

# Where gradchain's side is more than a name: what one writes, which a test evaluates.
WRITTEN = {
    "MultiSteps": 'gch.accumulate(4, reduce="mean")',
    "adamaxw": "gch.adamax(2e-3, weight_decay=1e-4, decoupled_weight_decay=True)",
    "add_decayed_weights": "gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2))",
    "amsgrad": 'gch.chain(gch.rules.scale_by_amsgrad(max_of="nu_hat"), gch.scale_by_learning_rate(1e-3))',
    "apply_every": 'gch.accumulate(4, reduce="sum")',
    "apply_if_finite": "gch.skip_nonfinite(5)",
    "clip": "gch.clip_by_value(0.5)",
    "clip_by_global_norm": "gch.clip_by_norm(1.0, eps=0.0)",
    "conditionally_mask": 'gch.when(lambda step: step < 100, gch.trace(0.9), otherwise="zero")',
    "conditionally_transform": "gch.when(lambda step: step < 100, gch.trace(0.9))",
    "constant_schedule": "gch.constant(0.1)",
    "cosine_decay_schedule": "gch.cosine(0.1, 0.0, 100)",
    "cosine_onecycle_schedule": "gch.schedules.one_cycle(0.004, 0.1, 30, 100, 4e-7)",
    "exponential_decay": "gch.schedules.exponential(0.1, 0.5, 100)",
    "freeze": 'gch.freeze(gch.named("body.*"))',
    "identity": "gch.chain()",
    "incremental_update": "gch.average_params(0.999)",
    "join_schedules": "gch.linear(0.0, 0.1, 10).then(gch.constant(0.1))",
    "keep_params_nonnegative": "gch.project(gch.rules.projection_non_negative())",
    "linear_onecycle_schedule": (
        'gch.schedules.piecewise((0, 0.004), (30, 0.1), (85, 0.004), (100, 4e-7), shape="linear")'
    ),
    "linear_schedule": "gch.linear(0.1, 0.0, 100)",
    "lookahead": "gch.chain(gch.sgd(0.1), gch.rules.lookahead(5, 0.5))",
    "masked": "gch.masked(gch.trace(0.9), gch.min_ndim(2))",
    "measure_with_ema": 'gch.rules.snapshot("size", lambda updates: updates.norm(), 0.9)',
    "monitor": 'gch.rules.monitor({"size": lambda updates: updates.norm()})',
    "multi_transform": "gch.partition((gch.min_ndim(2), gch.adam(1e-3)), (gch.rest, gch.sgd(0.1)))",
    "nadam": "gch.chain(gch.scale_by_adam(nesterov=True), gch.scale_by_learning_rate(1e-3))",
    "named_chain": 'gch.chain(("rule", gch.scale_by_adam()), ("rate", gch.scale_by_learning_rate(1e-3)))',
    "partition": "gch.partition((gch.min_ndim(2), gch.adam(1e-3)), (gch.rest, gch.sgd(0.1)))",
    "periodic_update": "gch.average_params(0.0, every=10)",
    "piecewise_constant_schedule": "gch.schedules.multi_step(0.1, (30, 60), 0.1)",
    "piecewise_interpolate_schedule": 'gch.schedules.piecewise((0, 0.1), (30, 0.05), (60, 0.005), shape="linear")',
    "polynomial_schedule": "gch.schedules.polynomial(0.1, 0.0, 100, 2.0)",
    "reduce_on_plateau": 'gch.reduce_on_plateau("val_loss")',
    "sam": "gch.chain(gch.sam(0.05), gch.sgd(0.1))",
    "scale_by_muon": "gch.rules.scale_by_muon(shape_factor=None, nesterov=False, dtype=None)",
    "schedule_free": "gch.chain(gch.scale_by_adam(b1=0.0), gch.rules.schedule_free(0.1))",
    "selective_transform": "gch.partition((gch.bias, gch.freeze(gch.everything)), (gch.rest, gch.sgd(0.1)))",
    "set_to_zero": "gch.freeze(gch.everything)",
    "sgdr_schedule": "gch.schedules.cosine_restarts(0.1, 0.0, 50)",
    "skip_large_updates": "gch.rules.skip_large_updates(100.0)",
    "skip_not_finite": "gch.skip_nonfinite(5)",
    "snapshot": 'gch.rules.snapshot("size", lambda updates: updates.norm())',
    "stateless": "gch.stateless(lambda updates, params: updates + 0.1 * params)",
    "stateless_with_tree_map": "gch.stateless(lambda updates, params: updates + 0.1 * params)",
    "unitwise_clip": "gch.rules.adaptive_grad_clip(0.1)",
    "warmup_constant_schedule": "gch.linear(0.0, 0.1, 10)",
    "warmup_cosine_decay_schedule": "gch.schedules.warmup_cosine(0.0, 0.1, 10, 100)",
    "warmup_exponential_decay_schedule": "gch.linear(0.0, 0.1, 10).then(gch.schedules.exponential(0.1, 0.5, 100))",
    "zero_nans": "gch.nan_to_num()",
}

# Schedules of Optax, beside which a test holds those of WRITTEN.
SCHEDULES = {
    "constant_schedule": "optax.constant_schedule(0.1)",
    "cosine_decay_schedule": "optax.cosine_decay_schedule(0.1, 100)",
    "cosine_onecycle_schedule": "optax.cosine_onecycle_schedule(100, 0.1)",
    "exponential_decay": "optax.exponential_decay(0.1, 100, 0.5)",
    "join_schedules": "optax.join_schedules([optax.linear_schedule(0.0, 0.1, 10), optax.constant_schedule(0.1)], [10])",
    "linear_onecycle_schedule": "optax.linear_onecycle_schedule(100, 0.1)",
    "linear_schedule": "optax.linear_schedule(0.1, 0.0, 100)",
    "piecewise_constant_schedule": "optax.piecewise_constant_schedule(0.1, {30: 0.1, 60: 0.1})",
    "piecewise_interpolate_schedule": 'optax.piecewise_interpolate_schedule("linear", 0.1, {30: 0.5, 60: 0.1})',
    "polynomial_schedule": "optax.polynomial_schedule(0.1, 0.0, 2.0, 100)",
    "sgdr_schedule": "optax.sgdr_schedule([{'init_value': 0.1, 'peak_value': 0.1, 'decay_steps': 50, "
    "'warmup_steps': 0, 'end_value': 0.0}] * 3)",
    "warmup_constant_schedule": "optax.warmup_constant_schedule(0.0, 0.1, 10)",
    "warmup_cosine_decay_schedule": "optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)",
    "warmup_exponential_decay_schedule": "optax.warmup_exponential_decay_schedule(0.0, 0.1, 10, 100, 0.5)",
}

SELECTED = "a selector in place of a tree of booleans or labels, so that a chain needs no model"
ONE_BY_ONE = "goes into `project`, and takes each tensor by itself; `dim` makes rows of it where there is one"
RENAMED = "another name"
BRANCHES = '(name, selector, link) names a branch in addresses; others are "branch", "branch#2", "rest"'
OVERRIDDEN = (
    "not needed: numbers may be schedules, `updater.override` sets one, by the end of its address: "
    '`updater.override("rest/scale_by_learning_rate.learning_rate", 0.2)` in a branch'
)
A_VALUE = "a value that can be printed and joined; "

# What two signatures do not say.
NOTES = {
    # rules
    "adafactor": "torch's: both last dimensions factored whatever their size, the rate held below 1 / √t",
    "adamaxw": "decay is an argument of `adamax`",
    "adan": "the paper's: Optax 0.2.8 looks ahead by 1 - b2 of the difference where the paper has b2",
    "scale_by_adan": "the paper's: Optax 0.2.8 looks ahead by 1 - b2 of the difference where the paper has b2",
    "amsgrad": "`adam(…, amsgrad=True)` is torch's, which keeps the largest mean square before its correction",
    "scale_by_amsgrad": 'torch\'s by default; `max_of="nu_hat"` keeps the largest corrected one, as Optax does',
    "muon": "one rule for a whole model: `head` and `matrices` select, `aux` has the rest; the rate multiplies torch's "
    "factor, in bfloat16 as torch computes; for `MuonDimensionNumbers(1, 0)` the same to 3e-8 without nesterov, as "
    "`muon(lr, nesterov=False, weight_decay=0.0, dtype=None)`",
    "scale_by_muon": "so written it is Optax's without nesterov, to 3e-8: there the factor of the shape is in "
    "`contrib.muon`; with nesterov none is, for Optax corrects the momentum",
    "nadam": "`gch.nadam` is torch's, whose momentum grows; Optax's is Adam with nesterov",
    "optimistic_adam": "Optax's is deprecated for `optimistic_adam_v2`, which this is",
    "optimistic_adam_v2": RENAMED,
    "radam": "`eps_hat=False` is Optax's place of eps",
    "scale_by_radam": "`eps_hat=False` is Optax's place of eps",
    "rprop": "torch's: Optax 0.2.8 makes the step of the update before",
    "scale_by_rprop": "torch's: Optax 0.2.8 makes the step of the update before",
    "adadelta": "without a rate Optax's ascends",
    "schedule_free": "stands behind the rule, at its rate; x is in the model under `updater.averaged()`",
    "schedule_free_sgd": "the warm-up is that of the authors, whose first rate is not 0: as for `schedule_free_adamw`; "
    "x is in the model under `updater.averaged()`",
    "schedule_free_adamw": "the warm-up is that of the authors, whose first rate is not 0; `gch.linear(0.0, lr, 10)` "
    "as the rate is nearest to Optax's `warmup_steps=10`, and none is equal: its mean weighs by the rate of the next "
    "update; x is in the model under `updater.averaged()`",
    "add_noise": "numbers of a counter, in place of a key: the same in each executor and after a resume; other draws",
    "noisy_sgd": "numbers of a counter, in place of a key; other draws",
    # links
    "adaptive_grad_clip": "units are rows, an output each, where Flax has columns",
    "unitwise_clip": "as a link",
    "unitwise_norm": "`norms(dim=…)`",
    "clip": RENAMED,
    "clip_by_global_norm": "torch's `eps` of 1e-6 by default",
    "zero_nans": "torch's: infinities are replaced too, `posinf` and `neginf` by what",
    "keep_params_nonnegative": "a projection of the new weights, behind the rule",
    "stateless": "of Tensors, which have arithmetic",
    "stateless_with_tree_map": "of Tensors, which have arithmetic, and `map` for a function of each tensor",
    "identity": "the empty chain",
    "set_to_zero": "absent, not zero: no decay, and nothing counts",
    "freeze": SELECTED + "; absent, not zero; `start` and `until` bound it",
    "apply_every": "of gradients, in front of the rule, which so has one step in a window",
    "add_decayed_weights": SELECTED + "; `by` has three more meanings of decay",
    "lookahead": "a link behind the rule; the slow weights are an average, and parameters are no pairs",
    "measure_with_ema": "a function of the updates; the mean is in `updater.metrics`",
    "snapshot": "a function of the updates; the number is in `updater.metrics`",
    "monitor": "functions of the updates; numbers are in `updater.metrics`",
    "reduce_on_plateau": "torch's, of what `updater.observe` is given",
    "sam": "in front of the rule, which has the gradient found uphill: `updater.update(closure)`",
    "skip_large_updates": "a link of its own",
    # combinators
    "chain": "links or pairs of a name and a link",
    "named_chain": "`chain` takes pairs",
    "masked": SELECTED,
    "partition": SELECTED + "; the first that matches; " + BRANCHES,
    "multi_transform": SELECTED + "; the first that matches; " + BRANCHES,
    "selective_transform": SELECTED,
    "MultiSteps": 'a link in front; `use_grad_mean=False` is `reduce="sum"`; sums in the dtype of the gradients, '
    "where Optax has float32, also for float64",
    "skip_not_finite": "a link in front; raises at the sixth in a row, where Optax lets it through",
    "apply_if_finite": "a link in front; raises at the sixth in a row, where Optax lets it through",
    "conditionally_mask": RENAMED,
    "conditionally_transform": RENAMED,
    "inject_hyperparams": OVERRIDDEN,
    "inject_stateful_hyperparams": OVERRIDDEN,
    # schedules
    "constant_schedule": RENAMED,
    "linear_schedule": A_VALUE + "`transition_begin` is `constant(start).take(begin).then(…)`",
    "polynomial_schedule": A_VALUE + "`transition_begin` as for `linear_schedule`",
    "piecewise_constant_schedule": A_VALUE + "one factor for all milestones; `schedules.piecewise` has values",
    "piecewise_interpolate_schedule": A_VALUE + "values, in place of factors",
    "exponential_decay": A_VALUE + "`staircase` is `schedules.step_decay`",
    "cosine_decay_schedule": "the end is a value, not a fraction; `exponent` is `schedules.cosine(…, exponent)`",
    "cosine_onecycle_schedule": "values and steps, in place of divisors and fractions",
    "linear_onecycle_schedule": "values and steps, in place of divisors and fractions",
    "warmup_constant_schedule": "a schedule holds its end value",
    "warmup_cosine_decay_schedule": "`steps` are Optax's `decay_steps`, with the warm-up in them; Optax's of an int32 "
    "count, as its links have, is float32, also under x64",
    "warmup_exponential_decay_schedule": "as its parts",
    "sgdr_schedule": "one period for all cycles, or its growth; `join` for others",
    "join_schedules": "each part has its own steps, in place of boundaries",
    "Schedule": "a number, a function of the step, or a schedule",
    # utilities
    "apply_updates": "of Tensors; an Updater writes weights itself",
    "GradientTransformation": "a class with `init` and `update`, a frozen value with a repr that makes it",
    "GradientTransformationExtraArgs": "every `update` has a Context: weights, clocks, the loss, a closure",
    "global_norm": "a method; sums are taken in float64",
    "incremental_update": "`step_size` is 1 - decay; a link of the chain, and `updater.averaged()`",
    "periodic_update": "an average of which nothing stays, now and then",
    "schedule_free_eval_params": "`with updater.averaged():` has them in the model",
    "init_empty_state": "a link without `init` has no state",
    "update_moment": "`mu.lerp(g, 1 - b1)`",
    "update_moment_per_elem_norm": "`nu.lerp(g * g, 1 - b2)`",
    "update_infinity_moment": "`(b2 * nu).maximum(g.abs())`",
    "bias_correction": "a count per parameter, which has the powers: `mu / (1 - b1**count)`",
    **dict.fromkeys((n for n in gch.rules.__all__ if n.startswith("projection_")), ONE_BY_ONE),
}

# What a function of Optax is given at every step, or what a link of the chain stands beside.
NO_ARGUMENT = {
    "args", "f", "fast_optimizer", "base_optimizer", "optimizer", "transforms", "param_labels", "tree", "updates",
    "params", "gradient_step", "x", "measure_name", "mask_compatible_extra_args",
}  # fmt: skip


def theirs(name: str) -> Any:
    """What Optax has under a name, in any of its modules."""
    import optax

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        spaces = (optax, *(getattr(optax, module) for module in LOOKED_INTO))
        return next(getattr(space, name) for space in spaces if hasattr(space, name))


def shown(name: str) -> str | None:
    """How one writes gradchain's own name, if there is one."""
    return f"gch.{name}" if hasattr(gch, name) else f"gch.rules.{name}" if name in gch.rules.__all__ else None


def answer(name: str) -> str:
    """gradchain's side of a name: code that can be evaluated, or a sentence."""
    return WRITTEN.get(name) or shown(name) or OPTAX[name]


def signatures_differ(name: str) -> list[str]:
    """What the two signatures say: other defaults, and arguments that have another name, or none."""
    ours = getattr(gch.rules, name, None) or getattr(gch, name)
    there, here = inspect.signature(theirs(name)).parameters, inspect.signature(ours).parameters
    out, missing = [], []
    for word, parameter in there.items():
        if word not in here:
            known = arguments.our_words(word, here)
            out += [f"`{word}` is `{'`, `'.join(known)}`"] if known else []
            missing += [f"`{word}`"] if not known and word not in NO_ARGUMENT else []
        elif not same_default(parameter.default, here[word].default):
            out.append(f"`{word}` is {here[word].default} by default, there {parameter.default}")
    return [*out, *([f"no {', '.join(missing)}"] if missing else [])]


def same_default(there: Any, here: Any) -> bool:
    """Whether two defaults are the same, or one of them is none; None stands for 0, and for a mask of everything."""
    here = getattr(here, "value", here)
    if inspect.Parameter.empty in (there, here):
        return True
    return here is None or there is None or (there, here) == (0, 0) or there == here


def difference(name: str, compared: str) -> str:
    """What differs between a name of Optax and gradchain's answer."""
    found = [NOTES[name]] if name in NOTES else []
    if shown(name):
        found += signatures_differ(name)
    if not found and re.search(rf"optax\.(\w+\.)?{name}\b", compared):
        return "the same"
    return "; ".join(found)


def written(public: Iterable[str], compared: str, version: str) -> str:
    """docs/optax.md, of Optax's names and of the names of peers that the table of cases has."""
    rows, reasons = [], defaultdict(list)
    names = sorted(public, key=lambda name: (name.lower(), name))
    for name in names:
        if (code := answer(name)).startswith("gch."):
            rows.append(f"| `{name}` | `{code}` | {difference(name, compared)} |")
        else:
            reasons[code].append(name)
    for name, code in MODULES.items():
        reasons[code if not code.startswith("gch.") else f"a module: `{code}` has methods"].append(f"optax.{name}")
    said = [f"- {', '.join(f'`{n}`' for n in found)}: {why.removeprefix(NOT)}." for why, found in reasons.items()]
    return HEAD.format(count=len(names), version=version, rows="\n".join(rows), reasons="\n".join(said))


def page() -> str:
    """docs/optax.md, of the Optax that is installed."""
    import optax
    from cases import CASES
    from test_completeness import optax_names

    return written(optax_names(), " ".join(p.name for case in CASES for p in case.peers), optax.__version__)


if __name__ == "__main__":
    PAGE.write_text(page())
