"""SCION: steps to where a ball of norms goes furthest along the mean gradient, a norm for each kind of parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gradchain.combinators.partition import partition, rest
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Scalars
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._newton_schulz import by_rank, check_products, products_of, views_of
from gradchain.rules._units import WHOLE_WEIGHTS, matrices, rms
from gradchain.rules.moving_average import ema
from gradchain.rules.orthogonal_steps import HEAD
from gradchain.selectors import SelectorLike, embedding, everything, min_ndim
from gradchain.transforms.decay import add_decayed_weights
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

_NORMS = ("spectral", "sign", "rows")


class scale_by_lmo(Transform):
    """Replace the updates by the point of a ball that lies furthest along them: a linear minimization oracle.

        "spectral"  u = radius √(r / c) / k NS(g),  NS as `scale_by_muon` has it
        "sign"      u = radius sign(g) / (c k)
        "rows"      u = radius g_i / (√(c k) ‖g_i‖ + eps) for each row
        vectors     u = radius g / (rms(g) + eps), whatever the norm

    of a matrix of r outputs and c inputs, with k places of a kernel where it is a convolution. Steps have one size
    whatever the gradient's, and it fits networks of any width. Hidden layers are for "spectral"; the first, where
    inputs are one of many, and the last for "sign" or "rows". The rows of an embedding are what is one of many: there
    "rows" with a radius of their length has each row at rms 1. `scion` puts it all together.

    Args:
        norm: "spectral", "sign" or "rows".
        radius: of the ball, above 0.
        ns_coefficients, ns_steps, ns_eps, dtype, split: as `scale_by_muon` has them. A split is one for all norms.
        eps: added to norms that are divided by; above 0.

    Shapes: any; products and norms over whole matrices or vectors.
    Units: gradient → dimensionless, of the ball's radius.
    Raises: ValueError or TypeError for an argument outside its range; at bind for a split that does not fit.
    Equals: a float64 twin; the norms of pytorch_optimizer's SCION, to what bfloat16 rounds.
    Paper: Pethick et al., 2025, https://arxiv.org/abs/2502.07529

    >>> import gradchain as gch
    >>> gch.rules.scale_by_lmo("sign", 3000.0)
    scale_by_lmo(norm="sign", radius=3000.0)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS
    shape_factor: ClassVar[str | None] = "spectral_norm"
    conv: ClassVar[str] = "flatten"

    norm: str = "spectral"
    radius: Hyper = Hyper(1.0, "(0, inf)")
    ns_coefficients: str | Sequence[Any] = "original"
    ns_steps: int = 5
    ns_eps: float = 1e-7
    dtype: torch.dtype | None = torch.bfloat16
    split: Sequence[Any] = ()
    eps: Hyper = Hyper(1e-8, "(0, inf)")

    def check(self) -> None:
        if self.norm not in _NORMS:
            raise ValueError(f"scale_by_lmo: norm must be {', '.join(map(repr, _NORMS))}, got {self.norm!r}.")
        check_products(self)

    def init(self, params: Tensors) -> State:
        views_of(self, params.index)
        return super().init(params)

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        mine = g.select(matrices(g.index))
        others = g.select(g.index.without(mine.index))
        of_matrices = {"spectral": self._spectral, "sign": self._sign, "rows": self._rows}[self.norm]
        u = g.overlay(others / (rms(others) + self.eps)).overlay(of_matrices(mine))
        return self.radius * u, state

    def _spectral(self, g: Tensors) -> Tensors:
        found = views_of(self, g.index)
        flat = [f for view, members in found if view.fold == "flatten" for f in members.facts]
        places = {f.name: max(math.prod(f.parameter.shape[2:]), 1) for f in flat}
        # √(r / (c k)) is in the products
        return products_of(self).of(g, found) * Scalars({n: places.get(n, 1) ** -0.5 for n in g.index.names})

    def _sign(self, g: Tensors) -> Tensors:
        return g.sign() * Scalars({n: 1 / c for n, c in self._inputs(g).items()})

    def _rows(self, g: Tensors) -> Tensors:
        out, inputs = g, Scalars({n: c**0.5 for n, c in self._inputs(g).items()})
        for (view, rank), members in by_rank(self, g.index):
            x = g.select(members)
            out = out.overlay(x / (inputs.select(x) * x.norms(view.of_row(rank)) + self.eps))
        return out

    def _inputs(self, g: Tensors) -> dict[str, int]:
        """What makes one output, c k, of each matrix."""
        found = views_of(self, g.index)
        return {f.name: max(view.sizes(f.parameter.shape)[0][1], 1) for view, m in found for f in m.facts}


@answering
def scion(
    learning_rate: Value,
    momentum: Value = 0.9,
    radius: Value = 50.0,
    head_radius: Value = 3000.0,
    *,
    constrained: bool = False,
    ns_coefficients: str | Sequence[Any] = "original",
    ns_steps: int = 5,
    dtype: torch.dtype | None = torch.bfloat16,
    split: Sequence[Any] = (),
    head: SelectorLike | None = HEAD,
    ends: SelectorLike | None = None,
) -> chain:
    """SCION: spectral steps of hidden layers, sign steps of embeddings and head: https://arxiv.org/abs/2502.07529.

        d ← momentum d + (1 - momentum) g
        w ← w - learning_rate u,  u = radius lmo(d)      (constrained: (1 - learning_rate) w - learning_rate u)

    Constrained, it is the method of Frank and Wolfe: weights that begin inside of their balls never leave them. Both
    have no other decay. Vectors have steps of rms `radius`. `head` is as `muon` has it: where no name has "head" in it
    bind asks for it, and it is None where it is a tied embedding; `ends` selects what has sign steps in place of both
    head and embeddings. The radii are the authors' for GPT-2. Equals
    pytorch_optimizer's SCION with the same norms, whose momentum is 1 - ours. Paper: Pethick et al., 2025, Algorithms 1
    and 2.

    >>> import gradchain as gch
    >>> optimizer = gch.rules.scion(2**-12, constrained=True, head=gch.named("lm_head.*"))
    """
    if ends is None:
        ends = embedding if head is None else embedding | (everything & head)
    inside = scale_by_lmo("spectral", radius, ns_coefficients, ns_steps, dtype=dtype, split=split)
    return chain(
        ema(momentum, False),
        partition(("inside", ~(min_ndim(2) & ends), inside), ("ends", rest, scale_by_lmo("sign", head_radius))),
        *([add_decayed_weights(1.0)] if constrained else []),
        scale_by_learning_rate(learning_rate),
    )
