"""Optax's state as arrays, taken into an updater of the same chain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.updater import Updater
from gradchain.updater.state_dict import LoadReport

_RULES = (
    ("count", "mu", "nu", "nu_max"), ("count", "mu", "nu"), ("count", "mu"), ("count", "ema"), ("mu", "nu"), ("trace",),
    ("nu",), ("sum_of_squares",), ("e_g", "e_x"),
)  # fmt: skip
_OWNER = "load_optax"


def load_optax(
    updater: Updater,
    state: Any,
    *,
    names: Callable[[str], str] | Mapping[str, str] | None = None,
    arrays: Mapping[str, Callable[[Any], Any]] | None = None,
    average: Any = None,
) -> LoadReport:
    """Take up the state of an Optax chain, `jax.tree.map(numpy.asarray, opt_state)`, in a chain of the same rules.

    Rules are met in order, each with the next link here that remembers the same: Adam (amsgrad too), Lion, trace, RMS
    (centred too), RSS, Adadelta, EMA of updates. Counts become those of the links and of the clock "step", which
    schedules read. What holds others (masked, partition, inject_hyperparams, MultiSteps) is gone into. JAX is not
    needed, nor imported. Hyperparameters are the chain's. Nothing changes on an error.

    Args:
        updater: of the chain.
        state: tuples, named tuples and dicts of arrays, such as `flax.serialization.to_state_dict` gives too.
        names: a parameter's path there, "dense.kernel" → its name here: a function, or a dict that leaves out what is
            called the same.
        arrays: glob of names here → function of an array whose layout is another: `{"*.weight": lambda a: a.T}`.
        average: the average of the weights, a tree like the parameters, for the `average_params` of the chain.

    Raises:
        ValueError: a rule has no link, or a link no rule; a name or a shape is another; a MultiSteps has one open.

    >>> import numpy, torch, gradchain as gch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> updater = gch.adam(1e-3).bind(model)
    >>> moments = {"weight": numpy.ones((1, 2), numpy.float32)}
    >>> report = gch.load_optax(updater, ({"count": 7, "mu": moments, "nu": moments}, ()))
    >>> updater.num_updates
    7
    """
    plain = updater.state_dict()
    found = [*_rules(state)]
    counts = [int(node["count"]) for node in _nodes(state) if "count" in node and _is_scalar(node["count"])]
    open_links = {a: dict(f) for a, f in plain["links"].items() if "average" not in f and "window" not in f}
    for node in found:
        slots = [key for key in node if key != "count"]
        address = _address(open_links, slots, {_named(path, names) for path, _ in _leaves(node[slots[0]])})
        if address is None:
            raise ValueError(
                f"{_OWNER}: the chain must have a link for each rule of the state, got none that remembers "
                f"{', '.join(slots)}. Bind the same chain."
            )
        fields = open_links.pop(address)
        for key in slots:
            fields[key] = _entries(f"{address}.{key}", node[key], fields[key], names, arrays)
        if "count" in fields:
            fields["count"] = int(node["count"])
        plain["links"][address] = fields
    left = [a for a, f in open_links.items() if any(isinstance(v, Mapping) and v for v in f.values())]
    if left:
        raise ValueError(f"{_OWNER}: the state must have a rule for each link, got none for {left[0]}.")
    if average is not None:
        _fill_average(plain, average, names, arrays, max(counts, default=0))
    plain["clocks"] |= {"step": max(counts, default=0), "micro": max(counts, default=0)}
    return updater.load_state_dict(plain)


def _fill_average(plain: dict[str, Any], average: Any, names: Any, arrays: Any, taken: int) -> None:
    addresses = [a for a, f in plain["links"].items() if "average" in f]
    if len(addresses) != 1:
        raise ValueError(f"{_OWNER}: average needs one average_params in the chain, got {len(addresses)}.")
    fields = plain["links"][addresses[0]]
    fields["average"] = _entries(f"{addresses[0]}.average", average, fields["average"], names, arrays)
    if "num_averaged" in fields:
        fields["num_averaged"] = taken


def _fields(node: Any) -> Mapping[str, Any] | None:
    """A node as fields by name, in order; None where it holds nothing."""
    if isinstance(node, Mapping):
        return node
    if hasattr(node, "_fields"):
        return dict(zip(node._fields, node, strict=True))
    return {str(i): part for i, part in enumerate(node)} if isinstance(node, (tuple, list)) else None


def _nodes(state: Any) -> Iterator[Mapping[str, Any]]:
    """Every node that holds others, from the outside in, in order; a rule's slots are not gone into."""
    fields = _fields(state)
    if fields is None:
        return
    if int(fields.get("mini_step", 0)):
        raise ValueError(
            f"{_OWNER}: a MultiSteps must stand at the start of a window, got {int(fields['mini_step'])} micro-batches "
            "in it. Save after one has closed."
        )
    yield fields
    if _rule(fields) is None:
        for name, part in fields.items():
            if name not in ("acc_grads", "hyperparams", "hyperparams_states"):
                yield from _nodes(part)


def _rules(state: Any) -> Iterator[dict[str, Any]]:
    for fields in _nodes(state):
        rule = _rule(fields)
        if rule is not None:
            yield {key: fields[key] for key in rule}


def _rule(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The slots of a rule where this is the state of one."""
    return next((rule for rule in _RULES if {*rule} == {*fields}), None)


def _address(links: Mapping[str, Any], slots: Sequence[str], there: set[str]) -> str | None:
    """The first link that remembers the same of the same parameters, else of any: labels come in sorted order."""
    alike = [address for address, fields in links.items() if {k for k in fields if k != "count"} == {*slots}]
    return next((address for address in alike if {*links[address][slots[0]]} == there), next(iter(alike), None))


def _named(path: str, names: Any) -> str:
    """What a parameter is called here."""
    return str(names(path) if callable(names) else (names or {}).get(path, path))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int) or getattr(value, "ndim", 1) == 0


def _entries(where: str, tree: Any, places: Mapping[str, Tensor], names: Any, arrays: Any) -> dict[str, Tensor]:
    """The entries of one slot, by the names here."""
    out: dict[str, Tensor] = {}
    for path, array in _leaves(tree):
        name = _named(path, names)
        if name not in places:
            raise ValueError(
                f"{_OWNER}: {where} has no parameter {name!r}, which is {path!r} there. Say what it is called: "
                f"names={{{path!r}: …}}."
            )
        for pattern, function in (arrays or {}).items():
            if re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name):
                array = function(array)
                break
        tensor = torch.as_tensor(array.copy() if hasattr(array, "copy") else array)  # jax's are not writable
        if tensor.shape != places[name].shape:
            raise ValueError(
                f"{_OWNER}: {where} must have shape {tuple(places[name].shape)} for {name!r}, got "
                f"{tuple(tensor.shape)}. Give arrays={{{name!r}: …}}, a function that lays it out as here."
            )
        out[name] = tensor.to(places[name].dtype)
    missing = next((name for name in places if name not in out), None)
    if missing is not None:
        raise ValueError(f"{_OWNER}: {where} must have every parameter, got none for {missing!r}.")
    return out


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    fields = _fields(tree)
    if fields is None:
        yield path, tree
        return
    for name, part in fields.items():
        yield from _leaves(part, f"{path}.{name}" if path else str(name))
