"""Muon: momentum made orthogonal, for the matrices of hidden layers; and AdamW for all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gradchain.combinators.partition import partition, rest
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.optimizers import adamw
from gradchain.rules._newton_schulz import check_products, momentum_of, products_of, told_of, views_of
from gradchain.rules._units import WHOLE_WEIGHTS
from gradchain.rules._units import matrices as all_matrices
from gradchain.selectors import SelectorLike, embedding, everything, min_ndim, named
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

HEAD = named("*head*")


class MuonState(State):
    """What scale_by_muon remembers of what has two dimensions or more."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    mu: Tensors  # b, the mean gradient


class scale_by_muon(Transform):
    """Make the mean gradient orthogonal: all its singular values about 1.

        b_t = momentum b_(t-1) + (1 - momentum) g
        u   = factor NS(momentum b_t + (1 - momentum) g)      or, without nesterov, of b_t
        NS: x := x / max(‖x‖, ns_eps); ns_steps times  x := a x + (b A + c A²) x,  A = x xᵀ

    It is for the matrices of hidden layers. Vectors go by as they are: `muon` sends them, embeddings and the head to
    AdamW. The sum and the mean of gradients have one direction, so momentum is written either way elsewhere. Another
    factor, or other coefficients, are another learning rate: `settings()` shows the factor of each parameter. A part
    of a matrix is another matrix, so every rank gathers whole ones where a tensor is spread over ranks.

    Args:
        momentum: how much of the mean gradient stays, in [0, 1).
        nesterov: whether it looks one step ahead.
        ns_coefficients: a, b and c; or those of each step, of which further steps have the last; or the name of such:
            "original", "quintic", "polar_express".
        ns_steps: an integer in [1, 100).
        ns_eps: the least norm that a gradient is divided by, above 0.
        dtype: what products are computed in, bfloat16 as in torch; None for the dtype of the updates, float32 or wider.
        shape_factor: of r rows and c columns, "original" √max(1, r/c), "match_rms_adamw" 0.2 √max(r, c),
            "spectral_norm" √(r/c), "spectral" √max(r, c); None for 1.
        conv: "flatten" makes a convolution one matrix of outputs by all else, "batch" one for each place of its kernel.
            So is what has four dimensions or more. With three, what belongs to no convolution of torch's is a stack of
            matrices, as experts are.
        split: pairs (selector, parts): rows are cut into so many equal parts, or into parts of these sizes, which are
            matrices for themselves: `split=[(gch.named("*.qkv.weight"), 3)]`.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: any of two dimensions or more; others pass.
    State: `mu`, one tensor per parameter.
    Units: gradient → dimensionless; the learning rate is about the spectral norm of a step.
    Raises: ValueError or TypeError for an argument outside its range; at bind for a split that does not fit.
    Equals: torch.optim.Muon, to what bfloat16 rounds; a float64 twin. optax.contrib.scale_by_muon corrects the bias of
        its momentum, which changes the look ahead in the first steps, and counts rows as inputs.
    Paper: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; factors: Liu et al., 2025,
        https://arxiv.org/abs/2502.16982; polar_express: Amsel et al., 2025, https://arxiv.org/abs/2505.16932

    >>> import gradchain as gch
    >>> gch.rules.scale_by_muon(ns_coefficients="polar_express", shape_factor="match_rms_adamw")
    scale_by_muon(ns_coefficients="polar_express", shape_factor="match_rms_adamw")
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    momentum: Hyper = Hyper(0.95, "[0, 1)")
    nesterov: bool = True
    ns_coefficients: str | Sequence[Any] = "original"
    ns_steps: int = 5
    ns_eps: float = 1e-7
    dtype: torch.dtype | None = torch.bfloat16
    shape_factor: str | None = "original"
    conv: str = "flatten"
    split: Sequence[Any] = ()
    mu_dtype: torch.dtype | None = None

    def check(self) -> None:
        check_products(self)

    def told(self, index: Index) -> Mapping[str, Any]:
        return told_of(self, index)

    def init(self, params: Tensors) -> MuonState:
        views_of(self, params.index)
        return MuonState(params.select(all_matrices(params.index)).slot(self.mu_dtype))

    def update(self, g: Tensors, state: MuonState, ctx: Context) -> tuple[Tensors, MuonState]:
        mine = g.select(all_matrices(g.index))
        mu, ahead = momentum_of(self, mine, state.mu)
        return g.overlay(products_of(self).of(ahead, views_of(self, mine.index))), MuonState(mu)


def of_hidden(
    direction: Transform,
    rate: Value,
    weight_decay: Value,
    head: SelectorLike | None,
    matrices: SelectorLike | None,
    aux: Transform | None,
) -> chain:
    """A direction with decoupled decay for the matrices of hidden layers, and another rule for all else."""
    if matrices is None:
        matrices = min_ndim(2) & ~(embedding if head is None else embedding | (everything & head))
    links = [direction, *parts.decay(weight_decay, None), scale_by_learning_rate(rate)]
    other = adamw(rate, weight_decay=weight_decay) if aux is None else aux
    return chain(partition(("matrices", matrices, chain(*links)), ("others", rest, other)))


@answering
def muon(
    learning_rate: Value,
    momentum: Value = 0.95,
    nesterov: bool = True,
    weight_decay: Value = 0.1,
    ns_coefficients: str | Sequence[Any] = "original",
    ns_steps: int = 5,
    ns_eps: float = 1e-7,
    *,
    shape_factor: str | None = "original",
    dtype: torch.dtype | None = torch.bfloat16,
    conv: str = "flatten",
    split: Sequence[Any] = (),
    head: SelectorLike | None = HEAD,
    matrices: SelectorLike | None = None,
    aux: Transform | None = None,
) -> chain:
    """Muon with decoupled decay for the matrices of hidden layers, and `aux` for embeddings, head, norms and biases.

    Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/. Equals torch.optim.Muon for the matrices, but for
    torch's bfloat16. `aux` is AdamW with the learning rate and decay of the matrices by
    default; it may be any chain with a rate of its own. Embeddings are known by their module. The head is what
    `head` selects: where no name has "head" in it bind asks for it: `head=gch.named("fc.*")`, or None where it is
    a tied embedding. `matrices` selects what is made orthogonal in place of both, as where a table of positions is a
    bare parameter. The factor of each parameter is in `settings()`.

    >>> import gradchain as gch
    >>> optimizer = gch.rules.muon(0.02, aux=gch.adamw(3e-4, b2=0.95), head=gch.named("lm_head.*"))
    """
    made = scale_by_muon(momentum, nesterov, ns_coefficients, ns_steps, ns_eps, dtype, shape_factor, conv, split)
    return of_hidden(made, learning_rate, weight_decay, head, matrices, aux)
