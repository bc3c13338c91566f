"""One row per bad argument: how a link is made wrongly, the type of the error and the full sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rules

import gradchain as gch

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Bad:
    """A wrong call. The sentence is `<owner>: <argument> must …, got <value>.`, and perhaps a cure.

    Attributes:
        make: the class or alias.
        args, kwargs: what it is called with.
        error: the type of what is raised.
        sentence: the whole of it.
        argument: which of its arguments is wrong; a field of `make` where that has such fields.
        value: how the wrong value is shown.
    """

    make: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    error: type[Exception]
    sentence: str
    argument: str
    value: str

    @property
    def id(self) -> str:
        return f"{self.make.__name__}-{self.argument}-{self.value}"


def number(make: Any, argument: str, value: float, rule: str, *args: Any, owner: str = "") -> Bad:
    """A number outside its interval."""
    sentence = f"{owner or make.__name__}: {argument} must be {rule}, got {value!r}."
    return Bad(make, args, {argument: value}, ValueError, sentence, argument, repr(value))


def kind(make: Any, argument: str, value: Any, *args: Any) -> Bad:
    """Something that is neither number nor schedule."""
    sentence = f"{make.__name__}: {argument} must be a number or a schedule (step -> value), got {value!r}."
    return Bad(make, args, {argument: value}, TypeError, sentence, argument, repr(value))


def other(make: Any, argument: str, value: Any, error: type[Exception], sentence: str, *args: Any) -> Bad:
    """Anything else; the sentence in full."""
    shown = repr(value)
    return Bad(make, args, {argument: value}, error, sentence, argument, shown)


def called(make: Any, args: tuple[Any, ...], error: type[Exception], sentence: str, argument: str, value: str) -> Bad:
    """Positional arguments only."""
    return Bad(make, args, {}, error, sentence, argument, value)


def noise(argument: str, value: Any, error: type[Exception], rule: str) -> Bad:
    given = {"eta": 0.1, "gamma": 0.55, "seed": 0, argument: value}
    sentence = f"add_noise: {argument} must be {rule}, got {value!r}."
    return Bad(gch.add_noise, (), given, error, sentence, argument, repr(value))


LINK = gch.scale(1.0)
BODY = gch.named("body.*")
UNIT = "in [0, 1)"

ROWS: tuple[Bad, ...] = (
    number(gch.scale, "step_size", INF, "a finite number"),
    number(gch.scale, "step_size", NAN, "a finite number"),
    kind(gch.scale, "step_size", "fast"),
    kind(gch.scale, "step_size", None),
    kind(gch.scale, "step_size", True),
    number(gch.scale_by_schedule, "step_size_fn", -INF, "a finite number"),
    number(gch.scale_by_learning_rate, "learning_rate", -0.1, "in [0, inf)"),
    number(gch.scale_by_learning_rate, "learning_rate", NAN, "in [0, inf)"),
    kind(gch.scale_by_learning_rate, "learning_rate", "1e-3"),
    number(gch.scale_by_adam, "b1", 1.0, UNIT),
    number(gch.scale_by_adam, "b2", -0.1, UNIT),
    number(gch.scale_by_adam, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_adam, "eps_root", -1.0, "in [0, inf)"),
    kind(gch.scale_by_adam, "b1", (0.9, 0.999)),
    number(gch.scale_by_lion, "b1", 1.0, UNIT),
    number(gch.scale_by_lion, "b2", 1.5, UNIT),
    number(gch.trace, "decay", 1.0, UNIT),
    number(gch.trace, "decay", -0.5, UNIT),
    number(gch.add_decayed_weights, "weight_decay", -0.1, "in [0, inf)"),
    noise("eta", -0.1, ValueError, "in [0, inf)"),
    noise("gamma", INF, ValueError, "in [0, inf)"),
    noise("seed", -1, ValueError, "a whole number, at least 0"),
    noise("seed", 1.0, TypeError, "a whole number, at least 0"),
    noise("seed", True, TypeError, "a whole number, at least 0"),
    other(
        gch.add_decayed_weights, "lazy", 1, TypeError, "add_decayed_weights: lazy must be True or False, got 1.", 0.1
    ),
    number(gch.clip_by_norm, "max_norm", 0, "in (0, inf]"),
    number(gch.clip_by_norm, "max_norm", -1.0, "in (0, inf]"),
    number(gch.clip_by_norm, "eps", -1e-6, "in [0, inf)", 1.0),
    other(gch.clip_by_norm, "p", 0.0, ValueError, "clip_by_norm: p must be above 0, or inf, got 0.0.", 1.0),
    other(gch.clip_by_norm, "p", "2", TypeError, "clip_by_norm: p must be a number above 0, or inf, got '2'.", 1.0),
    other(
        gch.clip_by_norm,
        "per",
        [],
        ValueError,
        "clip_by_norm: per must be 'all', 'tensor' or a list of selectors, got an empty one.",
        1.0,
    ),
    number(gch.clip_by_value, "max_value", 0.0, "in (0, inf]"),
    number(gch.nan_to_num, "nan", NAN, "a finite number"),
    other(gch.nan_to_num, "posinf", INF, ValueError, "nan_to_num: posinf must be a finite number or None, got inf."),
    other(gch.nan_to_num, "neginf", "low", TypeError, "nan_to_num: neginf must be a finite number or None, got 'low'."),
    number(gch.sam, "rho", -0.05, "in [0, inf)"),
    number(gch.reduce_on_plateau, "factor", 1.0, UNIT, "val_loss"),
    number(gch.reduce_on_plateau, "patience", 1.5, "an integer in [0, inf)", "val_loss"),
    number(gch.reduce_on_plateau, "threshold", -1e-4, "in [0, inf)", "val_loss"),
    number(gch.reduce_on_plateau, "cooldown", -1, "an integer in [0, inf)", "val_loss"),
    number(gch.reduce_on_plateau, "min_value", -0.1, "in [0, inf)", "val_loss"),
    number(gch.reduce_on_plateau, "eps", -1e-8, "in [0, inf)", "val_loss"),
    number(gch.reduce_on_plateau, "base", 0.0, "in (0, inf)", "val_loss"),
    number(gch.reduce_on_plateau, "worst", 0.0, "in (0, inf]", "val_loss"),
    other(
        gch.reduce_on_plateau,
        "observed",
        3,
        TypeError,
        "reduce_on_plateau: observed must be the name given to observe, got 3.",
    ),
    other(
        gch.reduce_on_plateau,
        "mode",
        "less",
        ValueError,
        "reduce_on_plateau: mode must be 'min' or 'max', got 'less'.",
        "val_loss",
    ),
    other(
        gch.reduce_on_plateau,
        "threshold_mode",
        "sum",
        ValueError,
        "reduce_on_plateau: threshold_mode must be 'rel' or 'abs' or 'magnitude', got 'sum'.",
        "val_loss",
    ),
    other(
        gch.from_torch,
        "optimizer",
        3,
        TypeError,
        "from_torch: optimizer must be a torch.optim.Optimizer class or its name, got 3.",
    ),
    other(
        gch.from_torch,
        "in_place",
        1,
        TypeError,
        "from_torch: in_place must be True or False, got 1. An argument of the class that is called so goes into "
        "arguments.",
        "SGD",
    ),
    number(gch.average_params, "decay", 1.5, "in [0, 1]"),
    other(
        gch.average_params,
        "decay",
        "median",
        ValueError,
        "average_params: decay must be in [0, 1], a schedule or 'mean', got 'median'.",
    ),
    other(
        gch.average_params,
        "start",
        -1,
        ValueError,
        "average_params: start must be an integer of at least 0, got -1.",
        0.9,
    ),
    other(
        gch.average_params,
        "every",
        0,
        ValueError,
        "average_params: every must be an integer of at least 1, got 0.",
        0.9,
    ),
    other(
        gch.average_params,
        "buffers",
        "drop",
        ValueError,
        "average_params: buffers must be 'keep', 'copy' or 'average', got 'drop'.",
        0.9,
    ),
    other(
        gch.average_params,
        "on",
        "step",
        ValueError,
        "average_params: on must be the name of a clock that updater.tick advances, or None, got 'step'. None averages "
        "at updates.",
        0.9,
    ),
    other(
        gch.stateless,
        "fn",
        3,
        TypeError,
        "stateless: fn must be a function, called as fn(updates, params) or fn(updates, params, ctx), got 3.",
    ),
    other(
        gch.project,
        "fn",
        None,
        TypeError,
        "project: fn must be a function, called as fn(new) or fn(new, old), got None.",
    ),
    other(
        gch.project,
        "selector",
        "head.*",
        TypeError,
        'project: a selector must be a function (name, parameter, owner) -> bool, got "head.*". Write named("head.*").',
        rules.at_least_zero,
    ),
    number(gch.accumulate, "every", 0, "an integer in [1, inf)"),
    number(gch.accumulate, "every", 2.5, "an integer in [1, inf)"),
    other(gch.accumulate, "reduce", "max", ValueError, "accumulate: reduce must be 'mean' or 'sum', got 'max'.", 4),
    other(
        gch.accumulate,
        "dtype",
        "float32",
        TypeError,
        "accumulate: dtype must be a floating-point torch.dtype or None, got 'float32'.",
        4,
    ),
    number(gch.amp_scale, "init_scale", 0.0, "in (0, inf)"),
    number(gch.amp_scale, "growth_factor", 1.0, "in (1, inf)"),
    number(gch.amp_scale, "backoff_factor", 1.0, "in (0, 1)"),
    number(gch.amp_scale, "growth_interval", 0, "an integer in [1, inf)"),
    number(gch.skip_nonfinite, "max_consecutive", -1, "an integer in [0, inf]"),
    number(gch.accumulate, "every", NAN, "an integer in [1, inf)"),
    number(gch.accumulate, "every", -INF, "an integer in [1, inf)"),
    number(gch.skip_nonfinite, "max_consecutive", 1.5, "an integer in [0, inf]"),
    other(gch.freeze, "until", -1, ValueError, "freeze: until must be at least 0, got -1.", BODY),
    other(
        gch.freeze,
        "until",
        10.0,
        TypeError,
        "freeze: until must be a number of applied updates or None, got 10.0.",
        BODY,
    ),
    other(
        gch.freeze,
        "selector",
        "body.*",
        TypeError,
        "freeze: selector must be a function of (name, parameter, owner), got 'body.*'. "
        "A name pattern is written gch.named(…).",
    ),
    called(
        gch.masked,
        (gch.scale, BODY),
        TypeError,
        f"masked: inner must be a Transform, got {gch.scale!r}. Did you forget to call it?",
        "inner",
        repr(gch.scale),
    ),
    called(
        gch.masked,
        (LINK, "body.*"),
        TypeError,
        "masked: selector must be a function of (name, parameter, owner), got 'body.*'. "
        "A name pattern is written gch.named(…).",
        "selector",
        "'body.*'",
    ),
    called(
        gch.partition,
        (),
        ValueError,
        "partition: needs at least one branch (selector, link), got none.",
        "branch",
        "none",
    ),
    called(
        gch.partition, ((BODY, 3),), TypeError, "partition: a branch's link must be a Transform, got 3.", "link", "3"
    ),
    called(
        gch.partition,
        (("a.b", BODY, LINK),),
        ValueError,
        "partition: a name must be a string free of '/', '.' and '#', got 'a.b'.",
        "name",
        "'a.b'",
    ),
    called(
        gch.partition,
        (("a", BODY, LINK), ("a", gch.rest, LINK)),
        ValueError,
        "partition: names must be unique, got 'a' twice.",
        "names",
        "'a'",
    ),
    called(
        gch.chain,
        (gch.scale,),
        TypeError,
        "chain: links must be Transforms or (name, Transform) pairs, got gradchain.transforms.scale.scale. "
        "Did you forget to call it?",
        "links",
        "gradchain.transforms.scale.scale",
    ),
    called(
        gch.chain,
        (("a/b", LINK),),
        ValueError,
        "chain: a name must be free of '/', '.' and '#', got 'a/b'.",
        "name",
        "'a/b'",
    ),
    called(
        gch.chain,
        (("a", LINK), ("a", LINK)),
        ValueError,
        "chain: names must be unique, got 'a' twice. Give one of them another name.",
        "names",
        "'a'",
    ),
    # the rules of torch.optim
    number(gch.average_each, "start", -1, "in [0, inf)"),
    number(gch.scale_by_adadelta, "rho", 1.5, "in [0, 1]"),
    number(gch.scale_by_adadelta, "eps", -1e-6, "in [0, inf)"),
    number(gch.scale_by_adamax, "b1", 1.0, UNIT),
    number(gch.scale_by_adamax, "b2", -0.1, UNIT),
    number(gch.scale_by_adamax, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_amsgrad, "b1", 1.0, UNIT),
    number(gch.scale_by_amsgrad, "b2", 1.0, UNIT),
    number(gch.scale_by_amsgrad, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_amsgrad, "eps_root", -1.0, "in [0, inf)"),
    other(
        gch.scale_by_amsgrad,
        "max_of",
        "mu",
        ValueError,
        "scale_by_amsgrad: max_of must be 'nu' or 'nu_hat', got 'mu'.",
    ),
    number(gch.scale_by_asgd, "learning_rate", -0.1, "in [0, inf)"),
    number(gch.scale_by_asgd, "lambd", -1e-4, "in [0, inf)", 0.1),
    number(gch.scale_by_asgd, "alpha", -0.75, "in [0, inf)", 0.1),
    number(gch.scale_by_nadam, "b1", 1.0, UNIT),
    number(gch.scale_by_nadam, "b2", 1.0, UNIT),
    number(gch.scale_by_nadam, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_nadam, "momentum_decay", -1e-3, "in [0, inf]"),
    number(gch.scale_by_radam, "b1", 1.0, UNIT),
    number(gch.scale_by_radam, "b2", 1.0, UNIT),
    number(gch.scale_by_radam, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_radam, "eps_root", -1.0, "in [0, inf)"),
    number(gch.scale_by_radam, "threshold", 4.0, "in (4, inf)"),
    number(gch.scale_by_rms, "decay", 1.0, UNIT),
    number(gch.scale_by_rms, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_rms, "initial_scale", -1.0, "in [0, inf)"),
    number(gch.scale_by_rprop, "learning_rate", -0.1, "in [0, inf)"),
    number(gch.scale_by_rprop, "eta_minus", 1.0, "in (0, 1)", 0.1),
    number(gch.scale_by_rprop, "eta_plus", 1.0, "in (1, inf)", 0.1),
    number(gch.scale_by_rprop, "min_step_size", -1.0, "in [0, inf)", 0.1),
    number(gch.scale_by_rprop, "max_step_size", 0.0, "in (0, inf)", 0.1),
    number(gch.scale_by_rss, "initial_accumulator_value", -0.1, "in [0, inf)"),
    number(gch.scale_by_rss, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_rss, "lr_decay", -0.5, "in [0, inf)"),
    number(gch.scale_by_stddev, "decay", 1.0, UNIT),
    number(gch.scale_by_stddev, "eps", -1e-8, "in [0, inf)"),
    number(gch.scale_by_stddev, "initial_scale", -1.0, "in [0, inf)"),
    number(gch.trace, "dampening", 1.5, "in [0, 1]", 0.9),
    # aliases say which link refuses
    called(gch.sgd, (0.1, 1.0), ValueError, "trace: decay must be in [0, 1), got 1.0.", "decay", "1.0"),
    number(gch.adam, "b1", 1.0, UNIT, 0.1, owner="scale_by_adam"),
    number(gch.adamw, "weight_decay", -1.0, "in [0, inf)", 0.1, owner="add_decayed_weights"),
    number(gch.nadamw, "b2", 1.0, UNIT, 0.1, owner="scale_by_adam"),
    number(gch.lion, "learning_rate", -1.0, "in [0, inf)", owner="scale_by_learning_rate"),
    number(gch.adadelta, "rho", 1.5, "in [0, 1]", owner="scale_by_adadelta"),
    number(gch.adagrad, "lr_decay", -0.5, "in [0, inf)", owner="scale_by_rss"),
    number(gch.adamax, "b1", 1.0, UNIT, owner="scale_by_adamax"),
    number(gch.asgd, "lambd", -1.0, "in [0, inf)", owner="scale_by_asgd"),
    number(gch.nadam, "momentum_decay", -1.0, "in [0, inf]", owner="scale_by_nadam"),
    number(gch.radam, "threshold", 4.0, "in (4, inf)", owner="scale_by_radam"),
    number(gch.rmsprop, "decay", 1.0, UNIT, owner="scale_by_rms"),
    number(gch.rprop, "eta_plus", 1.0, "in (1, inf)", owner="scale_by_rprop"),
    number(gch.sparse_adam, "b2", 1.0, UNIT, owner="scale_by_adam"),
)
# Fields that take whatever they are given, with the reason: no row can be written for them.
UNCHECKED: dict[str, str] = {
    "amp_scale.always": "a flag: its truth is used",
    "amp_scale.dynamic": "a flag: its truth is used",
    "from_torch.arguments": "pairs that it wrote itself; a name that the class does not take is refused by the class",
    "average_params.dtype": "torch refuses what is no dtype, when the average is made",
    "scale_by_adam.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_adam.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_adam.nesterov": "a flag: its truth is used",
    "average_each.dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_adamax.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_amsgrad.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_amsgrad.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_nadam.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_nadam.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_radam.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_radam.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_rms.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_rss.dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_stddev.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_stddev.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_adam.eps_hat": "a flag: its truth is used",
    "scale_by_amsgrad.bias_correction_mu": "a flag: its truth is used",
    "scale_by_amsgrad.bias_correction_nu": "a flag: its truth is used",
    "scale_by_radam.eps_hat": "a flag: its truth is used",
    "scale_by_radam.nesterov": "a flag: its truth is used",
    "scale_by_rms.bias_correction": "a flag: its truth is used",
    "scale_by_rms.eps_in_sqrt": "a flag: its truth is used",
    "scale_by_rss.eps_in_sqrt": "a flag: its truth is used",
    "scale_by_stddev.bias_correction": "a flag: its truth is used",
    "scale_by_stddev.eps_in_sqrt": "a flag: its truth is used",
    "scale_by_learning_rate.flip_sign": "a flag: its truth is used",
    "scale_by_lion.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "trace.accumulator_dtype": "torch refuses what is no dtype, when the slot is made",
    "trace.nesterov": "a flag: its truth is used",
}
