"""What a constructor makes of `paramwise_cfg`: rules by selectors, which become groups where a model is at hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from typing import Any

from torch import Tensor, nn

from gradchain.adapters.mmengine.groups.paramwise import OLD, Group, Paramwise
from gradchain.selectors import ParameterFacts, Selector, depth, named

__all__ = ["Layers", "Rule", "Rules", "containing", "facts_of"]


@dataclass(frozen=True)
class Rule:
    """What is given to the parameters that a selector takes.

    items: numbers of a parameter group, or where rules multiply, factors of them; key: what it is called in
    paramwise_cfg, where it must take a parameter; closes: no rule after it counts for what it takes; puts_off: it gives
    back a weight decay that a rule after it would have taken, and does not say so.
    """

    who: Selector
    items: Mapping[str, Any]
    key: str | None = None
    closes: bool = False
    puts_off: bool = False


@dataclass(frozen=True)
class Layers:
    """A learning rate by layer: rate ** (total - deep(name) - 1) of the optimizer's.

    last: the layer of the head; shown: the depths as a selector has them, None where none of them is like these.
    """

    rate: float
    deep: Callable[[str], int]
    total: int
    last: int
    shown: depth.Depth | None = None


@dataclass
class Rules:
    """The rules of one optimizer: of those that take a parameter, the first that names a field decides it.

    usual: what a parameter has where no rule names the field; layers: what becomes of "lr" after them; multiply: every
    rule that takes a parameter counts, by its factor; frozen: frozen parameters are in groups too, as they are; once:
    what is shared is in the group where it comes first; merged: one group for each layer with decay and each without;
    made: the groups, where they are no matter of rules.
    """

    paramwise: Paramwise
    rules: Sequence[Rule] = ()
    usual: Mapping[str, Any] = field(default_factory=dict)
    layers: Layers | None = None
    multiply: bool = False
    frozen: bool = False
    once: bool = False
    merged: bool = False
    made: Callable[[nn.Module], list[Group]] | None = None

    def groups(self, model: nn.Module) -> list[Group]:
        """The parameter groups, as MMEngine's constructor hands them to the optimizer."""
        if self.made is not None:
            return self.made(model)
        facts = [entry for entry in facts_of(model) if entry[1].requires_grad or self.frozen]
        if self.layers is not None:
            depths = {name: self.layers.deep(name) for name, parameter, _ in facts if parameter.requires_grad}
            self.paramwise.check_layers(depths, self.layers.last)
        groups: dict[Any, Group] = {}
        taken: set[int] = set()
        undone: dict[str, str] = {}
        for entry in facts:
            trained = entry[1].requires_grad
            # mmcv asks whether it has a parameter after it has taken a frozen one
            if self.once and id(entry[1]) in taken and (trained or self.paramwise.constructor != OLD):
                continue
            taken.add(id(entry[1]))
            items = self._items(entry, undone) if trained else {}
            # which decay a group of a layer has, its first parameter says
            place = (self._layer(entry[0]), items["weight_decay"] == 0) if self.merged else len(groups)
            groups.setdefault(place, ([], items))[0].append(entry[1])
        for key, name in undone.items():
            self.paramwise.say_undone(key, f"{name!r} has its whole weight decay back")
        return list(groups.values())

    def _layer(self, name: str) -> int:
        assert self.layers is not None
        return self.layers.deep(name)

    def _items(self, entry: ParameterFacts, undone: dict[str, str]) -> dict[str, Any]:
        """What one parameter is given; `undone`: by key, the first parameter that it gives its decay back."""
        taking = (rule for rule in self.rules if rule.who(*entry))
        items: dict[str, Any] = {}
        if self.multiply:
            found = list(taking)
            self.paramwise.used.update(rule.key for rule in found if rule.key)
            return {name: self.usual[name] * math.prod(rule.items[name] for rule in found) for name in self.usual}
        for rule in taking:
            items = {**rule.items, **items}
            self.paramwise.used |= {rule.key} if rule.key is not None else set()
            if rule.closes:
                kinds = (one.items for one in taking if not one.closes)
                later = next((given["weight_decay"] for given in kinds if "weight_decay" in given), None)
                if rule.puts_off and rule.key is not None and later not in (None, items.get("weight_decay")):
                    undone.setdefault(rule.key, entry[0])
                break
        items = {**self.usual, **items}
        if self.layers is not None:
            deep = self.layers.deep(entry[0])
            scale = self.layers.rate ** (self.layers.total - deep - 1)
            items |= {"lr": scale * self.paramwise.base("lr"), "lr_scale": scale}
            items |= {} if self.merged else {"layer_id": deep}
        return items

    def fields(self) -> list[str]:
        """The numbers of a group that rules name, without what only multiplies another."""
        names = dict.fromkeys(name for rule in self.rules for name in rule.items)
        return [name for name in names if not name.endswith("_mult")]

    def pairs(self, name: str, base: Any) -> list[tuple[Selector, Any]]:
        """Selectors with a number each for one field, of which the first that takes a parameter decides."""
        return [(r.who, r.items.get(name, base)) for r in self.rules if r.closes or name in r.items]


def facts_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor, nn.Module]]:
    """Each parameter as MMEngine comes upon it: through its module, which different ways may lead to."""
    before = f"{prefix}." if prefix else ""
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{before}{name}", parameter, module
    for name, child in module.named_children():
        yield from facts_of(child, f"{before}{name}")


def containing(key: str, missing_ok: bool, root: str | None = None) -> Selector:
    """A custom key as MMEngine looks for it: in the whole name, with a root and a dot before it where there is one.

    Without a name for the root the dot is before what lies on the root itself alone.
    """
    inside = f"*{escape(key)}*"
    before, rest = (".", "[^.]*") if root == "" else (f"{root}.", ".*")
    cut = [key[i:] for i in range(1, len(key) + 1) if root is not None and before.endswith(key[:i])]
    begins = [re.compile(re.escape(one) + rest) for one in cut if root or "." not in one]
    return named(inside, *begins, missing_ok=missing_ok or bool(begins))
