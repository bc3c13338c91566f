"""What a bound chain will do and how: the text of `updater.explain()`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from gradchain.core._torch import local
from gradchain.core.html import text
from gradchain.core.slots import Slots
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.engine.executors.build import without_cache
from gradchain.engine.planning.plan import Part
from gradchain.engine.shards import ShardedEngine
from gradchain.schedules.base import length_of
from gradchain.selectors.rules import starts_of
from gradchain.updater.bound import Bound
from gradchain.updater.state_dict import states
from gradchain.updater.verify import Verifying


class Explanation(str):
    """What `explain()` says: text, which shows itself line by line wherever it is shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def __rich_repr__(self) -> Iterator[str]:
        yield from self.splitlines()

    def __rich__(self) -> Any:
        from rich.text import Text  # rich asks: what it gets as a string it reads as markup, and this has brackets

        return Text(self)

    def _repr_html_(self) -> str:
        return text(self)


def explanation(bound: Bound, source: bool) -> Explanation:
    """The plan of the last step in words, line by line; with `source`, the kernels too."""
    waiting = bound.observations.silent(bound.observed, bound.clocks)
    parts = (_head(bound), _kernels(bound, source), _state(bound), _ticks(bound), _schedules(bound), waiting)
    return Explanation("\n".join(line for part in parts for line in part))


def _head(bound: Bound) -> Iterator[str]:
    index = bound.target.index
    elements = sum(f.parameter.numel() for f in index.facts)
    yield f"{bound.chain!r}"
    yield f"{len(index)} parameters of {elements:,} elements; {len(index) - len(bound.active)} never had a gradient"


def _kernels(bound: Bound, source: bool) -> Iterator[str]:
    engine = bound.engine
    if engine.reason:
        yield f"the last step ran by the reference: {engine.reason}"
    elif not engine.ran:
        yield "no step has run yet, so nothing is planned"
    else:
        last = "the last step" if engine.last else "the last step ran none, the last that did"
        where = " over this rank's shards" if isinstance(engine, ShardedEngine) else ""
        yield f"{engine.num_plans} plans so far; {last} ran {len(engine.ran)} kernels{where}:"
        for part in engine.ran:
            yield from _kernel(part, source)
        yield from _staged(engine.ran)
        yield from (f"  {calls}" for calls in engine.ran_maps)
    yield from _steps(bound)
    if isinstance(bound.engine, Verifying):
        yield from bound.engine.report.lines()
    if without_cache():
        yield without_cache()


def _steps(bound: Bound) -> Iterator[str]:
    """How many steps ran without the links' own code, and why the others did not."""
    engine = bound.engine
    if engine.num_replayed:
        yield f"{engine.num_replayed} steps needed nothing but their numbers: the links' own code did not run"
    if engine.num_counted:
        yield f"{engine.num_counted} micro-batches were only added to their window: no kernel ran"
    for reason, count in engine.not_replayed.most_common():
        yield f"{count} {'step' if count == 1 else 'steps'} ran the links' own code: {reason}"


def _staged(parts: list[Part]) -> Iterator[str]:
    """Which kernels run one after the other over each tensor."""
    staged = sum(part.staged for part in parts)
    if staged:
        yield f"  {staged} of these run tensor by tensor, the next over what the last has left in the cache"


def _kernel(part: Part, source: bool) -> Iterator[str]:
    program = part.program
    what = f"reduction {program.reduce[0]}" if program.reduce else f"update of {len(program.stores)} columns"
    if program.along:
        what = f"reduction {' and '.join(kind for kind, _, _ in program.along)} along dimensions"
    told = part.runner.scratch
    scratch = "" if told is None else f", {told:,} bytes of scratch at most"
    names = part.names[0] if len(part.names) == 1 else f"{part.names[0]} and {len(part.names) - 1} more"
    yield f"  {part.ran}: {what} over {names}: {len(program.instructions)} operations, " + (
        f"{part.bytes_read} bytes read and {part.bytes_written} written per element{scratch}"
    )
    if part.ran != part.executor:
        yield f"    not {part.executor}: its kernel cannot take the numbers of this step"
    for executor, reason in part.refused.items():
        yield f"    not {executor}: {reason}"
    if source and part.runner.source is not None:
        yield from (f"    {line}" for line in part.runner.source.splitlines())


def _state(bound: Bound) -> Iterator[str]:
    mine = dict(state_sizes(bound.chain, bound.state, here=True))
    for address, size in state_sizes(bound.chain, bound.state):
        if size:
            here = "" if bound.shares is None else f", {mine[address]:,} of them on this rank"
            yield f"state of {address}: {size:,} bytes{here}"


def state_sizes(link: Transform, state: State, here: bool = False) -> Iterator[tuple[str, int]]:
    """The bytes that the state of each held link has in tensors, by address; or those that this rank has of them."""
    for address, held in states(link, state):
        yield address, sum(_bytes(v, here) for _, v in held.items() if isinstance(v, (Tensors, Tensor, Slots)))


def _bytes(value: Any, here: bool) -> int:
    """Of every tensor in a field of a state."""
    if isinstance(value, (Mapping, list, tuple)):
        return sum(_bytes(inner, here) for inner in (value.values() if isinstance(value, Mapping) else value))
    if not isinstance(value, Tensor):
        return 0
    held: Tensor = local(value) if here else value
    return held.numel() * held.element_size()


def _ticks(bound: Bound) -> Iterator[str]:
    for address, link in bound.hypers.at_ticks().items():
        assert link.clock is not None
        yield f"{address} works at ticks of {link.clock!r}, {bound.clocks[link.clock]:,g} so far, not at updates"


def _schedules(bound: Bound) -> Iterator[str]:
    every = bound.window.every(bound.state, bound.now)
    clocks = {address: link.clock for address, link in bound.hypers.at_ticks().items()}
    for address, link, _ in walk(bound.chain, None):
        for name in link.hypers:
            for schedule in starts_of(link.__dict__[name]):
                length = length_of(schedule)
                if length is not None and address in clocks:
                    yield f"{address}.{name} ends at tick {length:,} of {clocks[address]!r}: {schedule!r}"
                elif length is not None:
                    micro = f", micro-batch {int(length * every):,}" if every > 1 else ""
                    yield f"{address}.{name} ends at update {length:,}{micro}: {schedule!r}"
