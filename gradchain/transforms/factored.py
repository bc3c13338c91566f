"""Divide by a root mean square that is kept as one number per row and one per column: Adafactor's direction."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Annotated, Literal

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper, HyperOr
from gradchain.core.index import Index
from gradchain.core.scalars import Count, Scalar, Scalars, maximum, whole_number
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform

Pair = tuple[int, int]


class HyperOrDtype(HyperOr):
    """A number, a schedule, or "dtype"."""

    words = ("dtype",)


class FactoredState(State):
    """What scale_by_factored_rms remembers: of each parameter rows and columns, or else nu."""

    count: Count  # t, updates of each parameter so far
    rows: Annotated[Tensors, "[0, inf] or NaN"]  # R, the mean square of each row
    columns: Annotated[Tensors, "[0, inf] or NaN"]  # C, that of each column
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, that of each element, where nothing is factored


class scale_by_factored_rms(Transform):
    """Divide by the root of the mean square, of which matrices keep the means of rows and of columns alone.

        b_t = 1 - (t - step_offset)^(-decay_rate)
        R_t = b_t R_(t-1) + (1 - b_t) mean over columns of (g² + epsilon),  C_t likewise over rows
        u   = g / sqrt(max(R C / max(mean R, floor), floor²))

    Vectors, and what is too small to be factored, keep the mean square of each element, V in place of R C / mean R.
    `t` counts the updates of each parameter. The first mean is the first square, so nothing is corrected.

    By default these are Optax's numbers, where the smaller of the two largest dimensions must be 128. torch's are
    `scale_by_factored_rms(dims="last", min_dim_size_to_factor=0, epsilon=0, floor="dtype")`, which `adafactor` has.

    Args:
        factored: False keeps the mean square of each element everywhere.
        decay_rate: how fast the mean becomes slow, at least 0.
        step_offset: so many updates are not counted, an integer of at least 0; until then the mean is the last square.
        min_dim_size_to_factor: the least size of both dimensions, an integer of at least 0.
        epsilon: added to the squares, in units of the squared gradient; at least 0.
        dims: which two dimensions are rows and columns: the "largest", or the "last". Over all others there are
            matrices for themselves.
        floor: the least root, in units of the gradient, and the least mean of R; at least 0, or "dtype" for the
            machine epsilon of what the rule computes in, float32 or wider.

    Shapes: any; of n dimensions, matrices over two of them.
    State: `count`; `rows` and `columns`, for r × c elements r + c numbers; `nu`, one tensor, where nothing is factored.
        They are float32 where weights are narrower.
    Units: gradient → dimensionless, about 1 in size: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_factored_rms, whose decay is computed in float32; with the arguments above what
        torch.optim.Adafactor divides by, but that its epsilon of halves is theirs.
    Paper: Shazeer and Stern, 2018, Algorithms 4 and 5, https://arxiv.org/abs/1804.04235

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.scale_by_factored_rms(decay_rate=0.9), gch.scale_by_learning_rate(1e-3))
    chain(scale_by_factored_rms(decay_rate=0.9), scale_by_learning_rate(0.001))
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = (
        "keeps means of whole rows and columns. Give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag."
    )

    factored: bool = True
    decay_rate: Hyper = Hyper(0.8, "[0, inf)")
    step_offset: int = 0
    min_dim_size_to_factor: int = 128
    epsilon: Hyper = Hyper(1e-30, "[0, inf)")
    dims: Literal["largest", "last"] = "largest"
    floor: HyperOrDtype = HyperOrDtype(0.0, "[0, inf)")

    def check(self) -> None:
        for name in ("step_offset", "min_dim_size_to_factor"):
            given = getattr(self, name)
            value = whole_number(given)
            if value is None or value < 0:
                raise ValueError(f"scale_by_factored_rms: {name} must be an integer of at least 0, got {given!r}.")
            object.__setattr__(self, name, value)
        if self.dims not in ("largest", "last"):
            raise ValueError(f"scale_by_factored_rms: dims must be 'largest' or 'last', got {self.dims!r}.")

    @cached_property
    def _key(self) -> tuple[object, ...]:
        """What the rows and columns of a parameter follow from, beside its shape."""
        return scale_by_factored_rms, self.factored, self.min_dim_size_to_factor, self.dims

    def _groups(self, index: Index) -> list[tuple[Pair | None, Index]]:
        """The parameters by the dimensions that are rows and columns, counted from the end; None without any."""
        return index.parts(self._key, partial(self._grouped, index))

    def _grouped(self, index: Index) -> list[tuple[Pair | None, Index]]:
        found: dict[Pair | None, list[str]] = {}
        for fact in index.facts:
            found.setdefault(self._dims(fact.parameter.shape), []).append(fact.name)
        return [(dims, index.subset(names)) for dims, names in found.items()]

    def _dims(self, shape: torch.Size) -> Pair | None:
        n = len(shape)
        if not self.factored or n < 2:
            return None
        by_size = range(n) if self.dims == "last" else sorted(range(n), key=shape.__getitem__)
        row, column = sorted(by_size[-2:])
        return None if min(shape[row], shape[column]) < self.min_dim_size_to_factor else (row - n, column - n)

    def init(self, params: Tensors) -> FactoredState:
        none = params.select(())
        rows, columns, nu = none, none, none
        for dims, members in self._groups(params.index):
            mine = params.select(members)
            if dims is None:
                nu = mine.slow_slot()
                continue
            row, column = dims
            rows = rows.overlay(mine.mean(column).slow_slot())
            columns = columns.overlay(mine.mean(row).slow_slot())
        return FactoredState(Count(params.index), rows, columns, nu)

    def update(self, g: Tensors, state: FactoredState, ctx: Context) -> tuple[Tensors, FactoredState]:
        count = state.count.tick(g)
        weight = maximum(count - self.step_offset, 1) ** -self.decay_rate
        u, rows, columns, nu = g, state.rows, state.columns, state.nu
        for dims, members in self._groups(g.index):
            mine = g.select(members)
            square, floor = mine * mine + self.epsilon, self._floor(members)
            if dims is None:
                nu = (1 - weight) * state.nu + weight * square
                u = u.overlay(mine * nu.maximum(floor * floor).rsqrt())
                continue
            row, column = dims
            r = state.rows.select(members).lerp(square.mean(column), weight)
            c = state.columns.select(members).lerp(square.mean(row), weight)
            rows, columns = rows.overlay(r), columns.overlay(c)
            u = u.overlay(mine * inverse_root(r, c, row, floor))
        return u, FactoredState(count, rows, columns, nu)

    def _floor(self, index: Index) -> Scalar:
        """The least root: a number, or one for each parameter where its dtype decides."""
        floor: Scalar = self.floor
        if not isinstance(floor, str):
            return floor
        eps = {f.name: _eps(f.parameter.dtype) for f in index.facts}
        return Scalars(eps) if len(set(eps.values())) > 1 else next(iter(eps.values()))


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def inverse_root(rows: Tensors, columns: Tensors, row: int, floor: Scalar) -> Tensors:
    """1 / sqrt(R C / mean R). R C alone would sooner be zero, or infinite."""
    if type(floor) is float and floor == 0:
        return (rows / rows.mean(row)).rsqrt() * columns.rsqrt()
    return (rows / rows.mean(row).maximum(floor) * columns).maximum(floor * floor).rsqrt()


class CapState(State):
    """What cap_learning_rate remembers."""

    count: Count  # t, updates of each parameter so far


class cap_learning_rate(Transform):
    """Scale the updates down where the learning rate behind it is above 1 / sqrt(t): Adafactor's relative step.

        u = g / max(1, learning_rate sqrt(t))

    Times the learning rate that is min(learning_rate, 1 / sqrt(t)), t being the updates of each parameter. A decay
    between this and the learning rate is not capped.

    Args:
        learning_rate: at least 0; that of the `scale_by_learning_rate` behind it.

    Shapes: elementwise, any.
    State: `count`.
    Units: unchanged.
    Raises: ValueError or TypeError for a learning rate that is negative or not a number.
    Equals: the step size of torch.optim.Adafactor, over its learning rate.
    Paper: Shazeer and Stern, 2018, section 8, https://arxiv.org/abs/1804.04235

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.cap_learning_rate(0.1), gch.scale_by_learning_rate(0.1))
    chain(cap_learning_rate(0.1), scale_by_learning_rate(0.1))
    """

    descends = False
    role = "scale"
    per_parameter = True

    learning_rate: Annotated[Hyper, "[0, inf)"]

    def init(self, params: Tensors) -> CapState:
        return CapState(Count(params.index))

    def update(self, g: Tensors, state: CapState, ctx: Context) -> tuple[Tensors, CapState]:
        count = state.count.tick(g)
        return g / maximum(1.0, self.learning_rate * count**0.5), CapState(count)
