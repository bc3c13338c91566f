"""A function as a link."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from gradchain.core.context import Context
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.selectors.source import code
from gradchain.transforms._arity import arity


class stateless(Transform):
    """Replace the updates by a function of them.

        u = fn(g, w)      (or fn(g, w, ctx))

    The short way to a link that remembers nothing. `fn` must change none of its arguments. The checks at bind trust
    it. A config writes it by name: give `from_config` what the name means. For the weights themselves write
    `project`; for a link that remembers, a `Transform` of your own.

    Args:
        fn: called as fn(updates, params), or as fn(updates, params, ctx) if it needs three arguments; returns Tensors.
            What each entry needs goes through `updates.map`.

    Shapes: as the function.
    Raises: TypeError for a function of other arguments, or one that does not return Tensors; RuntimeError where the
        context has no params.
    Equals: optax.stateless, and optax.stateless_with_tree_map through `updates.map`.

    >>> import torch, gradchain as gch
    >>> def centre(updates, params):
    ...     return updates.map(lambda g: g - g.mean())
    >>> link, w = gch.stateless(centre), gch.Tensors.of({"w": torch.tensor([1.0, 3.0])})
    >>> link.update(w, link.init(w), gch.Context(w))[0]["w"]
    tensor([-1.,  1.])
    """

    calls_back = True

    fn: Callable[[Tensors, Tensors], Tensors] | Callable[[Tensors, Tensors, Context], Tensors]

    @cached_property
    def _arity(self) -> int:
        return arity("stateless", self.fn, "updates, params", "updates, params, ctx")

    def check(self) -> None:
        self._arity  # noqa: B018  # raises, and is then known

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        fn: Callable[..., object] = self.fn
        out = fn(*(g, ctx.params, ctx)[: self._arity])
        if not isinstance(out, Tensors):
            cure = " Does it lack a return?" if out is None else " Tensors come from arithmetic or updates.map(…)."
            raise TypeError(f"stateless: {code(fn)} must return Tensors, got {type(out).__name__}.{cure}")
        return out, state
