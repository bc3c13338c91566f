"""A per-parameter value over some parameters: the few values it starts from, and how they spread.

Per update each of those is evaluated once, whatever the number of parameters; the rest is a few products of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gradchain.core.index import Index
from gradchain.core.scalars import Scalars
from gradchain.selectors import PerParameter
from gradchain.selectors.rules import Setting


class Spread:
    """What a per-parameter value is over the entries of an Index.

    Attributes:
        settings: of each entry, in order.
        starts: the distinct values they start from.
    """

    def __init__(self, index: Index, settings: Sequence[Setting]) -> None:
        self._names = index.names
        self.settings = tuple(settings)
        places: dict[Any, int] = {}
        self.starts: list[Any] = []
        of = []
        for setting in settings:
            place = places.setdefault(_key(setting.value), len(places))
            if place == len(self.starts):
                self.starts.append(setting.value)
            of.append(place)
        self._start_of = torch.tensor(of, device="cpu") if len(places) > 1 else None
        depth = max((len(s.factors) for s in settings), default=0)
        # a parameter with fewer factors than another is multiplied by 1, which changes no bit
        self._factors = [_column([s.factors[k] if k < len(s.factors) else 1.0 for s in settings]) for k in range(depth)]
        self._last: tuple[list[Any], Tensor] | None = None

    @classmethod
    def of(cls, value: PerParameter, index: Index) -> Spread:
        """The spread of `value` over `index`; its selectors are resolved once, over all parameters.

        ValueError where one of them matches nothing.
        """
        found = index.memo.get(value)
        if found is None:
            root = index.root
            if root is index:
                found = cls(index, value.settings(index.entries))
            else:
                whole, position = cls.of(value, root), root.position
                found = cls(index, [whole.settings[position[name]] for name in index.names])
            index.memo[value] = found
        return cast(Spread, found)

    def scalars(self, index: Index, numbers: list[Any]) -> Scalars:
        """A number for each entry of the Index, given one for each of `starts`."""
        if not all(type(number) is float or type(number) is int for number in numbers):
            return self._one_by_one(numbers)
        if self._last is None or self._last[0] != numbers:
            self._last = (numbers, self._multiplied(numbers))
        return Scalars.over(index, self._last[1])

    def _multiplied(self, numbers: list[float]) -> Tensor:
        if self._start_of is None:
            column = torch.full((len(self._names),), float(numbers[0]) if numbers else 0.0, **_FLOAT64)
        else:
            column = _column(numbers)[self._start_of]
        for factors in self._factors:
            column = column * factors
        return column

    def _one_by_one(self, numbers: list[Any]) -> Scalars:
        # a start may be a 0-d tensor, on a device or under autograd, which no column can hold; what is no number at all
        # is left for the hyperparameter to refuse
        of = [0] * len(self._names) if self._start_of is None else self._start_of.tolist()
        out = {}
        for name, setting, start in zip(self._names, self.settings, of, strict=True):
            number = numbers[start]
            for factor in setting.factors if isinstance(number, (float, int, Tensor)) else ():
                number = number * factor
            out[name] = number
        return Scalars(out)


_FLOAT64: Any = {"dtype": torch.float64, "device": "cpu"}  # whatever the user's default device is


def _column(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, **_FLOAT64)


def _key(value: Any) -> Any:
    """Values that are equal are evaluated once; those that cannot be compared, each for itself."""
    if isinstance(value, Tensor):
        return ("id", id(value))
    try:
        hash(value)
    except TypeError:
        return ("id", id(value))
    return value
