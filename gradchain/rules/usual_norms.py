"""Clip by what norms have been: one norm over all by its z-score, or one per tensor by its average."""

from __future__ import annotations

import math
from typing import Annotated, Any

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, Scalars, maximum, minimum, sqrt, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms._correction import LEAST


class ZScoreState(State):
    """What clip_by_zscore remembers: statistics of the norms after clipping."""

    count: Annotated[Any, "[0, inf)"] = 0.0  # of the norms that are in them; it lies where these are computed
    mean: Annotated[Any, "[0, inf)"] = 0.0
    var: Annotated[Any, "[0, inf)"] = 0.0


class clip_by_zscore(Transform):
    """Scale the updates down where their norm is far above its mean, measured in standard deviations: ZClip.

        n = ‖g‖,  s = √var + eps,  z_n = (n - mean) / s;   where z_n > z:
        n* = mean + s z² / z_n ("reciprocal"), mean + s z ("bound"), or mean ("mean");  u = g n* / n;  else n* = n
        mean ← decay mean + (1 - decay) n*,  var ← decay var + (1 - decay) (n* - mean)²

    The first `warmup` norms make the mean and the variance, and are not clipped: put `clip_by_norm` in front where the
    start is wild. An outlier goes in as it was clipped, so that one does not make room for the next; "reciprocal"
    clips more, the further out the norm is. A norm that is not finite is not in the statistics. The norm is recorded
    as "norm", what it is clipped to as "clipped".

    Args:
        z: above 0.
        decay: in [0, 1).
        warmup: how many norms, an integer of at least 1.
        to: "reciprocal", "bound" or "mean".
        eps: added to the standard deviation, at least 0.

    Shapes: any; one norm over whole tensors.
    State: three numbers.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: the formulas of the paper, in float64; of its code the options clip_option="adaptive_scaling" and "mean".
    Paper: Kumar et al., 2025, Algorithm 1, https://arxiv.org/abs/2504.02507

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.clip_by_zscore(), gch.adamw(1e-3)).links[0]
    clip_by_zscore()
    """

    descends = False
    role = "clip"
    uniform = frozenset({"z", "decay", "warmup", "eps"})

    z: Hyper = Hyper(2.5, "(0, inf)")
    decay: Hyper = Hyper(0.97, "[0, 1)")
    warmup: Hyper = Hyper(25, "integer [1, inf)")
    to: str = "reciprocal"
    eps: Hyper = Hyper(1e-6, "[0, inf)")

    def check(self) -> None:
        if self.to not in ("reciprocal", "bound", "mean"):
            raise ValueError(f"clip_by_zscore: to must be 'reciprocal', 'bound' or 'mean', got {self.to!r}.")

    def init(self, params: Tensors) -> ZScoreState:
        return ZScoreState()

    def update(self, g: Tensors, state: ZScoreState, ctx: Context) -> tuple[Tensors, ZScoreState]:
        if not len(g):  # there is no norm to learn from
            return g, state
        norm, mean, s = g.norm(), state.mean, _root(state.var) + self.eps
        warm = state.count < self.warmup
        least = where(warm, math.inf, mean + self.z * s)
        clipped = where(norm > least, self._target(norm, mean, s), norm)
        ctx.record("norm", norm)
        ctx.record("clipped", clipped)
        finite = norm < math.inf
        known = where(finite, clipped, mean)
        part, d = where(finite, where(warm, 1 / (state.count + 1), 1 - self.decay), 0.0), known - mean
        after = mean + part * d
        var = where(warm, (1 - part) * (state.var + part * d * d), (1 - part) * state.var + part * (known - after) ** 2)
        u = where(norm > least, clipped / maximum(norm, LEAST), 1.0) * g
        return u, ZScoreState(state.count + where(finite, 1.0, 0.0), after, var)

    def _target(self, norm: Any, mean: Any, s: Any) -> Any:
        """What a norm that is too large is clipped to."""
        if self.to == "mean":
            return mean
        return mean + (self.z * s if self.to == "bound" else (self.z * s) ** 2 / maximum(norm - mean, LEAST))


def _root(square: Any) -> Any:
    """The square root of what may be 0, where it has no derivative."""
    return where(square > 0, sqrt(where(square > 0, square, 1.0)), 0.0)


class EmaNormState(State):
    """What clip_by_ema_norm remembers."""

    count: Count
    gamma: Scalars  # the average norm of each parameter's clipped gradients


class clip_by_ema_norm(Transform):
    """Scale each tensor down where its norm exceeds a multiple of its own average norm: AdaGC.

        t < warmup, or gamma = 0:
                     h = min(1, absolute / (‖g‖ + eps)), the norm over all;  gamma ← min(gamma, ‖h g_i‖)
        after:       h = min(1, relative max(gamma, eps) / max(‖g_i‖, eps))
                     gamma ← decay gamma + (1 - decay) ‖h g_i‖
        u_i = h g_i;   where gamma is 0, at the first gradient of a parameter that is not, it becomes ‖h g_i‖

    t counts the gradients of each parameter from 1. The average takes in what was clipped, so that a spike raises it by
    little; a norm that is not finite is not in it.

    Args:
        relative: above 0; the paper has 1.05.
        absolute: the bound of the norm over all at first, above 0.
        decay: in [0, 1).
        warmup: an integer of at least 0.
        eps: at least 0.

    Shapes: any; one norm over each whole tensor, and one over all.
    State: one number per parameter, and a count.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: pytorch_optimizer's AdaGC in front of scale_by_adam.
    Paper: Wang et al., 2025, Algorithm 1, https://arxiv.org/abs/2502.11034

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.clip_by_ema_norm(), gch.adamw(1e-3)).links[0]
    clip_by_ema_norm()
    """

    descends = False
    role = "clip"
    uniform = frozenset({"absolute", "warmup"})

    relative: Hyper = Hyper(1.05, "(0, inf)")
    absolute: Hyper = Hyper(1.0, "(0, inf)")
    decay: Hyper = Hyper(0.98, "[0, 1)")
    warmup: Hyper = Hyper(100, "integer [0, inf)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")

    def init(self, params: Tensors) -> EmaNormState:
        return EmaNormState(Count(params.index), Scalars.of(params.index, 0.0))

    def update(self, g: Tensors, state: EmaNormState, ctx: Context) -> tuple[Tensors, EmaNormState]:
        count, norms, gamma = state.count.tick(g), g.norms(), state.gamma.select(g)
        total = g.norm()
        warm = where(gamma > 0.0, count < self.warmup, True)  # nothing is known yet of what has no average
        early = minimum(1.0, self.absolute / maximum(total + self.eps, LEAST))
        late = minimum(1.0, self.relative * maximum(gamma, self.eps) / maximum(norms, maximum(self.eps, LEAST)))
        h = where(warm, early, late)
        now = h * norms
        least = where(gamma > 0.0, minimum(gamma, now), now)
        after = where(warm, least, self.decay * gamma + (1 - self.decay) * now)
        return h * g, EmaNormState(count, where(where(warm, total, norms) < math.inf, after, gamma))
