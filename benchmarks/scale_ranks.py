"""Real runs beside the model of `scale_model.py`: what a rank keeps, sends and moves is counted on some processes.

Collectives are counted where they are called: those of torch.distributed's functions, which FSDP2 and gradchain call,
and the buckets that DDP's reducer gives a hook; the backend is gloo. Memory is the storages behind weights, gradients
and state, once each. A time is the processor's for `updater.step()`, on the rank where it is longest, in the fastest of
some steps; what bytes take in these processes is measured beside, likewise.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gradchain as gch
from benchmarks.pinning import leave
from benchmarks.scale_model import Footprint, Layout

KINDS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "all_gather_into_tensor": "all_gather",
    "all_gather_single": "all_gather", "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
}  # fmt: skip
"""The functions of torch.distributed that are counted, and which collective each is."""
GIVEN_SECOND = set(KINDS) - {"all_reduce"}
"""Those whose first argument is what comes out."""

CHAINS: dict[str, Callable[[], gch.chain]] = {
    "SGD with momentum": lambda: gch.chain(gch.sgd(1e-2, momentum=0.9)),
    "Lion": lambda: gch.chain(gch.lion(1e-4)),
    "AdamW": lambda: gch.chain(gch.adamw(gch.cosine(1e-3, 1e-4, 1000))),
    "clip, AdamW": lambda: gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-3, 1e-4, 1000))),
    "clip, AdamW, average": lambda: gch.chain(
        gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-3, 1e-4, 1000)), gch.average_params(0.999)
    ),
}


class Blocks(nn.Module):
    """A model with the weights of a layout, each of which has a part in the loss, block by block."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(_Block(layout.block) for _ in range(layout.blocks))
        self.root = _weights(layout.root)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x + _seen(self.root)


class _Block(nn.Module):
    def __init__(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.weights = _weights(shapes)

    def forward(self, x: Tensor) -> Tensor:
        return x + _seen(self.weights)


def _weights(shapes: tuple[tuple[int, ...], ...]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)


def _seen(weights: nn.ParameterList) -> Tensor:
    return torch.stack([w.square().mean() for w in weights]).sum()


# what is counted


@contextmanager
def counted() -> Iterator[Counter[tuple[str, int]]]:
    """How often each collective is given so many bytes; what one of torch's functions calls is not counted again."""
    found: Counter[tuple[str, int]] = Counter()
    inside = 0

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if not inside:
                tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | list)]
                given = tensors[1 if name in GIVEN_SECOND else 0]
                assert isinstance(given, Tensor)
                found[KINDS[name], given.numel() * given.element_size()] += 1
            inside += 1
            try:
                return function(*args, **kwargs)
            finally:
                inside -= 1

        return call

    there = [name for name in KINDS if hasattr(dist, name)]
    with mock.patch.multiple(dist, **{name: counting(name, getattr(dist, name)) for name in there}):
        yield found


def stored(tensors: Iterator[Tensor]) -> int:
    """Bytes of the storages of tensors, each once; of a DTensor those of its part."""
    parts = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in parts)}.values())


def moved(updater: gch.Updater) -> int:
    """Bytes that the kernels of the last step read and wrote on this rank."""
    sizes = {n: p.numel() for n, p in zip(updater.names, _here(updater), strict=True)}
    return sum((p.bytes_read + p.bytes_written) * sum(sizes[n] for n in p.names) for p in updater._bound.engine.ran)


def _here(updater: gch.Updater) -> list[Tensor]:
    """This rank's part of each weight that it updates."""
    shares = updater._bound.shares
    weights = updater._bound.target.last_seen if shares is None else shares.weights()._values()
    return [w.to_local() if hasattr(w, "to_local") else w for w in weights]


def remembered(updater: gch.Updater) -> Iterator[Tensor]:
    """The tensors of the state of every link."""
    from gradchain.core.tensors import Tensors
    from gradchain.updater.state_dict import states

    for _, held in states(updater.chain, updater._bound.state):
        for _, value in held.items():
            if isinstance(value, Tensors):
                yield from value.values()


def footprint(chain: gch.chain) -> Footprint:
    """What a chain keeps and moves of each element of float32 weights.

    ValueError for a chain whose bytes are not so many for each element, whatever the shape.
    """
    found = set()
    for shapes in ([(24, 8), (24,)], [(60, 7), (50,), (3, 5)]):
        weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        updater = chain.bind({str(i): w for i, w in enumerate(weights)})
        updater.update(torch.stack([w.square().sum() for w in weights]).sum())
        elements = sum(w.numel() for w in weights)
        state = sum(t.numel() * t.element_size() for t in remembered(updater))
        reductions = {part.program.reduce for part in updater._bound.engine.ran if part.program.reduce}
        found.add((state / elements, moved(updater) / elements, len(reductions)))
    if len(found) > 1:
        raise ValueError(f"scale: a chain must have so many bytes for each element, got {chain!r}, which has not.")
    return Footprint(4, *found.pop())


# runs


def wrapped(way: str, layout: Layout, chain: gch.chain, given: Counter[tuple[str, int]]) -> tuple[Any, gch.Updater]:
    """A model as DDP or FSDP2 has it, and the chain bound to it; what DDP reduces is counted."""
    model = Blocks(layout)
    if way == "FSDP2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh), chain.bind(model)
    ddp = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    def reduced(state, bucket):  # without annotations, which torch reads, and here they would be text
        given["all_reduce", bucket.buffer().numel() * bucket.buffer().element_size()] += 1
        return dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future().then(_first)

    ddp.register_comm_hook(None, reduced)
    return ddp, chain.bind(ddp, zero_redundancy=way == "ZeRO")


def _first(future: torch.futures.Future[list[Tensor]]) -> Tensor:
    return future.value()[0]


def run(way: str, layout: Layout, chain: gch.chain, steps: int) -> dict[str, Any]:
    """Some steps: what the last one gave to collectives, what lay there before it, and the seconds of each step."""
    reduced: Counter[tuple[str, int]] = Counter()
    model, updater = wrapped(way, layout, chain, reduced)
    took: list[float] = []
    for number in range(steps + 2):  # which the first two warm: DDP makes its buckets, and ranks agree on kernels
        reduced.clear()
        with counted() as talk:
            updater.backward(model(torch.full((1,), float(number))).sum())
        gradients = stored(p.grad for p in model.parameters() if p.grad is not None)
        with counted() as late:
            seconds = timed(updater.step)
        late["all_reduce", 8] -= 1  # in which the ranks say how long it took
        took += [seconds] if number > 1 else []
        if way != "FSDP2":
            talk = reduced.copy()  # the hook's own collective is the same again
        talk += late  # which drops what has become zero
    return {
        "talk": dict(talk), "weights": stored(iter(model.parameters())), "gradients": gradients,
        "state": stored(remembered(updater)), "moved": moved(updater), "step": min(took),
        "kernels": sorted({part.executor for part in updater._bound.engine.ran}),
    }  # fmt: skip


def timed(function: Callable[[], object]) -> float:
    """The seconds of a function's work on the rank that has most of it; all begin together.

    Of the process and all its threads, gloo's too: on a machine that others use a clock would tell of them.
    """
    dist.barrier()
    start = time.process_time()
    function()
    spent = torch.tensor(time.process_time() - start, dtype=torch.float64)
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return float(spent)


def probe(numbers: int = 1 << 23, rounds: int = 7) -> dict[str, float]:
    """What bytes take here while all ranks are at it: memory, the network that gloo makes of it, and a hop."""
    ranks = dist.get_world_size()
    a, b = torch.randn(numbers), torch.randn(numbers)
    piece, little = torch.randn(numbers // 4), torch.zeros(8, dtype=torch.float64)
    every = [torch.empty_like(piece) for _ in range(ranks)]

    def seconds(function: Callable[[], object]) -> float:
        return min(timed(function) for _ in range(rounds))

    return {
        "memory": 12 * numbers / seconds(lambda: a.add_(b)),
        "network": 4 * piece.numel() * (ranks - 1) / seconds(lambda: dist.all_gather(every, piece)),
        "latency": seconds(lambda: dist.all_reduce(little)) / (2 * (ranks - 1).bit_length()),
    }


def _rank(rank: int, world: int, folder: str, job: Callable[[], Any]) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(job(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    leave()


def on_ranks(world: int, job: Callable[[], Any]) -> list[Any]:
    """What a job returns on each of so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (world, folder, job), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
