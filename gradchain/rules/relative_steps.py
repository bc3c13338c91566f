"""Fromage: steps relative to the weights, after which these are as long as before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import sqrt
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules.trust_ratio import scale_by_trust_ratio
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class shrink_by_learning_rate(Transform):
    """Multiply the updates by minus the learning rate, and shrink what the weights become.

        w + u = (w - learning_rate g) / √(1 + learning_rate²)

    A step at a right angle to the weights and as long as learning_rate ‖w‖, as behind `scale_by_trust_ratio`, leaves
    their norm as it is. In place of `scale_by_learning_rate`; no decay belongs beside it.

    Args:
        learning_rate: at least 0; a number or a schedule.

    Shapes: elementwise, any.
    Units: weights per unit of the updates before it.
    Raises: ValueError or TypeError for a learning rate that is negative or not a number.
    Equals: the last two links of optax.fromage, whose decay is negative.
    Paper: Bernstein et al., 2020, Algorithm 1, https://arxiv.org/abs/2002.03432

    >>> import gradchain as gch
    >>> gch.rules.shrink_by_learning_rate(0.01)
    shrink_by_learning_rate(0.01)
    """

    descends = True
    role = "learning_rate"
    per_parameter = True
    refuses_rows = "decays all rows. Write scale_by_learning_rate(…) for that parameter, which decays none."

    learning_rate: Annotated[Hyper, "[0, inf)"]

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        factor = 1.0 / sqrt(1.0 + self.learning_rate * self.learning_rate)
        return (-self.learning_rate * factor) * g + (factor - 1.0) * ctx.params, state


@answering
def fromage(learning_rate: Value, min_norm: Value = 1e-6) -> chain:
    """Fromage: Bernstein et al., 2020, Algorithm 1, https://arxiv.org/abs/2002.03432.

    Equals optax.fromage; torch has none. The learning rate is the relative change of each weight, 0.01 to begin with.

    >>> import gradchain as gch
    >>> gch.rules.fromage(0.01)
    chain(scale_by_trust_ratio(min_norm=1e-06), shrink_by_learning_rate(0.01))
    """
    return chain(scale_by_trust_ratio(min_norm), shrink_by_learning_rate(learning_rate))
