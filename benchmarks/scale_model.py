"""The model behind `benchmarks/scale.py`: bytes that a rank keeps, sends and moves in a step, and how long that takes.

Weights are those of a transformer's blocks. A rank's part of a tensor is so many whole rows, as torch's `Shard` and
gradchain's ZeRO cut it, and what is sent is padded to the largest part. Nothing here runs torch: what a chain keeps and
moves is counted by `scale_ranks.py`, and so are the same bytes in real runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]

WAYS = ("DDP", "ZeRO", "FSDP2")


@dataclass(frozen=True)
class Layout:
    """The weights of a model.

    Attributes:
        block: the shapes of one block, in the order of the parameters.
        blocks: how many there are.
        root: the shapes of what is in no block, behind them.
    """

    block: tuple[Shape, ...]
    blocks: int
    root: tuple[Shape, ...]

    @property
    def shapes(self) -> list[Shape]:
        return [*self.block * self.blocks, *self.root]

    @property
    def elements(self) -> int:
        return self.blocks * sum(map(math.prod, self.block)) + sum(map(math.prod, self.root))


def transformer(blocks: int, width: int) -> Layout:
    """Blocks of attention and of a perceptron four times as wide, with biases and norms; no embeddings."""
    attention = ((3 * width, width), (3 * width,), (width, width), (width,))
    perceptron = ((4 * width, width), (4 * width,), (width, 4 * width), (width,))
    return Layout(((width,),) * 2 + attention + ((width,),) * 2 + perceptron, blocks, ((width,),) * 2)


def of_size(parameters: float) -> Layout:
    """The transformer nearest to so many parameters that is 128 times as wide as it has blocks, as GPT-3 is."""
    blocks = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    return transformer(blocks, 128 * blocks)


@dataclass(frozen=True)
class Footprint:
    """What a chain keeps and moves, as it was counted.

    Attributes:
        weights: bytes of an element of a weight, and of its gradient.
        state: bytes that the chain remembers of an element.
        moved: bytes that kernels read and write of an element in a step.
        meetings: reductions over all parameters in a step: over shards, each is one collective.
    """

    weights: int
    state: float
    moved: float
    meetings: int


@dataclass(frozen=True)
class Machine:
    """What bytes take on a rank.

    Attributes:
        memory: bytes a second that kernels read and write.
        network: bytes a second that a rank sends.
        latency: seconds of one hop.
        room: bytes of memory.
        source: where the numbers are from.
    """

    memory: float
    network: float
    latency: float
    room: float
    source: str


# Peaks from data sheets, and a latency that is nobody's measurement: of a hop between nodes, software included.
HOP = 5e-6
MACHINES = {
    "a100": Machine(2.039e12, 25e9, HOP, 80e9, "NVIDIA A100 80GB SXM; DGX A100: 200 Gb/s for each GPU"),
    "h100": Machine(3.35e12, 50e9, HOP, 80e9, "NVIDIA H100 SXM; DGX H100: 400 Gb/s for each GPU"),
    "h200": Machine(4.8e12, 50e9, HOP, 141e9, "NVIDIA H200 SXM; DGX H200: 400 Gb/s for each GPU"),
}


@dataclass(frozen=True)
class Call:
    """A collective of a step.

    Attributes:
        kind: "all_reduce", "all_gather" or "reduce_scatter".
        given: bytes of what a rank hands in.
        what: "gradients", "weights" or "numbers".
        times: how often it happens.
        late: whether it waits for the last gradient, and so belongs to the optimizer part.
    """

    kind: str
    given: int
    what: str
    times: int = 1
    late: bool = False

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends around a ring, which is the least there is."""
        share = {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather": ranks - 1, "reduce_scatter": (ranks - 1) / ranks}
        return self.times * self.given * share[self.kind]

    def seconds(self, ranks: int, machine: Machine) -> float:
        """What it takes: the bytes, and hops as in a tree, which is the least there is."""
        hops = math.ceil(math.log2(ranks)) * (2 if self.kind == "all_reduce" else 1)
        return self.sent(ranks) / machine.network + self.times * hops * machine.latency


def part(shape: Shape, ranks: int) -> int:
    """Elements of the largest part of a tensor that is cut into rows."""
    return -(-shape[0] // ranks) * math.prod(shape[1:])


def parts(shapes: Sequence[Shape], ranks: int) -> int:
    return sum(part(shape, ranks) for shape in shapes)


def exchanged(layout: Layout, size: int, ranks: int, bucket: int) -> list[int]:
    """ZeRO's exchange of weights: the elements that a rank hands in, for each bucket."""
    found, filled = [0], 0
    for shape in layout.shapes:
        whole = math.prod(shape) * size
        if filled and filled + whole > bucket:
            found.append(0)
            filled = 0
        filled += whole
        found[-1] += part(shape, ranks)
    return found


def calls(layout: Layout, chain: Footprint, way: str, ranks: int, bucket: int) -> list[Call]:
    """The collectives of a step."""
    size, shapes = chain.weights, layout.shapes
    numbers = Call("all_reduce", 8 * (len(shapes) + 1), "numbers", chain.meetings, late=True)
    if way == "FSDP2":
        units = (parts(layout.block, ranks), layout.blocks), (parts(layout.root, ranks), 1)
        found = [Call("all_gather", size * own, "weights", 2 * n if i == 0 else n) for i, (own, n) in enumerate(units)]
        found += [Call("reduce_scatter", size * own * ranks, "gradients", n) for own, n in units]
        return [*found, numbers]
    found = [Call("all_reduce", size * layout.elements, "gradients")]
    if way == "ZeRO":
        pieces = exchanged(layout, size, ranks, bucket)
        found += [Call("all_gather", size * own, "weights", late=True) for own in pieces]
        found.append(numbers)
    return found


@dataclass(frozen=True)
class Cost:
    """What a step costs a rank, that with the largest parts.

    Attributes:
        weights, gradients, state: bytes that lie there.
        scratch: bytes of ZeRO's exchange, for a while.
        sent: bytes, of everything.
        late: bytes that are sent once all gradients are there.
        part: seconds of the optimizer part: kernels, and what is sent then.
        sending: seconds of everything that is sent, if nothing of it hides behind a forward or a backward.
    """

    weights: int
    gradients: int
    state: float
    scratch: int
    sent: float
    late: float
    part: float
    sending: float

    @property
    def kept(self) -> float:
        return self.weights + self.gradients + self.state


def cost(layout: Layout, chain: Footprint, way: str, ranks: int, machine: Machine, bucket: int) -> Cost:
    """What a step of a chain costs when so many ranks train a model this way."""
    mine = parts(layout.shapes, ranks)
    own = layout.elements if way == "DDP" else mine
    lying = mine if way == "FSDP2" else layout.elements
    pieces = exchanged(layout, chain.weights, ranks, bucket) if way == "ZeRO" else []
    scratch = chain.weights * max(pieces, default=0) * (ranks + 1)
    copied = chain.weights * sum(pieces) * (2 * ranks + 1)  # in and out of what is sent, which begins as zeros
    found = calls(layout, chain, way, ranks, bucket)
    late = [call for call in found if call.late]
    return Cost(
        weights=chain.weights * lying,
        gradients=chain.weights * lying,
        state=chain.state * own,
        scratch=scratch,
        sent=sum(call.sent(ranks) for call in found),
        late=sum(call.sent(ranks) for call in late),
        part=(chain.moved * own + copied) / machine.memory + sum(call.seconds(ranks, machine) for call in late),
        sending=sum(call.seconds(ranks, machine) for call in found),
    )
