"""The life of a gradient: where it lies between backward and step, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.eager import EagerTensors
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.updater.target import Target

_STRIDED = torch.strided


class Gradients:
    """The `.grad` fields of the bound parameters."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def clear(self) -> None:
        """Set every `.grad` to None."""
        for parameter in self._target.parameters():
            parameter.grad = None

    def put_back(self, window: Tensors) -> None:
        """Make `.grad` the parked window and nothing else, so that autograd goes on summing where it lies."""
        for name, parameter in zip(self._target.index.names, self._target.parameters(), strict=True):
            parameter.grad = window[name] if name in window else None

    def marks(self) -> list[tuple[Tensor | None, int]]:
        """What tells later whether a backward has reached a parameter."""
        grads = [p.grad for p in self._target.parameters()]
        return [(g, -1 if g is None else g._version) for g in grads]

    def reached(self, marks: list[tuple[Tensor | None, int]]) -> bool:
        """Whether some gradient is another one, or was added to, since `marks`."""
        for parameter, (grad, version) in zip(self._target.parameters(), marks, strict=True):
            now = parameter.grad
            if now is not None and (now is not grad or now._version != version):
                return True
        return False

    def gather(self, another_comes: bool = False) -> Tensors:
        """The gradients that are there, as updates.

        Args:
            another_comes: another backward runs while they are in use. A gradient that is a view lies in a bucket of
                DDP's, which that backward overwrites: it is then copied.
        """
        index = self._target.index
        grads = [parameter.grad for parameter in self._target.parameters()]
        plain = not index.complex and not another_comes
        if plain and all(g is not None and g.layout is _STRIDED and not g.requires_grad for g in grads):
            return EagerTensors(index, grads)  # type: ignore[arg-type]  # none is None
        found = {}
        for name, grad in zip(index.names, grads, strict=True):
            if grad is not None:
                grad = grad.detach() if grad.requires_grad else grad
                found[name] = _dense(name, grad.clone() if another_comes and grad._base is not None else grad)
        return EagerTensors.at(index, found)

    def given(self, grads: Mapping[str, Tensor | None]) -> Tensors:
        """Gradients that a user passed by name, as updates."""
        shapes = {f.name: f.parameter.shape for f in self._target.index.facts}
        found = {}
        for name, grad in grads.items():
            if name not in shapes:
                raise KeyError(f"step: there is no parameter {name!r} to give a gradient to. See updater.names.")
            if grad is None:
                continue
            shape = getattr(grad, "shape", None)  # a user may pass anything
            if shape != shapes[name]:
                got = type(grad).__name__ if shape is None else f"shape {tuple(shape)}"
                raise ValueError(f"step: the gradient of {name!r} must have shape {tuple(shapes[name])}, got {got}.")
            found[name] = _dense(name, grad.detach())
        return EagerTensors.at(self._target.index, {n: found[n] for n in self._target.index.names if n in found})

    def params(self) -> EagerTensors:
        """The weights, as Tensors over the memory of the model."""
        index, parameters = self._target.index, self._target.parameters()
        if not index.complex:
            return EagerTensors(index, parameters)
        return EagerTensors.at(index, dict(zip(index.names, parameters, strict=True)))

    def apply(self, updates: Tensors | Weights) -> None:
        """Add the updates to the weights, or write the weights a link returned: one rounding, in place."""
        tensors = updates.tensors if isinstance(updates, Weights) else updates
        position = self._target.index.position
        current = self._target.parameters()
        weights = [current[position[n]] for n in tensors]
        if not weights:
            return
        values = [tensors[n] for n in tensors]
        if not isinstance(updates, Weights):
            wide = _torch.widened(weights)
            if wide is weights:
                _torch.add_(weights, values)
                self._target.reshard()
                return
            values = [w + v for w, v in zip(wide, values, strict=True)]
        _torch.copy_(weights, values)
        self._target.reshard()


def _dense(name: str, grad: Tensor) -> Tensor:
    if grad.layout != torch.strided:
        raise TypeError(
            f"step: the gradient of {name!r} is sparse ({grad.layout}). Make it dense: nn.Embedding(sparse=False)."
        )
    return grad


def owned(tensors: Tensors, lent: set[int]) -> Tensors:
    """`tensors`, with copies in place of those that are, or look into, a tensor whose id is in `lent`."""
    if not any(_origin(t) in lent for t in tensors.values()):
        return tensors
    return tensors.clone()


def _origin(tensor: Tensor) -> int:
    return id(tensor._base if tensor._base is not None else tensor)
