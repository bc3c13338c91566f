"""What torch calls on a tensor, asked of Tensors: what to write there."""

from __future__ import annotations

import difflib

INSTEAD: dict[str, str] = {
    "square": "write g * g",
    "T": "write g.map(lambda t: t.mT), which sees each tensor",
    "mT": "write g.map(lambda t: t.mT), which sees each tensor",
    "add": "write g + other",
    "sub": "write g - other",
    "mul": "write g * other",
    "div": "write g / other",
    "neg": "write -g",
    "reciprocal": "write 1 / g",
    "sigmoid": "write 1 / (1 + (-g).exp())",
    "relu": "write g.maximum(0.0)",
    "max": "write g.amax(dim) along dimensions, g.norm(math.inf) for the largest magnitude",
    "min": "write -(-g).amax(dim)",
    "addcmul": "write g + value * a * b",
    "addcdiv": "write g + value * a / b",
    "item": "there is no single element: g.sum() and g.norm() are numbers, g.sums() and g.norms() one per parameter",
    "numel": "write g.numels(), one number per parameter",
    "std": "write ((g - g.mean(dim)) * (g - g.mean(dim))).mean(dim).sqrt()",
    "var": "write ((g - g.mean(dim)) * (g - g.mean(dim))).mean(dim)",
    "shape": "each tensor has its own: g.map(fn), or ctx.facts",
    "dtype": "each tensor has its own: g.map(fn), or ctx.facts",
    "device": "each tensor has its own: g.map(fn), or ctx.facts",
    "exp2": "write (math.log(2) * g).exp()",
    "float": "write g.to(torch.float32)",
    "detach": "leave it out: nothing here is in a graph",
}
"""Word → what to write in place of it."""


def absent(owner: str, name: str, there: list[str]) -> str:
    """The sentence for an attribute that Tensors have not, in a link."""
    plain = name[:-1] if name[-1:] == "_" else name
    cure = INSTEAD.get(plain)
    if cure is None:
        near = [plain] if plain in there else difflib.get_close_matches(plain, there, n=1, cutoff=0.7)
        cure = f"write g.{near[0]}(…)" if near else f"write g.map(lambda t: t.{plain}(…)), which sees each tensor"
    value = "nothing is changed in place, " if plain != name else ""
    return f"{owner}: Tensors are tensors by name, not a torch.Tensor, and have no {name!r}: {value}{cure}."
