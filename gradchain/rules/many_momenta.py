"""Momentum at several decays at once: aggregated momentum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, named_parts
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms.trace import trace
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class scale_by_aggmo(Transform):
    """Replace the updates by the mean of several decaying sums of them, each with a decay of its own.

        v_i ← betas_i v_i + g
        u = 1/K Σ v_i,  over the K betas

    A decay near 1 is fast along flat directions and oscillates across steep ones; the sums with smaller decays damp
    that, so it bears a decay of 0.999. Under a steady gradient u grows to the mean of 1 / (1 - betas_i). Each sum is a
    `trace` in it, "trace", "trace#2" and so on, and its decay a hyperparameter of that.

    Args:
        betas: how much of each sum stays, in [0, 1); numbers or schedules, at least one. The paper's are 1 - 0.1^i.

    Shapes: elementwise, any.
    State: that of each trace, one tensor per parameter and decay.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: pytorch_optimizer.AggMo and torch_optimizer.AggMo after scale_by_learning_rate.
    Paper: Lucas, Sun, Zemel and Grosse, 2018, Equation 4, https://arxiv.org/abs/1804.00325

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.scale_by_aggmo((0.0, 0.9, 0.99, 0.999)), gch.scale_by_learning_rate(0.1))
    chain(scale_by_aggmo(betas=(0.0, 0.9, 0.99, 0.999)), scale_by_learning_rate(0.1))
    """

    descends = False
    per_parameter = True

    betas: Sequence[Any] = (0.0, 0.9, 0.99)

    @cached_property
    def _traces(self) -> dict[str, trace]:
        traces = [trace(beta) for beta in self.betas]
        return {name: link for (name, _), link in zip(named_parts(traces), traces, strict=True)}

    def check(self) -> None:
        if not isinstance(self.betas, (tuple, list)) or not self.betas:
            raise TypeError(f"scale_by_aggmo: betas must be a tuple of numbers in [0, 1), got {self.betas!r}.")
        object.__setattr__(self, "betas", tuple(self.betas))
        try:
            self._traces  # noqa: B018  # raises, and is then known
        except (TypeError, ValueError):
            raise ValueError(
                f"scale_by_aggmo: betas must be numbers or schedules in [0, 1), got {self.betas!r}."
            ) from None

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return [(name, link, index) for name, link in self._traces.items()]

    def update(self, g: Tensors, state: Links, ctx: Context) -> tuple[Tensors, Links]:
        sums, links = list[Tensors](), dict[str, State]()
        for name, link in self._traces.items():
            v, links[name] = link.update(g, state.links[name], ctx.enter(name))  # type: ignore[arg-type]  # its own
            sums.append(v)
        total = sums[0]
        for v in sums[1:]:
            total = total + v
        return total / len(sums), Links(links)


@answering
def aggmo(
    learning_rate: Value,
    betas: Sequence[Value] = (0.0, 0.9, 0.99),
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
) -> chain:
    """Aggregated momentum, decay of what `mask` selects as a penalty: Lucas et al., 2018.

    Equals pytorch_optimizer.AggMo and torch_optimizer.AggMo. The number 0 leaves the decay out. Paper:
    https://arxiv.org/abs/1804.00325

    >>> import gradchain as gch
    >>> gch.rules.aggmo(0.1)
    chain(scale_by_aggmo(), scale_by_learning_rate(0.1))
    """
    return parts.rule(scale_by_aggmo(betas), learning_rate, weight_decay, mask)
