"""Muon with a second moment of what came out orthogonal: of rows, NorMuon, or of elements, AdaMuon."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.scalars import Scalars
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._newton_schulz import (
    FACTORS,
    View,
    by_rank,
    check_products,
    momentum_of,
    products_of,
    told_of,
    views_of,
)
from gradchain.rules._units import WHOLE_WEIGHTS
from gradchain.rules._units import matrices as all_matrices
from gradchain.rules.orthogonal_steps import HEAD, of_hidden
from gradchain.selectors import SelectorLike
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class AdaptiveMuonState(State):
    """What scale_by_normuon and scale_by_adamuon remember of what has two dimensions or more."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean square of the orthogonal matrix: of a row, or an element


def _same_norm(u: Tensors, like: Tensors, view: View, rank: int, eps: float) -> Tensors:
    """`u` with each matrix of the Frobenius norm that it has in `like`."""
    dims = view.of_matrix(rank)
    return u * (like.norms(dims) / (u.norms(dims) + eps))


class scale_by_normuon(Transform):
    """Make the mean gradient orthogonal, then divide each row by its root mean square over time.

        m_t = momentum m_(t-1) + (1 - momentum) g
        O   = NS(momentum m_t + (1 - momentum) g)      or, without nesterov, of m_t
        v_t = b2 v_(t-1) + (1 - b2) mean of O² over each row
        P   = O / (sqrt(v_t) + eps);  u = factor P ‖O‖ / (‖P‖ + eps)

    So neurons move alike. The norm of the whole stays that of O, as in the authors' code; Algorithm 1 of the paper has
    0.2 √(rc) in place of factor ‖O‖, which with "match_rms_adamw" it is about. What the arguments of the products are,
    `scale_by_muon` says.

    Args:
        momentum: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean square stays, in [0, 1).
        nesterov, ns_coefficients, ns_steps, ns_eps, dtype, shape_factor, conv, split, mu_dtype: as `scale_by_muon` has
            them. A split keeps its parts' norm together.
        eps: added to the root and to the norm; at least 0.

    Shapes: any of two dimensions or more; others pass.
    State: `mu`, one tensor per parameter; `nu`, one number per row.
    Units: gradient → dimensionless.
    Raises: ValueError or TypeError for an argument outside its range; at bind for a split that does not fit.
    Equals: pytorch_optimizer.NorMuon with its default arguments, to what bfloat16 rounds; a float64 twin.
    Paper: Li et al., 2025, Algorithm 1, https://arxiv.org/abs/2510.05491

    >>> import gradchain as gch
    >>> gch.rules.scale_by_normuon(b2=0.9)
    scale_by_normuon(b2=0.9)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    momentum: Hyper = Hyper(0.95, "[0, 1)")
    b2: Hyper = Hyper(0.95, "[0, 1)")
    nesterov: bool = True
    ns_coefficients: str | Sequence[Any] = "original"
    ns_steps: int = 5
    ns_eps: float = 1e-7
    dtype: torch.dtype | None = torch.bfloat16
    shape_factor: str | None = "original"
    conv: str = "flatten"
    split: Sequence[Any] = ()
    mu_dtype: torch.dtype | None = None
    eps: Hyper = Hyper(1e-10, "[0, inf)")

    def check(self) -> None:
        check_products(self)

    def told(self, index: Index) -> Mapping[str, Any]:
        return told_of(self, index)

    def init(self, params: Tensors) -> AdaptiveMuonState:
        mine = params.select(all_matrices(params.index))
        nu = mine.select(())
        for (view, rank), members in by_rank(self, params.index):
            nu = nu.overlay(mine.select(members).mean(view.of_row(rank)).slow_slot())
        return AdaptiveMuonState(mine.slot(self.mu_dtype), nu)

    def update(self, g: Tensors, state: AdaptiveMuonState, ctx: Context) -> tuple[Tensors, AdaptiveMuonState]:
        mine = g.select(all_matrices(g.index))
        mu, ahead = momentum_of(self, mine, state.mu)
        orthogonal = products_of(self).of(ahead, views_of(self, mine.index))
        u, nu = g, state.nu
        for (view, rank), members in by_rank(self, mine.index):
            o = orthogonal.select(members)
            v = state.nu.select(members).lerp((o * o).mean(view.of_row(rank)), 1 - self.b2)
            u = u.overlay(_same_norm(o / (v.sqrt() + self.eps), o, view, rank, self.eps))
            nu = nu.overlay(v)
        return u, AdaptiveMuonState(mu, nu)


class scale_by_adamuon(Transform):
    """Make the sign of the mean gradient orthogonal, then divide each element by its root mean square over time.

        m_t = momentum m_(t-1) + (1 - momentum) g
        O   = NS(sign(momentum m_t + (1 - momentum) g))      or, without nesterov, of sign(m_t)
        v_t = b2 v_(t-1) + (1 - b2) O²
        P   = O / (sqrt(v_t) + eps);  u = factor √min(r, c) P / (‖P‖ + eps)

    A matrix with orthogonal rows or columns has the norm √min(r, c), so the factors mean what they do for
    `scale_by_muon`, which says what the arguments of the products are. With "match_rms_adamw" each element is about 0.2
    in size, as in the paper.

    Args:
        momentum: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean square stays, in [0, 1).
        nesterov, ns_coefficients, ns_steps, ns_eps, dtype, shape_factor, conv, split, mu_dtype: as `scale_by_muon` has
            them. A split keeps its parts' norm together.
        eps: added to the root and to the norm; at least 0.
        sign: whether the sign of the mean gradient is made orthogonal, as in the paper, or the mean itself.

    Shapes: any of two dimensions or more; others pass.
    State: `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless.
    Raises: ValueError or TypeError for an argument outside its range; at bind for a split that does not fit.
    Equals: a float64 twin of the paper; with sign=False and nesterov=False pytorch_optimizer.AdaMuon, to what bfloat16
        rounds, whose correction of v_t goes out in the norm.
    Paper: Si et al., 2025, Algorithm 1, https://arxiv.org/abs/2507.11005

    >>> import gradchain as gch
    >>> gch.rules.scale_by_adamuon(shape_factor="match_rms_adamw")
    scale_by_adamuon(shape_factor="match_rms_adamw")
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    momentum: Hyper = Hyper(0.95, "[0, 1)")
    b2: Hyper = Hyper(0.95, "[0, 1)")
    nesterov: bool = True
    ns_coefficients: str | Sequence[Any] = "original"
    ns_steps: int = 5
    ns_eps: float = 1e-7
    dtype: torch.dtype | None = torch.bfloat16
    shape_factor: str | None = "original"
    conv: str = "flatten"
    split: Sequence[Any] = ()
    mu_dtype: torch.dtype | None = None
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    sign: bool = True

    def check(self) -> None:
        check_products(self)

    def told(self, index: Index) -> Mapping[str, Any]:
        return told_of(self, index)

    def init(self, params: Tensors) -> AdaptiveMuonState:
        views_of(self, params.index)
        mine = params.select(all_matrices(params.index))
        return AdaptiveMuonState(mine.slot(self.mu_dtype), mine.slow_slot())

    def update(self, g: Tensors, state: AdaptiveMuonState, ctx: Context) -> tuple[Tensors, AdaptiveMuonState]:
        mine = g.select(all_matrices(g.index))
        mu, ahead = momentum_of(self, mine, state.mu)
        found = views_of(self, mine.index)
        o = dataclasses.replace(products_of(self), factor=None).of(ahead.sign() if self.sign else ahead, found)
        nu = state.nu.lerp(o * o, 1 - self.b2)
        p, u = o / (nu.sqrt() + self.eps), g
        for (view, rank), members in by_rank(self, mine.index):
            part = p.select(members)
            size = Scalars({n: _size(view, self.shape_factor, g.index, n) for n in members.names})
            u = u.overlay(part * (size / (part.norms(view.of_matrix(rank)) + self.eps)))
        return u, AdaptiveMuonState(mu, nu)


def _size(view: View, factor: str | None, index: Index, name: str) -> float:
    """The norm that each matrix of a parameter is to have: that of an orthogonal one, times its factor."""
    sizes = view.sizes(index.facts[index.position[name]].parameter.shape)
    squares = [min(r, c) * (1.0 if factor is None or not r * c else FACTORS[factor](r, c)) ** 2 for r, c in sizes]
    alike: int = view.parts if isinstance(view.parts, int) else 1
    norm: float = (sum(squares) * alike) ** 0.5
    return norm


@answering
def normuon(
    learning_rate: Value,
    momentum: Value = 0.95,
    b2: Value = 0.95,
    weight_decay: Value = 0.0,
    *,
    nesterov: bool = True,
    shape_factor: str | None = "original",
    dtype: torch.dtype | None = torch.bfloat16,
    head: SelectorLike | None = HEAD,
    matrices: SelectorLike | None = None,
    aux: Transform | None = None,
) -> chain:
    """NorMuon with decoupled decay for the matrices of hidden layers, and `aux` for all else, as `muon` has it.

    Equals pytorch_optimizer.NorMuon for the matrices. Paper: Li et al., 2025, https://arxiv.org/abs/2510.05491

    >>> import gradchain as gch
    >>> optimizer = gch.rules.normuon(0.02, aux=gch.adamw(3e-4, b2=0.95), head=gch.named("lm_head.*"))
    """
    made = scale_by_normuon(momentum, b2, nesterov, dtype=dtype, shape_factor=shape_factor)
    return of_hidden(made, learning_rate, weight_decay, head, matrices, aux)


@answering
def adamuon(
    learning_rate: Value,
    momentum: Value = 0.95,
    b2: Value = 0.95,
    weight_decay: Value = 0.1,
    *,
    nesterov: bool = True,
    shape_factor: str | None = "match_rms_adamw",
    dtype: torch.dtype | None = torch.bfloat16,
    head: SelectorLike | None = HEAD,
    matrices: SelectorLike | None = None,
    aux: Transform | None = None,
) -> chain:
    """AdaMuon with decoupled decay for the matrices of hidden layers, and `aux` for all else, as `muon` has it.

    Its steps are as large as Adam's. Paper: Si et al., 2025, https://arxiv.org/abs/2507.11005

    >>> import gradchain as gch
    >>> optimizer = gch.rules.adamuon(3e-4, head=gch.named("lm_head.*"))
    """
    made = scale_by_adamuon(momentum, b2, nesterov, dtype=dtype, shape_factor=shape_factor)
    return of_hidden(made, learning_rate, weight_decay, head, matrices, aux)
