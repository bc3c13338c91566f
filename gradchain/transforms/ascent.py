"""Climbing: what the loss is told to do is turned round."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class maximize(Transform):
    """Turn the updates round, so that a chain that descends climbs: the loss grows.

        u = -g

    First in the chain: weight decay behind it still shrinks the weights, which with `update(-loss)`, the same
    otherwise, it does too. `scale_by_learning_rate(…, flip_sign=False)` turns the decay round as well. It says nothing
    of signs to the checks at bind, so another one too many is not seen.

    Shapes: elementwise, any.
    Units: unchanged.
    Equals: torch.optim.SGD with maximize=True; that argument of all of torch.optim's classes.

    >>> import gradchain as gch
    >>> gch.chain(gch.maximize(), gch.sgd(0.1, weight_decay=1e-4))
    chain(maximize(), add_decayed_weights(0.0001), scale_by_learning_rate(0.1))
    """

    descends = None  # on purpose: the sign is not to be mended
    per_parameter = True

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        return -g, state
