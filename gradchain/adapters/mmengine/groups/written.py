"""Settings of parameters written as a person would: one value, factors by selectors, or groups with their own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from gradchain.adapters.mmengine.groups.atoms import Atom, as_factor, by_config, by_kind, by_name, joined, numbers_in
from gradchain.adapters.mmengine.groups.depths import decays
from gradchain.adapters.mmengine.groups.paramwise import Paramwise
from gradchain.selectors import ParameterFacts, choose, first, multiply
from gradchain.selectors.base import conjunction
from gradchain.selectors.rules import Value, settings_of
from gradchain.updater.target import Target

__all__ = ["values"]

Pair = tuple[Atom, float]


def values(
    model: nn.Module,
    optim_wrapper: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any] | None],
    field: str,
    curve: Callable[[float], Any],
    proportional: bool = True,
) -> Value:
    """Write one field of `param_settings` as a value for a chain.

    Where all trained parameters agree it is `curve` of what they agree on; else `multiply` of one curve, by the
    selectors that the config is about where they tell the same parameters apart, and by others where they do not; else
    `choose`, with a curve for each group. Printed, it is the code that replaces the config. It gives each trained
    parameter its setting; the others, whatever was simplest.

    Args:
        model: the module that the settings are of.
        optim_wrapper: the dict that was read.
        settings: what `param_settings` returned.
        field: "lr", "weight_decay", "momentum" (which is `betas[0]` where the optimizer has betas) or another number
            of the parameter group.
        curve: gives a number or a schedule for a base value.
        proportional: whether the curve of twice a base value is twice its curve; an absolute floor makes it not so.

    Raises: ValueError: nothing is optimised, or nobody says what the field is.

    >>> import torch
    >>> from gradchain.adapters.mmengine.groups import params
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    >>> sgd = {"type": "SGD", "lr": 0.1, "weight_decay": 0.05}
    >>> wrapper = {"optimizer": sgd, "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_decay_mult": 0.5}}
    >>> settings = params.param_settings(model, wrapper)
    >>> params.values(model, wrapper, settings, "weight_decay", float)
    multiply(0.05, first((norm, 0.0), (bias, 0.5)))
    >>> params.values(model, wrapper, settings, "lr", float)
    0.1
    """
    facts = Target(model).index.entries
    optimizer = Paramwise("values", optim_wrapper["optimizer"], {}, strict=True)
    base = _of_group({key: optimizer.default(key) for key in (field, "betas")}, field)
    wanted = {name: _of_group(items, field, base) for name, items in settings.items() if items is not None}
    if not wanted or None in wanted.values():
        raise ValueError(f"mmengine.params.values: {field} must be known for every trained parameter, got {wanted!r}.")
    if len(set(wanted.values())) == 1:
        return curve(next(iter(wanted.values())))  # type: ignore[no-any-return]
    start = _start(base, optim_wrapper, wanted)
    for make in _forms(model, optim_wrapper, facts, wanted, start, proportional):
        if _gives(make(lambda value: value), facts, wanted):
            return make(curve)
    raise AssertionError("a list of names gives any settings")


def _of_group(items: Mapping[str, Any], field: str, otherwise: Any = None) -> Any:
    """A number of a parameter group; the momentum of an optimizer with betas is the first."""
    if field == "momentum" and items.get("betas") is not None:
        return items["betas"][0]
    return items.get(field, otherwise)


def _start(base: Any, config: Mapping[str, Any], wanted: Mapping[str, float]) -> float:
    """What the others are multiples of: the base value where the config says so, else what most have that is not 0."""
    counts = Counter(wanted.values())
    if base in counts or (base and {base * factor for factor in numbers_in(config)} >= counts.keys()):
        return base  # type: ignore[no-any-return]
    usual = [value for value, _ in counts.most_common()]
    return next(filter(None, usual), usual[0])


def _gives(value: Value, facts: Sequence[ParameterFacts], wanted: Mapping[str, float]) -> bool:
    """Whether a value made of numbers gives every setting, but for roundings of the products."""
    found = {entry[0]: s for entry, s in zip(facts, settings_of(value, facts), strict=True)}
    return all(
        math.isclose(math.prod(found[name].factors, start=found[name].value), number, rel_tol=1e-15)
        for name, number in wanted.items()
    )


def _forms(
    model: nn.Module,
    config: Mapping[str, Any],
    facts: Sequence[ParameterFacts],
    wanted: Mapping[str, float],
    start: float,
    proportional: bool,
) -> Iterator[Callable[[Callable[[float], Any]], Value]]:
    """Ways to write it, from a curve, the best first."""
    if proportional and start:
        for rule in decays(model, config, facts):
            yield lambda curve, rule=rule: multiply(curve(start), rule)  # type: ignore[misc]
    pairs = _tidy(_decisions(config, facts, wanted, start), wanted, start)
    if proportional and start:
        yield lambda curve: multiply(curve(start), *_factors(pairs, config, wanted, start))
    yield lambda curve: choose(*[(atom.selector, curve(value)) for atom, value in pairs], rest=curve(start))


def _decisions(
    config: Mapping[str, Any], facts: Sequence[ParameterFacts], wanted: Mapping[str, float], start: float
) -> list[Pair]:
    """Selectors with a value each, the first that matches decides: those of the config as long as they tell apart."""
    left: dict[str, float] = dict(wanted)
    pairs: list[Pair] = []
    atoms: list[Atom] = []
    more = iter((lambda: by_config(config, facts), lambda: by_kind(facts), lambda: by_name(left)))
    while any(value != start for value in left.values()):
        pure: list[tuple[tuple[bool, bool, int], Pair]] = []
        for atom in atoms:
            matched = [left[name] for name in atom.names if name in left]
            if matched and len(set(matched)) == 1:
                plain = not isinstance(atom.selector, conjunction)
                pure.append(((matched[0] != start, plain, len(matched)), (atom, matched[0])))
        if not pure:
            atoms += next(more)()
            continue
        atom, value = max(pure, key=lambda entry: entry[0])[1]
        pairs.append((atom, value))
        left = {name: number for name, number in left.items() if name not in atom.names}
    return pairs


def _decided(pairs: Sequence[Pair], wanted: Mapping[str, float], start: float) -> list[float]:
    return [next((value for atom, value in pairs if name in atom.names), start) for name in wanted]


def _tidy(pairs: list[Pair], wanted: Mapping[str, float], start: float) -> list[Pair]:
    """Without pairs that change nothing, and with pairs of one value joined where the order allows it."""
    goal = list(wanted.values())
    for pair in reversed(pairs):
        rest = [other for other in pairs if other is not pair]
        pairs = rest if _decided(rest, wanted, start) == goal else pairs
    out: list[Pair] = []
    for atom, value in pairs:
        for i in reversed(range(len(out))):
            if out[i][1] == value:
                out[i] = (joined(out[i][0], atom), value)
                break
            if atom.names & out[i][0].names & wanted.keys():
                out.append((atom, value))
                break
        else:
            out.append((atom, value))
    return out


def _factors(
    pairs: Sequence[Pair], config: Mapping[str, Any], wanted: Mapping[str, float], start: float
) -> Sequence[Any]:
    """The rules of `multiply`: one after the other where no parameter is in two, else the first that matches."""
    known = numbers_in(config)
    rules = [(atom.selector, as_factor(value, start, known)) for atom, value in pairs]
    apart = all(sum(name in atom.names for atom, _ in pairs) < 2 for name in wanted)
    return rules if apart else [first(*rules)]
