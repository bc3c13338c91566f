"""What is done with a gradient, in numbers that every candidate shares."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.workloads import Workload

LR, B1, B2, EPS = 1e-3, 0.9, 0.999, 1e-8
LION_LR, LION_B2 = 1e-4, 0.99
SGD_LR, MOMENTUM = 3e-4, 0.9  # small: the loss of (b) has no least value
DECAY = 0.5  # large, so that the parity check sees a decay that is missing
EMA = 0.9  # quick, for the same reason
STEPS = 1000
WARM_UP, FIRST_STEPS = 8, 80  # of README's first recipe: so many steps up, and down until so many
LOSS_SCALE, FIRST_SCALE = (
    65536.0,
    1024.0,
)  # the second of README's first recipe: with the first, float16 overflows on (a)
OUTLIERS = 1e-3  # signs of gradients that are zero but for rounding
HALF_OUTLIERS = 0.1  # in float16 rounding grows: torch's own loop with the norm in float64 differs from itself in 0.03
CLIPPED_TO = 0.2  # of the smallest norm among the first gradients: every step clips


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        key: its name on the command line.
        title: what it is.
        rule: "adamw", "sgd", "lion" or "own".
        clip: whether the gradient is clipped to a norm; every step is then made to clip.
        scheduled: whether the learning rate follows a cosine.
        scaled: loss scaling with an inf check, a decay mask, and an average of the weights.
        micro: micro-batches to a step.
        first: README's first recipe in what the others lack: float16 autocast around the forward, a learning rate that
            warms up, and an average that begins at the weights before the first step.
        multipliers: "", "14" or "each": learning-rate multipliers of 14 groups, or of each parameter.
        floor: of the rule: how many tensors of the parameters' size are read and written beside the gradient.
    """

    key: str
    title: str
    rule: str
    clip: bool = False
    scheduled: bool = False
    scaled: bool = False
    micro: int = 1
    first: bool = False
    multipliers: str = ""
    floor: int = 3

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by; no step shall overflow."""
        return FIRST_SCALE if self.first else LOSS_SCALE

    @property
    def per(self) -> int:
        """By how many a window's figures are divided: those of README's first recipe are of one micro-batch."""
        return self.micro if self.first else 1


RECIPES = {
    r.key: r
    for r in (
        Recipe("R0", "README's first, per micro-batch", "adamw", True, True, True, micro=4, first=True, floor=4),
        Recipe("R1", "AdamW", "adamw"),
        Recipe("R2", "clip, AdamW, cosine", "adamw", clip=True, scheduled=True),
        Recipe("R3", "unscale, clip, AdamW, decay mask, cosine, average", "adamw", True, True, True, floor=4),
        Recipe("R4", "SGD, Nesterov, weight decay", "sgd", floor=2),
        Recipe("R5", "Lion, decay", "lion", floor=2),
        Recipe("R6", "accumulate 4, then R2", "adamw", clip=True, scheduled=True, micro=4),
        Recipe("R7", "clip, a rule of the user's, decay, cosine", "own", clip=True, scheduled=True),
        Recipe("R8-14", "R2 with 14 learning-rate multipliers", "adamw", True, True, multipliers="14"),
        Recipe("R8-each", "R2 with a multiplier per parameter", "adamw", True, True, multipliers="each"),
    )
}


def factor(recipe: Recipe, step: int) -> float:
    """The cosine, from 1 to 0.1; of README's first recipe after a line from 0 to 1."""
    start, end = (WARM_UP, FIRST_STEPS) if recipe.first else (0, STEPS)
    if step < start:
        return step / start
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min((step - start) / (end - start), 1)))


def rates(recipe: Recipe) -> float:
    """The learning rate of a recipe."""
    return {"sgd": SGD_LR, "lion": LION_LR}.get(recipe.rule, LR)


def multipliers(recipe: Recipe, model: nn.Module) -> dict[str, float]:
    """Name → multiplier of the learning rate; empty for recipes without."""
    names = [name for name, _ in model.named_parameters()]
    if recipe.multipliers == "14":
        return {name: 0.9 ** (13 - i * 14 // len(names)) for i, name in enumerate(names)}
    if recipe.multipliers == "each":
        return {name: 0.5 + 0.5 * (i + 1) / len(names) for i, name in enumerate(names)}
    return {}


@dataclass(frozen=True)
class Cell:
    """A recipe on a workload.

    Attributes:
        max_norm: what a clip clips to: below every norm that will occur.
    """

    workload: Workload
    recipe: Recipe
    max_norm: float

    @staticmethod
    def of(workload: Workload, recipe: Recipe) -> Cell:
        return Cell(workload, recipe, CLIPPED_TO * min(_norms(workload)) if recipe.clip else math.inf)

    @property
    def outliers(self) -> float:
        """The part of all elements in which weights that should agree may differ."""
        return HALF_OUTLIERS if self.recipe.first and self.workload.halves else OUTLIERS


@functools.cache
def _norms(workload: Workload) -> list[float]:
    model, norms = workload.build(), []
    for number in range(5):
        grads: tuple[Tensor, ...] = torch.autograd.grad(workload.loss(model, number), list(model.parameters()))
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))
    return norms
