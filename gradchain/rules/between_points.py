"""Schedule-free learning: an average of the weights in place of a schedule that falls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper, is_number
from gradchain.core.roles import AverageState
from gradchain.core.scalars import Count, Scalars, maximum, minimum, where
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms._anchor import anchored
from gradchain.transforms._correction import LEAST
from gradchain.transforms.radam import rectified
from gradchain.transforms.rms import scale_by_rms
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


ALL_ROWS = (
    "averages all rows. Give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag; or put these "
    "parameters into another branch of gch.partition."
)


class ScheduleFreeState(AverageState):
    """What schedule_free remembers; `average` is x, and `buffers` has no entries."""

    count: Count  # t, updates of each parameter so far
    z: Tensors  # where the rule steps from
    weight_sum: Annotated[Scalars, "[0, inf)"]  # of each parameter
    max_rate: Annotated[Scalars, "[0, inf)"]  # the largest learning rate that each has had


class schedule_free(Transform):
    """Step from z, average that into x, and train at y between the two.

        η_t = learning_rate min(1, t / warmup_steps)
        z_t = z_(t-1) - η_t (u + z_decay z_(t-1))
        c_t = w_t / Σ w,  w_t = t^r (max of η so far)^weight_lr_power
        x_t = x_(t-1) + c_t (z_t - x_(t-1))
        y_t = (1 - b1) z_t + b1 x_t

    It stands behind a rule without momentum, in place of its learning rate. The model holds y, where gradients are
    taken; x is what is evaluated and deployed: `with updater.averaged():`, `gch.read_weights(path, averaged=True)`. So
    there is no eval() to forget, and a checkpoint has both. The learning rate does not fall; a warm-up belongs in here,
    as `warmup_steps` or as a schedule, for an average weighs by it. A decay in front of it is at y. It owns the
    weights: what else writes into them after a parameter's first update, a `project` behind it too, changes y alone,
    until the next update. Statistics of batch norms are those at y: `updater.update_batch_norm(loader)` makes those at
    x. `t` counts the updates of each parameter, so one that sat out has an average of its own.

    Args:
        learning_rate: at least 0; a number or a schedule.
        b1: how much of x is in y, in [0, 1]: 0 trains at z, as plain averaging does, 1 at x.
        weight_lr_power: how strongly a lower rate counts less in the average, at least 0.
        r: the average weighs later points by t^r, at least 0.
        warmup_steps: so many updates the rate rises to learning_rate, an integer of at least 0.
        z_decay: decay of the weights at z, at least 0; at y it is `add_decayed_weights` in front.
        rectify: None; or the b2 of the rule in front, in (0.6, 1): the rate is multiplied by RAdam's rectification of
            it, which is 0 in the first updates.
        state_dtype: the dtype z and x are stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: elementwise, any.
    State: `count`; `average` and `z`, two tensors per parameter; `weight_sum` and `max_rate`, numbers per parameter.
    Units: direction → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: schedulefree.SGDScheduleFree, AdamWScheduleFree, RAdamScheduleFree with silent_sgd_phase=True, and
        AdamWScheduleFreeReference with decay_at_z=True, where no gradient is None: there t counts steps of all.
        optax.contrib.schedule_free without a warm-up, which there counts from 1 for the average and from 0 for the
        step. They recover x from y and z, which b1 = 0 forbids and low precision spoils.
    Paper: Defazio et al., 2024, https://arxiv.org/abs/2405.15682

    >>> import gradchain as gch
    >>> gch.chain(gch.clip_by_norm(1.0), gch.rules.schedule_free(1.0, warmup_steps=100))
    chain(clip_by_norm(1.0), schedule_free(1.0, warmup_steps=100))
    """

    descends = True
    role = "weights"
    per_parameter = True
    refuses_rows = ALL_ROWS

    learning_rate: Annotated[Hyper, "[0, inf)"]
    b1: Hyper = Hyper(0.9, "[0, 1]")
    weight_lr_power: Hyper = Hyper(2.0, "[0, inf)")
    r: Hyper = Hyper(0.0, "[0, inf)")
    warmup_steps: Hyper = Hyper(0, "integer [0, inf)")
    z_decay: Hyper = Hyper(0.0, "[0, inf)")
    rectify: float | None = None
    state_dtype: torch.dtype | None = None

    def check(self) -> None:
        b2: object = self.rectify
        if b2 is not None and not (is_number(b2) and 0.6 < b2 < 1):  # type: ignore[operator]
            raise ValueError(f"schedule_free: rectify must be a number in (0.6, 1) or None, got {b2!r}.")

    def init(self, params: Tensors) -> ScheduleFreeState:
        slots, zeros = params.slow_slot(self.state_dtype), Scalars.of(params.index, 0.0)
        x, z = (params.clone().stored_as(slots) for _ in range(2))
        return ScheduleFreeState(x, params.select(()), Count(params.index), z, zeros, zeros)

    def update(self, u: Tensors, state: ScheduleFreeState, ctx: Context) -> tuple[Weights, ScheduleFreeState]:
        count = state.count.tick(u)
        rate = self._rate(count)
        highest = maximum(state.max_rate.select(u), rate)
        weight = count**self.r * highest**self.weight_lr_power
        total = state.weight_sum.select(u) + weight
        share = where(total > 0, weight / maximum(total, LEAST), 0.0)
        kept, z = (anchored(state.count, field, ctx.params) for field in (state.average, state.z))
        z = z - rate * (u + self.z_decay * z)
        x = kept.select(u.index).lerp(z, share)
        kept, others = kept.overlay(x), state.buffers_after()
        return Weights(z.lerp(x, self.b1)), ScheduleFreeState(kept, others, count, z, total, highest)

    def _rate(self, count: Count) -> Any:
        """The learning rate of each parameter's update."""
        rate = self.learning_rate * minimum(count / maximum(self.warmup_steps, 1), 1.0)
        if self.rectify is None:
            return rate
        trusted, part = rectified(self.rectify, count, 4.0)
        return where(trusted, rate * part, 0.0)


@answering
def schedule_free_sgd(
    learning_rate: Value = 1.0,
    warmup_steps: Value = 0,
    b1: Value = 0.9,
    weight_decay: Value = 0.0,
    weight_lr_power: Value = 2.0,
    state_dtype: torch.dtype | None = None,
    *,
    r: Value = 0.0,
    z_decay: Value = 0.0,
    mask: SelectorLike | None = None,
) -> chain:
    """Schedule-free descent with decay of what `mask` selects: Defazio et al., 2024, https://arxiv.org/abs/2405.15682.

    Equals schedulefree.SGDScheduleFree, with its momentum as b1, and optax.contrib.schedule_free_sgd without a warm-up.
    The model is at y; evaluate x: `with updater.averaged():`. The decay is at y, that by
    z_decay at z.

    >>> import gradchain as gch
    >>> gch.rules.schedule_free_sgd(1.0, warmup_steps=100)
    chain(schedule_free(1.0, warmup_steps=100))
    """
    return chain(
        *parts.decay(weight_decay, mask),
        schedule_free(learning_rate, b1, weight_lr_power, r, warmup_steps, z_decay=z_decay, state_dtype=state_dtype),
    )


@answering
def schedule_free_adamw(
    learning_rate: Value = 0.0025,
    warmup_steps: Value = 0,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    weight_lr_power: Value = 2.0,
    state_dtype: torch.dtype | None = None,
    *,
    r: Value = 0.0,
    z_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    nu_dtype: torch.dtype | None = None,
) -> chain:
    """Schedule-free AdamW with decay of what `mask` selects: Defazio et al., 2024, https://arxiv.org/abs/2405.15682.

    Equals schedulefree.AdamWScheduleFree, and optax.contrib.schedule_free_adamw without a warm-up. The average stands
    in for the momentum: in front of it is Adam without one. The model is at y; evaluate x: `with updater.averaged():`.
    The decay is at y, that by z_decay at z.

    >>> import gradchain as gch
    >>> gch.rules.schedule_free_adamw(0.01, warmup_steps=100)
    chain(scale_by_rms(decay=0.999, bias_correction=True), schedule_free(0.01, warmup_steps=100))
    """
    return chain(
        scale_by_rms(b2, eps, bias_correction=True, nu_dtype=nu_dtype),
        *parts.decay(weight_decay, mask),
        schedule_free(learning_rate, b1, weight_lr_power, r, warmup_steps, z_decay=z_decay, state_dtype=state_dtype),
    )


@answering
def schedule_free_radam(
    learning_rate: Value = 0.0025,
    b1: Value = 0.9,
    b2: float = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    weight_lr_power: Value = 2.0,
    state_dtype: torch.dtype | None = None,
    *,
    r: Value = 0.0,
    z_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    nu_dtype: torch.dtype | None = None,
) -> chain:
    """Schedule-free AdamW that needs no warm-up: its rate is multiplied by RAdam's rectification.

    Defazio et al., 2024, https://arxiv.org/abs/2405.15682. Equals schedulefree.RAdamScheduleFree with
    silent_sgd_phase=True, its default: in the first updates, as many as the mean square needs to be of use, nothing
    moves. The model is at y; evaluate x: `with updater.averaged():`.

    >>> import gradchain as gch
    >>> gch.rules.schedule_free_radam(0.01)
    chain(scale_by_rms(decay=0.999, bias_correction=True), schedule_free(0.01, rectify=0.999))
    """
    return chain(
        scale_by_rms(b2, eps, bias_correction=True, nu_dtype=nu_dtype),
        *parts.decay(weight_decay, mask),
        schedule_free(learning_rate, b1, weight_lr_power, r, z_decay=z_decay, rectify=b2, state_dtype=state_dtype),
    )
