"""Swapping an average in for the weights, and out again bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from gradchain.core import _torch
from gradchain.core.address import find
from gradchain.core.roles import AverageState
from gradchain.core.state import State
from gradchain.core.transform import Transform
from gradchain.engine.commit import Copies
from gradchain.updater.journal import Journal, insist
from gradchain.updater.memory import fits_repeats, without_repeats
from gradchain.updater.state_dict import states
from gradchain.updater.target import Target


def average_state(chain: Transform, state: State, name: str | None) -> tuple[list[str], AverageState]:
    """The average of the weights, and whose it is: the addresses of one link, or of branches that have one each.

    KeyError if there is none, or several of one parameter and no name.
    """
    links = {address: inner for address, inner in states(chain, state) if isinstance(inner, AverageState)}
    if not links:
        raise KeyError("averaged: no link averages the weights. End the chain with average_params(0.999).")
    if name is not None:
        address = find(name, links, "averaged")
        return [address], links[address]
    first, *others = links.values()
    if not disjoint([*state.average, *state.buffers] for state in links.values()):
        raise KeyError(f"averaged: there are several averages, name one of: {', '.join(links)}.")
    average, buffers = first.average, first.buffers
    for other in others:
        average, buffers = average.overlay(other.average), buffers.overlay(other.buffers)
    return [*links], AverageState(average, buffers)


def disjoint(averages: Iterable[Iterable[str]]) -> bool:
    """Whether no name is in two of them."""
    names = [name for average in averages for name in average]
    return len(set(names)) == len(names)


def averages(target: Target, state: AverageState) -> dict[str, Tensor]:
    """The same in the dtypes of the model: a copy where the average is kept in another one."""
    found = stored_averages(target, state)
    places = {**dict(zip(target.index.names, target.parameters(), strict=True)), **target.buffers()}
    return {name: value.to(places[name].dtype) for name, value in found.items()}


def stored_averages(target: Target, state: AverageState) -> dict[str, Tensor]:
    """Name → average weight or buffer, as it is kept; what has no average is as it is in the model. No copies."""
    target.check()
    average, buffers = state.average, state.buffers
    live = dict(zip(target.index.names, target.parameters(), strict=True))
    others = {name: buffers[name] if name in buffers else buffer for name, buffer in target.buffers().items()}
    return {**{name: _as(p, average[name]) if name in average else p.detach() for name, p in live.items()}, **others}


def _as(parameter: Tensor, average: Tensor) -> Tensor:
    """An average, gathered where ranks share it out and not the weights: all of them ask for it."""
    return average if _torch.is_dtensor(parameter) else _torch.whole(average)


@contextmanager
def swapped(target: Target, state: AverageState, journal: Journal, check: Callable[[], None]) -> Iterator[None]:
    """The model with its average weights, and with its own again afterwards, wherever an exception comes from.

    Args:
        target: the model.
        state: the average.
        journal: where it is noted which weights the model has.
        check: is called first, for it may be entered late.
    """
    check()
    own: list[Callable[[], None]] = []
    try:
        try:
            journal.averaged = True
            put_in, put_back = _swap(target, state)
            own.append(put_back)
            journal.guard(put_in)
            yield
        finally:
            journal.guard(_back, journal, own)
    except BaseException:  # it may have come in the line above
        journal.guard(_back, journal, own)
        raise


def _back(journal: Journal, own: list[Callable[[], None]]) -> None:
    """The model's own weights. What a second exception keeps from being put back, the next call of the updater does."""
    journal.open = True
    journal.away = own[0] if own else None
    journal.averaged = False
    journal.home()
    journal.close()


def _swap(target: Target, state: AverageState) -> tuple[Callable[[], None], Callable[[], None]]:
    """What gives the model its average weights, and what gives it its own again; both may be called again."""
    new = stored_averages(target, state)
    places = {**dict(zip(target.index.names, target.parameters(), strict=True)), **target.buffers()}
    own = {name: tensor.detach().clone() for name, tensor in places.items()}

    def written(values: dict[str, Tensor]) -> Callable[[], None]:
        write = _writing(places, values)

        def put() -> None:
            write()
            target.reshard()

        return put

    return written(new), written(own)


def copy_to(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Write averages into another module of the same structure: weights and buffers."""
    target = Target(module)
    places = {**dict(zip(target.index.names, target.parameters(), strict=True)), **target.buffers()}
    problems = [problem for name, value in values.items() if (problem := _problem(name, value, places.get(name)))]
    if problems:
        raise ValueError(f"copy_average_to: the module must have the structure of the bound one, but {problems[0]}.")
    insist(_writing(places, values))


def _problem(name: str, value: Tensor, place: Tensor | None) -> str | None:
    if place is None:
        return f"{name!r} is missing"
    if place.shape != value.shape:
        return f"{name!r} has shape {tuple(place.shape)}"
    return None if fits_repeats(value, place) else f"{name!r} has several elements in one place of memory"


def copies(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Copies:
    """What writes values over the places of their names."""
    pairs = [(place, values[name]) for name, place in places.items() if name in values and values[name] is not place]
    return Copies([without_repeats(p, p) for p, _ in pairs], [without_repeats(v, p) for p, v in pairs])


def _writing(places: dict[str, Tensor], values: dict[str, Tensor]) -> Callable[[], None]:
    write = copies(places, values)

    def put() -> None:
        write()
        _torch.forget_casts()

    return put
