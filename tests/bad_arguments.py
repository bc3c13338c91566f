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


def orthogonal(make: Any) -> list[Bad]:
    """What the rules that make matrices orthogonal have in common."""
    name = make.__name__
    coefficients = "one of 'original', 'quintic', 'polar_express', three numbers, or a tuple of these"
    factor = "one of 'original', 'match_rms_adamw', 'spectral_norm', 'spectral' or None"
    split = "pairs (selector, number of parts or their sizes)"
    return [
        number(make, "momentum", 1.0, "in [0, 1)"),
        number(make, "ns_steps", 0, "an integer in [1, 100)"),
        number(make, "ns_eps", 0.0, "a number in (0, inf)"),
        *(
            other(make, argument, value, ValueError, f"{name}: {argument} must be {rule}, got {value!r}.")
            for argument, value, rule in (
                ("ns_coefficients", "cubic", coefficients),
                ("ns_coefficients", (1.0, 2.0), coefficients),
                ("shape_factor", "moonlight", factor),
                ("conv", "kernels", "'flatten' or 'batch'"),
                ("split", (3,), split),
                ("split", ((gch.bias, 0),), split),
            )
        ),
    ]


LINK = gch.scale(1.0)
BODY = gch.named("body.*")
RISING = gch.linear(0.5, 0.9, 10)
UNIT = "in [0, 1)"
POSITIVE_OR_0 = "in [0, inf)"

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
    number(gch.cap_learning_rate, "learning_rate", -0.1, "in [0, inf)"),
    *orthogonal(gch.rules.scale_by_muon),
    *orthogonal(gch.rules.scale_by_normuon),
    *orthogonal(gch.rules.scale_by_adamuon),
    number(gch.rules.scale_by_normuon, "b2", 1.0, UNIT),
    number(gch.rules.scale_by_normuon, "eps", -1.0, "in [0, inf)"),
    number(gch.rules.scale_by_adamuon, "b2", 1.0, UNIT),
    number(gch.rules.scale_by_adamuon, "eps", -1.0, "in [0, inf)"),
    *(number(gch.rules.scale_by_soap, b, 1.0, UNIT) for b in ("b1", "b2", "shampoo_b")),
    number(gch.rules.scale_by_soap, "eps", -1.0, "in [0, inf)"),
    number(gch.rules.scale_by_soap, "every", 0, "an integer of at least 1"),
    number(gch.rules.scale_by_soap, "max_precondition_dim", -1, "an integer of at least 0"),
    number(gch.rules.scale_by_came, "b1", 1.0, UNIT),
    number(gch.rules.scale_by_came, "b2", 1.0, UNIT),
    number(gch.rules.scale_by_came, "b3", -0.1, UNIT),
    number(gch.rules.scale_by_came, "eps", -1.0, "in [0, inf)"),
    number(gch.rules.scale_by_came, "eps2", -1.0, "in [0, inf)"),
    number(gch.rules.scale_by_came, "threshold", 0.0, "in (0, inf)"),
    number(gch.scale_by_factored_rms, "decay_rate", -0.8, "in [0, inf)"),
    number(gch.scale_by_factored_rms, "epsilon", -1e-30, "in [0, inf)"),
    number(gch.scale_by_factored_rms, "step_offset", -1, "an integer of at least 0"),
    number(gch.scale_by_factored_rms, "min_dim_size_to_factor", 2.5, "an integer of at least 0"),
    other(
        gch.scale_by_factored_rms,
        "dims",
        "first",
        ValueError,
        "scale_by_factored_rms: dims must be 'largest' or 'last', got 'first'.",
    ),
    other(
        gch.scale_by_factored_rms,
        "floor",
        "eps",
        ValueError,
        "scale_by_factored_rms: floor must be in [0, inf), a schedule or 'dtype', got 'eps'.",
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
    # aliases say which link refuses
    called(gch.sgd, (0.1, 1.0), ValueError, "trace: decay must be in [0, 1), got 1.0.", "decay", "1.0"),
    number(gch.adam, "b1", 1.0, UNIT, 0.1, owner="scale_by_adam"),
    number(gch.adamw, "weight_decay", -1.0, "in [0, inf)", 0.1, owner="add_decayed_weights"),
    number(gch.nadamw, "b2", 1.0, UNIT, 0.1, owner="scale_by_adam"),
    number(gch.lion, "learning_rate", -1.0, "in [0, inf)", owner="scale_by_learning_rate"),
    number(gch.rules.scale_by_trust_ratio, "min_norm", -1.0, POSITIVE_OR_0),
    number(gch.rules.scale_by_trust_ratio, "trust_coefficient", -0.1, POSITIVE_OR_0),
    number(gch.rules.scale_by_trust_ratio, "eps", -1e-8, POSITIVE_OR_0),
    number(gch.rules.scale_by_trust_ratio, "weight_decay", -0.1, POSITIVE_OR_0),
    number(gch.rules.shrink_by_learning_rate, "learning_rate", -0.1, POSITIVE_OR_0),
    number(gch.rules.scale_by_novograd, "b1", 1.0, UNIT),
    number(gch.rules.scale_by_novograd, "b2", 1.0, UNIT),
    number(gch.rules.scale_by_novograd, "eps", -1.0, POSITIVE_OR_0),
    number(gch.rules.scale_by_novograd, "eps_root", -1.0, POSITIVE_OR_0),
    number(gch.rules.scale_by_novograd, "weight_decay", -1.0, POSITIVE_OR_0),
    number(gch.rules.clip_by_block_rms, "threshold", 0.0, "in (0, inf)"),
    number(gch.rules.scale_by_param_block_norm, "min_scale", 0.0, "in (0, inf)"),
    number(gch.rules.scale_by_param_block_rms, "min_scale", -1.0, "in (0, inf)"),
    number(gch.rules.normalize_by_update_norm, "scale_factor", 0.0, "in (0, inf)"),
    number(gch.rules.normalize_by_update_norm, "eps", -1e-6, POSITIVE_OR_0),
    number(gch.rules.adaptive_grad_clip, "clipping", INF, "in (0, inf)"),
    number(gch.rules.adaptive_grad_clip, "eps", 0.0, "in (0, inf)", 0.01),
    other(
        gch.rules.adaptive_grad_clip,
        "axis",
        "rows",
        TypeError,
        "adaptive_grad_clip: axis must be an int, a tuple of ints or None, got 'rows'.",
        0.01,
    ),
    number(gch.rules.scale_by_stable_adam, "b1", 1.0, UNIT),
    number(gch.rules.scale_by_stable_adam, "b2", -0.1, UNIT),
    number(gch.rules.scale_by_stable_adam, "eps", 0.0, "in (0, inf)"),
    number(gch.rules.scale_by_stable_adam, "weight_decay", -0.1, POSITIVE_OR_0),
    number(gch.rules.scale_by_sm3, "b1", 1.0, UNIT),
    number(gch.rules.scale_by_sm3, "b2", 1.1, "in [0, 1]"),
    number(gch.rules.scale_by_sm3, "eps", -1.0, POSITIVE_OR_0),
    number(gch.rules.scale_by_adam_mini, "b1", 1.0, UNIT),
    number(gch.rules.scale_by_adam_mini, "b2", 1.0, UNIT),
    number(gch.rules.scale_by_adam_mini, "eps", -1.0, POSITIVE_OR_0),
    other(
        gch.rules.scale_by_adam_mini,
        "blocks",
        BODY,
        TypeError,
        f"scale_by_adam_mini: blocks must be pairs (selector, block), got {BODY!r}.",
    ),
    other(
        gch.rules.scale_by_adam_mini,
        "rest",
        "head",
        ValueError,
        "scale_by_adam_mini: rest must be 'tensor', 'row' or a number of blocks above 0, got 'head'.",
    ),
    other(gch.rules.drop_radial, "inner", 0.9, TypeError, "drop_radial: inner must be a Transform, got 0.9."),
    number(gch.rules.drop_radial, "delta", -0.1, POSITIVE_OR_0, LINK),
    number(gch.rules.drop_radial, "wd_ratio", 1.5, "in [0, 1]", LINK),
    number(gch.rules.drop_radial, "weight_decay", -0.1, POSITIVE_OR_0, LINK),
    number(gch.rules.drop_radial, "eps", 0.0, "in (0, inf)", LINK),
    Bad(
        gch.rules.sgdp,
        (0.1,),
        {"momentum": RISING, "weight_decay": 0.1},
        TypeError,
        f"sgdp: momentum must be a number where there is a decay, got {RISING!r}. Write "
        "chain(drop_radial(trace(…), weight_decay=…), scale_by_learning_rate(…)).",
        "momentum",
        repr(RISING),
    ),
)

UNCHECKED: dict[str, str] = {
    "amp_scale.always": "a flag: its truth is used",
    "amp_scale.dynamic": "a flag: its truth is used",
    "from_torch.arguments": "pairs that it wrote itself; a name that the class does not take is refused by the class",
    "average_params.dtype": "torch refuses what is no dtype, when the average is made",
    "scale_by_adam.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_adam.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_muon.dtype": "torch refuses what is no dtype, when products are taken",
    "scale_by_muon.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_muon.nesterov": "a flag: its truth is used",
    "scale_by_normuon.dtype": "torch refuses what is no dtype, when products are taken",
    "scale_by_normuon.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_normuon.nesterov": "a flag: its truth is used",
    "scale_by_adamuon.dtype": "torch refuses what is no dtype, when products are taken",
    "scale_by_adamuon.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_adamuon.nesterov": "a flag: its truth is used",
    "scale_by_adamuon.sign": "a flag: its truth is used",
    "scale_by_soap.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_came.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_factored_rms.factored": "a flag: its truth is used",
    "scale_by_adam.nesterov": "a flag: its truth is used",
    "scale_by_learning_rate.flip_sign": "a flag: its truth is used",
    "scale_by_lion.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_adam_mini.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_novograd.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_sm3.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_stable_adam.mu_dtype": "torch refuses what is no dtype, when the slot is made",
    "scale_by_stable_adam.nu_dtype": "torch refuses what is no dtype, when the slot is made",
    "trace.accumulator_dtype": "torch refuses what is no dtype, when the slot is made",
    "trace.nesterov": "a flag: its truth is used",
}
