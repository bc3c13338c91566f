"""Build-time checks of a chain: each a sentence with its cure, each only about links that say what they are."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.roles import AtTicks, Freezes, Gate, KeepsWindow, TakesTurns, WindowState, Wraps
from gradchain.core.scalars import Count
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, registry, walk

_MAKE_UPDATES = frozenset({"scale", "normalise", "decay", "learning_rate", "weights", "optimizer", "gradient"})
"""What links are that make updates of gradients, for one that wants gradients."""

_Entry = tuple[str, Transform, Any]  # an address, its link, and the parameters that it sees


def check_chain(chain: Transform, index: Index, state: State, ctx: Context) -> None:
    """Refuse a chain whose order cannot be meant, and warn of one that is probably not.

    Args:
        chain: the outermost chain.
        index: the parameters it is bound to.
        state: what `chain.init` made of them.
        ctx: the context of a look at the chain there.

    Raises:
        TypeError, ValueError: in a sentence that names the links, the rule and the cure.
    """
    stateful = set(_stateful(chain, state))
    frozen = _frozen(chain, index)
    moves = takes_gradients(chain)
    paths = list(_paths(chain, index))
    for path, names in paths:
        _check_sign(path, [name for name in names if name not in frozen] if moves else [])
        _check_order(path, stateful)
        _check_holders(path, stateful)
    _check_owners(chain, index)
    _check_in_place(chain)
    _check_states(chain, state)
    wraps = tuple(f"{address}/" for address, link, _ in walk(chain, index) if isinstance(link, Wraps))
    for address, link, _ in walk(chain, index):
        _check_place(address, link, [n for n, _, _ in chain.parts(index)], wraps)
    _warn_of_late_clips([path for path, _ in paths])
    _warn_of_autocast(chain, index, ctx)


def takes_gradients(chain: Transform) -> bool:
    """Whether a chain has more to do than to average weights that something else moves."""
    leaves = list(_leaves("", chain, None))
    return not leaves or any(link.role != "average" for _, link in leaves)


def _check_states(chain: Transform, state: State, path: str = "") -> None:
    for name, link, _ in chain.parts(None):
        address, inner = f"{path}/{name}" if path else name, state.held()[name]
        if isinstance(link, KeepsWindow) and not isinstance(inner, WindowState):
            raise TypeError(f"chain: the state of {address} must be a WindowState, got {type(inner).__name__}.")
        _check_states(link, inner, address)


def _paths(chain: Transform, index: Index) -> Iterator[tuple[list[tuple[str, Transform]], list[str]]]:
    """Each distinct row of links that some parameters pass, with their names."""
    for entries in _turns(list(walk(chain, index))):
        yield from _paths_among(entries, index)


def _turns(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    """The links of an update, for each choice among those that take turns."""
    turns = [
        [f"{address}/{name}" for name, _, _ in link.parts(None)]
        for address, link, _ in entries
        if isinstance(link, TakesTurns)
    ]
    for chosen in itertools.product(*turns):
        others = tuple(f"{part}/" for parts in turns for part in parts if part not in chosen)
        yield [entry for entry in entries if not f"{entry[0]}/".startswith(others)]


def _paths_among(entries: list[_Entry], index: Index) -> Iterator[tuple[list[tuple[str, Transform]], list[str]]]:
    partial = [(i, seen) for i, (_, _, seen) in enumerate(entries) if len(seen) < len(index)]
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in index.names:
        groups.setdefault(tuple(i for i, seen in partial if name not in seen), []).append(name)
    for missed, names in groups.items():
        yield [(a, link) for i, (a, link, _) in enumerate(entries) if i not in missed], names


def _frozen(chain: Transform, index: Index) -> set[str]:
    """The parameters that a link leaves alone for good: nothing on their way matters."""
    links = [(link, seen) for _, link, seen in walk(chain, index) if isinstance(link, Freezes)]
    return {name for link, seen in links for name in link.frozen(seen)}


def _check_sign(path: list[tuple[str, Transform]], names: list[str]) -> None:
    if not names:
        return
    says = [(address, link.descends) for address, link in path]
    flips = [address for address, descends in says if descends]
    rates = [address for address, link in path if link.role == "learning_rate"]
    which = f"{len(names)} parameters, first {names[0]!r}," if len(names) > 1 else f"parameter {names[0]!r}"
    if len(rates) > 1:
        raise ValueError(
            f"chain: {which} would pass two learning rates, {rates[0]} and {rates[1]}. Keep one; multiply and choose "
            "make it differ from parameter to parameter."
        )
    if any(descends is None for _, descends in says):
        return  # a user's link that does not say is trusted to know
    if not flips:
        raise ValueError(
            f"chain: {which} would climb: nothing on the way flips the sign. End with scale_by_learning_rate(…) "
            "for them too, or leave them alone with freeze(selector)."
        )
    if len(flips) > 1:
        raise ValueError(
            f"chain: {which} would climb: the sign is flipped {len(flips)} times, by {' and '.join(flips)}. Keep one; "
            "to climb on purpose write scale_by_learning_rate(…, flip_sign=False)."
        )


def _check_order(path: list[tuple[str, Transform]], stateful: set[str]) -> None:
    roles = [link.role for _, link in path]
    for i, (address, link) in enumerate(path):
        after = path[i + 1 :]
        if link.role == "clip" and "unscale" in roles[i:]:
            raise ValueError(
                f"chain: {address} comes before {_first(after, 'unscale')}, so it would clip gradients that still "
                "carry the loss scale. Put it after."
            )
        if link.role == "decay":
            _check_decay(address, path[:i])
        if link.role == "gradient":
            _check_evaluates(address, path[:i], stateful)
        averages = _averages_updates(link)
        if averages or (link.role == "optimizer" and "/" not in address):
            late = [(a, x) for a, x in after if x.role != "average" and (averages or x.role != "weights")]
            if late:
                what = "averages weights that are not final" if averages else "owns the weights"
                raise ValueError(f"chain: {address} {what}, but {late[0][0]} comes after it. Put {address} after that.")
        if link.role == "scale" and "normalise" in roles[i:]:
            warnings.warn(
                f"chain: {_first(after, 'normalise')} divides out the scale of {address}, which comes before it. "
                "Put the scale after it.",
                stacklevel=7,
            )


def _check_decay(address: str, before: list[tuple[str, Transform]]) -> None:
    """Refuse a decay that is added to steps down, by whatever link they were turned."""
    late = next(((a, x.role) for a, x in before if x.role == "learning_rate" or x.descends), None)
    if late is not None:
        unscaled = " and not be multiplied by the learning rate" if late[1] == "learning_rate" else ""
        raise ValueError(
            f"chain: {address} comes after {late[0]}: the decay would be added to the step with the wrong sign"
            f"{unscaled}. Put it before."
        )


def _check_evaluates(address: str, before: list[tuple[str, Transform]], stateful: set[str]) -> None:
    """Refuse what makes something of gradients in front of a link that puts other gradients in their place."""
    for earlier, link in before:
        if isinstance(link, KeepsWindow):
            raise ValueError(
                f"chain: {address} comes after {earlier}: it would evaluate the last micro-batch alone, and its "
                f"gradient would stand for the whole window. Put {address} before it."
            )
        passes = link.holds or link.role in ("clip", "freeze", "unscale") or list(link.parts(None))  # those speak
        if link.descends or link.role in _MAKE_UPDATES or (earlier in stateful and not passes):
            climbs = " and the weights would climb" if link.descends else ""
            raise ValueError(
                f"chain: {address} comes after {earlier}: it puts a gradient evaluated anew in place of what it is "
                f"given, so what {earlier} makes would be lost{climbs}. Put {address} before it."
            )


def _averages_updates(link: Transform) -> bool:
    """Whether it averages the weights that an update is about to make; at ticks they are final wherever it stands."""
    return link.role == "average" and not (isinstance(link, AtTicks) and link.clock is not None)


def _check_owners(link: Transform, index: Index, path: str = "") -> None:
    """Refuse what comes after a link that owns weights, in whatever that is held: it would get weights of all."""
    parts = [(f"{path}/{name}" if path else name, part, seen) for name, part, seen in link.parts(index)]
    for i, (address, part, seen) in enumerate(parts):
        # parts that see the same are in a row; branches see parameters of their own
        after = [] if isinstance(link, TakesTurns) else [entry for entry in parts[i + 1 :] if entry[2] is seen]
        owner = next((a for a, x in _leaves(address, part, seen) if x.role == "weights"), None)
        late = (a for entry in after for a, x in _leaves(*entry) if x.role not in ("weights", "average"))
        first = next(late, None) if owner else None
        if first:
            raise ValueError(f"chain: {owner} owns the weights, but {first} comes after it. Put {owner} after that.")
        _check_owners(part, seen, address)


def _check_in_place(chain: Transform) -> None:
    """Refuse a link that writes where the weights lie, wherever something would still need the weights before it."""
    entries = list(walk(chain, None))
    outermost = [name for name, _, _ in chain.parts(None)]
    looking = next((a for a, link, _ in entries if isinstance(link, Gate) and link.looks_behind()), None)
    for i, (address, link, _) in enumerate(entries):
        if not link.in_place:
            continue
        if looking is not None:
            raise ValueError(
                f"chain: {looking} looks at what the chain makes before it is written, and {address} with "
                'in_place=True is the one that writes it. Leave in_place out, or write skip_nonfinite(of="updates").'
            )
        late = next((a for a, x, _ in entries[i + 1 :] if not _averages(x)), None)
        if address not in outermost or late is not None:
            where = f"{late} comes after it" if address in outermost else "others hold it"
            raise ValueError(
                f"chain: {address} with in_place=True must be last in the outermost chain, before nothing but "
                f"average_params, but {where}. Move it there, or leave in_place out: it then works on copies."
            )


def _averages(link: Transform) -> bool:
    """Whether it is an average of gradchain's own, which looks at no weight before it is written."""
    return link.role == "average" and registry.get(type(link).__name__) is type(link)


def _leaves(address: str, link: Transform, index: Index | None) -> Iterator[tuple[str, Transform]]:
    """A link, or those that it holds and that hold none. An empty chain is none: it does nothing."""
    held = [(address, link), *((a, x) for a, x, _ in walk(link, index, address))]
    return ((a, x) for a, x in held if not isinstance(x, chain) and not list(x.parts(None)))


def _first(path: list[tuple[str, Transform]], role: str) -> str:
    return next(address for address, link in path if link.role == role)


def _check_holders(path: list[tuple[str, Transform]], stateful: set[str]) -> None:
    for i, (address, link) in enumerate(path):
        if not link.holds:
            continue
        for earlier, other in path[:i]:
            if earlier in stateful and not other.holds:
                raise ValueError(
                    f"chain: {earlier} comes before {address}, which may hold the chain: it would advance although "
                    f"nothing is applied. Put {address} before it."
                )


def _check_place(address: str, link: Transform, outermost: list[str], wraps: tuple[str, ...]) -> None:
    if address in outermost:
        return
    if link.role == "unscale" or _averages_updates(link):
        why = {"unscale": "touches the loss", "average": "averages the final weights"}
        raise ValueError(f"chain: {address} {why[link.role]}. Put it in the outermost chain.")
    if link.holds and address.startswith(wraps):
        raise ValueError(
            f"chain: {address} may hold the chain, which only a link of the outermost chain or of a branch of "
            "partition can do. Move it there."
        )


def _stateful(link: Transform, state: State, path: str = "") -> Iterator[str]:
    """Addresses of links whose own state has something per parameter."""
    for name, part, _ in link.parts(None):
        address = f"{path}/{name}" if path else name
        inner = state.held()[name]
        if any(isinstance(v, Count) or (isinstance(v, Tensors) and len(v)) for _, v in inner.items()):
            yield address
        yield from _stateful(part, inner, address)


def _warn_of_late_clips(paths: list[list[tuple[str, Transform]]]) -> None:
    """A clip that bounds what is already a step, once for each; one whose bound is infinite only measures."""
    late: dict[str, str] = {}
    for path in paths:
        rate = None
        for address, link in path:
            if rate is not None and link.role == "clip" and not _only_measures(link):
                late.setdefault(address, rate)
            if link.role == "learning_rate" or link.descends:
                rate = address
    for address, rate in late.items():
        warnings.warn(
            f"chain: {address} comes after {rate}: it bounds the step, with the learning rate in it, and not the "
            "gradient. To clip gradients put it first; to clip their direction put it right before the learning rate.",
            stacklevel=7,
        )


def _only_measures(link: Transform) -> bool:
    values = [link.__dict__[name] for name in link.hypers]
    return any(isinstance(value, float) and value == math.inf for value in values)


def _warn_of_autocast(chain: Transform, index: Index, ctx: Context) -> None:
    scalers = [(a, link) for a, link, _ in walk(chain, index) if link.role == "unscale"]
    if ctx.autocast == torch.float16 and not scalers:
        warnings.warn(
            "bind: float16 autocast without amp_scale(): small gradients underflow to zero. Put amp_scale() in front "
            "of the chain, after accumulate.",
            stacklevel=7,
        )
    idle = [a for a, link in scalers if isinstance(link, Gate) and not link.active(ctx)]
    half = any(fact.parameter.dtype is torch.bfloat16 for fact in index.facts)  # one recipe serves float16 and this
    if idle and ctx.autocast is None and not half:
        warnings.warn(
            f"bind: {idle[0]} does nothing: neither the autocast nor a parameter is float16. Bind with "
            "autocast=torch.float16, or leave it out.",
            stacklevel=7,
        )
