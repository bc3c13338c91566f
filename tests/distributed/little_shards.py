"""Small tensors laid out over ranks in every way, with gradients that are the same numbers in any layout."""

import torch
from later import later
from torch import nn

import gradchain as gch

device_mesh, tensor = later("torch.distributed.device_mesh"), later("torch.distributed.tensor")

SHAPES = {"0.a": (5, 3), "0.b": (5,), "1.c": (2, 6), "1.d": (1, 4), "2.e": (6, 8), "2.f": (3,), "2.g": (1,)}
STEPS = 6


def numbers(name, step, dtype=torch.float64):
    """What a parameter begins with, at step -1, and its gradients."""
    seed = 1000 * list(SHAPES).index(name) + step + 1
    made = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (made * (1.0 if step < 0 else 0.1 + 0.3 * step)).to(dtype)


def by_rows(mesh, name):
    return [tensor.Shard(0)]


def by_columns(mesh, name):
    return [tensor.Shard(len(SHAPES[name]) - 1)]


def replicated_rows(mesh, name):
    return [tensor.Replicate(), tensor.Shard(0)]


def in_turn(mesh, name):
    """As tensor parallelism has it: rows, columns, or all of it."""
    kinds = [tensor.Shard(0), tensor.Shard(len(SHAPES[name]) - 1), tensor.Replicate()]
    return [kinds[list(SHAPES).index(name) % 3]]


def both(mesh, name):
    """FSDP and tensor parallelism over different dimensions."""
    return [tensor.Shard(0), tensor.Shard(1) if len(SHAPES[name]) == 2 else tensor.Replicate()]


def twice(mesh, name):
    """Both over the same dimension, as a column-wise layer under FSDP has it."""
    return [tensor.Shard(0), tensor.Shard(0)]


def some(mesh, name):
    """Some are plain."""
    return None if name in ("0.b", "2.e") else [tensor.Shard(0)]


def two(world):
    return (2, world // 2)


KINDS = {
    "rows": (lambda world: (world,), by_rows),
    "columns": (lambda world: (world,), by_columns),
    "replicated rows": (two, replicated_rows),
    "rows, replicated once": (lambda world: (1, world), replicated_rows),
    "in turn": (lambda world: (world,), in_turn),
    "rows and columns": (two, both),
    "rows twice": (two, twice),
    "some plain": (lambda world: (world,), some),
}
_meshes = {}


def mesh_of(shape):
    """One mesh for each shape: making one takes its time."""
    if shape not in _meshes:
        _meshes[shape] = device_mesh.init_device_mesh("cpu", shape)
    return _meshes[shape]


def laid(kind, name, whole, world):
    """A whole tensor as `kind` has it; with None whole."""
    if kind is None:
        return whole
    shape, places = KINDS[kind]
    mesh = mesh_of(shape(world))
    placements = places(mesh, name)
    return whole if placements is None else tensor.distribute_tensor(whole, mesh, placements, src_data_rank=None)


def parameters(kind, world, dtype=torch.float64):
    return {name: nn.Parameter(laid(kind, name, numbers(name, -1, dtype), world)) for name in SHAPES}


def fed(updater, params, kind, world, steps, spoil=None, dtype=torch.float64):
    """Steps with these gradients; what each came to, and why it ran by the reference."""
    reasons, by_reference = [], []
    for step in steps:
        for name, parameter in params.items():
            parameter.grad = laid(kind, name, numbers(name, step, dtype), world)
        if spoil is not None:
            spoil(step, params)
        reasons.append(updater.step().reason)
        by_reference.append(updater._bound.engine.reason)
    return {"reasons": reasons, "by_reference": by_reference}


def whole(value):
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def wholes(tensors):
    return {name: whole(value) for name, value in tensors.items()}


class by_own_norm(gch.Transform):
    """Each update over its own norm, as LAMB and LARS have it, and by how many elements there are."""

    def update(self, g, state, ctx):
        scale = ctx.params.norms() / (g.norms() + 1e-3) / g.numels() ** 0.5
        return g * scale / (1.0 + g.norms(p=float("inf"))) * (1.0 + g.sums() * 1e-3), state


class Rows(gch.State):
    rows: gch.Tensors
    columns: gch.Tensors


class factored(gch.Transform):
    """Second moments of rows and columns, as Adafactor has them; with the largest of each row, and norms of those."""

    applies = gch.min_ndim(2)

    def init(self, params):
        return Rows(params.mean(-1).zeros_like(), params.mean(0).zeros_like())

    def update(self, g, state, ctx):
        squares = g * g + 1e-3
        rows, columns = state.rows.lerp(squares.mean(-1), 0.1), state.columns.lerp(squares.mean(0), 0.1)
        scaled = g * (rows.mean(0) / rows).sqrt() / columns.sqrt()
        scaled = scaled / (1.0 + scaled.amax((0, 1)) + g.norms(0)) + g.sum(1) * 1e-2
        return scaled * (1.0 / (1.0 + rows.norms() + columns.norms(p=1.0))), Rows(rows, columns)


def chains():
    """Every kind of reduction, gates, windows, masks, parts, averages, noise."""
    adamw = gch.adamw(0.05)
    return {
        "clip, adamw, average": gch.chain(gch.clip_by_norm(0.2), adamw, gch.average_params(0.9)),
        "norms of each": gch.chain(by_own_norm(), gch.sgd(0.05, momentum=0.9)),
        "gates": gch.chain(gch.amp_scale(init_scale=64.0, always=True), gch.skip_nonfinite(), adamw),
        "window": gch.chain(gch.accumulate(2, dtype=torch.float64), gch.clip_by_norm(0.2, p=1.0), adamw),
        "window of gradients": gch.chain(gch.accumulate(3), gch.clip_by_norm(0.2, p=float("inf")), adamw),
        "parts": gch.partition(
            (gch.min_ndim(2), gch.chain(gch.clip_by_norm(0.3, per="tensor"), adamw)),
            (gch.rest, gch.chain(gch.masked(gch.add_decayed_weights(0.1), gch.named("0.*")), gch.lion(0.01))),
        ),
        "noise": gch.chain(gch.add_noise(0.01, 0.55, seed=2), gch.clip_by_norm(0.5), gch.sgd(0.05, momentum=0.9)),
        "factored": gch.chain(factored(), gch.sgd(0.05)),
        "numbers of each": gch.sgd(gch.choose((gch.named("0.*"), 0.01), rest=0.05), momentum=0.9),
    }
