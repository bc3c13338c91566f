"""How a step's cost grows with the number of parameters and of masks: `python -m benchmarks.growth`.

The chain is R2's: a clip, AdamW and a cosine, over tensors of 16 elements, so that nearly all of a step is the host's
work. Timed is `updater.step()`, on one thread and one core, in steps that run again from their numbers; the gradients
are there already. Time is the processor's: others may be at work on the machine. With masks, 1000 parameters are in so
many groups of their own, each with a rate and a decay. The table is printed, and with the picture is docs/growth.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import gradchain as gch
from benchmarks.drawing import page, text
from benchmarks.pinning import pin

PARAMETERS = (10, 100, 1000, 10_000)
MASKS = (1, 10, 100)
MASKED, ELEMENTS, WARM, ROUNDS = 1000, 16, 4, 10
PAGE = Path(__file__).parents[1] / "docs" / "growth.md"
TEXT = """# How a step grows

`python -m benchmarks.growth`, on {machine}, {date}: R2, a clip, AdamW and a cosine, over tensors of {elements}
elements. A step is `updater.step()`, the median of {steps} in ten rounds; bind and first step are of one process with a
filled cache of kernels. Times are the processor's, on one thread; the machine's load was {load:.1f}.

![microseconds of a step for each parameter](growth.svg)

| parameters | masks | bind | first step | step | of a parameter |
|---|---|---|---|---|---|
{rows}
"""


class Model(nn.Module):
    """So many parameters in a list."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.ParameterList([nn.Parameter(torch.randn(ELEMENTS)) for _ in range(count)])


def chain(count: int, masks: int) -> gch.chain:
    """R2, with the parameters in so many groups."""
    rate: Any = gch.cosine(1e-3, 1e-5, 100_000)
    decay: Any = 0.01
    if masks > 1:
        groups = [gch.named(*(f"rows.{i}" for i in range(k, count, masks))) for k in range(masks)]
        rate = gch.multiply(rate, *((group, 1.0 + k / masks) for k, group in enumerate(groups)))
        decay = gch.multiply(decay, *((group, 1.0 - k / masks) for k, group in enumerate(groups)))
    return gch.chain(
        gch.clip_by_norm(1.0), gch.scale_by_adam(), gch.add_decayed_weights(decay), gch.scale_by_learning_rate(rate)
    )


class Cell:
    """A chain bound to so many parameters, and what its steps took: `bind_ms`, `first_ms`, and `steps_us`."""

    def __init__(self, count: int, masks: int) -> None:
        self.count, self.masks = count, masks
        self._model = Model(count)
        self._grads = [torch.randn(ELEMENTS) for _ in range(count)]
        began = time.process_time()
        self._updater = chain(count, masks).bind(self._model)
        self.bind_ms = 1e3 * (time.process_time() - began)
        self.first_ms = 1e-3 * self._step()
        self.steps_us: list[float] = []

    def run(self, steps: int) -> None:
        """Some steps, after some that are not counted."""
        self.steps_us += [self._step() for _ in range(WARM + steps)][WARM:]

    def _step(self) -> float:
        for parameter, grad in zip(self._model.rows, self._grads, strict=True):
            parameter.grad = grad.clone()
        began = time.process_time()
        self._updater.step()
        return 1e6 * (time.process_time() - began)

    def told(self) -> dict[str, Any]:
        """What is printed."""
        step = median(self.steps_us)
        return {
            "parameters": self.count, "masks": self.masks, "bind_ms": self.bind_ms, "first_ms": self.first_ms,
            "step_us": step, "each_us": step / self.count,
        }  # fmt: skip


def written(found: list[dict[str, Any]], steps: int, about: dict[str, Any]) -> str:
    """docs/growth.md."""
    rows = "\n".join(
        f"| {one['parameters']} | {one['masks']} | {one['bind_ms']:.1f} ms | {one['first_ms']:.1f} ms | "
        f"{one['step_us']:.0f} µs | {one['each_us']:.2f} µs |"
        for one in found
    )
    machine, date = about["machine"]["cpu"], str(about["date"])[:10]
    load = about["machine"]["load"][0]
    return TEXT.format(machine=machine, date=date, elements=ELEMENTS, steps=steps, load=load, rows=rows)


def drawn(found: list[dict[str, Any]]) -> str:
    """A bar for each row, as long as a parameter's share of a step."""
    row, left, width = 22, 205, 640
    most = max(one["each_us"] for one in found)
    height = 40 + row * len(found)
    title = "microseconds of a step for each parameter"
    lines = [text(16, 22, title, "faint")]
    for i, one in enumerate(found):
        y, long = 36 + row * i, (width - left - 70) * one["each_us"] / most
        said = f"{one['parameters']} parameters" + (f", {one['masks']} groups" if one["masks"] > 1 else "")
        lines.append(text(16, y + 12, said))
        lines.append(f'<rect class="part" x="{left}" y="{y}" width="{long:.1f}" height="14"/>')
        lines.append(text(left + long + 6, y + 12, f"{one['each_us']:.2f}"))
    return page(title, width, height, lines)


def main() -> None:
    """Print the table; write it, and the picture, unless told to be quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="timed steps of each row")
    parser.add_argument("--quick", action="store_true", help="few parameters, and nothing is written")
    given = parser.parse_args()
    pin(1, None)
    torch.set_num_threads(1)
    cells = [(count, 1) for count in PARAMETERS] + [(MASKED, masks) for masks in MASKS[1:]]
    cells = [(count, masks) for count, masks in cells if count <= 100] if given.quick else cells
    Cell(2, 1).run(1)  # which imports what is used
    made = [Cell(count, masks) for count, masks in cells]
    for _ in range(ROUNDS):  # in turn, so that what else the machine does is in all of them
        for cell in made:
            cell.run(-(-given.steps // ROUNDS))
    found = [cell.told() for cell in made]
    print(*map(json.dumps, found), sep="\n")
    if not given.quick:
        from benchmarks import report

        PAGE.write_text(written(found, given.steps, report.circumstances(given.steps)))
        PAGE.with_suffix(".svg").write_text(drawn(found))


if __name__ == "__main__":
    main()
