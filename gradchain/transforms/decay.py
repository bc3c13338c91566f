"""Weight decay."""

from __future__ import annotations

import math
from typing import Annotated, Any

from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.says import Says
from gradchain.core.scalars import as_number
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.schedules.peaks import highest
from gradchain.selectors.source import code


class Rate(Hyper):
    """A learning rate that is told, so as to be measured by it; 0 where none is."""

    def is_numeric(self, value: Any) -> bool:
        """Where none is told there is nothing to show or to override."""
        return not (isinstance(value, (int, float)) and value == 0)


class add_decayed_weights(Transform):
    """Add a multiple of the weights to the updates, so that they shrink.

        u = g + weight_decay w                          by="learning_rate": w loses η weight_decay w
        u = g + weight_decay w / η_max                  by="schedule":      weight_decay η / η_max w
        u = g + weight_decay w η / η_max                by="corrected":     weight_decay η² / η_max w
        u = g + weight_decay w where g w > 0, else g    by="cautious":      η weight_decay w, where the step shrinks w

    Its place is its meaning: after the rule and before the learning rate it is the decoupled decay of AdamW; before
    the rule it is an L2 penalty, as torch.optim.SGD's and Adam's `weight_decay`, and there `by` stays as it is. Biases
    and norms are usually left out: `masked(add_decayed_weights(0.05), min_ndim(2))`; or given less, `multiply(0.05,
    (norm | bias, 0.1))`. A parameter without a gradient does not decay. A sparse gradient is that of the rows it names:
    a decay of the others too cannot be meant with it and is refused, unless `lazy` says that just those rows decay.

    What it is measured by: "learning_rate" halves the decay with the rate η. With "schedule" it follows the shape of
    the schedule only, so that another peak rate needs no other decay; it is then the fraction that w loses at the peak.
    "corrected" falls with η², which keeps the size of weights steady to the end of a schedule. For these two the same
    schedule stands here and in `scale_by_learning_rate`, and η_max is its largest value, from its first step to its
    end; where it has no end, `peak` says what that is. An override of the learning rate, and its multipliers per
    parameter, act on the decay as on the step. "cautious" decays elements that the step moves towards 0, and no others.

    Args:
        weight_decay: at least 0; a number or a schedule. It is multiplied by the learning rate that follows.
        lazy: where a gradient is sparse, decay the rows that it names, each as often as it is named, and no others.
        by: "learning_rate", "schedule", "corrected" or "cautious".
        rate: with "schedule" and "corrected" the learning rate, above 0 somewhere.
        peak: η_max, above 0; None is the largest value of `rate`.

    Shapes: elementwise, any.
    Units: decoupled, 1 / learning rate: per update the weights lose the fraction learning_rate · weight_decay; with
        "schedule" weight_decay is that fraction.
    Raises: ValueError or TypeError for a decay that is negative or not a number, or a `rate` without a peak.
    Equals: optax.add_decayed_weights, with `masked` in place of its mask. "schedule" is optimi's and composer's decay
        that is decoupled from the rate; "corrected" timm's `corrected_weight_decay`.
    Paper: Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101; "corrected": Defazio, 2025, Algorithm 1,
        https://arxiv.org/abs/2506.02285; "cautious": Chen et al., 2025, https://arxiv.org/abs/2510.12402, which also
        decays where the update is 0

    >>> import gradchain as gch
    >>> gch.masked(gch.add_decayed_weights(gch.cosine(0.04, 0.4, 1000)), gch.min_ndim(2))
    masked(add_decayed_weights(cosine(0.04, 0.4, 1000)), min_ndim(2))
    >>> rate = gch.cosine(1e-3, 0.0, 1000)
    >>> gch.chain(gch.scale_by_adam(), gch.add_decayed_weights(1e-4, by="schedule", rate=rate)).links[1]
    add_decayed_weights(0.0001, by="schedule", rate=cosine(0.001, 0.0, 1000))
    >>> gch.add_decayed_weights(0.1, by="corrected", rate=lambda step: 1e-3 / (1 + step), peak=1e-3).by
    'corrected'
    >>> gch.chain(gch.scale_by_lion(), gch.add_decayed_weights(0.1, by="cautious"), gch.scale_by_learning_rate(1e-4))
    chain(scale_by_lion(), add_decayed_weights(0.1, by="cautious"), scale_by_learning_rate(0.0001))
    """

    descends = False
    role = "decay"
    per_parameter = True
    uniform = frozenset({"rate"})

    weight_decay: Annotated[Hyper, "[0, inf)"]
    lazy: bool = False
    by: str = "learning_rate"
    rate: Rate = Rate(0.0, "[0, inf)")
    peak: float | None = None

    def check(self) -> None:
        lazy: object = self.lazy
        if not isinstance(lazy, bool):
            around = f" What decays is said around it: masked(add_decayed_weights(…), {lazy!r})."
            cure = around if callable(lazy) else ""
            raise TypeError(f"add_decayed_weights: lazy must be True or False, got {lazy!r}.{cure}")
        if self.by not in _BY:
            raise ValueError(f"add_decayed_weights: by must be {' or '.join(map(repr, _BY))}, got {self.by!r}.")
        if self.peak is not None:
            peak = as_number(self.peak)
            if peak is None or not 0 < peak < math.inf:
                kind = TypeError if peak is None else ValueError
                raise kind(f"add_decayed_weights: peak must be a number above 0 or None, got {self.peak!r}.")
            object.__setattr__(self, "peak", peak)
        object.__setattr__(self, "_highest", self._found() if self.by in _OF_RATE else 1.0)

    def _found(self) -> float:
        """η_max. ValueError where nobody can know it."""
        rate: object = self.__dict__["rate"]
        if self.peak is not None:
            return self.peak
        found = highest(rate) if callable(rate) else None if isinstance(rate, Tensor) else self.rate
        if found is None:
            raise ValueError(
                f"add_decayed_weights: peak must be given where rate has no end to look up to, got {code(rate)}. Write "
                "peak=… with the largest value it comes to."
            )
        if not 0 < found < math.inf:
            raise ValueError(
                f"add_decayed_weights: rate must be the learning rate where by is {self.by!r}, above 0 somewhere, got "
                f"{code(rate)}."
            )
        return found

    def says(self) -> Says:
        return {} if self.lazy is True else {"refuses_rows": _ALL_ROWS}  # a selector in its place has no truth

    def written(self) -> dict[str, Any]:
        """The fields that were given, as configs have them of before there were more."""
        return {name or "weight_decay": value for name, value in self.as_call()}

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        w, decay, most = ctx.params, self.weight_decay, self.__dict__["_highest"]
        if self.by == "schedule":
            decay = decay / most
        if self.by == "corrected":
            decay = decay * self.rate / most
        if self.by == "cautious":
            w = w * (w.sign() * g.sign() > 0)
        return g + decay * w, state


_OF_RATE = ("schedule", "corrected")
_BY = ("learning_rate", *_OF_RATE, "cautious")
_ALL_ROWS = (
    "decays all rows. To decay those that the gradient names, write add_decayed_weights(…, lazy=True); to decay none, "
    "masked(add_decayed_weights(…), ~gch.named(…))."
)
