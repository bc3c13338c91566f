"""Steps as long as the weights: the trust ratio, and LAMB and LARS, which are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import maximum, minimum, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules._units import WHOLE_WEIGHTS, among
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value
    from gradchain.selectors import SelectorLike


class scale_by_trust_ratio(Transform):
    """Scale the updates of each parameter to the norm of its weights.

        r = trust_coefficient ‖w‖ / (‖g‖ + eps),  1 where either norm is 0
        u = r g

    A norm below `min_norm` counts as that. With `weight_decay` λ it is the paper's form of LARS, which decays itself,
    and divides by the sum of two norms where Optax has the norm of the sum:

        u = (g + λ w) trust_coefficient ‖w‖ / (‖g‖ + λ ‖w‖ + eps)

    Biases and the parameters of norms are usually left out, `masked(scale_by_trust_ratio(), min_ndim(2))`: those that
    begin at 0 would else move by the bare update once, and by next to nothing from then on.

    Args:
        min_norm: what a norm is at least, in its unit; at least 0.
        trust_coefficient: the length of a step per length of the weights, before the learning rate; at least 0.
        eps: added to the norm of the updates, in its unit; at least 0.
        weight_decay: at least 0. Above 0 no `add_decayed_weights` belongs before it.

    Shapes: any; one ratio per tensor, from the norms of weights and updates.
    Units: any → weights: the learning rate is a step relative to the weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_trust_ratio; with `weight_decay` that of pytorch_optimizer.LARS.
    Paper: You, Gitman and Ginsburg, 2017, https://arxiv.org/abs/1708.03888; You et al., 2019,
        https://arxiv.org/abs/1904.00962

    >>> import torch, gradchain as gch
    >>> w, g = gch.Tensors.of({"w": torch.tensor([6.0, 8.0])}), gch.Tensors.of({"w": torch.tensor([0.0, 0.5])})
    >>> link = gch.rules.scale_by_trust_ratio()
    >>> link.update(g, link.init(w), gch.Context(w))[0]["w"]
    tensor([ 0., 10.])
    """

    descends = False
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    min_norm: Hyper = Hyper(0.0, "[0, inf)")
    trust_coefficient: Hyper = Hyper(1.0, "[0, inf)")
    eps: Hyper = Hyper(0.0, "[0, inf)")
    weight_decay: Hyper = Hyper(0.0, "[0, inf)")

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        weight, norm = maximum(ctx.params.norms(), self.min_norm), maximum(g.norms(), self.min_norm)
        decay = self.weight_decay
        ratio = self.trust_coefficient * weight / (norm + decay * weight + self.eps)
        ratio = where(minimum(weight, norm) == 0.0, 1.0, ratio)
        if isinstance(decay, (int, float)) and decay == 0:
            return ratio * g, state
        return ratio * (g + decay * ctx.params), state


@answering
def lamb(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-6,
    eps_root: Value = 0.0,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    trust_ratio_mask: SelectorLike | None = None,
) -> chain:
    """LAMB: Adam with decoupled decay and a trust ratio; You et al., 2019, https://arxiv.org/abs/1904.00962.

    Equals optax.lamb; torch has none. The decay is that of what `mask` selects, the ratio that of what
    `trust_ratio_mask` does, of all by default. Others clip the norm of all gradients first: `clip_by_norm(1.0)`.

    >>> import gradchain as gch
    >>> gch.rules.lamb(1e-2)
    chain(scale_by_adam(eps=1e-06), scale_by_trust_ratio(), scale_by_learning_rate(0.01))
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        *parts.decay(weight_decay, mask),
        parts.among(scale_by_trust_ratio(), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
    )


@answering
def lars(
    learning_rate: Value,
    weight_decay: Value = 0.0,
    weight_decay_mask: SelectorLike | None = None,
    trust_coefficient: Value = 0.001,
    eps: Value = 0.0,
    trust_ratio_mask: SelectorLike | None = None,
    momentum: Value = 0.9,
    nesterov: bool = False,
    *,
    norms_apart: bool = False,
    rate_last: bool = False,
) -> chain:
    """LARS: SGD with a trust ratio; You, Gitman and Ginsburg, 2017, https://arxiv.org/abs/1708.03888.

    Equals optax.lars, which differs from all others in two ways. They divide by ‖g‖ + λ‖w‖, as the paper does, where
    Optax has ‖g + λw‖: `norms_apart=True`, in which what `trust_ratio_mask` leaves out has no decay either. And in
    torch's libraries the learning rate comes after the momentum, where a change of it acts at once: `rate_last=True`.
    With both it is pytorch_optimizer.LARS, whose mask is `min_ndim(2)`.

    >>> import gradchain as gch
    >>> gch.rules.lars(0.1, momentum=0.0)
    chain(scale_by_trust_ratio(trust_coefficient=0.001), scale_by_learning_rate(0.1))
    """
    decay = [] if norms_apart else parts.decay(weight_decay, weight_decay_mask)
    own = among(weight_decay, weight_decay_mask) if norms_apart else 0.0
    ratio = scale_by_trust_ratio(0.0, trust_coefficient, eps, own)
    last = [scale_by_learning_rate(learning_rate), *parts.momentum(momentum, nesterov, None)]
    return chain(
        *decay,
        parts.among(ratio, trust_ratio_mask),
        *(reversed(last) if rate_last else last),
    )
