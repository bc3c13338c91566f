"""Projections: functions of a tensor that give the nearest point of a set, for `project`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gradchain.core.scalars import as_number
from gradchain.selectors.written import Written


def _number(owner: str, name: str, value: Any, least: float = -math.inf, open_at: bool = False) -> None:
    """TypeError for what is no number, ValueError for one that is not in [least, inf), or with open_at above least."""
    number = as_number(value)
    interval = "a finite number" if least == -math.inf else f"in {'(' if open_at else '['}{least:g}, inf)"
    if number is None or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}.")
    if not (number > least if open_at else number >= least) or not math.isfinite(number):
        raise ValueError(f"{owner}: {name} must be {interval}, got {value!r}.")


def _dims(owner: str, dim: Any) -> None:
    dims = dim if isinstance(dim, tuple) else (dim,)
    if dim is not None and not (dims and all(type(d) is int for d in dims) and len(set(dims)) == len(dims)):
        raise TypeError(f"{owner}: dim must be a dimension, several in a tuple, or None for all, got {dim!r}.")


def _real(fn: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """`fn` of the elements; of complex ones of their real and imaginary parts."""
    return torch.view_as_complex(fn(torch.view_as_real(w))) if w.is_complex() else fn(w)


def _norm(w: Tensor, dim: Any, p: float = 2.0) -> Tensor:
    """The p-norm along dimensions, kept with size 1; of all elements, where there are none to go along."""
    norm: Tensor = torch.linalg.vector_norm(w, p, dim, keepdim=dim is not None)
    return norm


class Projection(Written):
    """A set's nearest point to a tensor, as a frozen value: `gch.project(gch.rules.projection_l2_ball(1.0))`."""

    def __call__(self, w: Tensor) -> Tensor:
        """The nearest point to `w`."""
        raise NotImplementedError(f"{type(self).__name__}: a projection must define __call__(w).")

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Those that differ from their defaults, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return (), {f.name: given[f.name] for f in fields(self) if given[f.name] != f.default}


class projection_non_negative(Projection):
    """The nearest tensor without negative elements: 0 in their places.

    Equals optax.projections.projection_non_negative. A complex element is a pair of reals.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_non_negative()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def __call__(self, w: Tensor) -> Tensor:
        return _real(lambda x: x.clamp(min=0), w)


class projection_box(Projection):
    """The nearest tensor whose elements lie in [lower, upper].

    Equals optax.projections.projection_box. A complex element is a pair of reals.

    >>> import torch, gradchain as gch
    >>> gch.chain(gch.sgd(0.1), gch.project(gch.rules.projection_box(-1.0, 1.0), gch.named("scale")))
    chain(scale_by_learning_rate(0.1), project(projection_box(lower=-1.0, upper=1.0), selector=named("scale")))
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        _number("projection_box", "lower", self.lower)
        _number("projection_box", "upper", self.upper)
        if self.lower > self.upper:
            raise ValueError(f"projection_box: lower must be at most upper, {self.upper!r}, got {self.lower!r}.")

    def __call__(self, w: Tensor) -> Tensor:
        return _real(lambda x: x.clamp(self.lower, self.upper), w)


class projection_hypercube(Projection):
    """The nearest tensor whose elements lie in [0, scale].

    Equals optax.projections.projection_hypercube. A complex element is a pair of reals.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_hypercube()(torch.tensor([-1.0, 0.5, 2.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _number("projection_hypercube", "scale", self.scale, 0.0)

    def __call__(self, w: Tensor) -> Tensor:
        return _real(lambda x: x.clamp(0.0, self.scale), w)


class projection_linf_ball(Projection):
    """The nearest tensor whose elements lie in [-scale, scale].

    Equals optax.projections.projection_linf_ball. A complex element is a pair of reals.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_linf_ball(2.0)(torch.tensor([-3.0, 0.5]))
    tensor([-2.0000,  0.5000])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _number("projection_linf_ball", "scale", self.scale, 0.0)

    def __call__(self, w: Tensor) -> Tensor:
        return _real(lambda x: x.clamp(-self.scale, self.scale), w)


class projection_l2_ball(Projection):
    """The nearest tensor whose 2-norm is at most scale; along `dim`, each row's.

    Equals optax.projections.projection_l2_ball of one tensor; with dim=1 of a matrix torch.renorm of its rows.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_l2_ball(1.0, dim=1)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """

    scale: float = 1.0
    dim: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _number("projection_l2_ball", "scale", self.scale, 0.0, open_at=True)
        _dims("projection_l2_ball", self.dim)

    def __call__(self, w: Tensor) -> Tensor:
        return w * (self.scale / _norm(w, self.dim).clamp(min=self.scale))


class projection_l2_sphere(Projection):
    """The nearest tensor whose 2-norm is scale; along `dim`, each row's. Zeros, as near to all of it, stay zeros.

    Equals optax.projections.projection_l2_sphere of one tensor, which makes NaN of zeros.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_l2_sphere(10.0)(torch.tensor([0.3, 0.4]))
    tensor([6., 8.])
    """

    scale: float = 1.0
    dim: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _number("projection_l2_sphere", "scale", self.scale, 0.0, open_at=True)
        _dims("projection_l2_sphere", self.dim)

    def __call__(self, w: Tensor) -> Tensor:
        norm = _norm(w, self.dim)
        return w * torch.where(norm > 0, self.scale / torch.where(norm > 0, norm, 1.0), 0.0)


class projection_simplex(Projection):
    """The nearest tensor of non-negative elements whose sum is scale; along `dim`, each row's.

    Equals optax.projections.projection_simplex of one tensor. For real tensors.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_simplex()(torch.tensor([0.5, 1.5, 0.0]))
    tensor([0., 1., 0.])
    """

    scale: float = 1.0
    dim: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _number("projection_simplex", "scale", self.scale, 0.0, open_at=True)
        _dims("projection_simplex", self.dim)

    def __call__(self, w: Tensor) -> Tensor:
        return _along(lambda rows: _on_simplex(rows, self.scale), w, self.dim)


class projection_l1_sphere(Projection):
    """The nearest tensor whose 1-norm is scale; along `dim`, each row's. Elements keep their signs, and zeros stay.

    Equals optax.projections.projection_l1_sphere of one tensor. For real tensors.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_l1_sphere(2.0)(torch.tensor([0.5, -0.5]))
    tensor([ 1., -1.])
    """

    scale: float = 1.0
    dim: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _number("projection_l1_sphere", "scale", self.scale, 0.0, open_at=True)
        _dims("projection_l1_sphere", self.dim)

    def __call__(self, w: Tensor) -> Tensor:
        return w.sign() * _along(lambda rows: _on_simplex(rows, self.scale), w.abs(), self.dim)


class projection_l1_ball(Projection):
    """The nearest tensor whose 1-norm is at most scale; along `dim`, each row's: a soft threshold of its elements.

    Equals optax.projections.projection_l1_ball of one tensor. For real tensors.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_l1_ball(1.0)(torch.tensor([1.5, -0.1, 1.0]))
    tensor([0.7500, -0.0000, 0.2500])
    """

    scale: float = 1.0
    dim: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _number("projection_l1_ball", "scale", self.scale, 0.0, open_at=True)
        _dims("projection_l1_ball", self.dim)

    def __call__(self, w: Tensor) -> Tensor:
        outside = projection_l1_sphere(self.scale, self.dim)(w)
        return torch.where(_norm(w, self.dim, 1.0) <= self.scale, w, outside)


def _along(fn: Callable[[Tensor], Tensor], w: Tensor, dim: int | tuple[int, ...] | None) -> Tensor:
    """`fn` of rows: those along dimensions of `w`, or all of it as one."""
    if not w.numel():
        return w
    dims = tuple(range(w.ndim)) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    if not dims:  # of a 0-d tensor
        return fn(w.reshape(1)).reshape(())
    last = tuple(range(-len(dims), 0))
    turned = w.movedim(dims, last)
    return fn(turned.flatten(-len(dims))).reshape(turned.shape).movedim(last, dims)


def _on_simplex(rows: Tensor, scale: float) -> Tensor:
    """Duchi et al., 2008, Figure 1: elements less the one number that makes them add up to scale, none below 0."""
    falling = rows.sort(dim=-1, descending=True).values
    excess = falling.cumsum(-1) - scale
    many = torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    support = (falling * many > excess).sum(-1, keepdim=True).clamp(min=1)
    return (rows - excess.gather(-1, support - 1) / support).clamp(min=0)


class _OfTensor:
    """A projection given by a tensor, which has no code: two are equal if they are one, and a config has its name."""

    def __init__(self, a: Tensor, b: float = 0.0, dim: int | tuple[int, ...] | None = None) -> None:
        owner = type(self).__name__
        if not isinstance(a, Tensor):
            raise TypeError(f"{owner}: a must be a tensor, got {a!r}.")
        _number(owner, "b", b)
        _dims(owner, dim)
        self.a, self.b, self.dim = a, b, dim

    def __repr__(self) -> str:
        return f"{type(self).__name__}(a=<{tuple(self.a.shape)}>, b={self.b!r}, dim={self.dim!r})"

    def _measured(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`a` as `w` has it, ⟨a, w⟩ and ⟨a, a⟩."""
        a = self.a.to(w).expand_as(w)
        dims = tuple(range(w.ndim)) if self.dim is None else self.dim
        return a, (a * w).sum(dims, keepdim=True), (a * a).sum(dims, keepdim=True)


class projection_hyperplane(_OfTensor):
    """The nearest tensor with ⟨a, w⟩ = b; along `dim`, each row's.

    Equals optax.projections.projection_hyperplane of one tensor. For real tensors; `a` may broadcast.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_hyperplane(torch.ones(2), 1.0)(torch.tensor([2.0, 1.0]))
    tensor([1., 0.])
    """

    def __call__(self, w: Tensor) -> Tensor:
        """The nearest point to `w`."""
        a, inner, square = self._measured(w)
        return w + (self.b - inner) / square * a


class projection_halfspace(_OfTensor):
    """The nearest tensor with ⟨a, w⟩ at most b; along `dim`, each row's.

    Equals optax.projections.projection_halfspace of one tensor. For real tensors; `a` may broadcast.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_halfspace(torch.ones(2), 1.0)(torch.tensor([0.25, 0.5]))
    tensor([0.2500, 0.5000])
    """

    def __call__(self, w: Tensor) -> Tensor:
        """The nearest point to `w`."""
        a, inner, square = self._measured(w)
        return w + ((self.b - inner) / square).clamp(max=0.0) * a


class projection_vector(_OfTensor):
    """The nearest multiple of `a`: ⟨a, w⟩ / ⟨a, a⟩ a; along `dim`, each row's.

    Equals optax.projections.projection_vector of one tensor. For real tensors; `a` may broadcast.

    >>> import torch, gradchain as gch
    >>> gch.rules.projection_vector(torch.tensor([2.0, 0.0]))(torch.tensor([3.0, 4.0]))
    tensor([3., 0.])
    """

    def __init__(self, a: Tensor, dim: int | tuple[int, ...] | None = None) -> None:
        super().__init__(a, dim=dim)

    def __repr__(self) -> str:
        return f"projection_vector(a=<{tuple(self.a.shape)}>, dim={self.dim!r})"

    def __call__(self, w: Tensor) -> Tensor:
        """The nearest point to `w`."""
        a, inner, square = self._measured(w)
        return inner / square * a
