"""Gradients without their mean over each row."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS, matrices, of_row


class centralize(Transform):
    """Subtract from each row of the updates its mean.

        u = g - mean of g over all dimensions but the first

    A row is what makes one output, in torch's layout. It comes first in a chain. Vectors and numbers pass unchanged.

    Shapes: two dimensions and more; rows are reduced.
    Units: unchanged.
    Equals: optax.centralize, which also takes the mean over all dimensions but the first: of Flax's kernels, whose
        outputs come last, that is another mean. pytorch_optimizer has the same as centralize_gradient.
    Paper: Yong et al., 2020, https://arxiv.org/abs/2004.01461

    >>> import torch, gradchain as gch
    >>> g = gch.Tensors.of({"w": torch.tensor([[1.0, 3.0], [5.0, 9.0]])})
    >>> link = gch.rules.centralize()
    >>> link.update(g, link.init(g), gch.Context())[0]["w"]
    tensor([[-1.,  1.],
            [-2.,  2.]])
    """

    descends = False
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        rows = g.select(matrices(g.index))
        return (g.overlay(rows - rows.mean(of_row)) if len(rows) else g), state
