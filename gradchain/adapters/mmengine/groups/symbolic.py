"""`paramwise_cfg` without a model: its rules as selectors, which any model resolves when the chain is bound."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import nn

from gradchain.adapters.mmengine.groups import constructors, layers
from gradchain.adapters.mmengine.groups.params import read
from gradchain.adapters.mmengine.groups.paramwise import Paramwise
from gradchain.adapters.mmengine.groups.written import NORM, any_of, as_factor, containing, numbers_in
from gradchain.selectors import Selector, bias, choose, depthwise, first, multiply, named, ndim, owner, owner_named

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

__all__ = ["Symbolic"]

# that of mmcv's deformable convolutions, by what they call it: a selector sees no parent
_OFFSET = named("*conv_offset.*", missing_ok=True) & owner(nn.Conv2d)
_MULTIPLIERS = {"lr": "lr_mult", "weight_decay": "decay_mult"}
_WRITTEN = (constructors.default, constructors.by_pattern, layers.yolo)
# what YOLOv5's constructor leaves without decay; LayerNorm and GroupNorm are no norms to it
_YOLO_FREE = bias | owner(nn.modules.batchnorm._NormBase)

Pairs = list[tuple[Selector, float]]


class Symbolic:
    """The rules of one optimizer's config: a value per field, for a model that is not there yet."""

    def __init__(self, config: Mapping[str, Any], strict: bool) -> None:
        self.paramwise, how = read(nn.Module(), config, strict)
        self._missing_ok = not strict
        self.paramwise.report()
        if self.paramwise.cfg.get("dcn_offset_lr_mult") is not None:
            self.paramwise.entry.remark(
                "dcn_offset_lr_mult is read for every Conv2d that is called conv_offset: whether it is in one of "
                "mmcv's deformable convolutions, a model tells."
            )
        self._build: Any = how and how.build
        self._items = how is not None and how.items
        if how is not None and how.build not in _WRITTEN:
            self.paramwise.refuse(
                "what its rules come to depends on the model. mmengine.from_config(model, …).chain is the code, where "
                "the model is at hand.",
                NotImplementedError,
            )
        forces = self._build is constructors.default and self.paramwise.constructor == constructors.FORCED
        self._forced = forces and bool(self.paramwise.cfg.get("force_default_settings", False))
        alone = self._build not in (None, constructors.by_pattern) and not self._forced
        for key, entry in self.paramwise.custom if alone and self._kinds("weight_decay") else ():
            if entry and not {"decay_mult", "weight_decay"} & entry.keys():
                self.paramwise.say_undone(key, "norms and biases in it have their whole weight decay back")

    def fields(self) -> list[str]:
        """What entries of custom_keys set that is no multiplier."""
        names = [name for _, entry in self.paramwise.custom for name in entry] if self._items else []
        return list(dict.fromkeys(name for name in names if not name.endswith("_mult")))

    def value(self, field: str, base: float, curve: Callable[[float], Value], *, proportional: bool) -> Value:
        """The value of a field: `curve(base)` itself, or with a factor or a curve for each kind of parameter.

        base: the optimizer's own number; proportional: whether twice the number has twice the curve.
        """
        if self._build is None or (self._build is layers.yolo and field != "weight_decay"):
            return curve(base)
        if self._build is layers.yolo:
            seventh = self.paramwise.constructor == layers.YOLOV7
            who = _YOLO_FREE | owner_named(*layers.IMPLICIT) if seventh else _YOLO_FREE
            decay, free = layers.yolo_decay(self.paramwise), layers.yolo_free(self.paramwise).get(field, 0.0)
            return choose((who, curve(free)), rest=curve(decay)) if decay != free else curve(decay)
        if self._build is constructors.by_pattern:
            found: Pairs = [
                (
                    named(re.compile(f".*(?:{pattern}).*"), missing_ok=self._missing_ok),
                    self._number(pattern, entry, field),
                )
                for pattern, entry in reversed(self.paramwise.cfg["custom_keys"].items())
                if {field, f"{field}_mult"} & entry.keys()
            ]
            return choose(*((s, curve(value)) for s, value in found), rest=curve(base)) if found else curve(base)
        custom = [
            (containing(key, self._missing_ok), self._of_entry(entry, field, base))
            for key, entry in self.paramwise.custom
        ]
        kinds = [(selector, base * factor) for selector, factor in self._kinds(field)]
        pairs = _shortened([*kinds, *custom] if self._forced else [*custom, *kinds], base)
        if not pairs:
            return curve(base)
        if not proportional or any(field in entry for _, entry in self.paramwise.custom):
            return choose(*((selector, curve(value)) for selector, value in pairs), rest=curve(base))
        known = numbers_in({"paramwise_cfg": self.paramwise.cfg})
        factors = [(selector, as_factor(value, base, known)) for selector, value in pairs]
        return multiply(curve(base), factors[0] if len(factors) == 1 else first(*factors))

    def _number(self, pattern: str, entry: Mapping[str, Any], field: str) -> float:
        key = next(key for key in reversed(list(entry)) if key in (field, f"{field}_mult"))
        return float(constructors.scaled(self.paramwise, pattern, key, entry[key]))

    def _of_entry(self, entry: Mapping[str, Any], field: str, base: float) -> float:
        """What a custom key makes of a field."""
        if field in entry and self._items:
            value = entry[field]
            return float(self.paramwise.factor(field, float(value) if isinstance(value, bool) else value))
        name = _MULTIPLIERS.get(field)
        if name is None or (field == "weight_decay" and not self.paramwise.decays):
            return base
        return base * self.paramwise.factor(name, entry.get(name, 1.0))  # type: ignore[no-any-return]

    def _kinds(self, field: str) -> Pairs:
        """The rules by kind of parameter, the first that matches counts."""
        paramwise, apart = self.paramwise, "dcn_offset_lr_mult" in self.paramwise.cfg
        free = bias & ~_OFFSET if apart else bias
        given: dict[str, Selector] = {}
        if field == "lr":
            given = {"dcn_offset_lr_mult": _OFFSET, "bias_lr_mult": free & ~NORM}
        elif field == "weight_decay" and paramwise.decays:
            given = {
                "norm_decay_mult": NORM,
                "bias_decay_mult": free,
                "dwconv_decay_mult": depthwise & owner(nn.Conv2d),
                "flat_decay_mult": ndim(1) & ~_OFFSET if apart else ndim(1),
            }
            if self.paramwise.constructor == constructors.OLD:
                given = _one_after_another(given, paramwise)
        found = [(selector, paramwise.rule(name)) for name, selector in given.items()]
        return [(selector, factor) for selector, factor in found if factor is not None]


def _one_after_another(given: dict[str, Selector], paramwise: Paramwise) -> dict[str, Selector]:
    """mmcv's order, where a norm or a depthwise convolution is kept from the rules after its own, set or not."""
    norm, depthwise_, bias_ = (given[f"{kind}_decay_mult"] for kind in ("norm", "dwconv", "bias"))
    if paramwise.rule("norm_decay_mult") is None:
        depthwise_, bias_ = depthwise_ & ~NORM, bias_ & ~NORM
    if paramwise.rule("dwconv_decay_mult") is None:
        bias_ &= ~given["dwconv_decay_mult"]
    return {"norm_decay_mult": norm, "dwconv_decay_mult": depthwise_, "bias_decay_mult": bias_}


def _shortened(pairs: Sequence[tuple[Selector, float]], base: float) -> Pairs:
    """Without what changes nothing at the end, and with neighbours of one value together."""
    kept = list(pairs)
    while kept and kept[-1][1] == base:
        kept.pop()
    groups = groupby(kept, key=lambda pair: pair[1])
    return [(any_of(selector for selector, _ in group), value) for value, group in groups]
