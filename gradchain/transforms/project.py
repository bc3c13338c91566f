"""Put the new weights where they must lie."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.selectors import SelectorLike, everything
from gradchain.selectors.base import predicate
from gradchain.transforms._arity import arity


class project(Transform):
    """Replace the new weights by a function of them: a clamp, a norm of 1, rows that stay as they were.

        w ← fn(w + u)      (or fn(w + u, w))

    It owns the weights: what `fn` returns is written as it is. A projection added as a difference leaves some elements
    outside its bound by an ulp. It comes last, with the averages. Low-precision weights are seen in float32, before
    their one rounding.

    Args:
        fn: called as fn(new), or fn(new, old) if it needs two arguments, with each whole tensor; returns one of the
            same shape. It must not write to `old`.
        selector: which parameters; the others become w + u. A parameter without a gradient stays as it is.

    Shapes: any; complex parameters as complex tensors.
    Units: updates → weights.
    Raises: TypeError for a wrong argument; ValueError at bind for a selector that matches nothing, and for a result of
        another shape.
    Equals: a loop over the parameters under torch.no_grad after optimizer.step(); optax.projections and
        optax.keep_params_nonnegative, without their difference.

    >>> import torch, gradchain as gch
    >>> keep = gch.project(lambda w: w.clamp(0, 4.6052), gch.named("scale"))
    >>> params = gch.Tensors.of({"scale": torch.tensor([4.0, 1.0])})
    >>> weights, _ = keep.update(0.5 * params, keep.init(params), gch.Context(params))
    >>> gch.apply_updates(params, weights)["scale"]
    tensor([4.6052, 1.5000])
    """

    descends = False
    role = "weights"
    per_parameter = True
    calls_back = True
    refuses_rows = (
        "takes whole weights. Leave these out, masked(project(…), ~gch.named(…)), or give dense gradients: "
        "sparse=False in nn.Embedding and nn.EmbeddingBag."
    )

    fn: Callable[[Tensor], Tensor] | Callable[[Tensor, Tensor], Tensor]
    selector: SelectorLike = everything

    @cached_property
    def _arity(self) -> int:
        return arity("project", self.fn, "new", "new, old")

    def check(self) -> None:
        object.__setattr__(self, "selector", predicate(self.selector, "project"))
        self._arity  # noqa: B018  # raises, and is then known

    def init(self, params: Tensors) -> State:
        params.index.members(self.selector)
        return super().init(params)

    def update(self, updates: Tensors | Weights, state: State, ctx: Context) -> tuple[Weights, State]:
        present = updates.tensors.index if isinstance(updates, Weights) else updates.index
        new = ctx.new_params(updates).select(present)
        inside = new.select(ctx.members(self.selector)).map(self.fn, *[ctx.params][: self._arity - 1])
        return Weights(new.overlay(inside)), state
