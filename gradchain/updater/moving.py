"""A saved state, weights with it, on the way into another model or chain: names, shapes and addresses that changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

import torch
from torch import Tensor

from gradchain.updater.parts import Part
from gradchain.words.arguments import not_taken

Resize: TypeAlias = "Mapping[str, str | Callable[[Tensor], Tensor]]"
_WORDS = ("overlap", "anew")


class Changed(TypedDict, total=False):
    """What `load` takes of changes since the save: `Updater.load` describes them."""

    rename: Mapping[str, str] | None
    links: Mapping[str, str] | None
    resize: Resize | None


class ChangedByUpdater(TypedDict, total=False):
    """The same for several updaters: each is a dict by their names."""

    rename: Mapping[str, Mapping[str, str]] | None
    links: Mapping[str, Mapping[str, str]] | None
    resize: Mapping[str, Resize] | None


@dataclass(frozen=True)
class Moves:
    """What a load is told of what has changed since the save.

    Attributes:
        rename: glob of saved names of parameters and buffers → what they are called now; a `*` is carried over.
        links: saved address → address in this chain, of a link and all that it holds.
        resize: glob of names → how what has another shape is taken over: "overlap", "anew" or a function.
        strict: whether everything saved must have its place, and every place something saved.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    resize: Resize = field(default_factory=dict)
    strict: bool = True

    @classmethod
    def of(
        cls,
        owner: str,
        strict: bool,
        changed: Mapping[str, Any],
    ) -> Moves | None:
        """Those of a call, checked; None where it asks for nothing but what was saved."""
        _check_words(owner, changed)
        rename, links, resize = (changed.get(name) for name in Changed.__annotations__)
        for word, table in (("rename", rename), ("links", links)):
            pairs = {} if table is None else table
            if not isinstance(pairs, Mapping) or not all(isinstance(s, str) for pair in pairs.items() for s in pair):
                raise TypeError(f"{owner}: {word} must be a dict of names to names, got {table!r}.")
        for old, new in (rename or {}).items():
            if old.count("*") != new.count("*"):
                raise ValueError(
                    f"{owner}: rename must have as many * on both sides, got {old!r} and {new!r}. Each is carried over."
                )
        if resize is not None and not isinstance(resize, Mapping):
            raise TypeError(f"{owner}: resize must be a dict of names, got {resize!r}.")
        for how in (resize or {}).values():
            if how not in _WORDS and not callable(how):
                raise ValueError(f"{owner}: resize must be 'overlap', 'anew' or a function of a tensor, got {how!r}.")
        if not rename and not links and not resize and strict:
            return None
        return cls(dict(rename or {}), dict(links or {}), dict(resize or {}), strict)

    @classmethod
    def by_updater(
        cls, owner: str, updaters: Iterable[str], strict: bool, changed: Mapping[str, Any]
    ) -> dict[str, Moves | None]:
        """Those of a call that loads several updaters, in which each argument is a dict by their names."""
        _check_words(owner, changed)
        names = [*updaters]
        for word, given in changed.items():
            stray = next((n for n in given if n not in names), None) if isinstance(given, Mapping) else given
            if given is not None and stray is not None:
                cure = f"{word}={{{names[0]!r}: {{…}}}}"
                raise ValueError(
                    f"{owner}: {word} must be a dict by updater, got {stray!r}. There are: "
                    f"{', '.join(map(repr, names))}. Write {cure}."
                )
        split = {n: {word: given.get(n) for word, given in changed.items() if given} for n in names}
        return {name: cls.of(owner, strict, of_one) for name, of_one in split.items()}

    # names

    def table(self, owner: str, saved: Iterable[str], there: Iterable[str]) -> dict[str, str]:
        """Saved name → its name now, for those that a pattern matches: the first that does.

        Raises:
            ValueError: a pattern matches nothing, or makes a name that the model has not, or one name of two.
        """
        names, places = [*dict.fromkeys(saved)], [*dict.fromkeys(there)]
        out: dict[str, str] = {}
        for old, new in self.rename.items():
            pattern = re.compile("(.*)".join(map(re.escape, old.split("*"))), re.DOTALL)
            found = {name: match for name in names if (match := pattern.fullmatch(name))}
            if not found:
                raise ValueError(f"{owner}: rename {old!r} matches nothing that was saved.{near(old, names)}")
            for name, match in found.items():
                made = _filled(new, match.groups())
                if self.strict and name not in out and made not in places:
                    raise ValueError(
                        f"{owner}: rename {old!r} makes {made!r} of {name!r}, which the model has not."
                        f"{near(made, places)}"
                    )
                out.setdefault(name, made)
        holders: dict[str, str] = {}
        for name in names:
            first = holders.setdefault(out.get(name, name), name)
            if first != name:
                made = out.get(name, name)
                raise ValueError(f"{owner}: rename must keep names apart, got {made!r} for {first!r} and {name!r}.")
        return out

    # shapes

    def how(self, name: str) -> str | Callable[[Tensor], Tensor] | None:
        """How a parameter is taken over that has another shape now, if anything is said of it."""
        return next((how for pattern, how in self.resize.items() if _matches(pattern, name)), None)

    def check_resize(self, owner: str, there: Iterable[str]) -> None:
        """ValueError for a pattern of `resize` that no name of the model matches."""
        names = [*there]
        for pattern in self.resize:
            if not any(_matches(pattern, name) for name in names):
                raise ValueError(f"{owner}: resize {pattern!r} matches nothing in the model.{near(pattern, names)}")

    def fitted(self, owner: str, name: str, saved: Tensor, place: Tensor) -> Tensor | None:
        """What was saved in the shape of its place; None where it starts anew. Itself where shapes agree."""
        how = self.how(name)
        if saved.shape == place.shape or how is None or saved.is_meta or saved.layout is not torch.strided:
            return saved  # what cannot be loaded is for the loader to refuse
        if callable(how):
            made = how(saved)
            if not isinstance(made, Tensor) or made.shape != place.shape:
                got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
                raise ValueError(
                    f"{owner}: resize must make shape {tuple(place.shape)} of {name!r}, got {got}. It is called with "
                    "the weight and with each slot."
                )
            return made
        return _overlap(owner, name, saved, place) if how == "overlap" else None

    # what goes through

    def part(self, part: Part, table: Mapping[str, str], weights: Mapping[str, Tensor],
             buffers: Mapping[str, Tensor], told: list[str]) -> Part:  # fmt: skip
        """Weights and buffers under their names and in their shapes of now; what was done is told."""
        names = {name: table.get(name, name) for name in (*part.weights, *part.buffers, *part.left)}
        told += [f"{old} became {new}" for old, new in names.items() if old != new]
        moved = part._replace(
            weights=self._tensors(renamed(part.weights, table), weights, told),
            buffers=self._tensors(renamed(part.buffers, table), buffers, told),
            left=[table.get(name, name) for name in part.left],
            tied={table.get(a, a): table.get(b, b) for a, b in part.tied.items()},
        )
        if moved.saved == "none":
            return moved
        before = {**renamed(part.weights, table), **renamed(part.buffers, table)}
        missing = [
            name
            for name in (*weights, *buffers)
            if name not in moved.weights and name not in moved.buffers and name not in moved.left
            if not self.strict or (name in before and self.how(name) == "anew")
        ]
        told += [f"{name} is new, and stays as the model has it" for name in missing if name not in before]
        left = [name for name in moved.left if self.strict or name in weights]
        return moved._replace(left=[*left, *missing])

    def _tensors(self, saved: Mapping[str, Tensor], places: Mapping[str, Tensor], told: list[str]) -> dict[str, Tensor]:
        out = {}
        for name, tensor in saved.items():
            place = places.get(name)
            if place is None:
                if self.strict:
                    out[name] = tensor  # and is refused by name
                else:
                    told.append(f"{name} is not in the model, and was dropped")
                continue
            made = self.fitted("load", name, tensor, place)
            if made is not None and made.shape != place.shape and not self.strict:
                made = None
            shapes = f"{tuple(tensor.shape)}, now {tuple(place.shape)}"
            if made is None:
                told.append(f"{name} was of shape {shapes}, and starts anew")
            else:
                out[name] = made
                if made is not tensor:
                    told.append(f"{name} was of shape {shapes}, and was resized")
        return out


def _check_words(owner: str, changed: Mapping[str, Any]) -> None:
    unknown = next((name for name in changed if name not in Changed.__annotations__), None)
    if unknown is not None:
        raise TypeError(not_taken(owner, unknown, ["strict", *Changed.__annotations__]))


def renamed(entries: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """The same entries under their names of now."""
    return {table.get(name, name): value for name, value in entries.items()}


def state_renamed(saved: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """A plain state with every parameter and buffer under its name of now."""
    links = {
        address: {name: renamed(v, table) if isinstance(v, Mapping) else v for name, v in fields.items()}
        if isinstance(fields, Mapping)
        else fields
        for address, fields in saved["links"].items()
    }

    def path_now(path: Any) -> Any:
        named = isinstance(path, list) and path[:1] == ["links"] and len(path) > 3 and isinstance(path[3], str)
        return [*path[:3], table.get(path[3], path[3]), *path[4:]] if named else path

    out = {
        **saved,
        "links": links,
        "inactive": [table.get(name, name) for name in saved["inactive"]],
        "fingerprint": renamed(saved["fingerprint"], table),
    }
    inventory = saved.get("inventory")  # whether it is one, its reader says
    return {**out, "inventory": [*map(path_now, inventory)]} if isinstance(inventory, list) else out


def names_in(saved: Mapping[str, Any]) -> list[str]:
    """Every name of a parameter or buffer that a plain state has."""
    fields = [f for fields in saved["links"].values() if isinstance(fields, Mapping) for f in fields.values()]
    found = [*saved["fingerprint"], *saved["inactive"], *(name for f in fields if isinstance(f, Mapping) for name in f)]
    return [*dict.fromkeys(name for name in found if isinstance(name, str))]


def near(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about a name that is not there."""
    every = [*dict.fromkeys(names)]
    found = difflib.get_close_matches(name, every, n=3, cutoff=0.5) or every[:3]
    return f" There are: {', '.join(map(repr, found))}." if found else ""


def _filled(pattern: str, texts: Iterable[str]) -> str:
    first, *rest = pattern.split("*")
    return first + "".join(text + piece for text, piece in zip(texts, rest, strict=True))


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def _overlap(owner: str, name: str, saved: Tensor, place: Tensor) -> Tensor:
    """What both have from the start of each dimension; the rest is what lies in the place."""
    if saved.ndim != place.ndim:
        raise ValueError(
            f"{owner}: resize 'overlap' needs as many dimensions as before, got {name!r} of shape "
            f"{tuple(saved.shape)} for {tuple(place.shape)}. Give a function, or 'anew'."
        )
    common = tuple(slice(min(a, b)) for a, b in zip(saved.shape, place.shape, strict=True))
    with torch.no_grad():
        made = place.detach().to(saved.dtype).cpu().clone()
        made[common] = saved[common].cpu()
    return made
