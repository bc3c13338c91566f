"""The plans of one engine: programs by the structure of what they compute, each made once and ready to run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradchain.core.notices import notice
from gradchain.engine.executors.base import Executor, NoKernel
from gradchain.engine.planning.layout import Layout
from gradchain.engine.planning.lower import Lowering, Program
from gradchain.engine.planning.plan import Part, Plan, extra_dtypes, too_many
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
        parts = []
        for names in self._classes(tape, nodes):
            lowering = Lowering(tape, names[0])
            for leaf, node in roots:
                if names[0] in tape.indices[node] and names[0] in tape.indices[leaf]:
                    lowering.store(leaf, node)
            if lowering.program.stores:
                parts.append(self._part(tape, names, lowering.program))
        return parts

    def _classes(self, tape: Tape, nodes: Iterable[int]) -> list[tuple[str, ...]]:
        """Parameters that see the same operations in the same dtypes."""
        assert self._layout is not None
        whole, nodes = self._layout.index, list(nodes)
        partial = list({id(tape.indices[i]): tape.indices[i] for i in nodes if tape.indices[i] is not whole}.values())
        leaves = [tape.leaves[i] for i in nodes if i in tape.leaves]
        groups: dict[Any, list[str]] = {}
        for name in whole.names:
            dtypes = tuple(t._data[t.index.position[name]].dtype for t in leaves if name in t.index)
            groups.setdefault((tuple(name in index for index in partial), dtypes), []).append(name)
        return [tuple(names) for names in groups.values()]

    def _part(self, tape: Tape, names: tuple[str, ...], program: Program) -> Part:
        assert self._layout is not None
        dtypes = []
        for leaf in program.columns:
            tensors = tape.leaves[leaf]
            dtypes.append(tensors._data[tensors.index.position[names[0]]].dtype)
        position = self._layout.index.position
        sizes = [self._layout.sizes[position[n]] for n in names]
        refused: dict[str, str] = {}
        for executor in self._executors:
            reason = executor.legal(program, dtypes)
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

    def reductions(self, tape: Tape, node: int, kind: str, reach: list[int]) -> list[Part]:
        """Programs that reduce a node, over what it is computed from."""
        parts = []
        for names in self._classes(tape, reach):
            if names[0] in tape.indices[node]:
                lowering = Lowering(tape, names[0])
                lowering.reduce(kind, node)
                parts.append(self._part(tape, names, lowering.program))
        return parts
