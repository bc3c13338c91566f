"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.scalars import Count, Scalars, maximum, whole_number
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules._units import WHOLE_WEIGHTS
from gradchain.transforms._correction import correction
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value
    from gradchain.selectors import SelectorLike


class SoapState(State):
    """What scale_by_soap remembers; the two last of what has a dimension to turn, its matrices one after the other."""

    count: Count  # t, updates of each parameter so far, the first of which only fills gram
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient in the basis
    gram: Tensors  # L, the mean of g gᵀ over each dimension
    basis: Tensors  # Q, its eigenvectors, the largest first


class scale_by_soap(Transform):
    """Divide the mean gradient by its root mean square as Adam does, in the eigenbasis of the gradient's covariance.

        at the first update:  L = (1 - b_shampoo) g gᵀ,  Q = eigenvectors of L;  the parameter does not move
        later:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) (Qᵀ g)²
                u = Q (Qᵀ m / (sqrt(v) + eps)) sqrt(1 - b2^s) / (1 - b1^s),  s = t - 1
                L = b_shampoo L + (1 - b_shampoo) g gᵀ;  every so many updates Q := orthonormal(L Q), sorted

    There is an L and a Q for each dimension: left and right of a matrix. At its first update a parameter has no
    gradient for what comes behind, so it does not decay either. v is sorted with Q, and not turned. Vectors, and
    dimensions above `max_precondition_dim`, are as they are: a vector is Adam's.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        shampoo_b: how much of L stays, in [0, 1).
        eps: added outside the root, at least 0.
        every: how often Q is computed, an integer of at least 1; on each parameter's own count.
        max_precondition_dim: the largest dimension that is turned, an integer of at least 0.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: any; all dimensions of what has two or more.
    State: `count`; `mu` and `nu`, two tensors per parameter; `gram` and `basis`, of r × c elements r² + c² each.
    Units: gradient → dimensionless.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: a float64 twin; pytorch_optimizer.SOAP and the authors' code in float32, which computes Q in float32.
    Paper: Vyas et al., 2024, Algorithm 3, https://arxiv.org/abs/2409.11321

    >>> import gradchain as gch
    >>> gch.rules.scale_by_soap(every=100)
    scale_by_soap(every=100)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    b1: Hyper = Hyper(0.95, "[0, 1)")
    b2: Hyper = Hyper(0.95, "[0, 1)")
    shampoo_b: Hyper = Hyper(0.95, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    every: int = 10
    max_precondition_dim: int = 10000
    mu_dtype: torch.dtype | None = None

    def check(self) -> None:
        for name, least in (("every", 1), ("max_precondition_dim", 0)):
            given = getattr(self, name)
            value = whole_number(given)
            if value is None or value < least:
                raise ValueError(f"scale_by_soap: {name} must be an integer of at least {least}, got {given!r}.")
            object.__setattr__(self, name, value)

    def _turned(self, index: Index) -> Index:
        """The parameters with a dimension to turn."""

        def decide() -> list[tuple[None, Index]]:
            most = self.max_precondition_dim
            return [(None, index.subset([f.name for f in index.facts if _dims(f.parameter.shape, most)]))]

        return index.parts((scale_by_soap, self.max_precondition_dim), decide)[0][1]

    def init(self, params: Tensors) -> SoapState:
        turned = params.select(self._turned(params.index))
        empty = turned.map(_packed_zeros, self.max_precondition_dim)
        gram, basis = empty.slow_slot(), empty.slow_slot()
        return SoapState(Count(params.index), params.slot(self.mu_dtype), params.slow_slot(), gram, basis)

    def update(self, g: Tensors, state: SoapState, ctx: Context) -> tuple[Tensors, SoapState]:
        count, most = state.count.tick(g), self.max_precondition_dim
        later = g.select(_names(g, count > 1))
        mu = state.mu.lerp(later, 1 - self.b1)
        turned, rest = self._turned(later.index), later.index.without(self._turned(later.index))
        step, nu = later.select(turned).map(
            _step, mu, state.nu, state.basis, self.b2, self.eps, most, batched=True, results=2
        )
        plain = self.b2 * state.nu.select(rest) + (1 - self.b2) * later.select(rest) * later.select(rest)
        nu = state.nu.overlay(nu).overlay(plain)
        u = later.overlay(step).overlay(mu.select(rest) / (plain.sqrt() + self.eps))
        mine = g.select(self._turned(g.index))
        gram = mine.map(_gathered, state.gram, 1 - self.shampoo_b, most, batched=True)
        due = count.due(self.every)
        basis = mine.map_where(count <= 1, _first, state.basis, gram, most, batched=True)
        again, before = due * (count > 1), (basis, nu.select(mine.index))
        basis, sorted_nu = mine.map_where(again, _again, before, *before, gram, most, batched=True)
        nu = nu.overlay(sorted_nu)
        s = maximum(count - 1, 0)
        size = (1 - self.b2**s) ** 0.5 / correction(self.b1, s)
        return u * size, SoapState(count, mu, nu, gram, basis)


def _names(g: Tensors, holds: Any) -> tuple[str, ...]:
    """The entries for which a truth, or that of each, holds. What runs follows from it, so it is known on the host."""
    if isinstance(holds, Scalars):
        return tuple(n for n in g.index.names if holds.get(n))
    return g.index.names if holds else ()


# of stacks: (B, *shape), with the matrices of each entry one after the other, (B, numbers)


def _dims(shape: torch.Size, most: int) -> list[int]:
    """The dimensions that are turned."""
    return [d for d, n in enumerate(shape) if 0 < n <= most] if len(shape) > 1 and 0 not in shape else []


def _packed_zeros(x: Tensor, most: int) -> Tensor:
    return x.new_zeros(sum(x.shape[d] ** 2 for d in _dims(x.shape, most)))


def _matrices(packed: Tensor, shape: torch.Size, most: int) -> list[tuple[int, Tensor]]:
    """Each dimension that is turned, counted without that of the stack, and its matrices."""
    found, at = [], 0
    for d in _dims(shape, most):
        n = shape[d]
        found.append((d, packed[:, at : at + n * n].reshape(-1, n, n)))
        at += n * n
    return found


def _turn(x: Tensor, basis: Tensor, most: int, back: bool = False) -> Tensor:
    """x in the basis: along each dimension the products with the eigenvectors; or back from it."""
    for d, q in _matrices(basis, x.shape[1:], most):
        other = q.mT if back else q.conj()
        y = x.movedim(d + 1, -1)
        x = (y.flatten(1, -2) @ other).reshape(y.shape).movedim(-1, d + 1)
    return x


def _step(x: Tensor, mu: Tensor, nu: Tensor, basis: Tensor, b2: Any, eps: Any, most: int) -> tuple[Tensor, Tensor]:
    nu = b2 * nu + (1 - b2) * _turn(x, basis, most).abs() ** 2
    return _turn(_turn(mu, basis, most) / (nu.sqrt() + eps), basis, most, back=True), nu


def _gathered(x: Tensor, gram: Tensor, weight: Any, most: int) -> Tensor:
    rows = [x.movedim(d + 1, 1).flatten(2) for d in _dims(x.shape[1:], most)]
    new = torch.cat([(y @ y.mH).flatten(1) for y in rows], -1)
    return gram + (weight.reshape(-1, 1) if isinstance(weight, Tensor) and weight.ndim else weight) * (new - gram)


def _finite(x: Tensor) -> Tensor:
    """A constant to derivatives, without what no decomposition takes."""
    return torch.nan_to_num(x.detach(), 0.0, 0.0, 0.0)


def _first(x: Tensor, gram: Tensor, most: int) -> Tensor:
    found = _matrices(_finite(gram), x.shape[1:], most)
    return torch.cat([torch.linalg.eigh(m)[1].flip(-1).flatten(1) for _, m in found], -1)


def _again(x: Tensor, basis: Tensor, nu: Tensor, gram: Tensor, most: int) -> tuple[Tensor, Tensor]:
    made, shape = [], x.shape[1:]
    for (d, q), (_, m) in zip(
        _matrices(_finite(basis), shape, most), _matrices(_finite(gram), shape, most), strict=True
    ):
        product = m @ q
        order = (q.conj() * product).sum(-2).real.argsort(dim=-1, descending=True, stable=True)
        made.append(torch.linalg.qr(product.take_along_dim(order.unsqueeze(-2), -1))[0].flatten(1))
        along = nu.movedim(d + 1, -1)
        place = order.reshape(-1, *[1] * (along.ndim - 2), shape[d])
        nu = along.take_along_dim(place, -1).movedim(-1, d + 1)
    return torch.cat(made, -1), nu


@answering
def soap(
    learning_rate: Value = 3e-3,
    b1: Value = 0.95,
    b2: Value = 0.95,
    eps: Value = 1e-8,
    weight_decay: Value = 0.01,
    mask: SelectorLike | None = None,
    *,
    every: int = 10,
    max_precondition_dim: int = 10000,
    shampoo_b: Value = 0.95,
    mu_dtype: torch.dtype | None = None,
) -> chain:
    """SOAP with decoupled decay of what `mask` selects: Vyas et al., 2024, https://arxiv.org/abs/2409.11321.

    Equals pytorch_optimizer.SOAP and the authors' code but in the decay, which is here of the weights before the step
    and there of those after it.

    >>> import gradchain as gch
    >>> gch.rules.soap(3e-3, every=50, weight_decay=0.0)
    chain(scale_by_soap(every=50), scale_by_learning_rate(0.003))
    """
    direction = scale_by_soap(b1, b2, shampoo_b, eps, every, max_precondition_dim, mu_dtype)
    return parts.descent(direction, learning_rate, weight_decay, mask)
