"""The plans of one engine: programs by the structure of what they compute, each made once and ready to run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from gradchain.core.notices import notice
from gradchain.engine.executors.base import Executor, NoKernel
from gradchain.engine.planning.grid import axes_of, grid_of
from gradchain.engine.planning.layout import Layout, order_of
from gradchain.engine.planning.lower import Lowering, Program
from gradchain.engine.planning.plan import Part, Plan, extra_dtypes, too_many
from gradchain.engine.recording.laid import Pending
from gradchain.engine.recording.tape import Tape

MOST_PLANS = 64


class Plans:
    """The plans that are kept, for weights that lie as a layout says.

    Attributes:
        state_dtypes: of everything in the chain's state that is per parameter.
    """

    def __init__(self) -> None:
        self.state_dtypes: tuple[Any, ...] = ()
        self._kept: dict[Any, Plan] = {}
        self._layout: Layout | None = None
        self._executors: Sequence[Executor] = ()
        self._warned = False

    def __len__(self) -> int:
        return len(self._kept)

    def values(self) -> Iterable[Plan]:
        """All of them."""
        return self._kept.values()

    def begin(self, layout: Layout, executors: Sequence[Executor]) -> None:
        """Forget them all: weights lie otherwise, or other executors run what is planned from here on."""
        self._kept.clear()
        self._layout, self._executors = layout, executors

    def under(self, tape: Tape, key: tuple[Any, ...], make: Callable[[], list[Part]]) -> list[Part]:
        """The programs under a key, made if it is new."""
        key = (*key, self.state_dtypes, *extra_dtypes(tape))
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= MOST_PLANS:
                self._warn_of_many(key)
                self._kept.pop(next(iter(self._kept)))
            found = self._kept[key] = Plan(make(), tuple(tape.indices))
        return found.parts

    def _warn_of_many(self, key: tuple[Any, ...]) -> None:
        """Say once what keeps the steps from sharing plans."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"gradchain: {too_many(self._kept, key)}", stacklevel=2)

    def stores(self, tape: Tape, roots: list[tuple[int, int]], nodes: Iterable[int]) -> list[Part]:
        """Programs that write each node over its leaf, over the part of the tape that `nodes` are."""
        if not any(tape.shapes):
            return self._stores(tape, roots, nodes)
        alike: dict[Any, list[tuple[int, int]]] = {}  # what is of other shapes is a program of its own
        for leaf, node in roots:
            shapes = tape.shapes[leaf]
            key = None if shapes is None else (id(tape.indices[leaf]), shapes)
            alike.setdefault(key, []).append((leaf, node))
        parts = []
        for some in alike.values():
            parts += self._stores(tape, some, sorted({i for root in some for n in root for i in tape.reach(n)}))
        return parts

    def _stores(self, tape: Tape, roots: list[tuple[int, int]], nodes: Iterable[int]) -> list[Part]:
        parts: list[Part] = []
        for names in self._classes(tape, nodes, [leaf for leaf, _ in roots]) if roots else ():
            lowering = Lowering(tape, names[0])
            for leaf, node in roots:
                if names[0] in tape.indices[node] and names[0] in tape.indices[leaf]:
                    lowering.store(leaf, node)
            if lowering.program.stores:
                parts.append(self._part(tape, names, lowering.program, roots[0][0]))
        return parts

    def reductions(self, tape: Tape, node: int, kind: str, reach: list[int]) -> list[Part]:
        """Programs that reduce a node, over what it is computed from."""
        parts = []
        for names in self._classes(tape, reach, [node]):
            if names[0] in tape.indices[node]:
                lowering = Lowering(tape, names[0])
                lowering.reduce(kind, node)
                parts.append(self._part(tape, names, lowering.program, node))
        return parts

    def along(self, tape: Tape, wanted: Sequence[Pending], reach: list[int]) -> list[Part]:
        """Programs that reduce nodes along dimensions, over what they are computed from."""
        first, parts = wanted[0].node, []
        for names in self._classes(tape, [*reach, *(one.leaf for one in wanted)], [first]):
            if names[0] in tape.indices[first]:
                lowering = Lowering(tape, names[0])
                for one in wanted:
                    lowering.along(one.kind, one.node, one.leaf)
                parts.append(self._part(tape, names, lowering.program, first))
        return parts

    def _classes(self, tape: Tape, nodes: Iterable[int], like: Sequence[int]) -> list[tuple[str, ...]]:
        """Parameters that see the same operations in the same dtypes, over the same axes.

        The axes of a parameter are those of the first node `like` its elements that has it: a state of some parameters
        alone says nothing of how the others lie.
        """
        assert self._layout is not None
        whole, nodes = self._layout.index, list(nodes)
        partial = list({id(tape.indices[i]): tape.indices[i] for i in nodes if tape.indices[i] is not whole}.values())
        leaves = [tape.leaves[i] for i in nodes if i in tape.leaves]
        odd = any(tape.shapes[i] is not None for i in [*like, *nodes])
        groups: dict[Any, list[str]] = {}
        for name in whole.names:
            held = [t._data[t.index.position[name]] for t in leaves if name in t.index]
            mine = next((i for i in like if name in tape.indices[i]), None) if odd else None
            axes = () if mine is None else self._axes(tape, mine, name, held)[0]
            key = (tuple(name in index for index in partial), tuple(t.dtype for t in held), axes)
            groups.setdefault(key, []).append(name)
        return [tuple(names) for names in groups.values()]

    def _axes(self, tape: Tape, like: int, name: str, tensors: list[Tensor]) -> Any:
        """The axes over which an entry of a node is computed from these tensors, and how long they are."""
        assert self._layout is not None
        weight = self._layout.tensors[self._layout.index.position[name]]
        shapes = tape.shapes[like]
        shape = weight.shape if shapes is None else shapes[tape.indices[like].position[name]]
        return axes_of(shape, order_of(weight, shape), tensors)

    def _part(self, tape: Tape, names: tuple[str, ...], program: Program, like: int) -> Part:
        """A program ready to run over the entries that a node has of these names."""
        assert self._layout is not None
        leaves = [tape.leaves[leaf] for leaf in program.columns]
        dtypes = [t._data[t.index.position[names[0]]].dtype for t in leaves]
        if any(tape.shapes):
            rows = [self._axes(tape, like, n, [t._data[t.index.position[n]] for t in leaves]) for n in names]
            program.grid = grid_of(rows, bool(program.along))
            sizes = [math.prod(extents) for _, extents in rows]
        else:
            position = self._layout.index.position
            sizes = [self._layout.sizes[position[n]] for n in names]
        refused: dict[str, str] = {}
        for executor in self._executors:
            axes = program.grid is not None and not executor.grids
            reason = "it knows no axes" if axes else executor.legal(program, dtypes)
            if reason is None:
                try:
                    return Part(
                        names, program, executor.ready(program, dtypes, sizes), executor.name, refused, tuple(dtypes)
                    )
                except NoKernel as failure:
                    reason = str(failure)
            refused[executor.name] = reason
            notice("engine", f"{executor.name} does not run a part of a chain, and another executor is asked: {reason}")
        raise NoKernel("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
