"""CAME: Adafactor with a momentum that goes slower where it does not agree with the updates it is the mean of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import maximum
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules._units import WHOLE_WEIGHTS, matrices, rms
from gradchain.transforms.factored import inverse_root
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value
    from gradchain.selectors import SelectorLike


class CameState(State):
    """What scale_by_came remembers: of matrices rows and columns, of all else nu."""

    mu: Tensors  # m, the mean update
    rows: Annotated[Tensors, "[0, inf] or NaN"]  # R, the mean square of the gradient's rows
    columns: Annotated[Tensors, "[0, inf] or NaN"]
    unsure_rows: Annotated[Tensors, "[0, inf] or NaN"]  # r, that of the rows of what the update differs by from m
    unsure_columns: Annotated[Tensors, "[0, inf] or NaN"]
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient of what is no matrix


class scale_by_came(Transform):
    """Divide the mean of Adafactor's updates by how far they are from their mean.

        R_t, C_t: the means with b2 of g² + eps[0] over each row, over each column
        h   = g / sqrt(R C / mean R);  h := h / max(1, rms(h) / threshold)
        m_t = b1 m_(t-1) + (1 - b1) h
        r_t, c_t: the means with b3 of (h - m_t)² + eps2 over each row, over each column
        u   = m_t / sqrt(r c / mean r)

    Vectors have the mean square of each element in place of R and C, and u = m_t. Nothing is corrected for its start
    at zero, so the first steps are long: the clip holds them.

    Args:
        b1: how much of the mean update stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        b3: how much of the mean square of the difference stays, in [0, 1).
        eps: added to the squared gradient, at least 0.
        eps2: added to the squared difference, at least 0.
        threshold: the largest root mean square of an update, above 0.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: any; of more than two dimensions, matrices over the last two.
    State: `mu`, one tensor per parameter; four vectors for a matrix; `nu`, one tensor, for all else.
    Units: gradient → dimensionless.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: pytorch_optimizer.CAME; the authors' code.
    Paper: Luo et al., 2023, Algorithm 2, https://arxiv.org/abs/2307.02047

    >>> import gradchain as gch
    >>> gch.rules.scale_by_came(b3=0.999)
    scale_by_came(b3=0.999)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    b3: Hyper = Hyper(0.9999, "[0, 1)")
    eps: Hyper = Hyper(1e-30, "[0, inf)")
    eps2: Hyper = Hyper(1e-16, "[0, inf)")
    threshold: Hyper = Hyper(1.0, "(0, inf)")
    mu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> CameState:
        inside = matrices(params.index)
        mine, others = params.select(inside), params.select(params.index.without(inside))
        rows, columns = (mine.mean(dim).slow_slot() for dim in (-1, -2))
        unsure_rows, unsure_columns = (mine.mean(dim).slow_slot() for dim in (-1, -2))
        return CameState(params.slot(self.mu_dtype), rows, columns, unsure_rows, unsure_columns, others.slow_slot())

    def update(self, g: Tensors, state: CameState, ctx: Context) -> tuple[Tensors, CameState]:
        inside = matrices(g.index)
        square = g * g + self.eps
        mine, others = square.select(inside), square.select(g.index.without(inside))
        rows, columns = state.rows.lerp(mine.mean(-1), 1 - self.b2), state.columns.lerp(mine.mean(-2), 1 - self.b2)
        nu = self.b2 * state.nu + (1 - self.b2) * others
        h = g.overlay(g.select(inside) * inverse_root(rows, columns, -2, 0.0)).overlay(g.select(others) * nu.rsqrt())
        h = h / maximum(1.0, rms(h) / self.threshold)
        mu = state.mu.lerp(h, 1 - self.b1)
        apart = (h - mu).select(inside)
        far = apart * apart + self.eps2
        unsure_rows = state.unsure_rows.lerp(far.mean(-1), 1 - self.b3)
        unsure_columns = state.unsure_columns.lerp(far.mean(-2), 1 - self.b3)
        u = mu.overlay(mu.select(inside) * inverse_root(unsure_rows, unsure_columns, -2, 0.0))
        return u, CameState(mu, rows, columns, unsure_rows, unsure_columns, nu)


@answering
def came(
    learning_rate: Value = 2e-4,
    b1: Value = 0.9,
    b2: Value = 0.999,
    b3: Value = 0.9999,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    eps: Value = 1e-30,
    eps2: Value = 1e-16,
    threshold: Value = 1.0,
    mu_dtype: torch.dtype | None = None,
) -> chain:
    """CAME with decoupled decay of what `mask` selects: Luo et al., 2023, https://arxiv.org/abs/2307.02047.

    Equals the authors' code and pytorch_optimizer.CAME, to the order of decay and step.

    >>> import gradchain as gch
    >>> gch.rules.came(2e-4)
    chain(scale_by_came(), scale_by_learning_rate(0.0002))
    """
    direction = scale_by_came(b1, b2, b3, eps, eps2, threshold, mu_dtype)
    return parts.descent(direction, learning_rate, weight_decay, mask)
