"""AdamP and SGDP: no step along the weights where their length has no meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gradchain.combinators.masked import as_chain
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.roles import Wraps
from gradchain.core.scalars import maximum, where
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules._units import WHOLE_WEIGHTS, among, matrices, of_row
from gradchain.rules.agreement import check_direction, direction
from gradchain.selectors import everything, multiply
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.transforms.trace import trace
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value
    from gradchain.selectors import SelectorLike


class drop_radial(Wraps):
    """Take out of a rule's updates what is along the weights, where the gradient says that these are scale-invariant.

        u = inner(g)
        u = u - ŵ (ŵ·u),  ŵ = w / (‖w‖ + eps)      of each row, if |cos(w, g)| < delta / √numel of every row;
                                                    else of the whole tensor, if so of that; else not
        u = u + weight_decay (wd_ratio where it was taken out, else 1) w

    The gradient of weights before a normalisation is at a right angle to them; momentum is not, and makes them grow,
    by which the steps become small. A row is what makes one output, in torch's layout. Vectors and numbers have
    nothing taken out.

    Args:
        inner: the rule, a Transform.
        delta: how near to a right angle the gradient must be, at least 0.
        wd_ratio: how much of the decay is left where the length has no meaning, in [0, 1].
        weight_decay: at least 0; decoupled.
        eps: added to norms, above 0.

    Shapes: any; rows and tensors of two dimensions and more are reduced. It is a rule for real weights.
    State: that of the inner link.
    Units: those of the inner link.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch_optimizer.AdamP around `scale_by_adam`, torch_optimizer.SGDP around `trace`; pytorch_optimizer.AdamP,
        whose eps is divided by the correction of v.
    Paper: Heo et al., 2020, Algorithms 1 and 2, https://arxiv.org/abs/2006.08217

    >>> import gradchain as gch
    >>> gch.rules.drop_radial(gch.trace(0.9))
    drop_radial(trace(0.9))
    """

    descends = False
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    inner: Transform
    delta: Hyper = Hyper(0.1, "[0, inf)")
    wd_ratio: Hyper = Hyper(0.1, "[0, 1]")
    weight_decay: Hyper = Hyper(0.0, "[0, inf)")
    eps: Hyper = Hyper(1e-8, "(0, inf)")

    def check(self) -> None:
        check_direction("drop_radial", "inner", self.inner)

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return as_chain(self.inner).parts(index)

    def update(self, g: Tensors, state: Links, ctx: Context) -> tuple[Tensors, State]:
        u, inner = direction("drop_radial", self.inner, g, state, ctx)
        decay = self.weight_decay
        members = matrices(u.index)
        if not len(members):
            return u + decay * ctx.params, inner
        w, g = ctx.params.select(members), g.select(members)
        by_row, by_tensor, radial = self._radial(w, g, u.select(members))
        ratio = where(by_row, self.wd_ratio, where(by_tensor, self.wd_ratio, 1.0))
        held = u.select(members) - radial * w + decay * ratio * w
        return (u + decay * ctx.params).overlay(held), inner

    def _radial(self, w: Tensors, g: Tensors, u: Tensors) -> tuple[Any, Any, Any]:
        """Whether each tensor has its radial part taken out row by row, or as a whole; and how many weights that is."""
        of_rows, of_all = w.norms(of_row) + self.eps, w.norms() + self.eps
        cosines = (w * g).sum(of_row) / (of_rows * (g.norms(of_row) + self.eps))
        width = maximum(w.numels() / maximum(of_rows.numels(), 1), 1)
        by_row = cosines.norms(p=math.inf) < self.delta / width**0.5
        dot = (w * g).sums()
        by_tensor = maximum(dot, -dot) / (of_all * (g.norms() + self.eps)) < self.delta / maximum(w.numels(), 1) ** 0.5
        whole = where(by_tensor, (w * u).sums() / of_all**2, 0.0)
        return by_row, by_tensor, where(by_row, (w * u).sum(of_row) / (of_rows * of_rows), whole)


@answering
def adamp(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    delta: Value = 0.1,
    wd_ratio: Value = 0.1,
) -> chain:
    """AdamP, with decoupled decay of what `mask` selects: Heo et al., 2020, https://arxiv.org/abs/2006.08217.

    Equals torch_optimizer.AdamP without its nesterov; torch and Optax have none.

    >>> import gradchain as gch
    >>> gch.rules.adamp(1e-3)
    chain(drop_radial(scale_by_adam()), scale_by_learning_rate(0.001))
    """
    direction = drop_radial(scale_by_adam(b1, b2, eps), delta, wd_ratio, among(weight_decay, mask), eps)
    return chain(direction, scale_by_learning_rate(learning_rate))


@answering
def sgdp(
    learning_rate: Value,
    momentum: Value = 0.0,
    nesterov: bool = False,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    delta: Value = 0.1,
    wd_ratio: Value = 0.1,
    eps: Value = 1e-8,
) -> chain:
    """SGDP: SGD with momentum, decay and no radial steps; Heo et al., 2020, https://arxiv.org/abs/2006.08217.

    Equals torch_optimizer.SGDP with nesterov and dampening=0. Without nesterov it is the paper's, whose momentum stays
    whole; there, as in the authors' code, what is taken out of the step is missing in the momentum from then on. The
    decay is decoupled from the momentum, and as large as if it were not: divided by 1 - momentum, which has to be a
    number then.

    >>> import gradchain as gch
    >>> gch.rules.sgdp(0.1, momentum=0.9)
    chain(drop_radial(trace(0.9)), scale_by_learning_rate(0.1))
    """
    rule, decay = trace(momentum, nesterov), weight_decay
    if not parts.is_zero(decay):
        if not isinstance(momentum, (int, float)):
            raise TypeError(
                f"sgdp: momentum must be a number where there is a decay, got {momentum!r}. Write "
                "chain(drop_radial(trace(…), weight_decay=…), scale_by_learning_rate(…))."
            )
        decay = (
            decay / (1 - momentum)
            if isinstance(decay, (int, float))
            else multiply(decay, (everything, 1 / (1 - momentum)))
        )
    direction = drop_radial(rule, delta, wd_ratio, among(decay, mask), eps)
    return chain(direction, scale_by_learning_rate(learning_rate))
