"""Numbers per parameter: `multiply`, `choose`, and the rules `first` and `layer_decay`.

What a number or a schedule is does not matter here: values are handed on as they are. Resolved over all parameters,
a per-parameter value gives each one a `Setting`, the value it starts from and the factors it is multiplied by.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from gradchain._numbers import as_number
from gradchain.selectors.asking import sight
from gradchain.selectors.base import ParameterFacts, SelectorLike, predicate
from gradchain.selectors.depth import Depth
from gradchain.selectors.resolving import answer_of, resolve
from gradchain.selectors.source import code
from gradchain.selectors.written import Written

Factor: TypeAlias = (
    Callable[[str, torch.Tensor, torch.nn.Module | None], float]
    | Callable[[str, torch.Tensor], float]
    | Callable[[torch.Tensor], float]
)
"""Any function `(name, parameter, owner) -> factor`, or of `(name, parameter)` or `(parameter)`."""


@dataclass(frozen=True)
class Setting:
    """What a per-parameter value is for one parameter.

    Attributes:
        value: what it starts from: a number, a schedule, or whatever else was given.
        factors: what it is multiplied by, in this order.
        rules: what matched, in words.
    """

    value: Any
    factors: tuple[float, ...] = ()
    rules: tuple[str, ...] = ()


class PerParameter(Written):
    """What may stand for a number that differs from parameter to parameter: `multiply` and `choose` make one."""

    def settings(self, parameters: Sequence[ParameterFacts]) -> list[Setting]:
        """Returns a setting for each parameter, in their order.

        Args:
            parameters: `(name, parameter, owner)` of every parameter there is.

        Raises:
            ValueError: a selector matches nothing.
        """
        raise NotImplementedError(f"{type(self).__name__}: needs settings(parameters).")

    def starts(self) -> Iterator[Any]:
        """Every value that some parameter may start from."""
        raise NotImplementedError(f"{type(self).__name__}: needs starts().")


class Rule(Written):
    """Gives parameters a factor: `first` and `layer_decay` make one."""

    def factors(self, parameters: Sequence[ParameterFacts]) -> list[tuple[float, str] | None]:
        """Returns for each parameter its factor and what to call that in a report; None for no factor."""
        raise NotImplementedError(f"{type(self).__name__}: needs factors(parameters).")


Value: TypeAlias = "float | torch.Tensor | Callable[[float], float] | PerParameter"
"""What a hyperparameter is given as: one for all parameters, or one for each."""

Rules: TypeAlias = "Rule | tuple[SelectorLike, float] | Mapping[str, float] | Factor"
"""What `multiply` takes as a rule."""


class first(Rule):
    """A rule for `multiply`: the factor of the first pair whose selector matches, and none where no selector does.

    Args:
        *pairs: `(selector, factor)`, at least one. Every selector must match something, but an earlier pair may take
            all that a later one matches.

    Raises:
        TypeError: a pair is none, or a factor is no number.
        ValueError: no pair, or a factor that is not finite; where it is resolved, a selector that matches nothing.

    >>> import gradchain as gch
    >>> gch.multiply(0.05, gch.first((gch.norm, 0.0), (gch.bias, 0.5)))
    multiply(0.05, first((norm, 0.0), (bias, 0.5)))
    """

    pairs: tuple[tuple[SelectorLike, float], ...]

    def __init__(self, *pairs: tuple[SelectorLike, float]) -> None:
        if not pairs:
            raise ValueError("first: needs at least one pair (selector, factor), got none.")
        object.__setattr__(self, "pairs", tuple(_checked_pair("first", pair) for pair in pairs))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.pairs, {}

    def factors(self, parameters: Sequence[ParameterFacts]) -> list[tuple[float, str] | None]:
        matched = [(frozenset(resolve(s, parameters, allow_missing=True)), factor, code(s)) for s, factor in self.pairs]
        return [
            next(((factor, label) for names, factor, label in matched if name in names), None)
            for name, _, _ in parameters
        ]


class layer_decay(Rule):
    """A rule for `multiply`: smaller for layers nearer to the input.

        factor = rate^(total - depth - 1)

    The deepest layer, of depth total - 1 (the head), has factor 1.

    Args:
        rate: above 0; usually in [0.5, 1).
        depth: the layer of a parameter, from 0: one of `gch.selectors.depth`, or any function
            `(name, parameter, owner) -> int`.
        total: how many layers there are; None where `depth` knows it, as those of `gch.selectors.depth` do.

    Raises:
        TypeError or ValueError: an argument outside its range; where it is resolved, a depth that is no integer in
            [0, total).

    Equals: the layer-wise decay of BEiT and MAE; MMPretrain's LearningRateDecayOptimWrapperConstructor.
    Paper: Clark et al., 2020, https://arxiv.org/abs/2003.10555

    >>> import gradchain as gch
    >>> lr = gch.multiply(1e-3, gch.layer_decay(0.65, gch.selectors.depth.vit(12)))
    >>> gch.adamw(lr, weight_decay=0.0)
    chain(scale_by_adam(), scale_by_learning_rate(multiply(0.001, layer_decay(0.65, depth.vit(12)))))
    """

    rate: float
    depth: Factor
    total: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", _checked_number("layer_decay", "rate", self.rate))
        if self.rate <= 0:
            raise ValueError(f"layer_decay: rate must be above 0, got {self.rate!r}.")
        if not callable(self.depth) or isinstance(self.depth, type):
            raise TypeError(
                f"layer_decay: depth must be a function (name, parameter, owner) -> int, got {code(self.depth)}. "
                "Ready ones are in gch.selectors.depth."
            )
        sight(self.depth, "layer_decay")
        if self.total is None and not isinstance(self.depth, Depth):
            raise TypeError("layer_decay: total must be the number of layers where depth is a function, got None.")
        if self.total is not None:
            total = as_number(self.total)
            if not isinstance(total, int) or total < 1:
                raise ValueError(f"layer_decay: total must be an integer of at least 1, got {self.total!r}.")
            object.__setattr__(self, "total", total)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.rate, self.depth), {} if self.total is None else {"total": self.total}

    def factors(self, parameters: Sequence[ParameterFacts]) -> list[tuple[float, str] | None]:
        total = self.total if self.total is not None else self.depth.total  # type: ignore[union-attr]  # a Depth
        out: list[tuple[float, str] | None] = []
        form = sight(self.depth, "layer_decay")
        for entry in parameters:
            answer = answer_of(self.depth, entry, form)
            layer = as_number(answer)
            if not isinstance(layer, int) or not 0 <= layer < total:
                raise ValueError(
                    f"layer_decay: depth must be an integer in [0, {total}), got {answer!r} for parameter "
                    f"{code(entry[0])}."
                )
            out.append((self.rate ** (total - layer - 1), f"layer {layer} of {total}"))
        return out


class multiply(PerParameter):
    """A hyperparameter that differs from parameter to parameter by factors.

        value_i = value · f_1 · f_2 · …,  the factors of the rules that match i, in the order written

    It goes where a number or a schedule goes: a learning rate, a decay, a momentum. A schedule is evaluated once per
    update, however many parameters there are. `updater.settings()` shows which rules matched what.

    Args:
        value: a number, a schedule, or another per-parameter value.
        *rules: each is a pair `(selector, factor)`; `first(…)`; `layer_decay(…)`; a mapping from names to factors,
            which leaves other parameters alone; or any function `(name, parameter, owner) -> factor`.

    Raises:
        TypeError or ValueError: a rule is none of these, or a factor is not a finite number. At bind: a selector or a
            name that matches nothing, or a product outside the hyperparameter's range.

    Equals: param_groups with their own lr in torch.optim; lr_mult, decay_mult and custom_keys of MMEngine.

    >>> import gradchain as gch
    >>> lr = gch.multiply(gch.cosine(1e-3, 0.0, 1000), (gch.named("backbone.*"), 0.1), (gch.bias, 2.0))
    >>> gch.sgd(lr, momentum=0.9, weight_decay=gch.multiply(1e-4, (gch.norm | gch.bias, 0.0)))
    chain(
        add_decayed_weights(multiply(0.0001, (norm | bias, 0.0))),
        trace(0.9),
        scale_by_learning_rate(multiply(cosine(0.001, 0.0, 1000), (named("backbone.*"), 0.1), (bias, 2.0))),
    )
    """

    value: Value
    rules: tuple[Any, ...]

    def __init__(self, value: Value, *rules: Rules) -> None:
        object.__setattr__(self, "value", checked_value("multiply", value))
        object.__setattr__(self, "rules", tuple(_checked_rule(rule) for rule in rules))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.value, *self.rules), {}

    def starts(self) -> Iterator[Any]:
        return starts_of(self.value)

    def settings(self, parameters: Sequence[ParameterFacts]) -> list[Setting]:
        out = settings_of(self.value, parameters)
        for rule in self.rules:
            found = _factors(rule, parameters)
            out = [
                s if f is None else Setting(s.value, (*s.factors, f[0]), (*s.rules, f"{f[1]} x{f[0]:.6g}"))
                for s, f in zip(out, found, strict=True)
            ]
        return out


class choose(PerParameter):
    """A hyperparameter that is another value for each group of parameters: groups with curves of their own.

        value_i = value of the first pair whose selector matches i, else rest

    Args:
        *pairs: `(selector, value)`, at least one: a value is a number, a schedule, or another per-parameter value.
        rest: the value of the parameters that no pair matches.

    Raises:
        TypeError or ValueError: a pair is none. At bind: a selector that matches nothing, or a value outside the
            hyperparameter's range.

    Equals: param_groups with a scheduler of their own.

    >>> import gradchain as gch
    >>> warmup = gch.linear(0.1, 0.01, 1000)
    >>> gch.scale_by_learning_rate(gch.choose((gch.bias, warmup), rest=gch.linear(0.0, 0.01, 1000)))
    scale_by_learning_rate(choose((bias, linear(0.1, 0.01, 1000)), rest=linear(0.0, 0.01, 1000)))
    """

    pairs: tuple[tuple[SelectorLike, Value], ...]
    rest: Value

    def __init__(self, *pairs: tuple[SelectorLike, Value], rest: Value) -> None:
        if not pairs:
            raise ValueError("choose: needs at least one pair (selector, value), got none.")
        checked = [(_two("choose", "value", pair)[0], checked_value("choose", pair[1])) for pair in pairs]
        object.__setattr__(self, "pairs", tuple(checked))
        object.__setattr__(self, "rest", checked_value("choose", rest))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.pairs, {"rest": self.rest}

    def starts(self) -> Iterator[Any]:
        for _, value in (*self.pairs, (None, self.rest)):
            yield from starts_of(value)

    def settings(self, parameters: Sequence[ParameterFacts]) -> list[Setting]:
        out = settings_of(self.rest, parameters)
        for selector, value in reversed(self.pairs):
            matched, label = frozenset(resolve(selector, parameters, allow_missing=True)), code(selector)
            inner = settings_of(value, parameters)
            out = [
                Setting(new.value, new.factors, (label, *new.rules)) if entry[0] in matched else old
                for entry, old, new in zip(parameters, out, inner, strict=True)
            ]
        return out


def settings_of(value: Any, parameters: Sequence[ParameterFacts]) -> list[Setting]:
    """Returns the settings of a per-parameter value; those of any other value are that value.

    Args:
        value: a number, a schedule, or a per-parameter value.
        parameters: every parameter there is.
    """
    if isinstance(value, PerParameter):
        return value.settings(parameters)
    return [Setting(value)] * len(parameters)


def starts_of(value: Any) -> Iterator[Any]:
    """Yields the values that parameters may start from: of a plain value, itself.

    Args:
        value: a number, a schedule, or a per-parameter value.
    """
    if isinstance(value, PerParameter):
        yield from value.starts()
    else:
        yield value


def checked_value(owner: str, value: Any) -> Any:
    """Returns a hyperparameter's value, a number of numpy as Python has it; refuses what can be none.

    Args:
        owner: begins the sentence of the error.
        value: what was given.

    Raises:
        TypeError: it is no number, schedule, tensor of one number or per-parameter value.
    """
    if isinstance(value, (PerParameter, torch.Tensor)):
        return value  # a tensor is read anew at every update
    number = as_number(value)
    if number is not None:
        return number
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"{owner}: a value must be a number, a schedule (step -> value) or a per-parameter value, got "
            f"{code(value)}."
        )
    return value


class by_name(Rule):
    """What `multiply` makes of a mapping: the factor of each name, and none for other parameters.

    Args:
        pairs: `(name, factor)`, at least one.
    """

    pairs: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("multiply: a mapping must have at least one name, got none.")
        checked = [(name, _checked_number("multiply", f"the factor of {code(name)}", f)) for name, f in self.pairs]
        object.__setattr__(self, "pairs", tuple(checked))

    def factors(self, parameters: Sequence[ParameterFacts]) -> list[tuple[float, str] | None]:
        given, names = dict(self.pairs), dict.fromkeys(name for name, _, _ in parameters)
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                cure = f" Did you mean {code(near[0])}?" if near else ""
                raise ValueError(f"multiply: there is no parameter {code(name)} among the {len(names)}.{cure}")
        return [(given[name], "by name") if name in given else None for name in names]

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{code(name)}: {factor!r}' for name, factor in self.pairs)}}}"


def _checked_rule(rule: Any) -> Any:
    if isinstance(rule, Mapping):
        return by_name(tuple(rule.items()))
    if isinstance(rule, tuple):
        return _checked_pair("multiply", rule)
    if isinstance(rule, Rule):
        return rule
    if callable(rule) and not isinstance(rule, type):
        sight(rule, "multiply")
        return rule
    raise TypeError(
        "multiply: a rule must be (selector, factor), first(…), layer_decay(…), a mapping from names or a function "
        f"(name, parameter, owner) -> factor, got {code(rule)}."
    )


def _factors(rule: Any, parameters: Sequence[ParameterFacts]) -> Iterable[tuple[float, str] | None]:
    if isinstance(rule, Rule):
        return rule.factors(parameters)
    if isinstance(rule, tuple):
        return first(rule).factors(parameters)
    form = sight(rule, "multiply")
    return [(_given_factor(rule, entry, form), code(rule)) for entry in parameters]


def _given_factor(rule: Factor, entry: ParameterFacts, form: slice) -> float:
    return _checked_number("multiply", f"the factor of {code(rule)} for {code(entry[0])}", answer_of(rule, entry, form))


def _two(owner: str, what: str, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"{owner}: a pair must be (selector, {what}), got {code(pair)}.")
    return predicate(pair[0], owner), pair[1]


def _checked_pair(owner: str, pair: Any) -> tuple[Any, float]:
    selector, factor = _two(owner, "factor", pair)
    return selector, _checked_number(owner, "a factor", factor)


def _checked_number(owner: str, what: str, value: Any) -> float:
    """`value` if it is a finite number, one of numpy's as Python's."""
    number = as_number(value)
    if number is None:
        raise TypeError(f"{owner}: {what} must be a number, got {code(value)}.")
    if not math.isfinite(number):
        raise ValueError(f"{owner}: {what} must be finite, got {value!r}.")
    return number
