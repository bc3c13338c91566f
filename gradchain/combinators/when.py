"""Let a link work at some updates only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from gradchain.combinators.masked import as_chain, check_link
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.roles import Wraps
from gradchain.core.says import Says
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.core.weights import Weights
from gradchain.selectors.source import code


@dataclass(frozen=True)
class Asked:
    """A predicate of the step and the context, which is asked inside the link and is no number."""

    fn: Callable[[int, Context], Any]

    def __repr__(self) -> str:
        return code(self.fn)


class Truth(Hyper):
    """A number that is a truth as well: 0 and False, or anything up to 1 and True; or a predicate of the context."""

    def __set__(self, link: object, value: Any) -> None:
        if isinstance(value, Asked) or (inspect.isroutine(value) and takes(value) == 2):
            link.__dict__[self.name] = value if isinstance(value, Asked) else Asked(value)
        else:
            super().__set__(link, value)

    def is_numeric(self, value: Any) -> bool:
        """What asks the context is no number before the link runs."""
        return not isinstance(value, Asked)

    def checked(self, value: Any, owner: str, cause: str = "") -> Any:
        """A truth as 0 or 1."""
        is_truth = type(value).__name__ in ("bool", "bool_")  # Python's or numpy's, which need not be there
        return super().checked(float(value) if is_truth else value, owner, cause)


def takes(fn: Callable[..., Any]) -> int:
    """How many arguments a function must be given."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


class when(Wraps):
    """Apply a link at the updates for which a predicate holds; at all others the updates pass, or are zero.

        u = inner(g) where predicate(step), else g   (or 0, with otherwise="zero")

    Where it does not hold the inner link rests: its moments, counts and averages stay as they are. The predicate is
    asked as a schedule is: at every update, with the applied updates so far; one that reads another clock is written
    `by("epoch", …)`. A link that flips the sign would leave raw gradients where updates pass, and is refused there.

    Args:
        predicate: a function step -> True or False, or a schedule of 0 and 1; a number or truth is the same at every
            update, until an override says otherwise. A function that takes two arguments is called with (step, ctx):
            it may ask for `ctx.loss` or `ctx.observed`, and then this link runs as Python at every step.
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

    def says(self) -> Says:
        """What asks the context is a function of the user's."""
        return {"calls_back": isinstance(self.__dict__["predicate"], Asked)}

    def as_call(self) -> Iterator[tuple[str, Any]]:
        return ((name, value.fn if isinstance(value, Asked) else value) for name, value in super().as_call())

    def written(self) -> dict[str, Any]:
        predicate: Any = self.__dict__["predicate"]
        return {**super().written(), "predicate": predicate.fn if isinstance(predicate, Asked) else predicate}

    def check(self) -> None:
        check_link("when", "inner", self.inner)
        if self.otherwise not in ("pass", "zero"):
            raise ValueError(f"when: otherwise must be 'pass' or 'zero', got {self.otherwise!r}.")
        held = walk(as_chain(self.inner), None)
        turning = next((a for a, link, _ in held if link.descends or link.role == "learning_rate"), None)
        if turning and self.otherwise == "pass":
            raise ValueError(
                f"when: inner must leave the sign as it is where updates pass otherwise, got {turning}. Write "
                "otherwise='zero', or switch(…) for one rule and then another."
            )

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return as_chain(self.inner).parts(index)

    def update(self, g: Tensors | Weights, state: Links, ctx: Context) -> tuple[Tensors | Weights, State]:
        asked: Any = self.predicate
        if asked.fn(ctx.step, ctx) if isinstance(asked, Asked) else asked:
            out, inner = as_chain(self.inner).update(g, state, ctx)
            if out is None:
                raise RuntimeError("when: a link in it held the chain. Move that link to the outermost chain.")
            return out, inner
        if self.otherwise == "pass":
            return g, state
        return (Weights(ctx.params.select(g.index)) if isinstance(g, Weights) else g.zeros_like()), state
