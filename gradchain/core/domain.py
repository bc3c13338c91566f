"""What a field of a state may hold, declared beside it: `nu: Annotated[Tensors, "[0, inf] or NaN"]`."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.hyper import Interval, is_number
from gradchain.core.readable import is_readable

_OR_NAN = " or NaN"
_WORDS = {bool: "True or False", str: "a string", int: "an integer", float: "a number"}
_HOST = 2**63  # what an integer of the host must fit, so that it is a number to everybody


@dataclass(frozen=True)
class Domain:
    """What one field of a State may hold. Loading a checkpoint refuses everything else before anything changes.

    What a run writes must load, also a run that went wrong: where NaN may come from the gradients, " or NaN" stands
    behind the interval.

    Args:
        kind: int, float, bool or str where the field is annotated so, else None.
        text: the interval, in the words of a hyperparameter's; "" where every number will do.
    """

    kind: type | None = None
    text: str = ""

    def __post_init__(self) -> None:
        self._interval  # noqa: B018  # raises where it reads like none

    @functools.cached_property
    def _interval(self) -> Interval:
        return Interval(self.text.removesuffix(_OR_NAN) or "[-inf, inf]")

    @property
    def _nan(self) -> bool:
        return not self.text or self.text.endswith(_OR_NAN)

    @classmethod
    def declared(cls, annotation: Any, module: str) -> Domain:
        """That of a field with this annotation. A name that nobody has in sight says nothing.

        Raises:
            ValueError: the interval reads like none.
        """
        module_names = vars(sys.modules[module]) if module in sys.modules else {}
        try:
            holder: Any = SimpleNamespace(__annotations__={"field": annotation})
            found = get_type_hints(holder, dict(module_names), include_extras=True)["field"]
        except (NameError, AttributeError, TypeError):
            return cls()
        base, *notes = get_args(found) if get_origin(found) is Annotated else (found,)
        text = next((note for note in notes if isinstance(note, str)), "")
        return cls(base if base in (int, float, bool, str) else None, text)

    @property
    def is_any(self) -> bool:
        """Whether nothing is said: then what is there tells what may come."""
        return self.kind is None and not self.text

    @property
    def rule(self) -> str:
        """The end of the sentence "scale must be …"."""
        words = _WORDS.get(self.kind or float, "a number")
        text = self.text.removeprefix("integer ")
        return f"{words} in {text}" if text else words

    def holds(self, value: Any) -> bool:
        """Whether the field may have this value: a number of the host, a 0-d tensor, a bool or a string."""
        if self.kind is str:
            return isinstance(value, str)
        if isinstance(value, Tensor):
            if value.ndim or value.is_complex() or not is_readable(value):
                return False
            value = value.item()
        if self.kind is bool:
            return isinstance(value, bool)
        if not is_number(value) or (self.kind is int and not isinstance(value, int)):
            return False
        if isinstance(value, int) and not -_HOST <= value < _HOST:
            return False
        return self._nan if math.isnan(value) else self._interval.holds(value)

    def offender(self, tensor: Tensor) -> float | None:
        """An element that lies outside, of this rank's where they are shards; None where all lie inside."""
        if not self.text:
            return None
        local = _torch.local(tensor.detach())
        numbers = torch.view_as_real(local.resolve_conj()) if local.is_complex() else local
        if numbers.is_floating_point() and numbers.dtype not in (torch.float32, torch.float64):
            numbers = numbers.float()
        out = self._interval.outside(numbers)
        if not self._nan:
            out = out | numbers.isnan()
        return numbers[out][0].item() if bool(out.any()) else None
