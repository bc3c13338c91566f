"""The config of one optimizer and its `paramwise_cfg`, looked through: base values, multipliers, keys, faults."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from torch import Tensor

from gradchain.adapters.mmengine.entries import ZERO, Entry, is_number, listed, near, type_name, whole
from gradchain.adapters.torch_names import class_of

__all__ = ["DEFAULT", "FORCED", "OLD", "RULES", "Group", "Paramwise", "check_places"]

DEFAULT, OLD = "DefaultOptimWrapperConstructor", "DefaultOptimizerConstructor"
FORCED = f"Force{DEFAULT}"

Group = tuple[list[Tensor], dict[str, Any]]
"""What a constructor hands to the optimizer: parameters, and what is not as in the optimizer's own arguments."""

DECAYS = ("norm_decay_mult", "bias_decay_mult", "dwconv_decay_mult", "flat_decay_mult")
RULES = (*DECAYS, "bias_lr_mult", "dcn_offset_lr_mult")
"""Multipliers at the top of `paramwise_cfg`."""

OUTSIDE = ("lr", "weight_decay", "momentum", "betas")
INSIDE = (*RULES, "custom_keys", "bypass_duplicate", "layer_decay_rate", "decay_rate", "num_layers")


@dataclass
class Paramwise:
    """One optimizer's config.

    constructor: what reads it, for the sentences; optimizer, cfg: the optimizer's own dict, and `paramwise_cfg`;
    root: what names begin with when keys are looked for in them; keys: what its custom keys are called; used: those of
    them that took a parameter; faults: what cannot act, in sentences.
    """

    constructor: str
    optimizer: Mapping[str, Any]
    cfg: Mapping[str, Any]
    strict: bool
    root: str = ""
    keys: str = "custom_keys"
    used: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    @property
    def entry(self) -> Entry:
        """Who speaks in errors."""
        return Entry(self.constructor, {}, self.strict, "mmengine.param_settings")

    def refuse(self, sentence: str, kind: type[Exception] = ValueError) -> NoReturn:
        """What MMEngine refuses or fails on as well."""
        self.entry.refuse(sentence, kind)

    def report(self) -> None:
        """All that cannot act, in one error; where not strict, a warning each."""
        if self.strict and self.faults:
            self.refuse(" ".join(self.faults))
        for sentence in self.faults:
            self.entry.remark(sentence)

    @cached_property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the optimizer's class; none where nobody here knows it."""
        kind = self.optimizer.get("type")
        kind = self.optimizer.get("optimizer_type") if type_name(kind) == ZERO else kind
        short = kind.rpartition(".")[2] if isinstance(kind, str) else kind
        try:
            return inspect.signature(class_of(short)).parameters  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            return {}

    def default(self, name: str) -> Any:
        """What the optimizer gives a group that says nothing: as configured, else as its class has it, else None."""
        known = self.arguments.get(name)
        fallback = None if known is None or known.default is inspect.Parameter.empty else known.default
        return self.optimizer.get(name, fallback)

    def usual(self, name: str, value: Any) -> bool:
        """Whether an item of a group says what the optimizer would do without it."""
        return name not in ("lr", "weight_decay") and name in self.arguments and bool(self.default(name) == value)

    @property
    def missing_ok(self) -> bool:
        """Whether a key may take nothing."""
        return not self.strict

    @property
    def decays(self) -> bool:
        """Whether the optimizer's dict has a weight decay, which every multiplier of it needs."""
        return self.optimizer.get("weight_decay") is not None

    def base(self, name: str) -> Any:
        """The optimizer's lr or weight_decay, which a constructor multiplies."""
        value = self.optimizer.get(name)
        if not is_number(value):
            self.refuse(f"optimizer must have {name}, a number, where it is multiplied, got {value!r}.", TypeError)
        return value

    def factor(self, place: str, value: Any) -> Any:
        """A multiplier."""
        if not is_number(value):
            self.refuse(f"{place} must be a number, got {value!r}.", TypeError)
        return value

    def rule(self, name: str) -> Any:
        """A multiplier at the top of paramwise_cfg; None where it is not set."""
        value = self.cfg.get(name)
        return None if value is None else self.factor(name, value)

    @cached_property
    def custom(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The custom keys, the longest first, equally long ones by the alphabet."""
        keys = self.cfg.get("custom_keys", {})
        if not isinstance(keys, Mapping):
            self.refuse(f"custom_keys must be a dict, got {keys!r}.", TypeError)
        for key, entry in keys.items():
            if not isinstance(entry, Mapping):
                self.refuse(f"custom_keys[{key!r}] must be a dict, got {entry!r}.", TypeError)
        return [(key, keys[key]) for key in sorted(sorted(keys), key=len, reverse=True)]

    def say_undone(self, key: str, what: str) -> None:
        """A custom key is all that counts for what it takes: a rule of weight decay that it puts off is a slip."""
        self.entry.remark(f"custom_keys[{key!r}] says no decay_mult, and no other rule counts where it does: {what}.")

    def number(self, key: str, default: Any = None) -> Any:
        """A number of paramwise_cfg that the constructor computes with."""
        return self.factor(key, self.cfg.get(key, default))

    def layers(self) -> Any:
        """How many layers paramwise_cfg says that there are."""
        return whole(self.number("num_layers"))

    def check_decays(self) -> None:
        """Multipliers of a weight decay that the optimizer has not: MMEngine refuses these."""
        if self.decays:
            return
        named = [key for key in DECAYS[:3] if key in self.cfg]
        named += [f"custom_keys[{key!r}]['decay_mult']" for key, entry in self.custom if "decay_mult" in entry]
        if named:
            self.refuse(f"optimizer must have weight_decay where {named[0]} multiplies it.")
        if "flat_decay_mult" in self.cfg:
            self.faults.append("optimizer must have weight_decay where flat_decay_mult multiplies it.")

    def check_keys(self, known: Iterable[str], in_entries: Iterable[str], *, items: bool) -> None:
        """Keys that nobody reads. items: whether other keys of an entry become items of the parameter group."""
        readable = {*known, "_delete_"}  # left of a config's inheritance
        for key in self.cfg:
            if key in ("lr_mult", "decay_mult"):
                self.faults.append(f"paramwise_cfg: {key} must be in an entry of custom_keys; here nothing reads it.")
            elif key not in readable:
                cure = f"it reads {listed(known)}."
                self.faults.append(_unread("paramwise_cfg", key, self.constructor, readable, cure))
        if "custom_keys" not in readable:
            return
        options = {*in_entries, *(self._items() if items else ())}
        for key, entry in self.custom:
            for name in entry:
                if name not in options and (not items or self.arguments or _like_a_multiplier(name)):
                    more = ", and the optimizer's own arguments" if items else ""
                    cure = f"it reads {listed(in_entries)}{more}."
                    self.faults.append(_unread(f"{self.keys}[{key!r}]", name, self.constructor, options, cure))

    def _items(self) -> set[str]:
        """What an optimizer reads of a parameter group."""
        kind = str(self.optimizer.get("type")).lower()
        known = {"lr", "weight_decay", "fix_lr", *self.arguments}  # MMSelfSup's hook for SimSiam reads fix_lr
        return known - {"params"} | ({"lars_exclude"} if "lars" in kind else set())

    def check_layers(self, depths: Mapping[str, int], last: int) -> None:
        """Parameters by layer: some must lie in a layer between the stem, at 0, and the head, at `last`."""
        if deep := [name for name, depth in depths.items() if depth > last]:
            self.faults.append(
                f"every layer must be one of the {last - 1}, got {deep[0]!r}, whose rate would be above."
            )
        if depths and not any(0 < depth < last for depth in depths.values()):
            self.faults.append(
                f"the model must have layers by the names that {self.constructor} knows, got none: nothing between "
                "stem and head would have a rate of its own. gch.layer_decay takes any names."
            )

    def check_used(self) -> None:
        """Keys that took no parameter."""
        idle = [key for key, _ in self.custom if key not in self.used]
        if idle:
            rule = "key must be a part of a trained parameter's name that no longer key is in"
            if self.keys != "custom_keys":
                rule = "pattern must be found in a trained parameter's name"
            none = f"which take{'s' if len(idle) == 1 else ''} none"
            self.faults.append(f"{self.keys}: every {rule}, got {', '.join(map(repr, idle))}, {none}.")


def check_places(config: Mapping[str, Any], known: Paramwise) -> None:
    """What stands beside `optimizer` and `paramwise_cfg`, and should be inside."""
    for key in config:
        if key in (*OUTSIDE, *INSIDE):
            place = "optimizer" if key in OUTSIDE else "paramwise_cfg"
            known.faults.append(f"{key} must be inside {place}; beside it nothing reads it.")
    for key in ("paramwise_cfg", *INSIDE):
        if key in known.optimizer and not (key == "layer_decay_rate" and "model_type" in known.optimizer):
            known.faults.append(f"{key} must be beside optimizer, not inside it.")


def _like_a_multiplier(name: str) -> bool:
    return "mult" in name or bool(difflib.get_close_matches(name, ("lr_mult", "decay_mult"), cutoff=0.8))


def _unread(place: str, key: object, constructor: str, known: Iterable[str], otherwise: str) -> str:
    cure = near(str(key).replace("wd", "decay"), sorted(known), otherwise)
    return f"{place}: every key must be one that {constructor} reads, got {key!r}; {cure}"
