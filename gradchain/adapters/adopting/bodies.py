"""The links of an adopted training: front, the rule of each kind of groups, and what looks at what is observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradchain.adapters.adopting.groups import selector, spread
from gradchain.adapters.adopting.rules import Rule
from gradchain.adapters.adopting.schedulers import Curves
from gradchain.combinators.accumulate import accumulate
from gradchain.combinators.amp_scale import amp_scale
from gradchain.combinators.partition import partition, rest
from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.schedules import by
from gradchain.selectors import ParameterFacts
from gradchain.transforms.plateau import reduce_on_plateau


@dataclass
class Groups:
    """The groups of an optimizer, as a chain will have their numbers.

    Attributes:
        rule: of the optimizer's class.
        entries: the groups.
        names: of the parameters of each.
        facts: of all parameters of the model.
        moving: what its scheduler moves.
        clock: by which clock.
        observed: what a plateau looks at.
    """

    rule: Rule
    entries: Sequence[Mapping[str, Any]]
    names: Sequence[Sequence[str]]
    facts: Sequence[ParameterFacts]
    moving: Curves
    clock: str
    observed: str

    def links(self) -> tuple[list[Transform], list[float]]:
        """The rule as links of a chain, and what each of its plateaus multiplies, in order."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, names in enumerate(self.names):
            if names:
                alike.setdefault(self._kind(i), []).append(i)
        rates = (
            [float(self.entries[members[0]]["lr"]) for members in alike.values()]
            if self.moving.plateau is not None
            else []
        )
        chains = [self._chain(members) for members in alike.values()]
        behind = self._behind()
        if len(chains) == 1:
            return [*chains[0], *behind], rates
        places = [selector([n for i in members for n in self.names[i]], self.facts) for members in alike.values()]
        branches = [*zip(places, chains, strict=True)][:-1]
        parted = partition(*((place, chain(*links)) for place, links in branches), (rest, chain(*chains[-1])))
        return [parted, *behind], rates

    def _behind(self) -> list[Transform]:
        """What the rule has behind the chains of its groups."""
        if self.rule.behind is None:
            return []
        name, more, made = self.rule.behind
        return [made(spread([group[name] + more for group in self.entries], self.names, self.facts))]

    def _kind(self, i: int) -> tuple[Any, ...]:
        """What groups must have in common to be one chain: each falls by itself where something is observed."""
        group = self.entries[i]
        flags = tuple(group.get(name) for name in self.rule.flags)
        return (*flags, float(group["lr"]), self._least(i)) if self.moving.plateau is not None else flags

    def _least(self, i: int) -> float:
        plateau = self.moving.plateau
        groups = len(self.entries)  # torch does so too, once groups were added
        return float(plateau.min_lrs[i] if len(plateau.min_lrs) == groups else plateau.default_min_lr)

    def _chain(self, members: Sequence[int]) -> list[Transform]:
        names = [self.names[i] for i in members]
        within = {name for some in names for name in some}
        facts = [fact for fact in self.facts if fact[0] in within]
        first = self.entries[members[0]]
        numbers = {key: spread([self._number(i, key) for i in members], names, facts) for key in self._keys()}
        made = self.rule.chain_of(numbers, {name: first.get(name) for name in self.rule.flags})
        links = [link for _, link in made.named]
        if self.moving.plateau is not None:
            links.append(self._plateau(members[0]))
        return links

    def _keys(self) -> list[str]:
        pairs = ((key, keyword) for key, keyword in self.rule.numbers.items())
        given = [[key] if isinstance(keyword, str) else [f"{key}[0]", f"{key}[1]"] for key, keyword in pairs]
        return ["lr", *(key for some in given for key in some)]

    def _number(self, i: int, key: str) -> Any:
        moved = self.moving.fields.get({"betas[0]": "momentum"}.get(key, key))
        if moved is not None:
            return moved[i] if self.clock == "step" else by(self.clock, moved[i])
        if key == "dampening" and self._number(i, "momentum") == 0:
            return 0.0  # torch has nothing to damp there
        name, _, place = key.partition("[")
        value = self.entries[i][name]
        value = value[int(place[:-1])] if place else value
        return value.item() if isinstance(value, torch.Tensor) else value

    def _plateau(self, i: int) -> Transform:
        p = self.moving.plateau
        return reduce_on_plateau(
            self.observed, p.factor, p.patience, p.threshold, p.threshold_mode, p.cooldown, self._least(i), p.eps,
            p.mode, base=float(self.entries[i]["lr"]),
        )  # fmt: skip


def front_of(front: Sequence[Transform], scaler: Any, autocast: torch.dtype | None) -> list[Transform]:
    """What is done before the rule: the scale is divided out behind a window, and before all else."""
    windows = [link for link in front if isinstance(link, accumulate)]
    others = [link for link in front if not isinstance(link, accumulate)]
    return [*windows, *_scale(scaler, autocast), *others]


def _scale(scaler: Any, autocast: torch.dtype | None) -> list[Transform]:
    if scaler is None or not scaler.is_enabled():
        return []
    saved = scaler.state_dict()
    words = {key: saved[key] for key in ("growth_factor", "backoff_factor", "growth_interval")}
    return [amp_scale(float(scaler._init_scale), **words, always=autocast != torch.float16)]
