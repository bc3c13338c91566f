"""A clock ticks: schedules that read it move on, and links that work at its ticks do their work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from gradchain.core import _torch
from gradchain.core.context import Context
from gradchain.core.scalars import as_number
from gradchain.core.state import State, as_stored
from gradchain.core.tensors import Tensors
from gradchain.engine.commit import Commit, Copies
from gradchain.updater import buffers
from gradchain.updater.bound import Bound
from gradchain.updater.journal import Pending
from gradchain.updater.modes import outside_inference
from gradchain.updater.saved import CLOCK
from gradchain.updater.state_dict import rebuilt, states


def tick(bound: Bound, clock: str, amount: float, checks: Iterable[Callable[[str], None]]) -> None:
    """Advance a named clock, all or nothing.

    Args:
        bound: the chain, the model and the clocks.
        clock: its name.
        amount: by how much.
        checks: are called first where a link is to work, and raise where it must not.
    """
    number = _checked(bound, clock, amount)
    links = [address for address, link in bound.hypers.at_ticks().items() if link.clock == clock]
    if not links:
        bound.clocks[clock] += number
        return
    if number != int(number):
        raise ValueError(
            f"tick: amount must be an integer of at least 0 for {clock!r}, at whose ticks {links[0]} works, got "
            f"{amount!r}."
        )
    for check in checks:
        check("tick")
    with outside_inference():
        bound.journal.guard(_work, bound, clock, links, int(number))


def _checked(bound: Bound, clock: str, amount: Any) -> float:
    """The amount as a number. ValueError, KeyError for what can be none, or is of no clock that the user ticks."""
    if clock in ("step", "micro"):
        raise ValueError(f"tick: {clock!r} ticks by itself, once per {'update' if clock == 'step' else 'step()'}.")
    if clock not in bound.clocks:
        named = ", ".join(sorted(set(bound.clocks) - {"step", "micro"})) or "none"
        raise KeyError(f"tick: nothing reads the clock {clock!r}. Clocks that are read: {named}.")
    number = as_number(amount)
    if number is None or not CLOCK.holds(number):
        raise ValueError(f"tick: amount must be a finite number of at least 0, got {amount!r}.")
    if not CLOCK.holds(bound.clocks[clock] + number):
        now = bound.clocks[clock]
        raise ValueError(f"tick: the clock {clock!r} must stay finite, got {amount!r} more where it is at {now!r}.")
    return number


def _work(bound: Bound, clock: str, addresses: list[str], times: int) -> None:
    """So many ticks one after the other, of which nothing is written before the last is computed."""
    before = {address: state for address, state in states(bound.chain, bound.state) if address in addresses}
    new, clocks = dict(before), dict(bound.clocks)
    of_links: dict[str, Mapping[str, Tensor]] = {}
    casting = _torch.casting()
    with _torch.no_grad(), _torch.recast(casting, False):
        facts = bound.facts()
        for _ in range(times):
            seen = partial(buffers.seen, bound.target, dict(of_links))
            for address in addresses:
                ctx = bound.hypers.sight(address, facts._replace(clocks=clocks, buffers=seen))
                new[address] = _ticked(bound, address, new[address], ctx)
                ctx.check_buffers()
                of_links.update(ctx.buffers_to_be)
            clocks = {**clocks, clock: clocks[clock] + 1}
    places: list[Tensor] = []
    values: list[Tensor] = []
    kept = {address: _kept(before[address], state, places, values) for address, state in new.items()}
    state = rebuilt(bound.chain, bound.state, kept)

    def follow() -> None:
        bound.state, bound.clocks = state, clocks

    commit = Commit()
    commit.add(Copies(places, values))
    if of_links:
        commit.add(buffers.written(bound.chain, bound.target, of_links))
    bound.journal.write(Pending(commit, follow))


def _ticked(bound: Bound, address: str, state: State, ctx: Context) -> State:
    """The state of one link after one tick."""
    link = bound.hypers.at_ticks()[address].at(ctx)
    return as_stored(state, link.ticked(state, ctx), address)


def _kept(before: State, new: State, places: list[Tensor], values: list[Tensor]) -> State:
    """`new` in the memory of `before`, where the engine knows it and a user may hold it; what is to be copied there."""
    changes: dict[str, Any] = {}
    for name, value in new.items():
        old = before[name]
        if isinstance(value, Tensors) and name not in new.whole and value is not old:
            changes[name] = old
            places += [old[n] for n in old]
            values += [value[n] for n in old]
    return new.replace(**changes) if changes else new
