"""SM3: Adagrad whose memory is one number per row, per column, and so on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

Accumulator = Annotated[Tensors, "[0, inf] or NaN"]


class SM3State(State):
    """What scale_by_sm3 remembers: `nu_d` is one number per index of dimension d, of the entries that have it."""

    mu: Tensors  # m, the mean direction
    nu_0: Accumulator  # μ(0); of an entry without dimensions one number
    nu_1: Accumulator
    nu_2: Accumulator
    nu_3: Accumulator
    nu_4: Accumulator

    @property
    def accumulators(self) -> tuple[Tensors, ...]:
        """One per dimension."""
        return self.nu_0, self.nu_1, self.nu_2, self.nu_3, self.nu_4


def _all_but(dimension: int) -> Callable[[int], tuple[int, ...]]:
    return lambda rank: tuple(d for d in range(rank) if d != dimension)


_OTHERS = tuple(_all_but(d) for d in range(5))


class scale_by_sm3(Transform):
    """Divide by the root of a second moment that is kept as its largest numbers along each dimension.

        v_t    = b2 min over d of nu_d,(t-1) + (1 - b2) g²     (with b2 = 1: + g², a sum as Adagrad's)
        nu_d,t = the largest of v_t over all dimensions but d
        u      = m_t = b1 m_(t-1) + (1 - b1) g / sqrt(v_t + eps)

    Of a matrix it keeps its rows and its columns, and the momentum, which is one tensor. With b2 = 1 steps only become
    smaller.

    Args:
        b1: how much of the mean direction stays, in [0, 1).
        b2: how much of the second moment stays, in [0, 1]; 1 for a sum.
        eps: added inside the root, in units of the squared gradient; at least 0.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: up to five dimensions; all but one of them are reduced.
    State: `mu`, one tensor per parameter; `nu_0` to `nu_4`, the sum of its dimensions, in float32 or wider.
    Units: gradient → dimensionless, at most about 1 in size.
    Raises: ValueError or TypeError for an argument outside its range; at bind for more than five dimensions.
    Equals: optax.scale_by_sm3, which takes no parameter without dimensions.
    Paper: Anil et al., 2019, Algorithm 2, https://arxiv.org/abs/1901.11150

    >>> import gradchain as gch
    >>> gch.rules.scale_by_sm3(b2=0.999)
    scale_by_sm3(b2=0.999)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(1.0, "[0, 1]")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    mu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> SM3State:
        ranks = {fact.name: fact.parameter.ndim for fact in params.index.facts}
        deep = next((name for name, rank in ranks.items() if rank > len(_OTHERS)), None)
        if deep is not None:
            raise ValueError(
                f"scale_by_sm3: a parameter must have at most 5 dimensions, got {ranks[deep]} of {deep!r}. Give it "
                "another rule by partition."
            )
        having = [params.select([n for n, rank in ranks.items() if max(rank, 1) > d]) for d in range(len(_OTHERS))]
        zeros = (p.norms(others).zeros_like() for p, others in zip(having, _OTHERS, strict=True))
        return SM3State(params.slot(self.mu_dtype), *zeros)

    def update(self, g: Tensors, state: SM3State, ctx: Context) -> tuple[Tensors, SM3State]:
        least, *others = (nu.select(g.index) for nu in state.accumulators)
        for nu in filter(len, others):
            least = least.overlay(least.select(nu.index).minimum(nu))
        v = self.b2 * least + where(self.b2 == 1.0, 1.0, 1 - self.b2) * g * g
        mu = state.mu.lerp(g / (v + self.eps).maximum(_LEAST).sqrt(), 1 - self.b1)
        return mu, SM3State(mu, *map(_largest, (v.select(nu.index) for nu in state.accumulators), _OTHERS))


def _largest(v: Tensors, along: Callable[[int], tuple[int, ...]]) -> Tensors:
    return v.amax(along).maximum(0.0) if len(v) else v  # of no elements it is 0


_LEAST = torch.finfo(torch.float32).tiny  # 0 / 0 is 0 here


@answering
def sm3(learning_rate: Value, momentum: Value = 0.9) -> chain:
    """SM3: Anil et al., 2019, https://arxiv.org/abs/1901.11150.

    Equals optax.sm3; torch has none.

    >>> import gradchain as gch
    >>> gch.rules.sm3(0.1)
    chain(scale_by_sm3(), scale_by_learning_rate(0.1))
    """
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
