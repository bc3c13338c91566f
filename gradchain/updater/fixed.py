"""A state in a shape that no value of it changes, as torch.distributed.checkpoint needs it; and what that lost else."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gradchain.core.readable import as_name
from gradchain.core.roles import AverageState
from gradchain.core.slots import Slots
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.updater.sealed import unzipped
from gradchain.updater.state_dict import states

Form = Literal["plain", "fixed"]

CURE = (
    "torch.distributed.checkpoint fills what is there already, and leaves out the rest: save and load "
    'state_dict(form="fixed")'
)
_VARYING = ("overrides", "observed", "news")  # clocks are known to the chain
_KEYS = ("format", "tensors", "rest")


# the fixed form


def check_form(form: object) -> None:
    """ValueError for what is no form of a state."""
    if form not in get_args(Form):
        raise ValueError(f"state_dict: form must be 'plain' or 'fixed', got {form!r}.")


def to_fixed(
    plain: Mapping[str, Any], link: Transform, fresh: State, parameters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """A plain state as tensors of every parameter, zeros where it has none, and bytes of all else.

    Args:
        plain: the state, as data.
        link: whose it is.
        fresh: its state with entries for every parameter, which says what tensors there can be.
        parameters: all of them, by name.
    """
    links = {address: dict(fields) for address, fields in plain["links"].items()}
    tensors: dict[str, Any] = {}
    there: dict[str, Any] = {}
    for address, name, places in _places(link, fresh, parameters):
        held = links.get(address, {}).get(name, {})
        filled = {n: held[n].to(p.dtype) if n in held else torch.zeros_like(p) for n, p in places.items()}
        tensors.setdefault(address, {})[name] = filled
        here = {n: [held[n].dtype, p.dtype] for n, p in places.items() if n in held}
        there.setdefault(address, {})[name] = here
        if here:
            links[address][name] = {n: t for n, t in held.items() if n not in places}
    file = io.BytesIO()
    torch.save({"state": {**plain, "links": links}, "tensors": there}, file)
    return {"format": plain["format"], "tensors": tensors, "rest": file.getvalue()}


def _places(
    link: Transform, fresh: State, parameters: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, Mapping[str, Tensor]]]:
    """Address, field, and what each entry of it is like, of all fields with a tensor per parameter."""
    for address, state in states(link, fresh):
        for name, value in state.items():
            if not isinstance(value, Tensors) or (isinstance(state, AverageState) and name == "buffers"):
                continue  # buffers are no parameters, and whole on every rank
            if name in state.whole:
                yield address, name, {n: _widest(p) for n, p in parameters.items()}
            else:
                yield address, name, dict(value.items())


def _widest(parameter: Tensor) -> Tensor:
    """Zeros that hold what any sum of gradients of a parameter holds: its dtype is known once there is one."""
    wide = torch.float32 if parameter.device.type == "mps" else torch.float64
    return torch.zeros_like(parameter.detach(), dtype=wide.to_complex() if parameter.is_complex() else wide)


def is_fixed(saved: Any) -> bool:
    """Whether it is made as `to_fixed` makes it."""
    return isinstance(saved, Mapping) and "rest" in saved


def from_fixed(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """The plain state, and the address, field and name of each tensor that it lacks. ValueError where it is none."""
    state, there = _opened(saved["rest"])
    tensors = saved.get("tensors", {})  # where no link has any, no tensor says that there was a dict
    absent: list[tuple[str, ...]] = []
    links = {address: dict(fields) for address, fields in state["links"].items()}
    for address, fields in there.items():
        for name, entries in fields.items():
            found = {}
            for n, (dtype, stored) in entries.items():
                tensor = _at(tensors, (address, name, n))
                if not isinstance(tensor, Tensor):
                    absent.append((address, name, n))
                    continue
                if tensor.dtype != stored:
                    raise ValueError(
                        f"load_state_dict: {address}.{name} was saved in {str(stored)[6:]} for {n!r} and was read into "
                        f"{str(tensor.dtype)[6:]}, which rounds it. Bind the chain with the dtypes it was saved with."
                    )
                found[n] = tensor.to(dtype)
            if found:
                links[address][name] = {**links[address].get(name, {}), **found}
    more = {key: value for key, value in saved.items() if key not in _KEYS}
    return {**state, **more, "links": links}, absent


def _opened(rest: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plain state without the tensors, and which of these it has in which dtypes."""
    try:
        contents = unzipped(io.BytesIO(rest), len(rest))
        state, there = contents["state"], contents["tensors"]
        pairs = [pair for fields in there.values() for entries in fields.values() for pair in entries.values()]
        right = all(isinstance(dtype, torch.dtype) for pair in pairs for dtype in pair)
        right &= all(len(pair) == 2 for pair in pairs) and all(isinstance(f, dict) for f in state["links"].values())
        right &= all(address in state["links"] for address, fields in there.items() if any(fields.values()))
    except Exception as error:
        raise ValueError(
            "load_state_dict: rest must be the bytes that state_dict gives, and cannot be read "
            f"({type(error).__name__})."
        ) from error
    if not right:
        raise ValueError("load_state_dict: rest must be the bytes that state_dict gives, and holds something else.")
    return state, there


# what the plain form loses where it is filled into another


def inventory(plain: Mapping[str, Any], link: Transform, state: State) -> list[list[Any]]:
    """The path of everything in a plain state that is there in some states of a chain and not in others."""
    paths = [[name, key] for name in _VARYING for key in plain[name]]
    for address, inner in states(link, state):
        for name, value in inner.items():
            if isinstance(value, Slots):
                paths += [["links", address, name, n, key] for n, slot in value.items() for key in slot]
            elif isinstance(value, Tensors) and name in inner.whole:
                paths += [["links", address, name, n] for n in value]
    return paths


def lost(saved: Mapping[str, Any]) -> list[str]:
    """What its inventory says that a plain state has, and it has not."""
    paths = saved.get("inventory", [])
    if not isinstance(paths, list) or not all(map(_is_path, paths)):
        raise ValueError("load_state_dict: inventory must be a list of paths, as state_dict() gives it.")
    return [
        _told(path) for path in paths if isinstance(inner := _at(saved, path[:-1]), Mapping) and path[-1] not in inner
    ]


def _is_path(path: Any) -> bool:
    if not isinstance(path, list) or len(path) < (4 if path[:1] == ["links"] else 2):
        return False
    return all(key is None or isinstance(key, (str, int, float)) for key in path)


def _told(path: list[Any]) -> str:
    """A path as reports have it: `trace.trace[weight]`."""
    place, keys = (
        (f"{as_name(path[1])}.{as_name(path[2])}", path[3:]) if path[0] == "links" else (as_name(path[0]), path[1:])
    )
    return place + "".join(f"[{as_name(key)}]" for key in keys)


def _at(value: Any, path: Any) -> Any:
    """What lies under keys within keys, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
