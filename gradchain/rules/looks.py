"""Look at the updates in the middle of a chain, and record what is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.selectors.source import code
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class SnapshotState(State):
    """What snapshot remembers; the mean only where there is a decay."""

    count: Annotated[int, "integer [0, inf)"] = 0
    mean: Annotated[Any, "[-inf, inf] or NaN"] = 0.0


class snapshot(Transform):
    """Record a number that a function makes of the updates, or its moving average; the updates pass unchanged.

        x = measure(u);   mean ← decay mean + (1 - decay) x;   recorded is mean / (1 - decay^t), or mean itself

    `info["norm before"]` and `updater.metrics["norm before"]` have it. With decay 0 it is x. The function runs at every
    step.

    Args:
        name: what it is recorded as.
        measure: called as measure(updates), with Tensors; returns a number, a truth, or a 0-d tensor.
        decay: what stays of the average, in [0, 1).
        debias: whether the average is divided by 1 - decay^t.

    Shapes: as the function.
    State: two numbers.
    Units: unchanged.
    Raises: TypeError for an argument of another kind, or a function that returns no number.
    Equals: optax.snapshot and, with a decay, optax.monitor of optax.measure_with_ema, which keep it in their states.

    >>> import torch, gradchain as gch
    >>> link = gch.rules.snapshot("size", lambda updates: updates.norm())
    >>> updater = gch.chain(link, gch.sgd(0.1)).bind(torch.nn.Linear(2, 1))
    >>> updater.step({"weight": torch.tensor([[3.0, 4.0]])})["size"]
    5.0
    """

    descends = False
    calls_back = True

    name: str
    measure: Callable[[Tensors], Any]
    decay: Hyper = Hyper(0.0, "[0, 1)")
    debias: bool = True

    uniform = frozenset({"decay"})

    def check(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"snapshot: name must be a string, got {self.name!r}.")
        if not callable(self.measure) or isinstance(self.measure, type):
            raise TypeError(f"snapshot: measure must be a function of the updates, got {code(self.measure)}.")

    def init(self, params: Tensors) -> SnapshotState:
        return SnapshotState()

    def update(self, g: Tensors, state: SnapshotState, ctx: Context) -> tuple[Tensors, SnapshotState]:
        x = self.measure(g)
        if isinstance(x, (Tensors, Mapping)) or not hasattr(x, "__float__"):
            cure = " Write it as lambda updates: updates.norm()." if x is None else ""
            raise TypeError(f"snapshot: {code(self.measure)} must return a number, got {type(x).__name__}.{cure}")
        count = state.count + 1
        held = where(self.decay == 0.0, 0.0, self.decay * state.mean)  # 0 times a NaN would be one
        mean = held + (1 - self.decay) * (1.0 * x)
        ctx.record(self.name, mean / (1 - self.decay**count) if self.debias else mean)
        return g, SnapshotState(count, mean)


@answering
def monitor(measures: Mapping[str, Callable[[Tensors], Any]], decay: Value = 0.0, debias: bool = True) -> chain:
    """Several snapshots at one place of a chain: a name and a function for each.

    Equals optax.monitor; with a decay each function is in optax.measure_with_ema.

    >>> import gradchain as gch
    >>> def size(updates):
    ...     return updates.norm()
    >>> gch.chain(gch.rules.monitor({"gradient": size}), gch.trace(0.9), gch.rules.monitor({"momentum": size}, 0.9))
    chain(snapshot("gradient", size), trace(0.9), snapshot("momentum", size, decay=0.9))
    """
    if not isinstance(measures, Mapping):
        raise TypeError(f"monitor: measures must be a mapping from names to functions, got {measures!r}.")
    return chain(*(snapshot(name, measure, decay, debias) for name, measure in measures.items()))
