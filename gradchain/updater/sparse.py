"""Updates whose gradients are of rows: which chains may see them, and the reference that runs them.

A sparse gradient is the gradient of the rows that it names. All others are absent, as a parameter without a gradient
is: their weights and their state are not touched. Links see the rows alone, of gradient, weight and state, one after
the other; a number per parameter, as a count, is that of the parameter.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.roles import KeepsWindow
from gradchain.core.row_gradients import RowGradients, places, sparse_in, values_of_rows
from gradchain.core.state import Links, S, State
from gradchain.core.step import Notes, Step
from gradchain.core.tensors import Tensors
from gradchain.core.transform import walk
from gradchain.core.weights import Weights
from gradchain.engine.commit import Commit
from gradchain.engine.engine import Engine
from gradchain.engine.outcome import Outcome
from gradchain.engine.recording.leaves import whole_of

if TYPE_CHECKING:
    from gradchain.updater.bound import Bound


def check(tx: chain, index: Index, names: Collection[str], owner: str) -> None:
    """ValueError where a link in the way of these parameters, whose gradients are sparse, cannot take rows."""
    for address, link, seen in walk(tx, index) if names else ():
        first = next((name for name in names if name in seen), None)
        if first is not None and link.refuses_rows:
            raise ValueError(
                f"{owner}: {first!r} must have dense gradients for {address}, got sparse ones, which are of the rows "
                f"they name: it {link.refuses_rows}"
            )


def _check_now(bound: Bound, names: Collection[str], step: Step) -> None:
    """ValueError where this update cannot be one of rows."""
    check(bound.chain, bound.target.index, names, "step")
    for address, link, seen in walk(bound.chain, bound.target.index):
        in_grad = (step.summed or step.flushing) and address == bound.window.name
        if isinstance(link, KeepsWindow) and not in_grad and any(name in seen for name in names):
            raise ValueError(
                f"step: the gradient of {next(iter(names))!r} must be dense for {address}, got a sparse one: windows "
                f"sum those where autograd does. Put {address} first in the chain, without a dtype, and call "
                "updater.update(loss)."
            )


def _not_of_rows(weights: Tensors, address: str) -> NoReturn:
    raise ValueError(
        f"{address}: evaluates whole weights, and a gradient is sparse: there are the rows that it names only. Give "
        "dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag."
    )


def is_open(state: Links) -> bool:
    """Whether a window holds gradients of rows."""
    return any(sparse_in(held) for held in whole_of(state) if isinstance(held, EagerTensors))


def computed(bound: Bound, received: Tensors, state: Links, step: Step, engine: Engine, lent: bool) -> Outcome:
    """What an update of rows comes to, nothing of it written yet: by the engine, or by the reference."""
    weights = step.params
    assert isinstance(received, EagerTensors) and isinstance(weights, EagerTensors)
    rows = _Rows(sparse_in(received))
    if step.flushing:
        for window in whole_of(state):
            rows = _Rows({**rows.grads, **sparse_in(window)}) if isinstance(window, EagerTensors) else rows
    _check_now(bound, rows.grads.keys(), step)
    if step.evaluate is not None:
        step = step._replace(evaluate=_not_of_rows)
    if isinstance(received, RowGradients):
        done = engine.step_of_rows(bound.chain, step, received, state, weights, lent)
        if done is not None:
            shared = lent or bound.target.replicated
            return done._replace(state=bound.owning(done.state, state, received, lent)) if shared else done
    notes, commit, given = Notes(step), Commit(), values_of_rows(received)
    seen = rows.state(state)
    params = rows.of(weights)
    out, new = bound.chain.update(given, seen, Context.of(step._replace(params=params), notes))
    assert isinstance(new, Links)
    if out is not None:
        rows.write(bound, commit, out, weights, params)
    stored = rows.stored(state, seen, new, commit, {id(given): received})
    return Outcome(out is not None, bound.owning(stored, state, received, lent), notes, commit)


class _Rows:
    """Which rows an update is of, and how tensors of all rows become those and are written back."""

    def __init__(self, grads: dict[str, Tensor]) -> None:
        self.grads = grads
        self._index = {name: places(grad) for name, grad in grads.items()}

    def of(self, tensors: EagerTensors) -> EagerTensors:
        """These rows of weights or of a field of the state; other entries as they are."""
        if self._index.keys().isdisjoint(tensors.index.names):
            return tensors
        rows = zip(tensors.index.names, tensors._values(), strict=True)
        return EagerTensors(tensors.index, [self._at(name, t) if name in self._index else t for name, t in rows])

    def _at(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != self.grads[name].shape[0]:
            raise ValueError(
                f"step: the gradient of {name!r} must be dense for a link whose state is not one of rows, got a sparse "
                f"one and state of shape {tuple(tensor.shape)}. Leave it out by gch.masked(…, ~gch.named(…))."
            )
        return tensor.detach().index_select(0, self._index[name])

    def state(self, state: S) -> S:
        """The state as links see it; of a window, the rows that its gradients name."""
        changes: dict[str, Any] = {}
        for name, value in state.items():
            if isinstance(value, EagerTensors):
                changes[name] = values_of_rows(value) if name in state.whole else self.of(value)
        held = {name: self.state(inner) for name, inner in state.held().items()}
        return (state.replace(**changes) if changes else state).holding(held)

    def write(
        self, bound: Bound, commit: Commit, out: Tensors | Weights, weights: EagerTensors, before: EagerTensors
    ) -> None:
        """Have a commit write the updates: over whole weights, and over the rows of others."""
        tensors = out.tensors if isinstance(out, Weights) else out
        assert isinstance(tensors, EagerTensors)
        mine = tensors.select([name for name in tensors.index.names if name in self._index])
        rest = tensors.select([name for name in tensors.index.names if name not in self._index])
        bound.gradients.write(commit, Weights(rest) if isinstance(out, Weights) else rest)
        if not len(mine):
            return
        made = mine if isinstance(out, Weights) else before.select(mine.index) + mine
        at = weights.index.position
        commit.add(RowCopies([(weights._data[at[n]], self._index[n], _entry(made, n)) for n in mine.index.names]))
        commit.after(_torch.forget_casts)

    def stored(self, state: S, seen: State, new: S, commit: Commit, gathered: dict[int, EagerTensors]) -> S:
        """The new state, with the tensors that are of all rows as they are and these rows written by the commit."""
        changes: dict[str, Any] = {}
        for name, value in new.items():
            if not isinstance(value, EagerTensors):
                continue
            if value is seen[name]:
                changes[name] = state[name]
            elif name in new.whole:
                changes[name] = gathered.get(id(value), value)
            else:
                changes[name] = self._field(state[name], value, commit)
        held = {n: self.stored(state.held()[n], seen.held()[n], s, commit, gathered) for n, s in new.held().items()}
        return (new.replace(**changes) if changes else new).holding(held)

    def _field(self, before: EagerTensors, after: EagerTensors, commit: Commit) -> EagerTensors:
        data, old, position = list(after._values()), before._values(), before.index.position
        writes = []
        for i, name in enumerate(after.index.names):
            if name in self._index:
                place = old[position[name]]
                writes.append((place, self._index[name], data[i]))
                data[i] = place
        if writes:
            commit.add(RowCopies(writes))
        return EagerTensors(after.index, data)


def _entry(tensors: Tensors, name: str) -> Tensor:
    assert isinstance(tensors, EagerTensors)
    return tensors._values()[tensors.index.position[name]]


class RowCopies:
    """Rows copied over those of other tensors: the same whenever it is done again."""

    def __init__(self, rows: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        self._rows = [(place, index, values.to(place.dtype)) for place, index, values in rows]
        self.begun = False

    def __call__(self) -> None:
        self.begun = True
        with _torch.no_grad():
            for place, index, values in self._rows:
                place.index_copy_(0, index, values)
