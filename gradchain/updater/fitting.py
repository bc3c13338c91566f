"""What links remembered, given to the links that are there now: at their address, as they were told, or by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import torch
from torch import Tensor

from gradchain.core.config import own_link, registered
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import Count, Scalars
from gradchain.core.slots import Slots
from gradchain.core.state import LARGEST, MEAN, Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.updater.moving import Moves, near
from gradchain.updater.state_dict import plain_fields, states


@dataclass
class Fitting:
    """One load, on its way into the states of a chain.

    Attributes:
        moves: what it was told.
        chain: the chain that is there.
        fresh: what stands where nothing was saved: with weights, the state that begins with them.
        saved: address → fields, as plain data under the names of now.
        config: the chain of the save, as a config.
        clocks: those of the save.
        context: the coming update's.
        told: what was moved, in words.
        owner: the method that loads, which errors name.
    """

    moves: Moves
    chain: Transform
    fresh: Links
    saved: Mapping[str, Mapping[str, Any]]
    config: Any
    clocks: Mapping[str, float]
    context: Context
    told: list[str]
    owner: str
    anew: set[str] = field(default_factory=set)  # parameters of another shape of which nothing is taken over

    def links(self) -> dict[str, Any]:
        """The fields of every link that something was saved for, and, where it is strict, of those that have none."""
        here = {address: state for address, state in states(self.chain, self.fresh) if state.own}
        sources = self._sources(here)
        taken = {source for some in sources.values() for source in some}
        out = {address: self._filled(address, here[address], some) for address, some in sources.items()}
        left = {address: fields for address, fields in self.saved.items() if address not in taken}
        return {**{address: fields for address, fields in out.items() if fields}, **left}

    def overrides(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Overrides under the addresses that the user says their links have now."""
        told = self._told_addresses(dict(states(self.chain, self.fresh)), self.addresses(saved))
        split = {address: address.rpartition(".") for address in saved}
        return {f"{told.get(link, link)}.{name}": saved[address] for address, (link, _, name) in split.items()}

    def addresses(self, overrides: Mapping[str, Any]) -> list[str]:
        """Every link of the save that is known to have been: by what it remembered, or by an override."""
        return [*dict.fromkeys((*self.saved, *(address.rpartition(".")[0] for address in overrides)))]

    def _sources(self, here: Mapping[str, State]) -> dict[str, list[str]]:
        """Address of a link that is there → those saved links that give to it."""
        out: dict[str, list[str]] = {}
        told = self._told_addresses(here, [*self.saved])
        for source in self.saved:
            target = told.get(source, source)
            if target in here:
                out.setdefault(target, []).append(source)
        if self.moves.strict:
            return out
        taken = {source for some in out.values() for source in some}
        left = [source for source in self.saved if source not in taken and self.saved[source]]
        for target, state in here.items():
            if target not in out and (found := self._candidates(target, state, left)):
                out[target] = found
        return out

    def _told_addresses(self, here: Mapping[str, State], saved: Sequence[str]) -> dict[str, str]:
        """Saved address → address here, as the user says, with all that the link holds."""
        out: dict[str, str] = {}
        for old, new in self.moves.links.items():
            found = [a for a in saved if a == old or a.startswith(f"{old}/")]
            if not found:
                raise ValueError(f"{self.owner}: links {old!r} is no link that was saved.{near(old, saved)}")
            for address in found:
                target = new + address[len(old) :]
                if target not in here:
                    raise ValueError(f"{self.owner}: links {target!r} is no link of this chain.{near(target, here)}")
                out[address] = target
        return out

    def _candidates(self, target: str, state: State, left: Sequence[str]) -> list[str]:
        """Saved links without a place that can give to this one: those of its class, else those with a kind of its."""
        alike = [s for s in left if self._class_of(s) == _base(target)]
        wanted = {kind for kind in state.kinds.values() if kind}
        found = alike or [s for s in left if wanted & set(self._kinds(s).values())]
        seen: dict[str, str] = {}
        for source in found:
            for name in _names(self.saved[source]):
                other = seen.setdefault(name, source)
                if other != source:
                    self.told.append(
                        f"{target} starts anew, for both {other} and {source} could give to it: say which, "
                        f"links={{{other!r}: {target!r}}}"
                    )
                    return []
        return found

    def _class_of(self, address: str) -> str:
        """The name of a saved link's class, which is that of its address but where a user gave it another."""
        given = _given_names(self.config)
        base = _base(address)
        return given.get(base, base)

    def _kinds(self, address: str) -> dict[str, str]:
        """The kinds of a saved link's fields."""
        name = self._class_of(address)
        made: Any = own_link(name) or registered.get(name)
        if made is None:
            made = next((type(x) for _, x, _ in walk(self.chain, None) if type(x).__qualname__ == name), None)
        try:
            kinds = dict(get_type_hints(made.init)["return"].kinds)
        except Exception:  # not a class, or one that says nothing of its state
            return {}
        return {field: kinds[field] for field in self.saved[address] if kinds.get(field)}

    def _filled(self, target: str, state: State, sources: Sequence[str]) -> dict[str, Any]:
        """The fields of one link, from those that give to it."""
        fields = dict(state.items())
        if sources == [target] and set(self.saved[target]) & set(fields):
            return self._kept(target, state)
        link = next(type(link).__name__ for address, link, _ in walk(self.chain, None) if address == target)
        same = all(self._class_of(s) == link or set(self.saved[s]) == set(fields) for s in sources)
        origin = {name: [(s, name) for s in sources if name in self.saved[s]] for name in fields} if same else {
            name: [(s, f) for s in sources for f, kind in self._kinds(s).items() if kind == state.kinds.get(name)]
            for name in fields
        }  # fmt: skip
        for source in sources:
            kept = sorted({name for name, some in origin.items() for s, _ in some if s == source})
            if source != target and kept:
                self.told.append(f"{source} became {target}: {', '.join(kept)}")
            lost = sorted(set(self.saved[source]) - {f for some in origin.values() for s, f in some if s == source})
            if lost and not same:
                self.told.append(f"{source} has no place here for its {', '.join(lost)}")
        return self._of_parameters(target, state, origin, same)

    def _of_parameters(
        self, target: str, state: State, origin: Mapping[str, list[tuple[str, str]]], same: bool
    ) -> dict[str, Any]:
        """Fields with an entry for every parameter; those that nothing was saved for start anew, with a count of 0."""
        fresh, out = plain_fields(state), {}
        slots = [n for n, v in state.items() if isinstance(v, Tensors) and n not in state.whole]
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            pieces = [self.saved[s][f] for s, f in origin[name]]
            if name in slots:
                found[name] = self._slots(value, pieces)
            elif not isinstance(value, (Count, Scalars)) and pieces:
                out[name] = self._whole(state, name, pieces)
        members = [*dict.fromkeys(n for name in slots for n in state[name])]
        missing = {n: [s for s in slots if n in state[s] and n not in found[s]] for n in members}
        if self.moves.strict:
            out.update((s, found[s]) for s in slots if found[s] or not len(state[s]))
        else:
            anew = [n for n in members if any(missing[n]) and (same or not any(n in found[s] for s in slots))]
            for name in slots:
                out[name] = {n: found[name][n] if n in found[name] and n not in anew else fresh[name][n]
                             for n in state[name]}  # fmt: skip
            if anew:
                self.told.append(f"{target} starts anew for {', '.join(anew)}")
        lacking = [n for n in members if missing[n]]
        for name, value in state.items():
            if isinstance(value, (Count, Scalars)):
                out[name] = self._numbers(value, fresh[name], origin[name], lacking if same else [
                    n for n in members if not any(n in found[s] for s in slots)])  # fmt: skip
        out = {name: value for name, value in out.items() if value is not None}
        return out if same or self.moves.strict else self._seeded(target, state, found, missing, out)

    def _kept(self, target: str, state: State) -> dict[str, Any]:
        """The fields of a link that is where it was, as they were saved: what does not fit is for the loader to say.

        Entries are resized that are to be, and a count goes on for just the parameters whose entries do.
        """
        out = dict(self.saved[target])
        lacking: set[str] = set()
        for name, value in state.items():
            saved = out.get(name)
            if not isinstance(value, Tensors) or name in state.whole or not isinstance(saved, Mapping):
                continue
            lacking |= {n for n in value if n not in saved}
            made: dict[str, Any] = {}
            for n, tensor in saved.items():
                made[n] = tensor
                if n not in value or not isinstance(tensor, Tensor):
                    continue
                fitted = self.moves.fitted(self.owner, n, tensor, value[n])
                made[n] = value[n].detach().clone() if fitted is None else fitted
                if fitted is None or fitted.shape != value[n].shape:
                    lacking.add(n)
            out[name] = made
        fresh = plain_fields(state)
        for name, value in state.items():
            if not isinstance(value, (Count, Scalars)) or name not in out or isinstance(value, Slots):
                continue
            names = value.names if isinstance(value, Count) else tuple(value)
            saved, before = out[name], fresh[name]
            if not lacking & set(names) and (not isinstance(saved, Mapping) or set(saved) == set(names)):
                continue
            if isinstance(saved, Mapping) and (self.moves.strict and not set(names) - lacking <= set(saved)):
                continue
            out[name] = {
                n: (before[n] if isinstance(before, Mapping) else before)
                if n in lacking
                else saved[n] if isinstance(saved, Mapping) else saved
                for n in names
                if n in lacking or not isinstance(saved, Mapping) or n in saved
            }  # fmt: skip
        if lacking and not self.moves.strict:
            self.told.append(
                f"{target} starts anew for {', '.join(n for n in self.context.index.names if n in lacking)}"
            )
        return out

    def _slots(self, fresh: Tensors, pieces: Sequence[Any]) -> dict[str, Tensor]:
        """The entries of one field that were saved, in their shapes of now."""
        out = {}
        for piece in pieces:
            for name, tensor in piece.items() if isinstance(piece, Mapping) else ():
                place = fresh[name] if name in fresh else None
                if place is None or not isinstance(tensor, Tensor):
                    if self.moves.strict:
                        out[name] = tensor  # and is refused by name
                    continue
                made = self.moves.fitted(self.owner, name, tensor, place)
                if made is None:
                    self.anew.add(name)
                    if self.moves.strict:
                        out[name] = place.detach().clone()
                elif made.shape == place.shape or self.moves.strict:
                    out[name] = made.to(place.dtype) if made.is_floating_point() == place.is_floating_point() else made
        return out

    def _numbers(self, value: Any, fresh: Any, origin: Sequence[tuple[str, str]], anew: Sequence[str]) -> Any:
        """A count or a number for each parameter: 0, or what a fresh state has, for those that start anew."""
        names = value.names if isinstance(value, Count) else tuple(value)
        before = {n: fresh if isinstance(value, Count) and not isinstance(fresh, Mapping) else fresh[n] for n in names}
        if not origin:
            if not isinstance(value, Count) or self.moves.strict:
                return None
            step = int(self.clocks.get("step", 0))  # nothing was counted: as often as the chain was applied
            return {n: 0 if n in anew else step for n in names}
        known: dict[str, Any] = {}
        for source, of_source in origin:
            piece = self.saved[source][of_source]
            if isinstance(piece, Mapping):
                known |= piece
            else:
                of = [n for n in names if n in _names(self.saved[source])] or ([] if anew else names)
                known |= dict.fromkeys(of, piece)
        resized = self.anew
        if self.moves.strict:
            return {**{n: before[n] for n in names if n in resized}, **{n: v for n, v in known.items()
                    if n not in resized}}  # fmt: skip
        return {n: before[n] if n in anew or n not in known else known[n] for n in names}

    def _whole(self, state: State, name: str, pieces: Sequence[Any]) -> Any:
        """A field that is no entry per parameter: of the only link that has one."""
        if len(pieces) > 1:
            return None if any(piece != pieces[0] for piece in pieces[1:]) else pieces[0]
        return pieces[0]

    def _seeded(
        self,
        target: str,
        state: State,
        found: Mapping[str, Mapping[str, Tensor]],
        missing: Mapping[str, Sequence[str]],
        out: dict[str, Any],
    ) -> dict[str, Any]:
        """Parameters of which a mean gradient came and what it is divided by did not: as after one update with it.

        One count corrects both. A full count with a new mean of squares would make steps many times too long, and a
        count of 0 with a full mean as well.
        """
        means = [f for f, kind in state.kinds.items() if kind == MEAN and f in found]
        unsafe = [f for f in found if state.kinds.get(f) not in (MEAN, LARGEST)]
        chosen = [n for n, gone in missing.items() if means and set(gone) & set(unsafe) and n in found[means[0]]]
        if not chosen:
            return out
        link = next(link for address, link, _ in walk(self.chain, None) if address == target)
        context = self.context
        for step in target.split("/"):
            context = context.enter(step)
        index = self.context.index.subset(chosen)
        mean = EagerTensors.at(index, {n: found[means[0]][n].to(state[means[0]][n].device) for n in chosen})
        with torch.no_grad():
            start = link.init(self.context.params.select(index))
            made = plain_fields(link.update(mean, start, context.narrow(index))[1])
        for name, value in made.items():
            if isinstance(out.get(name), Mapping) and not isinstance(value, Mapping):
                out[name] = {**out[name], **dict.fromkeys(chosen, value)}
            elif isinstance(value, Mapping):
                out[name] = {**out.get(name, {}), **value}
        self.told.append(f"{target} begins with the mean gradient as its first, for {', '.join(chosen)}")
        return out


def _base(address: str) -> str:
    return address.rpartition("/")[2].partition("#")[0]


def _names(fields: Mapping[str, Any]) -> list[str]:
    """The parameters that a saved link knows, by any of its fields."""
    return [*dict.fromkeys(name for value in fields.values() if isinstance(value, Mapping) for name in value)]


def _given_names(config: Any) -> dict[str, str]:
    """The names that users gave to links of a chain, with the class of each, from its config."""
    out: dict[str, str] = {}
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Mapping) and "link" in value[1]:
                out[value[0]] = str(value[1]["link"]).rpartition(":")[2]
            waiting += value
    return out
