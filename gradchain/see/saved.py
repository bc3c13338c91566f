"""What an updater wrote, looked at without its model: a checkpoint, or a chain as data. Nothing in it is run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.config import from_config, makes_links
from gradchain.core.hyper import Override
from gradchain.core.transform import Transform
from gradchain.see.subjects import Subject
from gradchain.updater import files
from gradchain.updater.fixed import from_fixed, is_fixed
from gradchain.updater.parts import Part
from gradchain.updater.saved import check

__all__ = ["from_checkpoint", "from_json"]

MOST_BYTES = 50_000_000  # of a chain as data


def from_checkpoint(owner: str, path: str | os.PathLike[str]) -> list[Subject]:
    """The updaters of a file that `updater.save` wrote, verified as `updater.load` does it.

    Which parameters a selector matches only a model knows, so groups are told by their rules.

    Raises: as `gch.read_weights`; KeyError for a chain with a function or a class of the user's.
    """
    parts, _ = files.read(path, owner)
    return [_subject(owner, "" if len(parts) == 1 else name, part) for name, part in parts.items()]


def from_json(owner: str, text: str) -> list[Subject] | None:
    """The chain that `json.dumps(gch.to_config(chain))` is; None where it is something else.

    ValueError or KeyError where it says of itself that it is one, and cannot be read.
    """
    try:
        data = json.loads(text) if len(text) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, Mapping) or not isinstance(data.get("link"), str):
        return None
    return [Subject("", _chain(owner, data))]


def _subject(owner: str, name: str, contents: Any) -> Subject:
    state = Part.read(owner, contents).state
    plain = from_fixed(state)[0] if is_fixed(state) else state
    try:
        check(plain)
    except ValueError as error:
        raise ValueError(str(error).replace("load_state_dict", owner, 1)) from None
    overrides = {a: Override(_value(owner, a, o["value"]), o["factor"]) for a, o in plain["overrides"].items()}
    sizes = {address: sum(_bytes(fields)) for address, fields in plain["links"].items()}
    return Subject(name, _chain(owner, plain["chain"]), None, overrides, dict(plain["clocks"]), sizes)


def _value(owner: str, address: str, config: Any) -> Any:
    """The value of an override. ValueError for data that is none."""
    if makes_links(config):
        raise ValueError(f"{owner}: the override of {address} must have no link in it.")
    try:
        return from_config(config)
    except KeyError:
        raise
    except Exception as error:  # as below
        raise ValueError(
            f"{owner}: the override of {address} cannot be read: {type(error).__name__}: {error}"
        ) from None


def _chain(owner: str, config: Any) -> chain:
    """A chain from data. ValueError or KeyError in a sentence for data that is none."""
    try:
        made = from_config(config)
    except KeyError as error:
        raise KeyError(f"{owner}: {str(error.args[0]).removeprefix('from_config: ')}") from None
    except Exception as error:  # whatever a class of ours says to arguments that it never had
        raise ValueError(f"{owner}: the chain cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(made, Transform):
        raise ValueError(f"{owner}: expected a chain as to_config writes it, found {type(made).__name__}.")
    return made if isinstance(made, chain) else chain(made)


def _bytes(value: Any) -> Iterator[int]:
    """Of every tensor in plain data."""
    if isinstance(value, Tensor):
        yield value.numel() * value.element_size()
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _bytes(item)
