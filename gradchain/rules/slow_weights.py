"""Lookahead: slow weights that follow fast ones."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import AverageState
from gradchain.core.scalars import Count, where
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.transforms._anchor import anchored


class LookaheadState(AverageState):
    """What lookahead remembers; `average` are the slow weights, and `buffers` has no entries."""

    count: Count  # updates of each parameter so far


class lookahead(Transform):
    """Take the weights part of the way from slow ones at every so-manieth update, and the slow ones with them.

        fast = w + u;  slow_0 = the weights before the first update
        at every sync_period-th update:  slow ← slow + slow_step_size (fast - slow);  fast ← slow
        w ← fast

    It stands behind a whole rule, learning rate and all, and before `project` and averages. The model holds the fast
    weights; the slow ones are what is evaluated: `with updater.averaged():`, and what is exported where averages are.
    Updates are counted for each parameter, those that were applied: a micro-batch that a window holds is none. It owns
    the weights: what else writes into them after a parameter's first update is seen by the fast ones alone.

    Args:
        sync_period: an integer of at least 1.
        slow_step_size: how far the slow weights go, in [0, 1].

    Shapes: elementwise, any.
    State: `count`; `average`, one tensor per parameter, float32 for float16 and bfloat16.
    Units: updates → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.lookahead with reset_state=False, whose parameters are pairs; pytorch_optimizer's Lookahead. timm's
        makes the slow weights at the first synchronisation, which then does nothing; torch_optimizer's synchronises at
        the first step of a period in place of the last.
    Paper: Zhang, Lucas, Hinton and Ba, 2019, Algorithm 1, https://arxiv.org/abs/1907.08610

    >>> import gradchain as gch
    >>> gch.chain(gch.sgd(0.1, momentum=0.9), gch.rules.lookahead(5, 0.5))
    chain(trace(0.9), scale_by_learning_rate(0.1), lookahead())
    """

    descends = False
    role = "weights"
    per_parameter = True
    refuses_rows = (
        "mixes all rows. Give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag; or leave these "
        "parameters out, masked(lookahead(…), ~gch.named(…))."
    )

    sync_period: Hyper = Hyper(5, "integer [1, inf)")
    slow_step_size: Hyper = Hyper(0.5, "[0, 1]")

    def init(self, params: Tensors) -> LookaheadState:
        slow = params.clone().stored_as(params.slow_slot())
        return LookaheadState(slow, params.select(()), Count(params.index))

    def update(self, u: Tensors | Weights, state: LookaheadState, ctx: Context) -> tuple[Weights, LookaheadState]:
        present = u.tensors.index if isinstance(u, Weights) else u.index
        fast = ctx.new_params(u).select(present)
        count = state.count.tick(fast)
        due = count % self.sync_period == 0
        kept = anchored(state.count, state.average, ctx.params)
        slow = kept.select(present)
        slow = where(due, slow.lerp(fast, self.slow_step_size), slow)
        return Weights(where(due, slow, fast)), LookaheadState(kept.overlay(slow), state.buffers_after(), count)
