"""The life of a gradient: where it lies between backward and step, and whose it is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.eager import EagerTensors
from gradchain.core.row_gradients import as_gradients, as_rows
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.engine.commit import Commit, Copies, sums
from gradchain.updater.memory import memory_for
from gradchain.updater.target import Target

Marks: TypeAlias = "tuple[list[Tensor | None], list[int | None]]"
"""Every parameter's gradient, and the version it had."""


class Gradients:
    """The `.grad` fields of the bound parameters."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # which gradients were missing when last gathered, the entries that were not, and what those were like
        self._missing: list[bool] = []
        self._present = target.index
        self._alike: Callable[..., bool] | None = None
        self._window: list[Tensor | None] = []  # what was put back, until it is gathered again

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_alike": None, "_window": []}  # a copy's gradients are others, and are looked at anew

    def clear(self, look: bool = True) -> None:
        """Set every `.grad` to None: of the parameters, or without a `look` of those that were last seen there."""
        self._window = []
        for parameter in self._target.parameters() if look else self._target.last_seen:
            parameter.grad = None  # to ask before whether there is one takes longer

    def put_back(self, window: Tensors) -> None:
        """Make `.grad` the parked window and nothing else, so that autograd goes on summing where it lies."""
        assert isinstance(window, EagerTensors)
        self._window = listed = window.listed(self._target.index)
        try:
            self._lay(listed)
        except RuntimeError:
            self._target.lie()  # which says what became of the parameter since the window was opened
            self._window = []
            pairs = zip(self._target.last_seen, listed, strict=True)
            self._lay([None if grad is None else grad.to(parameter.dtype) for parameter, grad in pairs])
        if window.alike is None or window.alike is not self._alike:
            self._window = []  # it is not what was gathered last, and has to be looked at

    def _lay(self, grads: list[Tensor | None]) -> None:
        for parameter, grad in zip(self._target.parameters(), grads, strict=True):
            parameter.grad = grad

    def marks(self, look: bool) -> Marks:
        """What tells later whether a backward has reached a parameter. Without a `look`, the window was just laid."""
        if look or not self._window:
            grads = [p.grad for p in (self._target.parameters() if look else self._target.last_seen)]
        else:
            grads = self._window
        return grads, [None if g is None else g._version for g in grads]

    @contextmanager
    def made_zero(self) -> Iterator[None]:
        """A backward whose gradients are 0, whatever the loss is."""
        handles = [p.register_hook(torch.zeros_like) for p in self._target.last_seen if p.requires_grad]  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def reached(self, marks: Marks | None) -> bool:
        """Whether some gradient is another one, or was added to, since `marks`; without those there was none."""
        if marks is None:
            return any(p.grad is not None for p in self._target.last_seen)
        for parameter, before, version in zip(self._target.last_seen, *marks, strict=True):
            grad = parameter.grad
            if grad is not None and (grad is not before or grad._version != version):
                return True
        return False

    def gather(self, look: bool = True, another_comes: bool = False) -> Tensors:
        """The gradients that are there, as updates.

        Args:
            look: whether the model may have other parameters than when last looked at.
            another_comes: another backward runs while they are in use. A gradient that is a view lies in a bucket of
                DDP's, which that backward overwrites: it is then copied.
        """
        index = self._target.index
        grads = [p.grad for p in (self._target.parameters() if look else self._target.last_seen)]
        window, self._window = self._window, []
        if window and not another_comes and all(map(operator.is_, grads, window)):
            return self._gathered(grads)  # autograd has added to what was gathered last, where it lies
        same = None if another_comes else self._as_before(grads)
        if same is not None:
            return same
        missing = [grad is None for grad in grads]
        self._target.lie()  # before gradients are held to weights that may be no more what they were
        found = {}
        for name, grad in zip(index.names, grads, strict=True):
            if grad is not None:
                grad = _detached(grad)
                _check_found(name, grad, self._target.last_seen[index.position[name]])
                found[name] = _laid(name, grad.clone() if another_comes and grad._base is not None else grad)
        gathered = as_gradients(index, found)
        if not index.complex and type(gathered) is EagerTensors:
            self._missing, self._present = missing, gathered.index
            self._alike = gathered.alike = _torch.guard(list(found.values()))
        return gathered

    def _as_before(self, grads: list[Any]) -> EagerTensors | None:
        """The gradients, if they are there for the same parameters as last time, and like those."""
        if self._alike is None:
            return None
        if self._present is not self._target.index:
            if [grad is None for grad in grads] != self._missing:
                return None
            grads = [grad for grad in grads if grad is not None]
        if not self._alike(*grads):  # which None is not, either
            return None
        return self._gathered(grads)

    def _gathered(self, grads: list[Any]) -> EagerTensors:
        """Gradients that are like those gathered last, and of the same parameters."""
        if len(grads) > len(self._present):
            grads = [grad for grad in grads if grad is not None]
        gathered = EagerTensors(self._present, grads)
        gathered.alike = self._alike
        return gathered

    def from_mapping(self, grads: Mapping[str, Tensor | None]) -> Tensors:
        """Gradients that a user passed by name, as updates."""
        if not isinstance(grads, Mapping):
            cure = "A loss goes to update(loss)." if isinstance(grads, Tensor) else "See updater.names."
            cure = "A closure goes to update(closure)." if callable(grads) else cure
            raise TypeError(f"step: grads must map names to gradients, got {type(grads).__name__}. {cure}")
        parameters = dict(zip(self._target.index.names, self._target.parameters(), strict=True))
        found = {}
        for name, grad in grads.items():
            if name not in parameters:
                raise KeyError(f"step: there is no parameter {name!r} to give a gradient to. See updater.names.")
            if grad is not None:
                _check_given(name, grad, parameters[name])
                found[name] = _laid(name, _detached(grad.detach()))
        return as_gradients(self._target.index, {n: found[n] for n in self._target.index.names if n in found})

    def params(self, look: bool = True) -> EagerTensors:
        """The weights, as Tensors over the memory of the model; without a `look`, those that were last seen there."""
        index, parameters = self._target.index, self._target.parameters() if look else self._target.last_seen
        lie = self._target.lie()
        if index.complex:
            params = EagerTensors.at(index, dict(zip(index.names, parameters, strict=True)))
        else:
            params = EagerTensors(index, parameters)
        params.alike = lie
        return params

    def write(self, commit: Commit, updates: Tensors | Weights) -> None:
        """Have a commit add the updates to the weights, or write the weights a link returned, with one rounding."""
        tensors = updates.tensors if isinstance(updates, Weights) else updates
        assert isinstance(tensors, EagerTensors)
        weights = self._weights_of(tensors)
        if not weights:
            return
        if isinstance(updates, Weights):
            commit.add(Copies(weights, [tensors[n] for n in tensors]))
        else:
            commit.add(sums(*tensors.addends(weights)))
        commit.after(self._target.reshard)
        commit.after(_torch.forget_casts)

    def _weights_of(self, tensors: EagerTensors) -> list[Tensor]:
        """The weights that these are for. ValueError where one does not fit: before any is written."""
        position, current = self._target.index.position, self._target.last_seen
        stray = next((name for name in tensors if name not in position), None)
        if stray is not None:
            raise ValueError(f"update: the chain returned an update for {stray!r}, which is no parameter.")
        weights = [current[position[name]] for name in tensors]
        stray = tensors.misfit(weights)
        if stray is not None:
            raise ValueError(
                f"update: the chain returned an update for {stray!r} of shape {tuple(tensors[stray].shape)}, and the "
                f"parameter has shape {tuple(current[position[stray]].shape)}."
            )
        return weights


def _check_found(name: str, grad: Tensor, parameter: Tensor) -> None:
    """Whether what lies in `.grad` can be the gradient of this parameter: torch looks when it is put there only."""
    if grad.shape != parameter.shape:
        shapes = tuple(parameter.shape), tuple(grad.shape)
        raise ValueError(f"step: the gradient of {name!r} must have shape {shapes[0]}, got shape {shapes[1]}.")
    _check_place(name, grad, parameter)
    without = memory_for(f"the gradient of {name!r}", grad)
    if without is not None:
        raise ValueError(f"step: {without}")


def _check_place(name: str, grad: Tensor, parameter: Tensor) -> None:
    if grad.device != parameter.device:
        raise ValueError(f"step: the gradient of {name!r} must be on {parameter.device}, got {grad.device}.")


def _check_given(name: str, grad: Any, parameter: Tensor) -> None:
    """Whether what a user passed can be the gradient of this parameter."""
    shape = getattr(grad, "shape", None)  # a user may pass anything
    if shape != parameter.shape:
        got = type(grad).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"step: the gradient of {name!r} must have shape {tuple(parameter.shape)}, got {got}.")
    if not isinstance(grad, Tensor):
        raise TypeError(f"step: the gradient of {name!r} must be a tensor, got {type(grad).__name__}.")
    _check_place(name, grad, parameter)
    if not (grad.is_floating_point() or grad.is_complex()) or grad.is_complex() != parameter.is_complex():
        kind = "complex" if parameter.is_complex() else "floating point"
        raise TypeError(f"step: the gradient of {name!r} must be {kind}, as the parameter is, got {grad.dtype}.")


def _detached(grad: Tensor) -> Tensor:
    """A gradient as it may be kept: without a graph, and none of inference mode, which nothing may write to."""
    if grad.is_inference():
        return grad.clone()
    return grad.detach() if grad.requires_grad else grad


def _laid(name: str, grad: Tensor) -> Tensor:
    return grad if grad.layout is torch.strided else as_rows(name, grad)


def owned(tensors: Tensors, lent: set[int]) -> Tensors:
    """`tensors`, with copies in place of those that are, or look into, a tensor whose id is in `lent`."""
    if not any(_origin(t) in lent for t in tensors.values()):
        return tensors
    return tensors.clone()


def _origin(tensor: Tensor) -> int:
    return id(tensor._base if tensor._base is not None else tensor)
