"""Newton–Schulz: the nearest orthogonal matrices by products alone; and which matrices a parameter is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from gradchain.core.index import Index
from gradchain.core.scalars import as_number, whole_number
from gradchain.core.tensors import Tensors
from gradchain.rules._units import matrices
from gradchain.selectors import SelectorLike
from gradchain.selectors.base import predicate

Triple = tuple[float, float, float]

_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    "original": ((3.4445, -4.7750, 2.0315),),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # of singular values that rounding made larger than 1 it is still a good step, where they are divided by 1.01
    "polar_express": (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _EXPRESS), (1.875, -1.25, 0.375)),
}
"""By name: a, b, c of each step; of further steps the last. Jordan, 2024; modded-nanogpt; Amsel et al., 2025."""

FACTORS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "spectral_norm": lambda rows, columns: (rows / columns) ** 0.5,
    "spectral": lambda rows, columns: max(rows, columns) ** 0.5,
}
"""By name: what an orthogonal matrix is multiplied by. Jordan and torch; Moonlight; SCION and Dion; Emerging."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


PAIRED = 2
"""How often the shorter side goes into the longer one where two steps are made at once."""


def orthogonal(x: Tensor, coefficients: Sequence[Triple], steps: int, eps: float, dtype: torch.dtype | None) -> Tensor:
    """Each matrix of a stack with singular values near 1.

    x := x / max(‖x‖, eps); in each step  x := a x + (b A + c A²) x,  A = x xᵀ over the shorter side

    Of long matrices two steps are made at once, over the shorter side (see `_of_two`).
    """
    rows, columns = x.shape[-2:]
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=_wide(x))
    y = x / norm.clamp(min=eps).to(norm.dtype if x.is_complex() else x.dtype)
    y = (y if dtype is None or x.is_complex() else y.to(dtype)).flatten(0, -3)
    tall, long = rows > columns, max(rows, columns) >= PAIRED * min(rows, columns)
    given = [coefficients[min(step, len(coefficients) - 1)] for step in range(steps)]
    while given:
        # nothing is transposed in memory; and torch.matmul would copy the second, where a stack is of one matrix
        gram = torch.bmm(y.mH, y) if tall else torch.bmm(y, y.mH)
        a, b, c = given.pop(0)
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if long and given:
            p = _of_two(gram, a, p, given.pop(0))
            y = torch.bmm(y, p) if tall else torch.bmm(p, y)
        else:
            y = torch.baddbmm(y, y, p, beta=a) if tall else torch.baddbmm(y, p, y, beta=a)
    made: Tensor = y.to(x.dtype).reshape(x.shape)
    return made


def _of_two(gram: Tensor, a: float, p: Tensor, following: Triple) -> Tensor:
    """What two steps multiply x by: with P = a I + p of the first, A of the second is P A P, as all of them commute.

    Three at once would be less work still, and are not stable: what bfloat16 rounds grows in P A P without bounds. For
    the same reason a stays apart from p but in the factor itself.
    """
    second, b, c = following
    right = torch.baddbmm(gram, gram, p, beta=a)
    both = torch.baddbmm(right, p, right, beta=a)
    q = torch.baddbmm(both, both, both, beta=b, alpha=c)
    first = torch.add(p, torch.eye(p.shape[-1], dtype=p.dtype, device=p.device), alpha=a)
    return torch.baddbmm(first, q, first, beta=second)


def _wide(x: Tensor) -> torch.dtype:
    if x.device.type == "mps":
        return torch.complex64 if x.is_complex() else torch.float32
    return torch.complex128 if x.is_complex() else torch.float64


@dataclass(frozen=True)
class View:
    """Which matrices a parameter is made of.

    Attributes:
        fold: "stack" for matrices over the last two dimensions, "flatten" for one of the first by all others, "kernels"
            for one of the first two dimensions for each place of a kernel.
        parts: into how many its rows are cut, or into which; each is a matrix for itself.
    """

    fold: str
    parts: int | tuple[int, ...] = 1

    def map(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """`fn` of the matrices of a stack of parameters, (B, *shape)."""
        if self.fold == "flatten":
            return self._cut(x.flatten(2), fn).reshape(x.shape)
        if self.fold == "kernels":
            return self._cut(x.flatten(3).movedim(-1, 1), fn).movedim(1, -1).reshape(x.shape)
        return self._cut(x, fn)

    def _cut(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        if self.parts == 1:
            return fn(x)
        if isinstance(self.parts, int):
            return fn(x.reshape(*x.shape[:-2], self.parts, -1, x.shape[-1])).reshape(x.shape)
        return torch.cat([fn(part) for part in torch.split(x, list(self.parts), -2)], -2)

    def sizes(self, shape: torch.Size) -> list[tuple[int, int]]:
        """Rows and columns of each kind of matrix in it."""
        if self.fold == "flatten":
            rows, columns = shape[0], math.prod(shape[1:])
        else:
            rows, columns = shape[:2] if self.fold == "kernels" else shape[-2:]
        return [(rows // self.parts, columns)] if isinstance(self.parts, int) else [(r, columns) for r in self.parts]

    def of_row(self, rank: int) -> tuple[int, ...]:
        """The dimensions of a row."""
        return tuple(range(1, rank)) if self.fold == "flatten" else (1,) if self.fold == "kernels" else (rank - 1,)

    def of_matrix(self, rank: int) -> tuple[int, ...]:
        """The dimensions of a matrix that is not cut."""
        return (
            tuple(range(rank)) if self.fold == "flatten" else (0, 1) if self.fold == "kernels" else (rank - 2, rank - 1)
        )


Split = tuple[SelectorLike, "int | tuple[int, ...]"]


def fold_of(shape: torch.Size, owner: nn.Module | None, conv: str) -> str:
    """Convolutions are flattened or a matrix per place; what has three dimensions and is none is a stack of experts."""
    if len(shape) == 2 or (len(shape) == 3 and not isinstance(owner, _CONVOLUTIONS)):
        return "stack"
    return "flatten" if conv == "flatten" else "kernels"


def views(owner: str, index: Index, conv: str, split: tuple[Split, ...]) -> list[tuple[View, Index]]:
    """The parameters of two dimensions and more, by the matrices that they are made of."""
    return index.parts((views, conv, split), partial(_viewed, owner, matrices(index), conv, split))


def _viewed(owner: str, index: Index, conv: str, split: tuple[Split, ...]) -> list[tuple[View, Index]]:
    cut: dict[str, Any] = {}
    for selector, parts in split:
        cut.update((name, parts) for name in index.members(selector) if name not in cut)
    found: dict[View, list[str]] = {}
    for fact in index.facts:
        shape, parts = fact.parameter.shape, cut.get(fact.name, 1)
        view = View(fold_of(shape, fact.owner, conv), parts)
        rows = sum(r for r, _ in view.sizes(shape)) * (parts if isinstance(parts, int) else 1)
        whole = View(view.fold).sizes(shape)[0][0]
        if rows != whole:
            raise ValueError(
                f"{owner}: split must cut all rows, got {parts!r} for {fact.name!r}, whose matrix has {whole} rows."
            )
        found.setdefault(view, []).append(fact.name)
    return [(view, index.subset(names)) for view, names in found.items()]


@dataclass(frozen=True)
class Products:
    """How matrices are made orthogonal: the constants of one link."""

    coefficients: tuple[Triple, ...]
    steps: int
    eps: float
    dtype: torch.dtype | None
    factor: str | None = None

    def of(self, u: Tensors, found: list[tuple[View, Index]]) -> Tensors:
        """The matrices of all parameters, orthogonal, and times their factors; what has none as it is."""
        out = u
        for view, members in found:
            out = out.overlay(u.select(members).map(partial(_mapped, self, view), batched=True, gather=True))
        return out


def _mapped(products: Products, view: View, x: Tensor) -> Tensor:
    return view.map(x, partial(_one, products))


def _one(products: Products, x: Tensor) -> Tensor:
    y = orthogonal(x, products.coefficients, products.steps, products.eps, products.dtype)
    return y if products.factor is None or not x.numel() else y * FACTORS[products.factor](x.shape[-2], x.shape[-1])


def factors(factor: str, found: list[tuple[View, Index]]) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    """What each parameter is multiplied by, and why: by the first part of one that is cut into unequal ones."""
    numbers: dict[str, float] = {}
    why: dict[str, tuple[str, ...]] = {}
    for view, members in found:
        for fact in members.facts:
            sizes = view.sizes(fact.parameter.shape)
            told = [FACTORS[factor](rows, columns) if rows * columns else 1.0 for rows, columns in sizes]
            numbers[fact.name] = told[0]
            why[fact.name] = tuple(
                f"{factor} of {r} × {c}" + (f": {x:.4g}" if i else "")
                for i, ((r, c), x) in enumerate(zip(sizes, told, strict=True))
            )
    return numbers, why


# arguments


def products_of(link: Any) -> Products:
    """The constants of a link of this family."""
    return _products(
        type(link).__name__, link.ns_coefficients, link.ns_steps, link.ns_eps, link.dtype, link.shape_factor
    )


@lru_cache(maxsize=64)
def _products(owner: str, coefficients: Any, *rest: Any) -> Products:
    return Products(checked_coefficients(owner, coefficients), *rest)


def views_of(link: Any, index: Index) -> list[tuple[View, Index]]:
    """The parameters that a link of this family is for, by the matrices that they are made of."""
    return views(type(link).__name__, index, link.conv, tuple(link.split))


def by_rank(link: Any, index: Index) -> list[tuple[tuple[View, int], Index]]:
    """The same, apart by their number of dimensions too."""
    return index.parts((by_rank, link.conv, link.split), partial(_ranked, views_of(link, index)))


def _ranked(found: list[tuple[View, Index]]) -> list[tuple[tuple[View, int], Index]]:
    groups = [((view, rank), members) for view, members in found for rank in {f.parameter.ndim for f in members.facts}]
    return [
        ((view, rank), members.subset([f.name for f in members.facts if f.parameter.ndim == rank]))
        for (view, rank), members in groups
    ]


def momentum_of(link: Any, g: Tensors, mu: Tensors) -> tuple[Tensors, Tensors]:
    """The new mean gradient, and where a link of this family looks: one step ahead of it, with nesterov."""
    mu = mu.lerp(g, 1 - link.momentum)
    return mu, g.lerp(mu, link.momentum) if link.nesterov else mu


def told_of(link: Any, index: Index) -> Mapping[str, Any]:
    """For `settings()`: the factor of each parameter."""
    return {} if link.shape_factor is None else {"shape_factor": factors(link.shape_factor, views_of(link, index))}


def checked_coefficients(owner: str, given: object) -> tuple[Triple, ...]:
    """The coefficients of each step from a name, a triple, or a sequence of these."""
    if isinstance(given, str) and given in COEFFICIENTS:
        return COEFFICIENTS[given]
    entries: Any = given
    rule = f"ns_coefficients must be one of {', '.join(map(repr, COEFFICIENTS))}, three numbers, or a tuple of these"
    if not isinstance(given, (tuple, list)) or not given:
        raise ValueError(f"{owner}: {rule}, got {given!r}.")
    rows = [entries] if as_number(entries[0]) is not None else entries
    made = []
    for row in rows:
        numbers = [as_number(x) for x in row] if isinstance(row, (tuple, list)) else []
        if len(numbers) != 3 or any(x is None for x in numbers):
            raise ValueError(f"{owner}: {rule}, got {given!r}.")
        made.append((numbers[0], numbers[1], numbers[2]))
    return tuple(made)  # type: ignore[arg-type]  # none of them is None


def frozen(given: Any) -> Any:
    """A tuple in place of each list, which would have no hash."""
    return tuple(map(frozen, given)) if isinstance(given, (list, tuple)) else given


def check_products(link: Any) -> None:
    """Check what all rules of this family take, and freeze it: coefficients, steps, eps, factor, conv, split."""
    owner = type(link).__name__
    object.__setattr__(link, "ns_coefficients", frozen(link.ns_coefficients))
    checked_coefficients(owner, link.ns_coefficients)
    steps = whole_number(link.ns_steps)
    if steps is None or not 1 <= steps < 100:
        raise ValueError(f"{owner}: ns_steps must be an integer in [1, 100), got {link.ns_steps!r}.")
    object.__setattr__(link, "ns_steps", steps)
    eps = as_number(link.ns_eps)
    if eps is None or not 0 < eps < math.inf:
        raise ValueError(f"{owner}: ns_eps must be a number in (0, inf), got {link.ns_eps!r}.")
    object.__setattr__(link, "ns_eps", float(eps))
    if link.shape_factor is not None and link.shape_factor not in FACTORS:
        names = ", ".join(map(repr, FACTORS))
        raise ValueError(f"{owner}: shape_factor must be one of {names} or None, got {link.shape_factor!r}.")
    if link.conv not in ("flatten", "batch"):
        raise ValueError(f"{owner}: conv must be 'flatten' or 'batch', got {link.conv!r}.")
    object.__setattr__(link, "split", _checked_split(owner, link.split))


def _checked_split(owner: str, given: Any) -> tuple[Split, ...]:
    rule = "split must be pairs (selector, number of parts or their sizes)"
    out = []
    for pair in given if isinstance(given, (tuple, list)) else [None]:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{owner}: {rule}, got {given!r}.")
        selector, parts = pair
        sizes = [whole_number(p) for p in (parts if isinstance(parts, (tuple, list)) else [parts])]
        if not sizes or any(s is None or s < 1 for s in sizes):
            raise ValueError(f"{owner}: {rule}, got {given!r}.")
        of_one = not isinstance(parts, (tuple, list))
        out.append((predicate(selector, owner), sizes[0] if of_one else tuple(sizes)))
    return tuple(out)  # type: ignore[arg-type]  # none of them is None
