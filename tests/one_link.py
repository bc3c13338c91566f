"""Little tensors and one update of a link, for the tests of single links."""

import torch

import gradchain as gch
from gradchain.core.step import Notes, Step

DOUBLE = torch.float64
SHAPES = {"body.weight": (3, 4), "body.bias": (3,), "head.weight": (2, 3), "scale": ()}


def draw(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return gch.Tensors.of({n: size * torch.randn(s, dtype=DOUBLE, generator=generator) for n, s in SHAPES.items()})


def tensors(**entries):
    return gch.Tensors.of({n: torch.as_tensor(v, dtype=DOUBLE) for n, v in entries.items()})


def once(link, updates, **context):
    """One update from a fresh state: what comes out, and what was recorded."""
    params = context.pop("params", updates)
    step = Step(params=params, clocks={"step": context.pop("step", 0)}, **context)
    notes = Notes(step)
    out, _ = link.update(updates, link.init(params), gch.Context.of(step, notes))
    return out, notes


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=0, check_dtype=False)
