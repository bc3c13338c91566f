"""MuonClip's clip of query and key weights by the attention logits that they make."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.says import Says
from gradchain.core.scalars import maximum, sqrt
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.selectors import SelectorLike
from gradchain.selectors.base import predicate


class QkClipState(State):
    """What qk_clip remembers."""

    num_seen: Annotated[int, "integer [0, inf)"] = 0  # of the observations


class qk_clip(Transform):
    """Shrink the new query and key weights of a layer where its largest attention logit is above a bound.

        w ← √(max_logit / s) (w + u) where s > max_logit, s the largest number observed since the last update

    A logit is the product of a query and a key, so both by the root make it the bound. The model tells the number:
    `updater.observe("layers.0.attn", logits.max())`; without news nothing is clipped. One link for each layer, behind
    the whole rule; it owns the weights. The largest logit is recorded as "max_logit".

    Args:
        observed: the name given to `observe`.
        selector: the query and key projections of that layer. For bounds per head keep heads as parameters.
        max_logit: the bound, above 0.

    Shapes: elementwise, any.
    State: one number.
    Units: updates → weights.
    Raises: TypeError or ValueError for a wrong argument; ValueError at bind for a selector that matches nothing.
    Equals: a twin from the formula.
    Paper: Kimi Team, 2025, Algorithm 1, https://arxiv.org/abs/2507.20534

    >>> import gradchain as gch
    >>> gch.rules.qk_clip("attn.0", gch.named("layers.0.attn.[qk].weight"), max_logit=50.0)
    qk_clip("attn.0", named("layers.0.attn.[qk].weight"), max_logit=50.0)
    """

    descends = False
    role = "weights"
    uniform = frozenset({"max_logit"})
    refuses_rows = (
        "takes whole weights. Give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag; or leave these "
        "parameters out, masked(qk_clip(…), ~gch.named(…))."
    )

    observed: str
    selector: SelectorLike
    max_logit: Hyper = Hyper(100.0, "(0, inf)")

    def says(self) -> Says:
        """It waits for its number."""
        return {"observes": frozenset({self.observed})}

    def check(self) -> None:
        if not isinstance(self.observed, str):
            raise TypeError(f"qk_clip: observed must be the name given to observe, got {self.observed!r}.")
        object.__setattr__(self, "selector", predicate(self.selector, "qk_clip"))

    def init(self, params: Tensors) -> QkClipState:
        params.index.members(self.selector)
        return QkClipState()

    def update(self, u: Tensors | Weights, state: QkClipState, ctx: Context) -> tuple[Weights, QkClipState]:
        present = u.tensors.index if isinstance(u, Weights) else u.index
        new = ctx.new_params(u).select(present)
        news, count = ctx.news(self.observed, state.num_seen)
        if not news:
            return Weights(new), QkClipState(count)
        largest = news[0]
        for logit in news[1:]:
            largest = maximum(largest, logit)
        ctx.record("max_logit", largest)
        factor = sqrt(self.max_logit / maximum(largest, self.max_logit))
        return Weights(new.overlay(factor * new.select(ctx.members(self.selector)))), QkClipState(count)
