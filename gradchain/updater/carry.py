"""State carried from one set of parameters to another, or started afresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.checks import check_chain
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.scalars import Count, Scalars
from gradchain.core.slots import Slots, mapped
from gradchain.core.state import Links, narrowed, overlaid
from gradchain.core.tensors import Tensors
from gradchain.engine.commit import Commit
from gradchain.selectors import SelectorLike
from gradchain.selectors.base import predicate
from gradchain.updater.bound import Bound
from gradchain.updater.gradients import Gradients
from gradchain.updater.journal import Pending
from gradchain.updater.ranks import check_reduced
from gradchain.updater.state_dict import rebuilt, states
from gradchain.updater.target import Target
from gradchain.updater.zero import Shares


@dataclass
class CarryReport:
    """What `rebind` did: the names whose state went along, started afresh, or left."""

    carried: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def rebound(
    bound: Bound, target: Target, remap: Mapping[str, Callable[[Tensor], Tensor]], then: Callable[[], object]
) -> CarryReport:
    """Bind to a changed model, with the state carried over; `then` belongs to it. Nothing changes on an error."""
    wanted = [f.name for f in target.index.facts if f.parameter.requires_grad or f.name in bound.active]
    active = target.index.subset(wanted)
    with torch.no_grad():
        shares, unreduced = None if bound.shares is None else Shares(target, "rebind"), check_reduced(target, "rebind")
        params = Gradients(target).params()
        fresh = bound.chain.init(params.select(active))
        check_chain(bound.chain, target.index, fresh, Context.of(bound.facts(params)))
        before = bound.state if bound.shares is None else bound.shares.whole(bound.chain, bound.state)
        state, report = carried(bound.chain, before, fresh, remap, bound.target.index, target)
        if shares is not None:
            state = shares.parted(bound.chain, state, bound.window.name)

    def follow() -> None:
        bound.attach(target, shares, unreduced)
        bound.state, bound.active = state, active
        then()

    bound.journal.write(Pending(Commit(), follow))
    return report


def carried(
    tx: chain,
    old: Links,
    fresh: Links,
    remap: Mapping[str, Callable[[Tensor], Tensor]],
    was_of: Index,
    target: Target,
) -> tuple[Links, CarryReport]:
    """The old state by name on the new parameters, and a report. Nothing changes on an error."""
    index, buffers = target.index, target.buffers()
    unknown = [name for name in remap if name not in index]
    if unknown:
        shown = ", ".join(index.names[:8])
        raise KeyError(f"rebind: remap names {unknown[0]!r}, which is no parameter. There are: {shown}.")
    before, new = dict(states(tx, old)), {}
    had: set[str] = set()
    for address, state in states(tx, fresh):
        changes: dict[str, Any] = {}
        for name, value in state.items():
            was = before[address][name]
            if isinstance(value, Tensors):
                had |= set(was) - set(buffers)
                whole = buffers if name in state.whole else None
                changes[name] = _slots(f"{address}.{name}", was, value, remap, whole, index)
            elif isinstance(value, (Count, Scalars)):
                names = value.names if isinstance(value, Count) else tuple(value)
                had |= set(was.names if isinstance(was, Count) else was)
                carried = was.select(names)
                if isinstance(carried, Slots):
                    carried = _reshaped(f"{address}.{name}", carried, remap, was_of, index)
                changes[name] = value.overlay(carried)
            else:
                changes[name] = was
        new[address] = state.replace(**changes)
    names = index.names
    report = CarryReport(
        [n for n in names if n in had], [n for n in names if n not in had], sorted(n for n in had if n not in index)
    )
    return rebuilt(tx, fresh, new), report


def _reshaped(
    address: str, slots: Slots, remap: Mapping[str, Callable[[Tensor], Tensor]], old: Index, new: Index
) -> Slots:
    """What an optimizer from elsewhere kept, where a parameter has another shape now; its tensors may have any."""
    out: dict[str, Any] = {}
    for name, slot in slots.items():
        before, now = (x.facts[x.position[name]].parameter.shape for x in (old, new))
        if name in remap:
            out[name] = mapped(slot, lambda t: remap[name](t) if t.shape == before else t)  # noqa: B023  # called here
        elif before != now and slot:
            raise ValueError(
                f"rebind: {address}[{name!r}] is of a parameter of shape {tuple(before)}, which is now {tuple(now)}. "
                f"Say how it changes: remap={{{name!r}: lambda slot: …}}, or reset it before."
            )
        else:
            out[name] = slot
    return Slots(out)


def _slots(
    address: str,
    old: Tensors,
    fresh: Tensors,
    remap: Mapping[str, Callable[[Tensor], Tensor]],
    buffers: Mapping[str, Tensor] | None,
    index: Index,
) -> Tensors:
    """One field carried over; where `buffers` are given, its entries come and go, and may be of buffers too."""
    places = {f.name: f.parameter for f in index.facts} | dict(buffers or {})
    out = dict(fresh.items())
    for name in old:
        if name not in places or (name not in fresh and buffers is None):
            continue
        if old[name].is_meta and name in fresh and not fresh[name].is_meta:
            continue  # it has had no values yet
        slot = remap[name](old[name]) if name in remap else old[name]
        place = fresh[name] if name in fresh else places[name]
        if _shape(slot) != _shape(place):
            raise ValueError(
                f"rebind: {address}[{name!r}] has shape {_shape(slot)}, and the parameter now wants "
                f"{_shape(place)}. Say how it changes: remap={{{name!r}: lambda slot: …}}."
            )
        out[name] = slot.to(place.device)
    if any(name not in index for name in out):
        return EagerTensors.at(Index.of(out), out)
    return EagerTensors.at(index, {n: out[n] for n in index.names if n in out}) if out else fresh


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{' of complex numbers' if tensor.is_complex() else ''}"


def reset(bound: Bound, selector: SelectorLike | None) -> None:
    """Start the state afresh, of all parameters or those a selector matches."""
    members = None if selector is None else bound.active.members(predicate(selector, "reset"))
    bound.state = restarted(bound.state, bound.fresh_state(), members)


def restarted(state: Links, fresh: Links, members: Index | None) -> Links:
    """`fresh`, wholly or for `members` only; what is not per parameter then stays as `state` has it."""
    if members is None:
        return fresh
    return overlaid(state, [narrowed(fresh, members)])
