"""What a step costs on 8 to 4096 ranks: `python -m benchmarks.scale` writes docs/scale.md, five minutes.

Memory per rank, bytes sent in a step and the time of the optimizer part, for DDP, ZeRO (`bind(ddp,
zero_redundancy=True)`) and FSDP2, and models of 0.1 to 100 billion parameters, by a small model (`scale_model.py`) of
what a rank keeps, sends and moves. Beside it 2 and 4 processes run, in which the same bytes are counted, and steps are
timed (`scale_ranks.py`).

`--chain` and `--machine` choose others, `--memory`, `--network` and `--latency` replace a machine's numbers; then the
tables are printed and no page is written.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.drawing import page, text
from benchmarks.scale_model import MACHINES, WAYS, Footprint, Layout, Machine, calls, cost, of_size, parts, transformer

SIZES = (1e8, 1e9, 1e10, 1e11)
RANKS = (8, 64, 512, 4096)
WORLDS = (2, 4)
KINDS = ("all_reduce", "all_gather", "reduce_scatter")
CHAIN, MACHINE = "clip, AdamW", "h100"
CHECKED = transformer(3, 130)  # rows that four ranks cannot share out alike
TIMED = transformer(8, 256)
DRAWN = 1e10
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
TEXT = """# What a step costs on many ranks

`python -m benchmarks.scale` writes this page, from a model of what a rank keeps, sends and moves in a step. No large
machine has run any of it. What was run are 2 and 4 processes on the CPU, whose bytes are those of the model to the last
one; how far its times are from theirs is told below.

The model: weights of a transformer's blocks, 128 times as wide as there are of them, in float32. A chain keeps and
moves so many bytes of each element, as counted on a small model. A rank's part of a tensor is so many whole rows.
Gradients and weights travel around a ring, which sends the least bytes there can be, and a collective takes as many
hops as a tree has levels. The **optimizer part** is what begins when all gradients are there: kernels at the peak
bandwidth of the memory, the numbers in which norms meet, and, with ZeRO, the exchange of the new weights; what is sent
then is **late**. DDP's reduction of gradients and all else that FSDP2 sends happens in forward and backward, behind
which more or less of it hides; **sent** has all of it. Memory is weights, gradients and state; not activations, nor
what FSDP2 gathers and ZeRO exchanges for a while. Of DDP's gradients there is one copy, with
`gradient_as_bucket_view=True`; else there are two.

![memory, bytes sent and optimizer part of {drawn:g} B parameters over ranks](scale.svg)

## {chain}: DDP / ZeRO / FSDP2

On {machine}: {source}; {memory:g} GB/s of memory, {network:g} GB/s of network, {latency:g} µs
for a hop, which is an assumption. A star: more than its {room:g} GB.

{table}

{reading}

## What a chain keeps and moves

Bytes of each element, by counting; a meeting is a collective of one number for each tensor.

{chains}

## Beside real runs

{checked}

Counted on {worlds} processes (gloo): the bytes that collectives are given in a step, and the storages of the rank that
has the most. The weights are {count:,} elements in {tensors} tensors, with rows that the ranks cannot share out alike.

{counts}

Timed on the same machine, on {cpu} with {cores} cores and other work on them (load {load:.1f}), {timed:,} elements:
the processor time of `updater.step()` with all its threads, on the rank where it is longest, in the fastest of {steps}
steps. The model has the best that memory and network gave in the same processes, before and after, by the same clock:
{probed}.

{times}

A step of the model is bytes over bandwidth. A real one has the host's work besides, and ZeRO's exchange makes the
memory that it receives into anew each time. The network is gloo's copying within one machine: of a real one, and of
waiting for it, this says nothing.
"""


# the tables


def table_of(chain: Footprint, machine: Machine, bucket: int) -> list[str]:
    """A row for each size and number of ranks."""
    rows = [
        "| parameters | ranks | memory of a rank, GB | sent in a step, GB | sent late, GB | optimizer part, ms |",
        "|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        layout = of_size(size)
        for ranks in RANKS:
            costs = [cost(layout, chain, way, ranks, machine, bucket) for way in WAYS]
            room = " / ".join(f"{gb(c.kept)}{'*' if c.kept > machine.room else ''}" for c in costs)
            sent, late = (" / ".join(gb(getattr(c, what)) for c in costs) for what in ("sent", "late"))
            took = " / ".join(f"{1e3 * c.part:.3g}" for c in costs)
            rows.append(f"| {size / 1e9:g} B | {ranks} | {room} | {sent} | {late} | {took} |")
    return rows


def gb(number: float) -> str:
    return f"{number / 1e9:.3g}" if number >= 1e6 else "0" if number < 1e3 else f"{number / 1e9:.0e}"


def reading_of(chain: Footprint, machine: Machine, bucket: int) -> str:
    """What the table says, in sentences whose numbers are computed from it."""
    small, large = of_size(SIZES[0]), of_size(SIZES[-1])
    mine = {r: parts(small.shapes, r) * r / small.elements for r in (RANKS[0], RANKS[-1])}
    pieces = [c for c in calls(large, chain, "ZeRO", RANKS[-1], bucket) if c.what == "weights"]
    hops = sum(c.times for c in pieces) * math.ceil(math.log2(RANKS[-1])) * machine.latency
    zero = cost(large, chain, "ZeRO", RANKS[-1], machine, bucket)
    width = small.block[0][0]
    return (
        f"Parts are whole rows. A tensor of {width} rows has {width} parts at most, so of {SIZES[0] / 1e9:g} B "
        f"parameters {RANKS[-1]} ranks together keep {mine[RANKS[-1]]:.2g} times what one would, and {RANKS[0]} ranks "
        f"{mine[RANKS[0]]:.4g} times.\n\n"
        f"ZeRO exchanges the weights when gradients have come, and behind nothing: that is nearly all of its part. It "
        f"does so in buckets of {bucket >> 20} MiB, or of one tensor that is larger: {len(pieces):,} collectives where "
        f"there are {SIZES[-1] / 1e9:g} B, the largest of which takes {zero.scratch / 1e9:.2g} GB for a while. On "
        f"{RANKS[-1]} ranks their hops are {hops:.2g} s of the {zero.part:.2g} s; around a ring, which has as many "
        f"hops as ranks, they would be {hops * (RANKS[-1] - 1) / math.ceil(math.log2(RANKS[-1])):.0f} s.\n\n"
        f"Norms are a collective of {8 * (len(large.shapes) + 1):,} bytes there. Under FSDP2 nothing else is sent late."
    )


def chains_of(prints: dict[str, Footprint]) -> list[str]:
    rows = ["| chain | state | kernels read and write | meetings of a step |", "|---|---|---|---|"]
    return [*rows, *(f"| {name} | {p.state:g} | {p.moved:g} | {p.meetings} |" for name, p in prints.items())]


# beside real runs


def predicted(layout: Layout, chain: Footprint, way: str, ranks: int, bucket: int) -> dict[str, Any]:
    """What `scale_ranks.run` counts on the rank that has the most, by the model."""
    here = cost(layout, chain, way, ranks, MACHINES[MACHINE], bucket)
    talk: Counter[tuple[str, int]] = Counter()
    for call in calls(layout, chain, way, ranks, bucket):
        talk[call.kind, call.given] += call.times
    own = layout.elements if way == "DDP" else parts(layout.shapes, ranks)
    return {
        "talk": {key: times for key, times in talk.items() if times}, "weights": here.weights,
        "gradients": here.gradients, "state": here.state, "moved": chain.moved * own,
    }  # fmt: skip


def together(talk: dict[tuple[str, int], int], kind: str, few: int) -> int:
    """The bytes of one kind of collective but for those of a few bytes, the numbers that meet."""
    return sum(given * times for (what, given), times in talk.items() if what == kind and given > few)


def job(chain: str, steps: int) -> dict[str, Any]:
    """All runs of one set of processes."""
    from benchmarks import scale_ranks

    made = {way: scale_ranks.run(way, CHECKED, scale_ranks.CHAINS[chain](), 1) for way in WAYS}
    if not steps:
        return {"counted": made}
    before = scale_ranks.probe()
    timed = {way: scale_ranks.run(way, TIMED, scale_ranks.CHAINS[chain](), steps) for way in WAYS}
    after = scale_ranks.probe()
    return {"counted": made, "timed": timed, "probes": [before, after]}


def most(found: list[dict[str, Any]], way: str, what: str) -> int:
    """Of all ranks, the most that one has."""
    return max(rank["counted"][way][what] for rank in found)


def counts_of(found: dict[int, list[dict[str, Any]]], chain: Footprint, bucket: int) -> tuple[list[str], int]:
    """A row for each way and number of processes, counted and by the model; and how many cells are not equal."""
    rows = [
        f"| processes | way | {' | '.join(kind.replace('_', '-') for kind in KINDS)} | weights | gradients | state | "
        "kernels | the model |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    few, unequal = 8 * (len(CHECKED.shapes) + 1), 0
    for world, ranks in found.items():
        for way in WAYS:
            model, talk = predicted(CHECKED, chain, way, world, bucket), ranks[0]["counted"][way]["talk"]
            cells = [(together(talk, k, few), together(model["talk"], k, few)) for k in KINDS]
            cells += [(most(ranks, way, w), model[w]) for w in ("weights", "gradients", "state", "moved")]
            apart = sum(mine != its for mine, its in cells)
            unequal += apart
            said = " | ".join(f"{mine:,}" for mine, _ in cells)
            rows.append(f"| {world} | {way} | {said} | {'the same' if not apart else f'{apart} differ'} |")
    return rows, unequal


def here(probes: list[dict[str, float]]) -> Machine:
    """The processes of this machine at their best."""
    best = {name: (min if name == "latency" else max)(p[name] for p in probes) for name in probes[0]}
    return Machine(**best, room=0.0, source="measured")


def times_of(found: dict[int, list[dict[str, Any]]], chain: Footprint, bucket: int) -> tuple[list[str], list[str]]:
    """A row for each way and number of processes; and the bandwidths that were measured, in words."""
    rows, probed = ["| processes | way | measured, ms | by the model, ms | ratio |", "|---|---|---|---|---|"], []
    for world, ranks in found.items():
        machine = here(ranks[0]["probes"])
        probed.append(
            f"{machine.memory / 1e9:.3g} GB/s of memory, {machine.network / 1e9:.3g} GB/s of network and "
            f"{1e6 * machine.latency:.0f} µs for a hop with {world}"
        )
        for way in WAYS:
            mine = ranks[0]["timed"][way]["step"]
            its = cost(TIMED, chain, way, world, machine, bucket).part
            rows.append(f"| {world} | {way} | {1e3 * mine:.2f} | {1e3 * its:.2f} | {mine / its:.2f} |")
    return rows, probed


# the picture


def drawn(chain: Footprint, machine: Machine, bucket: int) -> str:
    """Three panels over ranks, each with a line for each way, on log scales."""
    layout, wide, high, top = of_size(DRAWN), 250, 190, 56
    titles = ("memory of a rank, GB", "sent in a step, GB", "optimizer part, ms")
    panels: list[dict[str, list[float]]] = [{}, {}, {}]
    for way in WAYS:
        costs = [cost(layout, chain, way, ranks, machine, bucket) for ranks in RANKS]
        for panel, values in zip(
            panels,
            ([c.kept / 1e9 for c in costs], [c.sent / 1e9 for c in costs], [1e3 * c.part for c in costs]),
            strict=True,
        ):
            panel[way] = values
    lines = []
    for k, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        lines += _panel(title, panel, 16 + k * (wide + 20), top, wide, high)
    words = f"{DRAWN / 1e9:g} B parameters, {CHAIN}, {MACHINE.upper()}: DDP, ZeRO and FSDP2 over ranks"
    return page(words, 3 * (wide + 20) + 16, top + high + 44, [text(16, 22, words), *lines])


STYLES = {"DDP": ("one", ""), "ZeRO": ("spread", ""), "FSDP2": ("spread", ' stroke-dasharray="5 4"')}


def _panel(title: str, panel: dict[str, list[float]], left: float, top: float, wide: float, high: float) -> list[str]:
    every = [value for values in panel.values() for value in values]
    low, up = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    x = [left + 34 + i * (wide - 90) / (len(RANKS) - 1) for i in range(len(RANKS))]

    def y(value: float) -> float:
        return top + high * (up - math.log10(value)) / (up - low)

    lines = [text(left, top - 14, title, "faint")]
    for power in range(low, up + 1):
        at = y(10.0**power)
        lines.append(f'<line class="grid" x1="{x[0]:.1f}" x2="{x[-1]:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(text(left + 28, at + 4, f"{10.0**power:g}", "faint", "end", 11))
    lines += [text(a, top + high + 18, str(ranks), "faint", "middle", 11) for a, ranks in zip(x, RANKS, strict=True)]
    ends = []
    for way, values in panel.items():
        kind, dashes = STYLES[way]
        points = " ".join(f"{a:.1f},{y(value):.1f}" for a, value in zip(x, values, strict=True))
        lines.append(f'<polyline class="{kind}" fill="none" points="{points}"{dashes}/>')
        ends.append((y(values[-1]), way))
    last = -math.inf
    for at, way in sorted(ends):  # one below the other where lines end together
        last = max(at + 4, last + 13)
        lines.append(text(x[-1] + 6, last, way, size=11))
    return lines


# the command


def machine_of(given: argparse.Namespace) -> Machine:
    made = MACHINES[given.machine]
    numbers = {"memory": given.memory, "network": given.network, "latency": given.latency}
    scales = {"memory": 1e9, "network": 1e9, "latency": 1e-6}
    return replace(made, **{name: number * scales[name] for name, number in numbers.items() if number is not None})


def written(given: argparse.Namespace, prints: dict[str, Footprint], bucket: int) -> tuple[str, int]:
    """docs/scale.md, and how many of the counted bytes are not those of the model."""
    from benchmarks import report, scale_ranks

    told, chain, machine = report.circumstances(given.steps), prints[CHAIN], MACHINES[MACHINE]
    found = {world: scale_ranks.on_ranks(world, partial(job, CHAIN, given.steps)) for world in WORLDS}
    counts, unequal = counts_of(found, chain, bucket)
    times, probed = times_of(found, chain, bucket)
    made = TEXT.format(
        bucket=bucket >> 20, drawn=DRAWN / 1e9, chain=CHAIN, machine=MACHINE.upper(), source=machine.source,
        memory=machine.memory / 1e9, network=machine.network / 1e9, latency=machine.latency * 1e6,
        room=machine.room / 1e9, table="\n".join(table_of(chain, machine, bucket)),
        reading=reading_of(chain, machine, bucket), chains="\n".join(chains_of(prints)),
        checked=f"{told['date'][:10]}, torch {told['versions']['torch']}, commit {told['commit']}.",
        worlds=" and ".join(map(str, WORLDS)), count=CHECKED.elements, tensors=len(CHECKED.shapes),
        counts="\n".join(counts), cpu=told["machine"]["cpu"], cores=told["machine"]["cores"],
        load=told["machine"]["load"][0], timed=TIMED.elements, steps=given.steps, probed="; ".join(probed),
        times="\n".join(times),
    )  # fmt: skip
    return made, unequal


def main() -> int:
    """Write the page and its picture; print the table alone where it is asked for another machine or chain."""
    from benchmarks import scale_ranks
    from gradchain.updater.zero import BUCKET

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--chain", choices=scale_ranks.CHAINS, default=CHAIN)
    parser.add_argument("--machine", choices=MACHINES, default=MACHINE)
    parser.add_argument("--memory", type=float, help="GB a second that kernels read and write")
    parser.add_argument("--network", type=float, help="GB a second that a rank sends")
    parser.add_argument("--latency", type=float, help="microseconds of a hop")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each real run")
    given = parser.parse_args()
    if (given.chain, machine_of(given)) != (CHAIN, MACHINES[MACHINE]):
        chain = scale_ranks.footprint(scale_ranks.CHAINS[given.chain]())
        print("\n".join(table_of(chain, machine_of(given), BUCKET)))
        return 0
    prints = {name: scale_ranks.footprint(made()) for name, made in scale_ranks.CHAINS.items()}
    made, unequal = written(given, prints, BUCKET)
    print(made)
    PAGE.write_text(made)
    PAGE.with_suffix(".svg").write_text(drawn(prints[CHAIN], MACHINES[MACHINE], BUCKET))
    print(f"counted bytes that are not those of the model: {unequal}")
    return 1 if unequal else 0


if __name__ == "__main__":
    raise SystemExit(main())
