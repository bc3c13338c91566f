"""Every rule trains the demo's network: `python -m benchmarks.trained` prints the table, and draws docs/trained.svg.

A rule with its rate of RATES, on a warm-up of a tenth and a cosine to 0, reads at least 97% of the test images after
440 updates; the same chain at rate 0 does not. `--rule NAME` narrows it; `--search` tries rates around the given ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import gradchain as gch
from benchmarks.drawing import page, text
from benchmarks.trained_rates import RATES, Make
from gradchain.core.transform import walk
from gradchain.demo.recipe import criterion, digits, evaluate, network

PICTURE = Path(__file__).parents[1] / "docs" / "trained.svg"
TABLE = PICTURE.with_suffix(".md")
WANTED = 0.97
BATCH, EPOCHS = 64, 20
SEARCHED = (0.3, 1.0, 3.0)
PAGE = """# Every rule trains

`python -m benchmarks.trained` trains the demo's network, on scikit-learn's digits, by each rule: {updates} updates of
{batch} images, a rate that comes up in a tenth of them and goes down to 0 as a cosine. Shown are the rate at its
highest, the share of the {images} test images that are read right, and the same at rate 0, where nothing is learnt: the
first weights are the same for all. One seed; the rates were found by trying a few, so this is no race.

![the shares](trained.svg)

| rule | rate | read right | at rate 0 |
|---|---|---|---|
{rows}
"""


class Trained(NamedTuple):
    """What came of a rule.

    Attributes:
        name: of the rule.
        rate: at its highest.
        right: the share of the test images that are read right.
        idle: the same at rate 0.
    """

    name: str
    rate: float
    right: float
    idle: float

    @property
    def trains(self) -> bool:
        """Whether it does, and its rate is why."""
        return self.right >= WANTED > self.idle


def batches(epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images, in an order that is the same for all rules."""
    data, generator = digits(), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(len(data.images), generator=generator)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield data.images[chosen], data.labels[chosen]


def curve(rate: float, updates: int) -> Any:
    """Up in a tenth of the updates, and down to 0."""
    up = max(1, updates // 10)
    return gch.linear(0.0, rate, up).then(gch.cosine(rate, 0.0, updates - up))


def share(make: Make, rate: float, epochs: int = EPOCHS) -> float:
    """The share of the test images that a network trained so reads right."""
    model = network(0)
    updates = epochs * (len(digits().images) // BATCH)
    updater = make(curve(rate, updates), rate).bind(model)
    for images, labels in batches(epochs):
        step(updater, model, images, labels)
    with updater.averaged() if evaluated_elsewhere(updater) else nullcontext():
        return evaluate(model, digits())[1]


def evaluated_elsewhere(updater: Any) -> bool:
    """Whether the rule trains at other weights than it is evaluated at."""
    links = walk(updater.chain, None)
    return any(type(link).__name__ in ("schedule_free", "lookahead") for _, link, _ in links)


def step(updater: Any, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One update, by a closure: some rules look at a second gradient."""

    def loss() -> torch.Tensor:
        return criterion(model(images), labels)

    updater.update(loss)


def trained(name: str) -> Trained:
    """A rule at its rate, and at none."""
    make, rate = RATES[name]
    return Trained(name, rate, share(make, rate), share(make, 0.0))


def searched(name: str) -> str:
    """What rates around that of the table give."""
    make, rate = RATES[name]
    return "  ".join(f"{rate * by:.3g}: {100 * share(make, rate * by):.1f}" for by in SEARCHED)


def written(found: list[Trained]) -> str:
    """docs/trained.md."""
    rows = [f"| `{t.name}` | {t.rate:g} | {100 * t.right:.1f}% | {100 * t.idle:.1f}% |" for t in found]
    updates = EPOCHS * (len(digits().images) // BATCH)
    return PAGE.format(updates=updates, batch=BATCH, images=len(digits().test_images), rows="\n".join(rows))


def drawn(found: list[Trained]) -> str:
    """A dot for each rule, between 90 and 100 percent."""
    row, left, width = 18, 220, 720
    height = 50 + row * len(found)

    def at(right: float) -> float:
        return left + (width - left - 30) * (max(right, 0.9) - 0.9) / 0.1

    lines = []
    for tick in (0.9, 0.95, WANTED, 1.0):
        lines.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="30" y2="{height - 12}"/>')
        lines.append(text(at(tick), 22, f"{100 * tick:.0f}%", "faint", "middle"))
    for i, t in enumerate(found):
        y = 48 + row * i
        lines.append(text(16, y, t.name))
        lines.append(f'<circle class="part" cx="{at(t.right):.1f}" cy="{y - 4}" r="4"/>')
    return page("test images read right, by rule", width, height, lines)


def main() -> None:
    """Print the table; write page and picture where all rules ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__)
    parser.add_argument("--rule", action="append", choices=sorted(RATES), metavar="NAME", help="may be given often")
    parser.add_argument("--search", action="store_true", help="rates around that of the table, and nothing is written")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names = chosen.rule or list(RATES)
    if chosen.search:
        for name in names:
            print(f"{name:28} {searched(name)}", flush=True)
        return
    found = []
    for name in names:
        found.append(trained(name))
        print(
            "{:28} {:<8g} {:.3f}  at 0: {:.3f}{}".format(*found[-1], "" if found[-1].trains else "  FAILS"), flush=True
        )
    if chosen.rule is None:
        TABLE.write_text(written(found))
        PICTURE.write_text(drawn(found))


if __name__ == "__main__":
    main()
