"""A chain bound twice: one updater may run steps again from their numbers, the other records each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from twins import Shapes, by_executors, distance, drawn_like

import gradchain as gch

INF = math.inf


class Pair:
    """The same chain on two copies of a model, taught the same things, and compared bit for bit after each.

    Args:
        tx: the chain.
        model: it is copied for each.
        executors: those that may be used; all if none are named.
        bind: given to bind.
    """

    def __init__(
        self, tx: gch.Transform, model: nn.Module | None = None, executors: tuple[str, ...] = (), **bind: Any
    ) -> None:
        model = Shapes() if model is None else model
        self.models = (copy.deepcopy(model), copy.deepcopy(model))
        self.again, self.recorded = (tx.bind(m, **bind) for m in self.models)
        if executors:
            by_executors(self.again, *executors)
            by_executors(self.recorded, *executors)
        self.recorded._bound.engine._why_without_numbers = lambda request: "to compare with"

    @property
    def replayed(self) -> int:
        """How many steps ran again."""
        assert self.recorded._bound.engine.num_replayed == 0
        return self.again._bound.engine.num_replayed

    @property
    def counted(self) -> int:
        """How many micro-batches were added to their window, and nothing else ran."""
        return self.again._bound.engine.num_counted

    def each(self, do: Callable[[nn.Module, gch.Updater], object]) -> list[Any]:
        """Do the same to both, with the same outcome: a value, or an exception's sentence."""
        pairs = zip(self.models, (self.again, self.recorded), strict=True)
        outcomes = [outcome(partial(do, model, updater)) for model, updater in pairs]
        self.compare()
        return outcomes

    def step(self, t: int, *, absent=(), size: float = 1.0, loss: bool = False, closure: bool = False, **kwargs):
        """One step of both: from gradients, from a loss, or by a closure. Why it was or was not applied."""

        def do(model: nn.Module, updater: gch.Updater) -> object:
            if loss or closure:
                if closure:
                    return updater.update(lambda: size * distance(model, t, absent), **kwargs)
                return updater.update(size * distance(model, t, absent), **kwargs)
            for i, (name, p) in enumerate(model.named_parameters()):
                p.grad = None if name in absent else size * drawn_like(p, 100 * t + i)
            return updater.step(**kwargs)

        return self.told(do)

    def told(self, do: Callable[[nn.Module, gch.Updater], object]) -> Any:
        """Do the same to both; the infos that they give are one."""
        a, b = self.each(do)
        if isinstance(b, tuple):
            assert a == b
            return b
        assert (a.reason, a.detail, a.step) == (b.reason, b.detail, b.step)
        same(dict(a._records), dict(b._records))
        same(outcome(lambda: a.hyperparams), outcome(lambda: b.hyperparams))
        assert (a.loss is None) == (b.loss is None)
        assert a.loss is None or same_bits(a.loss, b.loss)
        return a.reason

    def compare(self) -> None:
        """Assert that weights, state, clocks, counters and numbers are the same bits."""
        mine, reference = (dict(m.named_parameters()) for m in self.models)
        same(mine, reference)
        assert [p._version for p in mine.values()] == [q._version for q in reference.values()]
        a, b = self.again.state_dict(), self.recorded.state_dict()
        assert a["clocks"] == b["clocks"]
        same(a["links"], b["links"])
        same(outcome(self.again.hyperparams), outcome(self.recorded.hyperparams))
        same(dict(self.again._bound.records), dict(self.recorded._bound.records))
        assert self.again.num_skipped == self.recorded.num_skipped
        assert self.again.num_micro == self.recorded.num_micro


def outcome(do: Callable[[], Any]) -> Any:
    """A value, or an exception's kind and sentence."""
    try:
        return do()
    except Exception as error:
        return type(error), str(error)


def same(mine: Any, reference: Any) -> None:
    """Assert that two trees have one structure, and leaves of one type and the same bits."""
    left, tree = _pytree.tree_flatten_with_path(mine)
    right, other = _pytree.tree_flatten_with_path(reference)
    assert tree == other
    for (path, x), (_, y) in zip(left, right, strict=True):
        where = _pytree.keystr(path)
        assert type(x) is type(y), where
        if isinstance(y, Tensor):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), where
            assert same_bits(x, y), where
        elif isinstance(y, float) and math.isnan(y):
            assert math.isnan(x), where
        else:
            assert x == y, where


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same elements, NaNs in the same places."""
    x, y = (torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in (x, y))
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(0.0, INF, -INF), y.nan_to_num(0.0, INF, -INF))
