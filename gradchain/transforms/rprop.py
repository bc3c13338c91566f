"""Steps of the sign alone, whose sizes grow and shrink by agreement: Rprop's direction."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms.rms import started


class RpropState(State):
    """What scale_by_rprop remembers."""

    step_sizes: Annotated[Tensors, "[0, inf] or NaN"]  # s, of each element
    prev: Tensors  # p, the last gradient, 0 where the sign had turned


class scale_by_rprop(Transform):
    """Replace each element by a step in its direction, longer while the sign stays, shorter where it turns.

        a   = sign(g) sign(p_(t-1))
        s_t = clamp(s_(t-1) (eta_plus if a > 0, eta_minus if a < 0, else 1), min_step_size, max_step_size)
        p_t = 0 where a < 0, else g
        u   = s_t sign(p_t)

    Where the sign has turned nothing moves this time, and next time counts as a first one. Only signs count, so it is
    for whole batches: the noise of small ones turns signs. Its steps have their own size, and behind it stands
    `scale(-1.0)` in place of a learning rate; a schedule would go there too.

    Args:
        learning_rate: the size of the first step of each element, at least 0. It is read once.
        eta_minus: what a step is multiplied by where the sign turned, in (0, 1).
        eta_plus: what it is multiplied by where the sign stayed, above 1.
        min_step_size: no step is shorter, at least 0.
        max_step_size: no step is longer, above 0.

    Shapes: elementwise, any; complex parameters in their real and imaginary parts.
    State: `step_sizes` and `prev`, two tensors per parameter: 8 bytes per float32 element, 6 per bfloat16 one.
    Units: gradient → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.Rprop behind scale(-1.0). Optax 0.2.8 has another rule under this name: it remembers steps in
        place of gradients, and each update is the step that was computed in the one before.
    Paper: Riedmiller and Braun, 1993, https://doi.org/10.1109/ICNN.1993.298623; what turns is forgotten as in Igel and
        Hüsken, 2003, https://doi.org/10.1016/S0925-2312(01)00700-7

    >>> import gradchain as gch
    >>> gch.chain(gch.scale_by_rprop(0.01), gch.scale(-1.0))
    chain(scale_by_rprop(0.01), scale(-1.0))
    """

    descends = False
    role = "normalise"
    per_parameter = True
    read_once = uniform = frozenset({"learning_rate"})

    learning_rate: Annotated[Hyper, "[0, inf)"]
    eta_minus: Hyper = Hyper(0.5, "(0, 1)")
    eta_plus: Hyper = Hyper(1.2, "(1, inf)")
    min_step_size: Hyper = Hyper(1e-6, "[0, inf)")
    max_step_size: Hyper = Hyper(50.0, "(0, inf)")

    def init(self, params: Tensors) -> RpropState:
        return RpropState(started(params.slow_slot(), self.learning_rate), params.slot())

    def update(self, g: Tensors, state: RpropState, ctx: Context) -> tuple[Tensors, RpropState]:
        agree = g.sign() * state.prev.sign()  # of signs: the product of small gradients would be 0
        factor = where(agree > 0, self.eta_plus, where(agree < 0, self.eta_minus, 1.0))
        steps = (state.step_sizes * factor).clamp(self.min_step_size, self.max_step_size)
        kept = where(agree < 0, 0.0, g)
        return steps * kept.sign(), RpropState(steps, kept)
