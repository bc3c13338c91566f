"""Let a link work at some updates only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from gradchain.combinators.masked import as_chain, check_link
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.roles import Wraps
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.core.weights import Weights


class Truth(Hyper):
    """A number that is a truth as well: 0 and False, or anything up to 1 and True."""

    def checked(self, value: Any, owner: str, cause: str = "") -> Any:
        """A truth as 0 or 1."""
        is_truth = type(value).__name__ in ("bool", "bool_")  # Python's or numpy's, which need not be there
        return super().checked(float(value) if is_truth else value, owner, cause)


class when(Wraps):
    """Apply a link at the updates for which a predicate holds; at all others the updates pass, or are zero.

        u = inner(g) where predicate(step), else g   (or 0, with otherwise="zero")

    Where it does not hold the inner link rests: its moments, counts and averages stay as they are. The predicate is
    asked as a schedule is: at every update, with the applied updates so far; one that reads another clock is written
    `by("epoch", …)`. A link that flips the sign would leave raw gradients where updates pass, and is refused there.

    Args:
        predicate: a function step -> True or False, or a schedule of 0 and 1; a number or truth is the same at every
            update, until an override says otherwise.
        inner: a Transform.
        otherwise: "pass" or "zero".

    Shapes: as the inner link.
    State: that of the inner link.
    Raises: TypeError or ValueError for a wrong argument.
    Equals: optax.conditionally_transform, and with "zero" optax.conditionally_mask, which count their own calls.

    >>> import gradchain as gch
    >>> late = gch.when(lambda step: step >= 1000, gch.clip_by_norm(1.0))
    >>> gch.when(gch.schedules.piecewise((0, 1.0), (500, 0.0)), gch.clip_by_norm(1.0))
    when(piecewise((0, 1.0), (500, 0.0)), clip_by_norm(1.0))
    """

    descends = False
    per_parameter = True
    uniform = frozenset({"predicate"})

    predicate: Annotated[Truth, "[0, 1]"]
    inner: Transform
    otherwise: str = "pass"

    def check(self) -> None:
        check_link("when", "inner", self.inner)
        if self.otherwise not in ("pass", "zero"):
            raise ValueError(f"when: otherwise must be 'pass' or 'zero', got {self.otherwise!r}.")
        held = [(type(self.inner).__name__, self.inner), *((a, x) for a, x, _ in walk(as_chain(self.inner), None))]
        turning = next((a for a, link in held if link.descends or link.role == "learning_rate"), None)
        if turning and self.otherwise == "pass":
            raise ValueError(
                f"when: inner must leave the sign as it is where updates pass otherwise, got {turning}. Write "
                "otherwise='zero', or switch(…) for one rule and then another."
            )

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return as_chain(self.inner).parts(index)

    def update(self, g: Tensors | Weights, state: Links, ctx: Context) -> tuple[Tensors | Weights, State]:
        if self.predicate:
            out, inner = as_chain(self.inner).update(g, state, ctx)
            if out is None:
                raise RuntimeError("when: a link in it held the chain. Move that link to the outermost chain.")
            return out, inner
        if self.otherwise == "pass":
            return g, state
        return (Weights(ctx.params.select(g.index)) if isinstance(g, Weights) else g.zeros_like()), state
