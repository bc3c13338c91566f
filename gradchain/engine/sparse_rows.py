"""A step of a chain in which the gradients of some parameters are of rows: those are read and written in place.

The links run on a tape as ever, for an operation does not ask how many elements there are. What differs is what a
program runs over: for a parameter with a sparse gradient, the rows that it names, of weight and state where they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.row_gradients import RowGradients
from gradchain.core.tensors import Tensors
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.executors.native import Native
from gradchain.engine.executors.native_rows import NamedRows, ready_rows
from gradchain.engine.operations import Unrecorded
from gradchain.engine.planning.layout import Layout
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.plan import Part
from gradchain.engine.plans import Plans
from gradchain.engine.recording.tape import Lazy, Tape


class SparseRows:
    """What is another thing to an engine where just these parameters have sparse gradients."""

    def __init__(self, names: frozenset[str]) -> None:
        self._rows = {name: NamedRows() for name in names}
        self.layout = partial(RowsLayout, names)
        self.tape = partial(RowsTape, names)

    def plans(self) -> RowsPlans:
        """Plans of programs that run over the rows of the current step."""
        return RowsPlans(self._rows)

    def check_window(self, index: Index) -> None:
        """Unrecorded where a window would keep what links see of sparse gradients, and not these themselves."""
        if not self._rows.keys().isdisjoint(index.names):
            raise Unrecorded("a window keeps gradients of rows")

    def take(self, received: RowGradients) -> EagerTensors:
        """Another step begins, with these gradients: as links see them."""
        for name, grad in received.sparse.items():
            self._rows[name].take(grad)
        return received.values_of_rows()


class RowsLayout(Layout):
    """Where the tensors lie in such a step: of some gradients there are rows only, each laid out as its weight's."""

    def __init__(self, names: frozenset[str], params: EagerTensors) -> None:
        super().__init__(params)
        self._sparse = names
        for name in names:
            if not self.tensors[self.index.position[name]].is_contiguous():
                raise Unrecorded(f"the rows of {name!r} do not lie one after the other")

    def state(self, tensors: Tensors, taken: set[int] | None = None) -> EagerTensors:
        """A field of the state; see Layout."""
        for name in self._sparse.intersection(tensors.index.names):
            shape = tensors._shapes()[tensors.index.position[name]]
            if shape != self.tensors[self.index.position[name]].shape:
                raise Unrecorded(
                    f"a tensor of {name!r}, of which there are rows only, has another shape than the weight"
                )
        return super().state(tensors, taken)

    def gradients(self, grads: EagerTensors) -> EagerTensors:
        """The gradients, each whole one laid out as its weight."""
        whole = super().gradients(EagerTensors(*_without(grads, self._sparse)))
        data, changed = [], False
        for name, grad in zip(grads.index.names, grads._values(), strict=True):
            made = self._of_rows(name, grad) if name in self._sparse else whole._data[whole.index.position[name]]
            changed = changed or made is not grad
            data.append(made)
        return EagerTensors(grads.index, data) if changed else grads

    def _of_rows(self, name: str, grad: Any) -> Any:
        weight = self.tensors[self.index.position[name]]
        if grad.shape[1:] != weight.shape[1:] or grad.dtype is not weight.dtype or grad.device != self.device:
            raise Unrecorded(f"the gradient of {name!r} has rows of another kind than the weight")
        return grad.contiguous()


def _without(grads: EagerTensors, names: frozenset[str]) -> tuple[Any, list[Any]]:
    index = grads.index.subset([name for name in grads.index.names if name not in names])
    return index, [grads._values()[grads.index.position[name]] for name in index.names]


class RowsTape(Tape):
    """A tape on which nobody may ask for the tensors of such a parameter: its weight is whole, its gradient not."""

    def __init__(self, names: frozenset[str], *args: Any) -> None:
        super().__init__(*args)
        self._sparse = names

    def computed(self, node: int) -> EagerTensors:
        if not self._sparse.isdisjoint(self.indices[node].names):
            raise Unrecorded("a link asks for the tensors of a parameter of which there are rows only")
        return super().computed(node)

    def along(self, of: Lazy, kind: str, dims: tuple[tuple[int, ...], ...]) -> Lazy:
        if not self._sparse.isdisjoint(of.index.names):
            raise Unrecorded("a link reduces along dimensions a parameter of which there are rows only")
        return super().along(of, kind, dims)


class RowsPlans(Plans):
    """Plans in which a parameter with a sparse gradient is a class of its own, and runs over rows."""

    def __init__(self, rows: dict[str, NamedRows]) -> None:
        super().__init__()
        self._rows = rows

    def _classes(self, tape: Tape, nodes: Iterable[int], like: Sequence[int]) -> list[tuple[str, ...]]:
        classes = []
        for names in super()._classes(tape, nodes, like):
            whole = tuple(name for name in names if name not in self._rows)
            classes += [whole] if whole else []
            classes += [(name,) for name in names if name in self._rows]
        return classes

    def _part(self, tape: Tape, names: tuple[str, ...], program: Program, like: int) -> Part:
        if names[0] not in self._rows:
            return super()._part(tape, names, program, like)
        kinds = [tape.ops[leaf][1] for leaf in program.columns]
        if "extra" in kinds:
            raise Unrecorded(f"a link brings tensors of its own for {names[0]!r}, of which there are rows only")
        if program.draws:
            raise Unrecorded(f"a link draws random numbers for {names[0]!r}, of which there are rows only")
        tensors = [tape.leaves[leaf] for leaf in program.columns]
        found = [t._data[t.index.position[names[0]]] for t in tensors]
        rest = found[0].shape[1:] if found else ()
        if any(tensor.shape[1:] != rest for tensor in found):
            raise Unrecorded(f"state of {names[0]!r} has rows of another shape than the weight")
        dtypes = [tensor.dtype for tensor in found]
        refused: dict[str, str] = {}
        for executor in self._executors:
            reason = "it runs whole tensors, not rows" if not isinstance(executor, Native) else None
            reason = reason or executor.legal(program, dtypes)
            if reason is None:
                assert isinstance(executor, Native)
                try:
                    runner = ready_rows(executor, program, dtypes, self._rows[names[0]], [k != "grad" for k in kinds])
                    return Part(names, program, runner, executor.name, refused, tuple(dtypes))
                except NoKernel as failure:
                    reason = str(failure)
            refused[executor.name] = reason
        raise NoKernel("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
