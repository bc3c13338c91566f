"""Generalized primal averaging: steps from one point, a smooth average of it, and gradients between the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import AverageState
from gradchain.core.scalars import Count
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.optimizers import _parts as parts
from gradchain.rules.between_points import ALL_ROWS
from gradchain.selectors import SelectorLike
from gradchain.transforms._anchor import anchored
from gradchain.transforms.adam import scale_by_adam
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class PrimalAveragingState(AverageState):
    """What primal_averaging remembers; `average` is x, and `buffers` has no entries."""

    count: Count  # updates of each parameter so far
    z: Tensors  # where the rule steps from


class primal_averaging(Transform):
    """Step from z, average that into x at a fixed rate, and train at y between the two.

        z ← z - learning_rate u
        x ← mu_x x + (1 - mu_x) z
        y = mu_y x + (1 - mu_y) z

    It stands behind a whole rule, momentum and all, in place of its learning rate: `schedule_free` with an average that
    forgets, which wants a learning rate that falls as any rule does. One that remembers about 1 / (1 - mu_x) steps is a
    smooth DiLoCo of one worker. The model holds y; x is what is evaluated and deployed: `with updater.averaged():`,
    `gch.read_weights(path, averaged=True)`. A decay in front of it is at y. It owns the weights: what else writes into
    them after a parameter's first update changes y alone, until the next. Batch-norm statistics are those at y:
    `updater.update_batch_norm(loader)` makes those at x.

    Args:
        learning_rate: at least 0; a number or a schedule.
        mu_y: how much of x is in y, in [0, 1].
        mu_x: how much of x stays, in [0, 1]: 0.9934, 0.9967 and 0.9984 are for 16, 32 and 64 steps of DiLoCo.
        state_dtype: the dtype z and x are stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: elementwise, any.
    State: `count`; `average` and `z`, two tensors per parameter.
    Units: direction → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: the authors' GPAAdamW behind Adam and decay, which keeps y and z alone; a twin in that form.
    Paper: Defazio et al., 2025, https://arxiv.org/abs/2512.17131

    >>> import gradchain as gch
    >>> gch.chain(gch.scale_by_lion(), gch.rules.primal_averaging(1e-4, mu_x=0.9934))
    chain(scale_by_lion(), primal_averaging(0.0001, mu_x=0.9934))
    """

    descends = True
    role = "weights"
    per_parameter = True
    refuses_rows = ALL_ROWS

    learning_rate: Annotated[Hyper, "[0, inf)"]
    mu_y: Hyper = Hyper(0.7, "[0, 1]")
    mu_x: Hyper = Hyper(0.9967, "[0, 1]")
    state_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> PrimalAveragingState:
        slots = params.slow_slot(self.state_dtype)
        x, z = (params.clone().stored_as(slots) for _ in range(2))
        return PrimalAveragingState(x, params.select(()), Count(params.index), z)

    def update(self, u: Tensors, state: PrimalAveragingState, ctx: Context) -> tuple[Weights, PrimalAveragingState]:
        count = state.count.tick(u)
        kept, z = (anchored(state.count, field, ctx.params) for field in (state.average, state.z))
        z = z.select(u.index) - self.learning_rate * u
        x = kept.select(u.index).lerp(z, 1 - self.mu_x)
        return Weights(z.lerp(x, self.mu_y)), PrimalAveragingState(kept.overlay(x), state.buffers_after(), count, z)


@answering
def gpa_adamw(
    learning_rate: Value,
    mu_y: Value = 0.7,
    mu_x: Value = 0.9967,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    state_dtype: torch.dtype | None = None,
) -> chain:
    """AdamW with primal averaging, decay of what `mask` selects at y: Defazio et al., 2025.

    Equals the authors' GPAAdamW, https://github.com/facebookresearch/optimizers. Paper: https://arxiv.org/abs/2512.17131.
    The model is at y; evaluate x: `with updater.averaged():`.

    >>> import gradchain as gch
    >>> gch.rules.gpa_adamw(1e-3)
    chain(scale_by_adam(), primal_averaging(0.001))
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        *parts.decay(weight_decay, mask),
        primal_averaging(learning_rate, mu_y, mu_x, state_dtype),
    )
