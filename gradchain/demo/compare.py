"""The same recipe twice, step by step in one process: as a chain, and written by hand with plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradchain.demo.recipe import (
    AVERAGE,
    BETAS,
    DECAY,
    FLOOR,
    MAX_NORM,
    PEAK,
    WINDOW,
    Settings,
    criterion,
    digits,
    evaluate,
    network,
    recipe,
    warmup_of,
)

# The largest relative difference of two losses that is let pass. It was 6e-16 in float64 and 4e-7 in float32, where the
# norm of the gradient is summed in float64 here and in float32 by torch; the rest is room for other processors.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4}


class Clock:
    """Adds up the CPU time of the parts of an update: other programs on the machine do not count."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = [{}]
        self._at = 0.0

    def start(self) -> None:
        """From now on."""
        self._at = process_time()

    def lap(self, part: str) -> None:
        """What went by since the start or the last lap belongs to this part."""
        now = process_time()
        self.updates[-1][part] = self.updates[-1].get(part, 0.0) + now - self._at
        self._at = process_time()

    def medians(self) -> dict[str, float]:
        """Part → milliseconds, the median over the updates after the first tenth; "optimizer" is all but the model."""
        kept = [update for update in self.updates if update][len(self.updates) // 10 :]
        for update in kept:
            update["optimizer"] = sum(ms for part, ms in update.items() if part not in ("forward", "backward"))
        return {part: 1e3 * median(update.get(part, 0.0) for update in kept) for part in kept[-1]}


class Chained:
    """The recipe as a chain."""

    def __init__(self, seed: int, updates: int, dtype: torch.dtype) -> None:
        self.data, self.model = digits(dtype), network(seed, dtype)
        self.updater = recipe(updates).bind(self.model)
        self.clock = Clock()

    def micro_step(self, images: Tensor, labels: Tensor, size: int, closes: bool) -> float:
        """One micro-batch. `size` is not looked at: the chain knows its window, and `last` closes a shorter one."""
        self.clock.start()
        with self.updater.context(last=closes):
            loss = criterion(self.model(images), labels)
        self.clock.lap("forward")
        self.updater.backward(loss)
        self.clock.lap("backward")
        self.updater.step()
        self.clock.lap("optimizer")
        return loss.item()

    def accuracy(self) -> float:
        """Of the averaged weights."""
        with self.updater.averaged():
            return evaluate(self.model, self.data)[1]


class ByHand:
    """The recipe in plain torch: parameter groups, a scheduler, a clip, an average, a count of micro-batches."""

    def __init__(self, seed: int, updates: int, dtype: torch.dtype) -> None:
        self.data, self.model = digits(dtype), network(seed, dtype)
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share_of_peak(updates))
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))  # type: ignore[no-untyped-call]
        self.clock = Clock()

    def micro_step(self, images: Tensor, labels: Tensor, size: int, closes: bool) -> float:
        """One micro-batch, of a window of `size`."""
        lap = self.clock.lap
        self.clock.start()
        loss = criterion(self.model(images), labels)
        lap("forward")
        (loss / size).backward()  # type: ignore[no-untyped-call]
        lap("backward")
        if closes:
            nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
            lap("clip_grad_norm_")
            self.optimizer.step()
            lap("AdamW(fused=True)")
            self.scheduler.step()
            lap("LambdaLR")
            self.average.update_parameters(self.model)
            lap("AveragedModel")
            self.optimizer.zero_grad()
            lap("zero_grad")
        return loss.item()

    def accuracy(self) -> float:
        """Of the averaged weights."""
        return evaluate(self.average, self.data)[1]


def share_of_peak(updates: int) -> Callable[[int], float]:
    """The learning rate by hand, over its peak: a straight line, then half a cosine."""
    warmup, floor = warmup_of(updates), FLOOR / PEAK

    def share(step: int) -> float:
        if step < warmup:
            return step / warmup
        progress = min(1.0, (step - warmup) / max(1, updates - warmup))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return share


@dataclass
class Comparison:
    """What two runs of one recipe gave.

    Attributes:
        dtype: the dtype of weights and data.
        losses: of each micro-batch, by the chain and by hand.
        accuracies: of the averaged weights, by the chain and by hand.
        parts: part → median milliseconds per update, by the chain and by hand.
    """

    dtype: torch.dtype
    losses: list[tuple[float, float]]
    accuracies: tuple[float, float]
    parts: tuple[dict[str, float], dict[str, float]]

    @property
    def difference(self) -> float:
        """The largest relative difference of two losses."""
        return max(abs(a - b) / abs(b) for a, b in self.losses)

    @property
    def agrees(self) -> bool:
        """Whether that is within what rounding explains."""
        return self.difference <= TOLERANCES[self.dtype]


def compare(
    settings: Settings, dtype: torch.dtype, sides: tuple[type[Chained], type[ByHand]] = (Chained, ByHand)
) -> Comparison:
    """Train both on the same micro-batches with the same dropout, in turn."""
    data = digits(dtype)
    total = settings.epochs * data.micro_batches
    updates = -(-total // WINDOW)
    chained, by_hand = (side(settings.seed, updates, dtype) for side in sides)
    losses = []
    for index, (size, closes) in enumerate(_windows(total)):
        images, labels = data.micro_batch(settings.seed, index)
        generator = torch.get_rng_state()
        pair = {}
        order: tuple[Chained | ByHand, ...] = (chained, by_hand)
        for side in order if index // WINDOW % 2 else reversed(order):  # in turn also who goes first
            torch.set_rng_state(generator)
            pair[type(side)] = side.micro_step(images, labels, size, closes)
            if closes:
                side.clock.updates.append({})
        losses.append((pair[type(chained)], pair[type(by_hand)]))
    accuracies = (chained.accuracy(), by_hand.accuracy())
    return Comparison(dtype, losses, accuracies, (chained.clock.medians(), by_hand.clock.medians()))


def _windows(total: int) -> Iterator[tuple[int, bool]]:
    """Of each micro-batch: the size of its window, and whether it closes it."""
    for index in range(total):
        first = index - index % WINDOW
        size = min(WINDOW, total - first)
        yield size, index == first + size - 1


def table(found: Comparison) -> str:
    """What was measured, as text."""
    ours, theirs = found.parts
    rows = ("forward", "backward", "optimizer")
    by_hand = {part: ms for part, ms in theirs.items() if part not in rows}
    dtype = str(found.dtype).removeprefix("torch.")
    verdict = "within" if found.agrees else "MORE THAN"
    lines = [
        f"{dtype}: the losses of {len(found.losses)} micro-batches differ by at most {found.difference:.1e} of "
        f"themselves, {verdict} {TOLERANCES[found.dtype]:.0e}",
        f"  {'ms of CPU per update, median':<32}{'gradchain':>12}{'plain torch':>14}",
        *(f"  {part:<32}{ours[part]:12.3f}{theirs[part]:14.3f}" for part in rows),
        *(f"    {part:<30}{'':12}{ms:14.3f}" for part, ms in by_hand.items()),
        f"  {'test accuracy, averaged weights':<32}{found.accuracies[0]:12.1%}{found.accuracies[1]:14.1%}",
    ]
    return "\n".join(lines)
