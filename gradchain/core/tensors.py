"""Tensors: one tensor per named parameter, and arithmetic over all of them at once.

This is the interface a rule is written against. `EagerTensors` computes at once; an engine may record instead.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor, nn

from gradchain.core.along import Dims
from gradchain.core.index import Fact, Index
from gradchain.core.scalars import Operand, Scalar, Scalars, as_operand, where
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.random import Draw

K = TypeVar("K")  # Tensors, or a tuple of them


class Tensors(Operand["Tensors"], Mapping[str, Tensor]):
    """A mapping from parameter name to tensor with elementwise arithmetic over all entries.

    Entries meet by name, and an entry absent from one side is absent from the result: that is how a parameter
    without a gradient is left alone by every rule. Arithmetic is done in float32 or wider; what a State keeps is
    rounded once to the dtype it is stored in. Scalars may be numbers, 0-d tensors, `Scalars` or a `Count`.

    A comparison gives a mask: Tensors of truth values, which `&`, `|`, `~` and `where` take, and only these. To any
    other operation it is 0 and 1, in the compute dtype of what was compared.

    >>> import torch, gradchain as gch
    >>> g = gch.Tensors.of({"w": torch.tensor([3.0, 4.0]), "b": torch.tensor(0.0)})
    >>> (2 * g)["w"]
    tensor([6., 8.])
    >>> g.norm()
    5.0
    """

    __slots__ = ()
    __array_priority__ = 1000

    def __init_subclass__(cls) -> None:
        cls.norm = answering(cls.norm)  # type: ignore[method-assign]  # each kind has its own

    # what a kind of Tensors provides

    @property
    @abstractmethod
    def index(self) -> Index:
        """Which entries there are."""

    @abstractmethod
    def _apply(self, op: str, args: tuple[Any, ...]) -> Tensors:
        """One elementwise operation over Tensors, Scalars and numbers."""

    @abstractmethod
    def _is_mask(self) -> bool:
        """Whether the elements are truth values."""

    @abstractmethod
    def _norms(self, p: float) -> Scalars:
        """The p-norm of each entry, accumulated in float64."""

    @abstractmethod
    def _sums(self) -> Scalars:
        """The sum of each entry, accumulated in float64."""

    @abstractmethod
    def norm(self, p: float = 2.0) -> Scalar:
        """The p-norm over all entries together (p may be inf), accumulated in float64.

        A float on the CPU; a 0-d tensor on an accelerator, under autograd and under vmap.
        """

    @abstractmethod
    def _total(self) -> Scalar:
        """The sum over all entries together, accumulated in float64."""

    @abstractmethod
    def _along(self, word: str, kind: str, dim: Dims) -> Tensors:
        """A reduction of each entry along its dimensions, which are kept, by its name in `ALONG`."""

    @abstractmethod
    def _shapes(self) -> Sequence[torch.Size]:
        """The shape of each entry; complex ones as pairs of reals."""

    def _whole_shapes(self) -> Sequence[torch.Size]:
        """The same, where entries are parts of tensors those of the whole."""
        return self._shapes()

    @abstractmethod
    def all_finite(self) -> bool:
        """Whether no entry holds inf or NaN. Reads one scalar from the device."""

    @overload
    def map(
        self, fn: Callable[..., Tensor], *others: Any, batched: bool = False, results: None = None, gather: bool = False
    ) -> Tensors: ...

    @overload
    def map(
        self, fn: Callable[..., tuple[Tensor, ...]], *others: Any, batched: bool = False, results: int,
        gather: bool = False,
    ) -> tuple[Tensors, ...]: ...  # fmt: skip

    @abstractmethod
    def map(
        self, fn: Callable[..., Any], *others: Any, batched: bool = False, results: int | None = None,
        gather: bool = False,
    ) -> Any:  # fmt: skip
        """`fn` of each whole tensor (and of the same entry of `others`), for rules that need more than arithmetic.

        `fn` sees tensors in the compute dtype, float32 or wider, and complex parameters as complex tensors; what it
        returns is brought back to that dtype, so its products may be done in another. It returns a new tensor or its
        argument, of any shape, or a tuple of tensors: then there is a tuple of as many Tensors.

        Args:
            fn: gets one entry of these, and of each of `others`.
            others: Tensors and Scalars, of which it gets the same entry; a Count, as numbers; anything else as it is.
            batched: whether entries of equal shape, dtype and device, whose others are alike in these too, are stacked,
                and `fn` is given stacks, (B, *shape), and returns stacks. Numbers per parameter are a tensor (B, 1, …)
                then, with as many dimensions as the stack of the first. How many are stacked is a fixed rule of their
                size and device, which `updater.explain()` tells; B may be 1.
            results: how many tensors `fn` returns in a tuple. That is known otherwise from what it returned, and needed
                where there may be no entry, for which it is not called; type checkers need it to see the tuple.
            gather: whether entries that are spread over ranks (DTensor) are gathered, so that `fn` sees plain whole
                tensors on every rank; of what it returns each rank keeps its part. By default `fn` gets DTensors, which
                compute as the whole would, or raise where torch has no rule for that. Others are as they are.

        Raises:
            TypeError: where `fn` returns neither a tensor nor a tuple of them.
            ValueError: where it returns another number of them for one entry than for others, loses the dimension of
                the stack, or returns complex tensors for real entries, or tensors that lie elsewhere.
        """

    def map_where(
        self, due: Any, fn: Callable[..., Any], old: K, *others: Any, batched: bool = False, gather: bool = False
    ) -> K:
        """`map` of the entries that are due; for all others what `old` has.

        For work that is not done at every update, as a basis is computed: with `due=count.due(every)` and the state as
        `old`, each parameter has it when its own count says so. Which those are decides what runs, so it is known on
        the host.

        Args:
            due: a truth for all entries, or Scalars with one for each.
            fn: gets one entry of these, and of each of `others`, if it is due.
            old: Tensors, or a tuple of as many as `fn` returns tensors.
            others: as `map` has them.
            batched: whether entries that are due are stacked.
            gather: as `map` has it.
        """
        names = [n for n in self.index.names if due.get(n)] if isinstance(due, Scalars) else self.index.names
        if not names or not (isinstance(due, Scalars) or due):
            return old
        made: Any = self.select(names).map(fn, *others, batched=batched, gather=gather)
        wanted, got = [len(v) if isinstance(v, tuple) else 1 for v in (old, made)]
        if isinstance(old, tuple) is not isinstance(made, tuple) or wanted != got:
            raise ValueError(f"Tensors.map_where: fn must return as many tensors as old has, {wanted}, got {got}.")
        before: Any = old
        laid: Any = tuple(map(_over, before, made)) if isinstance(old, tuple) else before.overlay(made)
        kept: K = laid
        return kept

    @abstractmethod
    def select(self, members: Iterable[str]) -> Tensors:
        """The entries whose names are in `members`."""

    @abstractmethod
    def overlay(self, other: Tensors) -> Tensors:
        """These entries, replaced by those of `other` where it has them; entries only `other` has are added."""

    @abstractmethod
    def listed(self, index: Index) -> list[Tensor | None]:
        """The entries in memory, in the order of `index`; None for one that is absent."""

    @abstractmethod
    def zeros_like(self, dtype: torch.dtype | None = None) -> Tensors:
        """New zeros of the same names, shapes, strides and devices; in `dtype`, where one is given."""

    def slot(self, dtype: torch.dtype | None = None) -> Tensors:
        """New zeros for what a rule remembers of each entry; in `dtype`, where one is given.

        By default in the dtype of the entry, as torch has it, but float32 for float16, whose numbers end at 65504 and
        at 6e-8.
        """
        return self._zeros(dtype, {torch.float16})

    def slow_slot(self, dtype: torch.dtype | None = None) -> Tensors:
        """New zeros for what a rule changes slowly: mean squares, averages of weights; in `dtype`, where one is given.

        By default in the dtype of the entry, but float32 for float16 and bfloat16: a mean that takes in a thousandth at
        a time stands still in these, and squares of gradients are zero in float16.
        """
        return self._zeros(dtype, {torch.float16, torch.bfloat16})

    def _zeros(self, dtype: torch.dtype | None, low: set[torch.dtype]) -> Tensors:
        """Zeros in `dtype`, or else in the dtypes of the entries, of which those in `low` become float32."""
        wider = [f.name for f in self.index.facts if dtype is None and f.parameter.dtype.to_real() in low]
        zeros = self.zeros_like(dtype)
        return zeros.overlay(self.select(wider).zeros_like(torch.float32)) if wider else zeros

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Tensors:
        """The entries rounded to `dtype` (the same tensors where they have it)."""

    @abstractmethod
    def clone(self) -> Tensors:
        """Copies that share no memory with anything."""

    @abstractmethod
    def stored_as(self, old: Tensors) -> Tensors:
        """These values rounded to the dtypes of `old`; entries absent here stay as `old` has them."""

    @abstractmethod
    def _drawn(self, draw: Draw) -> Tensors:
        """Random numbers for these entries."""

    @abstractmethod
    def _lift(self, other: Tensors) -> Tensors:
        """`other` as Tensors of this kind, so that the two can meet."""

    # arithmetic, written once over the primitives

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        other = b if a is self else a
        if not isinstance(other, (int, float, Tensor, Operand)):
            number = as_operand(other)
            if number is other:
                return NotImplemented
            a, b = (a, number) if a is self else (number, b)
        if isinstance(other, Tensor) and other.ndim:
            raise TypeError(
                f"Tensors: arithmetic takes numbers, 0-d tensors, Scalars or Tensors, got a tensor of shape "
                f"{tuple(other.shape)}. To use one tensor with each entry, write it with map(fn)."
            )
        return self._apply(op, (a, b))

    def __neg__(self) -> Tensors:
        return self._apply("mul", (self, -1.0))

    def __invert__(self) -> Tensors:
        return self._logical("not", "~", self)

    def __and__(self, other: Tensors) -> Tensors:
        return self._logical("and", "&", self, other)

    def __or__(self, other: Tensors) -> Tensors:
        return self._logical("or", "|", self, other)

    def _logical(self, op: str, sign: str, *args: Any) -> Tensors:
        for arg in args:
            if not isinstance(arg, Tensors) or not arg._is_mask():
                got = type(arg).__name__ + (" of numbers" if isinstance(arg, Tensors) else "")
                raise TypeError(
                    f"Tensors: {sign} takes masks, what comparisons give, got {got}. Compare with a number."
                )
        return self._apply(op, args)

    def __eq__(self, other: object) -> Any:
        return self._apply("eq", (self, other)) if isinstance(other, (int, float, Tensor, Operand)) else NotImplemented

    def lerp(self, end: Tensors, weight: Scalar) -> Tensors:
        """`self + weight * (end - self)`: the moving average of `end` that keeps `1 - weight` of what it was."""
        return self._apply("lerp", (self, end, weight))

    def sqrt(self) -> Tensors:
        """The square root of each element."""
        return self._apply("sqrt", (self,))

    def rsqrt(self) -> Tensors:
        """One over the square root of each element."""
        return self._apply("rsqrt", (self,))

    def sign(self) -> Tensors:
        """-1, 0 or 1 for each element."""
        return self._apply("sign", (self,))

    def abs(self) -> Tensors:
        """The magnitude of each element."""
        return self._apply("abs", (self,))

    __abs__ = abs

    def exp(self) -> Tensors:
        """e to the power of each element."""
        return self._apply("exp", (self,))

    def expm1(self) -> Tensors:
        """`exp(x) - 1` of each element; of a small one without losing its digits."""
        return self._apply("expm1", (self,))

    def log(self) -> Tensors:
        """The natural logarithm of each element."""
        return self._apply("log", (self,))

    def log1p(self) -> Tensors:
        """`log(1 + x)` of each element; of a small one without losing its digits."""
        return self._apply("log1p", (self,))

    def tanh(self) -> Tensors:
        """The hyperbolic tangent of each element."""
        return self._apply("tanh", (self,))

    def erf(self) -> Tensors:
        """The error function of each element."""
        return self._apply("erf", (self,))

    def atan2(self, other: Any) -> Tensors:
        """The angle of (other, self) for each element, from -pi to pi: of self / other, where other may be 0."""
        return self._apply("atan2", (self, other))

    def round(self) -> Tensors:
        """The nearest integer to each element; the even one of two that are as near."""
        return self._apply("round", (self,))

    __round__ = round

    def floor(self) -> Tensors:
        """The largest integer that is not above each element."""
        return self._apply("floor", (self,))

    def remainder(self, other: Any) -> Tensors:
        """`self % other`: what is left of each element, with the sign of `other`."""
        return self._apply("remainder", (self, other))

    def pow(self, exponent: Scalar) -> Tensors:
        """Each element to the power `exponent`."""
        return self._apply("pow", (self, exponent))

    def maximum(self, other: Any) -> Tensors:
        """The larger of each element and `other`; a NaN stays a NaN."""
        return self._apply("maximum", (self, other))

    def minimum(self, other: Any) -> Tensors:
        """The smaller of each element and `other`; a NaN stays a NaN."""
        return self._apply("minimum", (self, other))

    @answering
    def clamp(self, low: Any = None, high: Any = None) -> Tensors:
        """Each element held between `low` and `high`; None leaves that side open."""
        held = self if low is None else self.maximum(low)
        return held if high is None else held.minimum(high)

    def where(self, condition: Tensors, other: Any) -> Tensors:
        """Each element where `condition` holds, else `other`."""
        return where(condition, self, other)  # type: ignore[no-any-return]

    def isfinite(self) -> Tensors:
        """True for each element that is neither inf nor NaN."""
        return self._apply("isfinite", (self,))

    def isnan(self) -> Tensors:
        """True for each element that is NaN."""
        return self._apply("isnan", (self,))

    @overload
    def sum(self, dim: None = None) -> Scalar: ...
    @overload
    def sum(self, dim: Dims) -> Tensors: ...
    @answering
    def sum(self, dim: Dims | None = None) -> Any:
        """The sum over all entries together; with `dim` that along dimensions of each entry, as `mean` has them."""
        return self._total() if dim is None else self._along("sum", "sum", dim)

    @answering
    def mean(self, dim: Dims) -> Tensors:
        """The mean along dimensions of each entry, accumulated in float64 and rounded once.

        The dimensions stay, with size 1: what comes out broadcasts against entries of the same names.

        Args:
            dim: a dimension, or several; a negative one counts from the end. Every entry must have it. Or a function
                that says which of how many an entry has, `lambda n: tuple(range(1, n))` all but the first; where it
                says none, each element is on its own. Of a complex entry they are the complex tensor's, and the mean
                is of its pairs.

        Raises: TypeError for what is no dimension; ValueError for one that an entry has not.

        >>> import torch, gradchain as gch
        >>> g = gch.Tensors.of({"w": torch.tensor([[1.0, 3.0], [5.0, 7.0]])})
        >>> g.mean(-1)["w"]
        tensor([[2.],
                [6.]])
        >>> (g - g.mean(-1))["w"]
        tensor([[-1.,  1.],
                [-1.,  1.]])
        """
        return self._along("mean", "mean", dim)

    @answering
    def amax(self, dim: Dims) -> Tensors:
        """The largest element along dimensions of each entry, as `mean` has them; NaN where there is one."""
        return self._along("amax", "amax", dim)

    @overload
    def norms(self, dim: None = None, *, p: float = 2.0) -> Scalars: ...
    @overload
    def norms(self, dim: Dims, *, p: float = 2.0) -> Tensors: ...
    @answering
    def norms(self, dim: Dims | None = None, *, p: float = 2.0) -> Scalars | Tensors:
        """The p-norm of each entry on its own, accumulated in float64: one number per parameter.

        With `dim` Tensors of the norms along dimensions of each entry, as `mean` has them; of a complex entry they are
        those of its magnitudes for p = 2, and of its pairs of reals for any other.
        """
        if dim is None:
            return self._norms(p)
        if p == 2:
            return self._along("norms", "norm", dim)
        if math.isinf(p):
            return self.abs()._along("norms", "amax", dim)
        return self.abs().pow(p)._along("norms", "sum", dim).pow(1 / p)

    def sums(self) -> Scalars:
        """The sum of each entry on its own, accumulated in float64: one number per parameter."""
        return self._sums()

    def numels(self) -> Scalars:
        """How many elements each entry has: one number per parameter."""
        pairs = self.index.complex
        shapes = zip(self.index.names, self._whole_shapes(), strict=True)
        return Scalars(
            {n: shape.numel() // 2 if n in pairs and shape[-1] == 2 else shape.numel() for n, shape in shapes}
        )

    # the mapping

    def __iter__(self) -> Iterator[str]:
        return iter(self.index.names)

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, name: object) -> bool:
        return name in self.index

    def __bool__(self) -> bool:
        raise TypeError(
            "Tensors: many tensors have no single truth value. Use len(tensors), or where(condition, other)."
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{n}: {tuple(self[n].shape)} {str(self[n].dtype)[6:]}" for n in list(self)[:8])
        return f"Tensors({shown}{', …' if len(self) > 8 else ''})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        raise TypeError(
            f"torch.{name} takes tensors, not Tensors: use the method of that name, an operator, or "
            f"tensors.map(torch.{name}) for each entry."
        )

    @staticmethod
    def of(source: nn.Module | Mapping[str, Tensor]) -> Tensors:
        """The parameters of a module, or named tensors, as Tensors (no copies; tied weights once).

        Of a mapping only names and shapes are known, so `owner(...)` selectors need the module.

        Raises:
            TypeError: for anything else, or an entry that is not a floating-point or complex tensor.
        """
        from gradchain.core.eager import EagerTensors

        return EagerTensors.about(facts_of(source))


def _over(before: Tensors, now: Tensors) -> Tensors:
    return before.overlay(now)


def facts_of(source: nn.Module | Mapping[str, Tensor]) -> list[Fact]:
    """Facts about the parameters of a module (tied ones once, under their first name) or about named tensors."""
    if isinstance(source, nn.Module):
        owners = dict(source.named_modules())
        return [Fact(n, p, owners[n.rpartition(".")[0]]) for n, p in source.named_parameters()]
    if not isinstance(source, Mapping):
        raise TypeError(f"Tensors.of: takes a module or a mapping from name to tensor, got {type(source).__name__}.")
    entries: Mapping[Any, Any] = source
    for name, tensor in entries.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"Tensors.of: entries must be named tensors, got {name!r}: {type(tensor).__name__}.")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise TypeError(f"Tensors.of: {name!r} must be floating point or complex, got {tensor.dtype}.")
    return [Fact(name, tensor) for name, tensor in source.items()]
