"""Chains to and from plain dicts that go through JSON. On the way back a name is looked up in gradchain's lists."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gradchain._lazy import load
from gradchain.core.chain import chain
from gradchain.core.transform import Transform, registry
from gradchain.schedules import Schedule
from gradchain.selectors import Selector
from gradchain.selectors.written import Written

registered: dict[str, Callable[..., Any]] = {}
"""What users registered, by name: link classes, and functions that make a link."""


def to_config(value: Any) -> Any:
    """A chain, link, schedule, selector or any hyperparameter's value as JSON-able data.

    A function or class of the user's is written by name; `from_config` must be told what the name means.

    >>> import gradchain as gch
    >>> gch.to_config(gch.scale(-0.1))
    {'link': 'scale', 'step_size': -0.1}
    """
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value)
    if callable(value):
        return {"function": _name_of(value)}
    raise TypeError(f"to_config: cannot write {value!r} of type {type(value).__name__} as data.")


def from_config(config: Any, names: Mapping[str, Any] | None = None) -> Any:
    """What `to_config` wrote, rebuilt: `from_config(to_config(chain)) == chain`.

    Args:
        config: data from `to_config`.
        names: the user's own functions and classes, by the name they were written under.

    Raises:
        KeyError: a name is neither gradchain's nor in `names`.
        ValueError: the data is not a config, or a value is out of range.
    """
    names = names or {}
    if isinstance(config, list):
        return [from_config(c, names) for c in config]
    if not isinstance(config, Mapping):
        return config
    for key, read in _READERS.items():
        if key in config:
            return read(config, names)
    raise ValueError(f"from_config: not a config: {dict(config)!r}. It must come from to_config.")


def makes_links(config: Any) -> bool:
    """Whether there is a link anywhere in data: what makes one may call what a user registered, or import a package."""
    if isinstance(config, Mapping):
        return "link" in config or any(map(makes_links, config.values()))
    return isinstance(config, list) and any(map(makes_links, config))


def own_link(name: str) -> type[Transform] | None:
    """The link of gradchain's that is called so, whether anybody has used it before or not."""
    if name not in registry:
        load(name)
    return registry.get(name)


def _name_of(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def _write_link(link: Transform) -> dict[str, Any]:
    names = {made: name for name, made in (*registered.items(), *registry.items()) if isinstance(made, type)}
    head = {"link": names.get(type(link)) or _name_of(type(link))}
    if isinstance(link, chain):
        entries = [[e[0], to_config(e[1])] if isinstance(e, tuple) else to_config(e) for e in link.links]
        return {**head, "links": entries}
    return {**head, **_write_fields(link.written())}


def _write_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as entries of a config; under a key of their own where a name would hide what a config says of itself."""
    written = {name: to_config(value) for name, value in values.items()}
    return {"fields": written} if set(written) & {*_READERS, "args", "fields", "links"} else written


def _read_fields(config: Mapping[str, Any], names: Mapping[str, Any], *own: str) -> dict[str, Any]:
    written = config.get("fields", {k: v for k, v in config.items() if k not in own})
    return {name: from_config(value, names) for name, value in written.items()}


def _write_value(kind: str) -> Callable[[Any], dict[str, Any]]:
    def write(value: Any) -> dict[str, Any]:
        if isinstance(value, (Selector, Written)):
            args, kwargs = value.arguments()
        else:
            args, kwargs = (), {f.name: getattr(value, f.name) for f in fields(value)}
        own = _own_classes(kind).get(type(value).__name__) is type(value)
        out: dict[str, Any] = {kind: type(value).__name__ if own else _name_of(type(value))}
        if args:
            out["args"] = [to_config(a) for a in args]
        return {**out, **_write_fields(kwargs)}

    return write


def _write_number(value: float) -> Any:
    return value if math.isfinite(value) else {"float": str(value)}


def _write_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {"dict": [[to_config(k), to_config(v)] for k, v in value.items()]}


_KINDS: dict[str, type[Any]] = {"schedule": Schedule, "selector": Selector, "rule": Written}

_WRITERS: list[tuple[Any, Callable[[Any], Any]]] = [
    ((bool, int, str, type(None)), lambda value: value),
    (float, _write_number),
    (Transform, _write_link),
    (Schedule, _write_value("schedule")),
    (Selector, _write_value("selector")),
    (Written, _write_value("rule")),
    (tuple, lambda value: {"tuple": [to_config(v) for v in value]}),
    (list, lambda value: [to_config(v) for v in value]),
    (Mapping, _write_mapping),
    (torch.dtype, lambda value: {"dtype": str(value).removeprefix("torch.")}),
    (re.Pattern, lambda value: {"pattern": value.pattern, "flags": int(value.flags)}),
    (type, lambda value: {"class": _name_of(value)}),
    (Tensor, lambda value: to_config(value.item())),
]


def _own_classes(kind: str) -> dict[str, Any]:
    """gradchain's own schedules, selectors or rules, by class name: the public ones and what operators make of them."""
    classes = _KINDS[kind].__subclasses__()
    for cls in classes:  # grows meanwhile: rules are of several kinds
        classes += cls.__subclasses__()
    return {cls.__name__: cls for cls in classes if cls.__module__.startswith("gradchain.")}


def _lookup(name: str, own: Mapping[str, Any], names: Mapping[str, Any]) -> Any:
    if name in own:
        return own[name]
    short = name.rpartition(":")[2]
    for key in (name, short, short.rpartition(".")[2]):
        if key in names:
            return names[key]
    raise KeyError(
        f"from_config: {name!r} is not gradchain's. Say what it is: from_config(config, names={{{short!r}: …}})."
    )


def _read_link(config: Mapping[str, Any], names: Mapping[str, Any]) -> Transform:
    name = config["link"]
    own = own_link(name)
    cls = _lookup(name, registered if own is None else {**registered, name: own}, names)
    if cls is chain:
        return chain(
            *(
                (e[0], from_config(e[1], names)) if isinstance(e, list) else from_config(e, names)
                for e in config["links"]
            )
        )
    made = cls(**_read_fields(config, names, "link"))
    if not isinstance(made, Transform):
        raise TypeError(f"from_config: {config['link']!r} must make a Transform, got {made!r}.")
    return made


def _read_value(kind: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
    def read(config: Mapping[str, Any], names: Mapping[str, Any]) -> Any:
        if config[kind] not in _own_classes(kind):
            load(config[kind])  # one that nobody has used yet, as own_link does it
        cls: Any = _lookup(config[kind], _own_classes(kind), names)
        args = [from_config(a, names) for a in config.get("args", [])]
        return cls(*args, **_read_fields(config, names, kind, "args"))

    return read


def _read_class(config: Mapping[str, Any], names: Mapping[str, Any]) -> Any:
    module, _, name = config["class"].partition(":")
    found = getattr(torch.nn, name, None) if module.startswith("torch.nn") else None
    layer = isinstance(found, type) and issubclass(found, torch.nn.Module)
    return _lookup(config["class"], {config["class"]: found} if layer else {}, names)


def _read_dtype(config: Mapping[str, Any], names: Mapping[str, Any]) -> torch.dtype:
    dtype = getattr(torch, config["dtype"], None)
    if not isinstance(dtype, torch.dtype):  # torch has functions too, and a schedule would call one
        raise ValueError(f"from_config: dtype must be the name of one of torch's, got {config['dtype']!r}.")
    return dtype


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = {
    "link": _read_link,
    "schedule": _read_value("schedule"),
    "selector": _read_value("selector"),
    "rule": _read_value("rule"),
    "function": lambda config, names: _lookup(config["function"], {}, names),
    "class": _read_class,
    "tuple": lambda config, names: tuple(from_config(v, names) for v in config["tuple"]),
    "dict": lambda config, names: {from_config(k, names): from_config(v, names) for k, v in config["dict"]},
    "dtype": _read_dtype,
    "pattern": lambda config, names: re.compile(config["pattern"], config["flags"]),
    "float": lambda config, names: float(config["float"]),
}


def differences(saved: Any, current: Any, path: str = "") -> list[str]:
    """Where two configs differ, one line each: `clip_by_norm.max_norm: 1.0 was saved, 2.0 is in the code`."""
    if saved == current:
        return []
    where = path or "chain"
    if isinstance(saved, Mapping) and isinstance(current, Mapping) and _alike(saved, current):
        name = str(saved.get("link", "")).rpartition(":")[2]
        head = path if not name or name == "chain" else f"{path}/{name}".strip("/")
        out = []
        for key in dict.fromkeys((*saved, *current)):
            inner = head if key in ("link", "links", "fields") else f"{head}.{key}"
            if key not in current:
                out.append(f"{inner}: {_told(saved[key])} was saved, and the code has none")
            elif key not in saved:
                out.append(f"{inner}: {_told(current[key])} is in the code, and none was saved")
            else:
                out += differences(saved[key], current[key], inner)
        return out
    if isinstance(saved, list) and isinstance(current, list):
        links = _links(saved), _links(current)
        if links[0] is not None and links[1] is not None:
            return _other_links(links[0], links[1], path)
        if len(saved) == len(current):
            return [line for a, b in zip(saved, current, strict=True) for line in differences(a, b, path)]
    return [f"{where}: {_told(saved)} was saved, {_told(current)} is in the code"]


def _alike(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether two entries of a config are to be compared one by one: those of one link, or of one form."""
    return saved.get("link") == current.get("link") and ("link" in saved or set(saved) == set(current))


def _links(entries: list[Any]) -> dict[str, Any] | None:
    """The links of a chain by address, those of a chain inside it among them; None for a list of anything else."""
    out: dict[str, Any] = {}
    waiting = [*reversed(entries)]
    while waiting:
        entry = waiting.pop()
        given, link = entry if isinstance(entry, list) and len(entry) == 2 else (None, entry)
        if not isinstance(link, Mapping) or not isinstance(link.get("link"), str):
            return None
        inner = link.get("links")
        if given is None and link["link"] == "chain" and isinstance(inner, list):
            waiting += reversed(inner)
            continue
        name = str(link["link"].rpartition(":")[2] if given is None else given)
        many = sum(address.partition("#")[0] == name for address in out)
        out[f"{name}#{many + 1}" if many else name] = link
    return out


def _other_links(saved: Mapping[str, Any], current: Mapping[str, Any], path: str) -> list[str]:
    """Where two chains differ: links that one has alone, their order, and what is otherwise in those of both."""
    head = f"{path}/" if path else ""
    out = [f"{head}{_told(link)} was saved, and is not in the code" for a, link in saved.items() if a not in current]
    out += [f"{head}{_told(link)} is in the code, and was not saved" for a, link in current.items() if a not in saved]
    before, now = [a for a in saved if a in current], [a for a in current if a in saved]
    if before != now:
        out.append(f"{path or 'chain'}: {', '.join(before)} was the order, {', '.join(now)} is in the code")
    return out + [line for address in before for line in differences(saved[address], current[address], path)]


def _told(config: Any) -> str:
    """A config in few words, nearly as code has it."""
    words = _as_code(config)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


def _as_code(config: Any) -> str:
    if isinstance(config, list):
        return f"[{', '.join(map(_as_code, config))}]"
    if not isinstance(config, Mapping):
        return repr(config)
    if len(config) == 1 and {*config} <= {"float", "dtype", "function", "class"}:
        return str(*config.values())
    kind = next((kind for kind in ("link", *_KINDS) if kind in config), None)
    if kind is None:
        return repr(dict(config))
    entries = [item for key in ("args", "links") if isinstance(config.get(key), list) for item in config[key]]
    fields_ = config.get("fields", {key: v for key, v in config.items() if key not in (kind, "args", "links")})
    named = [f"{key}={_as_code(v)}" for key, v in fields_.items()] if isinstance(fields_, Mapping) else []
    return f"{str(config[kind]).rpartition(':')[2]}({', '.join([*map(_as_code, entries), *named])})"


_LONGEST = 100  # letters of one value in a line
