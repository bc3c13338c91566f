"""Elementwise rules beside their fastest peer on workload (b): `python -m benchmarks.rules_b`, ten minutes.

Every rule of `which_rules.py` that works on elements, and its peers from PyPI at the arguments that make them the same
rule, each as it is and with `foreach=True` and `fused=True` where it takes them. All sides have models of their own and
turns in one process, on one thread and one core; a turn is the step and the release of gradients that a real backward
left, which is not timed. Memory that is freed stays with the process, and time is the processor's: others may be at
work on the machine. The ratio is taken within a round, over the peer with the least median. After the warm-up all
weights are compared: a peer that is another rule is told, and is nobody's best. It writes docs/rules_speed.md, or the
rows of the rules that were asked for.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pinning import keep_memory, pin
from benchmarks.quarters import quarters
from benchmarks.which import MissingError, evaluated
from benchmarks.which_peers import Rule
from benchmarks.which_rules import ELEMENTWISE, OF_TORCH
from benchmarks.workloads import WORKLOADS

PAGE = Path(__file__).parents[1] / "docs" / "rules_speed.md"
WORKLOAD = WORKLOADS["b"]
NOT_ELEMENTWISE = ("adafactor",)
WARM = 3  # rounds before the timed ones
FAR, FEW = 1e-3, 1e-3  # a weight off by more than this of the largest movement, in more than this of all weights
VARIANTS = {"torch": ("", "foreach=True", "fused=True"), "pytorch_optimizer": ("", "foreach=True")}
HEAD = """# Elementwise rules beside their fastest peer

`python -m benchmarks.rules_b` writes this page: one step on {title}, one thread, {rounds} rounds in turns, time of the
processor, {cpu}, torch {torch}, commit {commit}, load {load:.1f}. "of it" is
gradchain's time over that of the fastest peer from PyPI that computes the same, in the same round: the median, and the
upper quartile. Bytes are those that kernels read and write for each parameter.

| rule | ms | fastest peer | ms | of it | upper | ran by | kernels | bytes |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Bout:
    """A chain, and who is measured beside it.

    Attributes:
        rule: its name.
        ours: its code.
        peers: theirs.
    """

    rule: str
    ours: str
    peers: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.ours.replace("gch.rules.", "").replace("gch.", "")


def bouts(rules: tuple[Rule, ...] = (*OF_TORCH, *ELEMENTWISE)) -> list[Bout]:
    """Those of each rule: one for each set of arguments of ours."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for rule in rules:
        for peer in rule.peers:
            if "optax." not in peer.code and rule.name not in NOT_ELEMENTWISE:
                found[rule.name, peer.ours or rule.code] += variants(peer.pinned or peer.code)
    return [Bout(name, ours, tuple(dict.fromkeys(codes))) for (name, ours), codes in found.items()]


def variants(code: str) -> Iterator[str]:
    """A peer as it is, and faster."""
    for word in VARIANTS.get(code.partition(".")[0], ("",)):
        yield f"{code[:-1]}, {word})" if word else code


# a turn


@dataclass
class Side:
    """One who takes turns.

    Attributes:
        model: its own.
        step: the step, and the release of its gradients.
    """

    model: nn.Module
    step: Callable[[], object]

    def turn(self, number: int) -> float:
        """The milliseconds of a step, behind a backward that is not timed."""
        WORKLOAD.loss(self.model, number).backward()  # type: ignore[no-untyped-call]
        start = time.process_time()
        self.step()
        return (time.process_time() - start) * 1e3


def our_side(bout: Bout) -> tuple[Side, Any]:
    """Ours, and its updater."""
    model = WORKLOAD.build()
    updater = evaluated(bout.ours, {}).bind(model)
    return Side(model, updater.step), updater


def their_side(code: str) -> Side:
    """An optimizer of torch's kind."""
    model = WORKLOAD.build()
    optimizer = evaluated(code, dict(model.named_parameters()))
    getattr(optimizer, "train", lambda: None)()

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Side(model, step)


def sides_of(bout: Bout) -> tuple[dict[str, Side], Any, dict[str, str]]:
    """Who takes turns, our updater, and why others do not."""
    side, updater = our_side(bout)
    sides, absent = {"gradchain": side}, {}
    for code in bout.peers:
        try:
            sides[code] = their_side(code)
            sides[code].turn(0)
        except (MissingError, TypeError, RuntimeError, ValueError) as error:  # packages, and arguments not taken
            sides.pop(code, None)
            absent[code] = f"{type(error).__name__}: {error}".splitlines()[0]
    side.turn(0)
    return sides, updater, absent


def differing(mine: nn.Module, other: nn.Module) -> float:
    """The share of weights that are further apart than FAR of the largest movement of the other's."""
    start = WORKLOAD.build()
    far, total = 0, 0
    for a, b, begin in zip(mine.parameters(), other.parameters(), start.parameters(), strict=True):
        way = (b - begin).detach().abs().max()
        far += int(((a - b).detach().abs() > FAR * way).sum())
        total += a.numel()
    return far / total


def facts(updater: Any, model: nn.Module) -> dict[str, Any]:
    """Who ran the last step of ours, in how many kernels, and the bytes that these move for a parameter."""
    parts = updater._bound.engine.last
    sizes: dict[str, Tensor] = dict(model.named_parameters())
    every = sum(w.numel() for w in sizes.values())
    moved = sum((p.bytes_read + p.bytes_written) * sum(sizes[n].numel() for n in p.names) for p in parts)
    return {"executors": sorted({p.executor for p in parts}), "kernels": len(parts), "bytes": moved / every}


# what comes of it


def measure(bout: Bout, rounds: int) -> dict[str, Any]:
    """Quartiles of each side's milliseconds, ours over the fastest same peer's in the same round, and what ran."""
    sides, updater, absent = sides_of(bout)
    took: dict[str, list[float]] = {name: [] for name in sides}
    apart: dict[str, float] = {}
    for number in range(1 - WARM, rounds):  # sides_of had the first
        if number == 0:
            apart = {n: differing(sides["gradchain"].model, s.model) for n, s in sides.items() if n != "gradchain"}
            gc.collect()
        for name in turns(list(sides), number):
            ms = sides[name].turn(number + WARM)
            took[name] += [ms] if number >= 0 else []
    same = [name for name, share in apart.items() if share <= FEW]
    best = min(same, key=lambda name: median(took[name]), default=None)
    over = [mine / it for mine, it in zip(took["gradchain"], took[best], strict=True)] if best else []
    return {
        "ours": bout.ours,
        "ms": {name: quarters(found) for name, found in took.items()},
        "best": best,
        "over": quarters(over) if over else None,
        "apart": apart,
        "not_run": absent,
        **facts(updater, sides["gradchain"].model),
    }


def turns(names: list[str], number: int) -> list[str]:
    """Who comes when: everyone begins once, and every other round runs backwards."""
    first = number % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if number % 2 else turned


def line(bout: Bout, found: dict[str, Any]) -> str:
    """A row of the page."""
    ran = f"{', '.join(found['executors'])} | {found['kernels']} | {found['bytes']:.0f}"
    mine = found["ms"]["gradchain"][1]
    if found["best"] is None:
        return f"| `{bout.name}` | {mine:.1f} | none that computes the same | | | | {ran} |"
    _, middle, high = found["over"]
    theirs = found["ms"][found["best"]][1]
    return f"| `{bout.name}` | {mine:.1f} | `{found['best']}` | {theirs:.1f} | {middle:.2f} | {high:.2f} | {ran} |"


def written(rows: list[str], told: dict[str, Any]) -> str:
    """docs/rules_speed.md."""
    words = {"title": WORKLOAD.title, "rounds": told["rounds"], "cpu": told["machine"]["cpu"]}
    words |= {"torch": told["versions"]["torch"], "commit": told["commit"], "load": told["machine"]["load"][0]}
    return HEAD.format(**words) + "\n".join(rows) + "\n"


def renewed(page: str, rows: list[str], told: dict[str, Any]) -> str:
    """The page with the rows of some rules measured anew, and a line that says so."""
    fresh = {row.split(" | ")[0]: row for row in rows}
    lines = [fresh.get(one.split(" | ")[0], one) for one in page.rstrip("\n").split("\n")]
    names, load = ", ".join(name.removeprefix("| ") for name in fresh), told["machine"]["load"][0]
    note = f"Measured since, {told['rounds']} rounds, time of the processor, commit {told['commit']}, load {load:.1f}:"
    return "\n".join([*lines, "", f"{note} {names}.", ""])


def main() -> int:
    """Print a row for each; write the figures, and the page: all of it, or the rows of those that ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules_b", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds of all sides, 2 at least")
    parser.add_argument("--rule", action="append", metavar="NAME", help="may be given often; other rows stay")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    given = parser.parse_args()
    pin(1, None)
    torch.set_num_threads(1)
    keep_memory()
    from benchmarks import report

    told = report.circumstances(given.rounds)
    rows, found = [], {}
    for bout in bouts():
        if given.rule and bout.rule not in given.rule:
            continue
        row = found[bout.name] = measure(bout, given.rounds)
        rows.append(line(bout, row))
        print(rows[-1], flush=True)
        for peer, why in row["not_run"].items():
            print(f"    not run: {peer}: {why}")
        for peer, share in row["apart"].items():
            if share > FEW:
                print(f"    another rule: {peer}: {100 * share:.1f}% of weights are elsewhere")
    print(f"written to {report.write({**told, 'cells': [], 'failed': [], 'rules_b': found}, given.output)}")
    PAGE.write_text(renewed(PAGE.read_text(), rows, told) if given.rule else written(rows, told))
    slower = [name for name, row in found.items() if row["over"] and row["over"][1] > 1]
    print(f"slower than the fastest peer: {', '.join(slower) or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
