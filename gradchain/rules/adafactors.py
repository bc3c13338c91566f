"""Adafactor as torch has it, of its links."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradchain.core.chain import chain
from gradchain.optimizers import _parts as parts
from gradchain.rules.block_norms import clip_by_block_rms, scale_by_param_block_rms
from gradchain.transforms.factored import cap_learning_rate, scale_by_factored_rms
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value
    from gradchain.selectors import SelectorLike


@answering
def adafactor(
    learning_rate: Value = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: Value = 1.0,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    maximize: bool = False,
) -> chain:
    """Adafactor: Shazeer and Stern, 2018, https://arxiv.org/abs/1804.04235.

    Five rules go by this name. This is torch.optim.Adafactor: the last two dimensions are factored, of any size; steps
    are relative to the weights, at least eps[1], and the learning rate is at most 1/√t; decay is times the learning
    rate. optax.adafactor factors the two largest dimensions of 128 or more, does not cap the rate, and decays without
    it: `chain(scale_by_factored_rms(), clip_by_block_rms(1.0), scale_by_learning_rate(rate, flip_sign=False),
    scale_by_param_block_rms(), add_decayed_weights(…), scale(-1))`. transformers' makes a rate of its own where it is
    given none, and may keep a momentum. timm's factors dimensions of 16 or more, and with a rate given leaves the
    weights' size out of account. big_vision's has no such size and no clip, and a momentum in bfloat16.

    eps[0] is the least root mean square; None is the machine epsilon. A learning rate that is overridden is so by both
    its addresses, that of the cap too.

    >>> import gradchain as gch
    >>> gch.rules.adafactor(0.01)
    chain(
        scale_by_factored_rms(min_dim_size_to_factor=0, epsilon=0, dims="last", floor="dtype"),
        clip_by_block_rms(1.0),
        scale_by_param_block_rms(),
        cap_learning_rate(0.01),
        scale_by_learning_rate(0.01),
    )
    """
    least = "dtype" if eps[0] is None else eps[0]
    return chain(
        *parts.ascent(maximize),
        scale_by_factored_rms(True, -beta2_decay, 0, 0, 0, "last", least),
        clip_by_block_rms(d),
        scale_by_param_block_rms(eps[1]),
        cap_learning_rate(learning_rate),
        *parts.decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
