"""Bound the updates: by their norm, or element by element."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.says import Says
from gradchain.core.scalars import Scalar, Scalars, as_number, maximum, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.selectors import SelectorLike
from gradchain.selectors.base import predicate
from gradchain.selectors.source import code


class clip_by_norm(Transform):
    """Scale the updates down where their norm exceeds a bound.

        u = g min(1, max_norm / (‖g‖_p + eps))

    The norm is over all parameters in sight: those of the chain, or the members in `masked` and `partition`. Updates
    inside the bound pass bit for bit. A NaN anywhere makes NaN of all that share its norm; an inf becomes NaN itself
    and makes 0 of all else, both as in torch: put `skip_nonfinite` or `amp_scale` before. The norm before clipping is
    recorded as "norm"; an infinite `max_norm` only measures.

    Args:
        max_norm: the bound, above 0; inf measures and returns the updates unchanged. It may differ per parameter with
            per="tensor" only.
        p: which norm, above 0; inf is the largest magnitude. Below 1 it is no norm, and computed as torch does.
        per: "all", one norm over all parameters; "tensor", one per parameter; or a list of selectors, one norm for
            each group. Parameters in no group then pass unclipped. Recorded are the largest norm as "norm" and,
            for groups, each as "norm/<selector>".
        eps: added to the norm, in its unit; at least 0. torch's by default, 0 is Optax's.

    Shapes: any; one norm over whole tensors.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range; at bind ValueError for a selector that matches
        nothing, or a parameter in two groups.
    Equals: torch.nn.utils.clip_grad_norm_, with the norm accumulated in float64; optax.clip_by_global_norm with
        eps=0. `per="tensor"` with p=2 is detectron2's per-parameter clip.
    Paper: Pascanu, Mikolov and Bengio, 2013, Algorithm 1, https://arxiv.org/abs/1211.5063

    >>> import torch, gradchain as gch
    >>> g = gch.Tensors.of({"w": torch.tensor([3.0, 4.0])})
    >>> clip = gch.clip_by_norm(1.0, eps=0)
    >>> clip.update(g, clip.init(g), gch.Context())[0]["w"]
    tensor([0.6000, 0.8000])
    """

    descends = False
    role = "clip"

    max_norm: Annotated[Hyper, "(0, inf]"]
    p: float = 2.0
    per: Literal["all", "tensor"] | Sequence[SelectorLike] = "all"
    eps: Hyper = Hyper(1e-6, "[0, inf)")

    def says(self) -> Says:
        """A norm over several parameters has one bound; each may have a norm of its own instead."""
        return {"per_parameter": True} if self.per == "tensor" else {"uniform": frozenset({"max_norm", "eps"})}

    def check(self) -> None:
        p = as_number(self.p)
        if p is None:
            raise TypeError(f"clip_by_norm: p must be a number above 0, or inf, got {self.p!r}.")
        if not p > 0:
            raise ValueError(f"clip_by_norm: p must be above 0, or inf, got {self.p!r}.")
        object.__setattr__(self, "p", p)
        choices = "per must be 'all', 'tensor' or a list of selectors"
        if isinstance(self.per, str):
            if self.per not in ("all", "tensor"):
                cure = f" A name pattern is written per=[gch.named({code(self.per)})]."
                raise ValueError(f"clip_by_norm: {choices}, got {self.per!r}.{cure}")
            return
        if not isinstance(self.per, (list, tuple)):
            cure = f" Write per=[{code(self.per)}]." if callable(self.per) else ""
            raise TypeError(f"clip_by_norm: {choices}, got {code(self.per)}.{cure}")
        if not self.per:
            raise ValueError(f"clip_by_norm: {choices}, got an empty one.")
        # a list would have no hash
        object.__setattr__(self, "per", tuple(predicate(selector, "clip_by_norm") for selector in self.per))

    def init(self, params: Tensors) -> State:
        if not isinstance(self.per, str):
            self._groups(params.index)
        return super().init(params)

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        norm = self._norm(g, ctx)
        limit: Scalar = self.max_norm
        if not isinstance(limit, (Tensor, Scalars)) and limit == math.inf:
            return g, state
        # the same as min(1, limit / (norm + eps)), and no 0 / 0: not in the value, nor in its derivative
        factor = limit / maximum(norm + self.eps, limit)
        if isinstance(limit, Scalars):
            factor = where(limit == math.inf, 1.0, factor)
        return g.overlay(factor * g), state

    def _norm(self, g: Tensors, ctx: Context) -> Scalar:
        """One number, or for each parameter that is clipped the norm it is clipped by."""
        if self.per == "all":
            norm = g.norm(self.p)
            ctx.record("norm", norm)
            return norm
        if self.per == "tensor":
            norms = g.norms(p=self.p)
            ctx.record("norm", norms.largest())
            return norms
        of_group, of_parameter = [], {}
        for label, members in self._groups(ctx.params.index):
            of_group.append(g.select(members).norm(self.p))
            ctx.record(f"norm/{label}", of_group[-1])
            of_parameter.update(dict.fromkeys(members, of_group[-1]))
        ctx.record("norm", _largest(of_group))
        return Scalars(of_parameter)

    def _groups(self, index: Index) -> list[tuple[str, Index]]:
        """The groups with their labels. ValueError if one is empty, or two overlap."""
        return index.parts((clip_by_norm, self.per), lambda: self._resolved(index))

    def _resolved(self, index: Index) -> list[tuple[str, Index]]:
        assert not isinstance(self.per, str)
        taken: dict[str, str] = {}
        out = []
        for i, selector in enumerate(self.per):
            label, members = code(selector), index.members(selector)
            before = [code(s) for s in self.per[:i]].count(label)
            label = f"{label}#{before + 1}" if before else label  # two functions may share a name
            for name in members:
                if name in taken:
                    raise ValueError(
                        f"clip_by_norm: each parameter must be in at most one group, but {name!r} is in {taken[name]} "
                        f"and in {label}. Leave it out of one: {label} & ~{taken[name]}."
                    )
                taken[name] = label
            out.append((label, members))
        return out


def _largest(norms: Iterable[Scalar]) -> Scalar:
    largest: Scalar = 0.0
    for norm in norms:
        largest = maximum(largest, norm)
    return largest


class clip_by_value(Transform):
    """Hold each element of the updates between minus and plus a bound.

        u = min(max(g, -max_value), max_value)

    It changes the direction of the gradient; `clip_by_norm` keeps it. An inf becomes the bound, a NaN stays a NaN.

    Args:
        max_value: the bound, above 0; inf leaves all as it is.

    Shapes: elementwise, any; complex parameters in their real and imaginary parts.
    Units: unchanged.
    Raises: ValueError or TypeError for a bound that is not above 0 or not a number.
    Equals: torch.nn.utils.clip_grad_value_; optax.clip.

    >>> import gradchain as gch
    >>> gch.chain(gch.clip_by_value(0.5), gch.scale_by_learning_rate(0.1))
    chain(clip_by_value(0.5), scale_by_learning_rate(0.1))
    """

    descends = False
    role = "clip"
    per_parameter = True

    max_value: Annotated[Hyper, "(0, inf]"]

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return g.clamp(-self.max_value, self.max_value), state
