"""A state by parameter, as optimizers of torch have theirs, and what a trainer's checkpoint with such states holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradchain.updater.fixed import from_fixed
from gradchain.updater.state_dict import fingerprint

Slots = Mapping[str, Mapping[str, Tensor]]
"""Parameter → "address/field" → its tensor."""
REST = "gradchain"
"""The key of what has no fixed shape, as bytes in a tensor, in the state of the first parameter."""
_PAGE = 4096
_OPTIMIZERS, _MODEL, _COMPILED = "optimizer_states", "state_dict", "_orig_mod."


def split(fixed: Mapping[str, Any], active: tuple[str, ...]) -> Slots:
    """A state in its fixed form by parameter: tensors, and the rest with the first of all."""
    slots: dict[str, dict[str, Tensor]] = {name: {} for name in active}
    for address, fields in fixed["tensors"].items():
        for name, entries in fields.items():
            for parameter in slots.keys() & entries.keys():
                slots[parameter][f"{address}/{name}"] = entries[parameter]
    slots[active[0]][REST] = _as_tensor(fixed["rest"])
    return slots


def _as_tensor(data: bytes) -> Tensor:
    """Bytes in a tensor of a length that hardly ever changes."""
    size = 2 * _PAGE
    while size < 2 * len(data):
        size *= 2
    return torch.frombuffer(bytearray(len(data).to_bytes(8, "little") + data.ljust(size, b"\0")), dtype=torch.uint8)


def joined(slots: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fixed form, from what `split` made of it. ValueError where that is not what it is."""
    tensors: dict[str, Any] = {}
    for parameter, held in slots.items():
        for key, tensor in held.items() if isinstance(held, Mapping) else ():
            address, _, name = str(key).rpartition("/")
            if key != REST:
                tensors.setdefault(address, {}).setdefault(name, {})[parameter] = tensor
    return {"tensors": tensors, "rest": _rest(slots)}


def _rest(slots: Mapping[Any, Any]) -> bytes:
    """The bytes of what has no fixed shape. ValueError where no parameter has them."""
    found = [held[REST] for held in slots.values() if isinstance(held, Mapping) and REST in held]
    if not found or not isinstance(found[-1], Tensor) or found[-1].dtype != torch.uint8:
        raise ValueError(f"No parameter has the bytes of {REST!r}.")
    data = bytes(found[-1].cpu().tolist())
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


# the checkpoint of a trainer


class Trained(NamedTuple):
    """What a trainer's checkpoint holds of one chain.

    Attributes:
        state: the chain's, in plain form.
        names: parameter of the chain → its name in the trainer's model.
        prefix: what the trainer's model calls the chain's by.
    """

    state: Mapping[str, Any]
    names: Mapping[str, str]
    prefix: str


def is_one(found: Any) -> bool:
    """Whether this is the checkpoint of a trainer: Lightning's, and whoever else writes these two."""
    return isinstance(found, Mapping) and isinstance(found.get(_MODEL), Mapping) and "parts" not in found


def weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors, by the names that the trainer's model has."""
    return {name: value for name, value in checkpoint[_MODEL].items() if isinstance(value, Tensor)}


def has_states(checkpoint: Mapping[str, Any]) -> bool:
    """Whether it was saved with the states of optimizers."""
    return bool(checkpoint.get(_OPTIMIZERS))


def trained(owner: str, checkpoint: Mapping[str, Any]) -> Iterator[Trained]:
    """The chains in a trainer's checkpoint. ValueError where the model has none of the names that a chain has."""
    held = weights(checkpoint)
    for saved in checkpoint.get(_OPTIMIZERS) or ():
        slots = saved.get("state") if isinstance(saved, Mapping) else None
        if not isinstance(slots, Mapping) or not any(isinstance(s, Mapping) and REST in s for s in slots.values()):
            continue  # an optimizer of somebody else
        bits: Mapping[str, int] = from_fixed({"rest": _rest(slots)})[0].get("fingerprint", {})
        order = saved["param_groups"][0]["params"]
        found = {name: slots[key] for name, key in zip(bits, order, strict=False) if key in slots}
        prefix = _prefix(owner, held, bits) if len(bits) == len(order) else None
        if prefix is None:
            raise ValueError(
                f"{owner}: the chain must have been bound to a module in the trainer's model, and is of parameters "
                f"{', '.join(list(bits)[:3])}, which the checkpoint names otherwise. Load optimizer_states into "
                "updater.as_optimizer(), and call updater.copy_average_to(module)."
            )
        plain = {_plain(name): name for name in held}
        yield Trained(from_fixed(joined(found))[0], {name: plain[prefix + name] for name in bits}, prefix)


def _prefix(owner: str, held: Mapping[str, Tensor], bits: Mapping[str, int]) -> str | None:
    """What a trainer's model calls a chain's by; of several modules with its names the one with its weights."""
    plain = {_plain(name): name for name in held}
    first = next(iter(bits), "")
    ends = [name.removesuffix(first) for name in plain if name == first or name.endswith(f".{first}")]
    there = [prefix for prefix in ends if all(prefix + name in plain for name in bits)]
    if len(there) > 1:
        of = {prefix: {name: held[plain[prefix + name]] for name in bits} for prefix in there}
        there = [prefix for prefix in there if fingerprint(of[prefix]) == dict(bits)]
    return there[0] if len(there) == 1 else None


def _plain(name: str) -> str:
    return name.replace(_COMPILED, "")


def aliases(held: Mapping[str, Tensor], names: Collection[str]) -> dict[str, str]:
    """Further name of a tensor in the file → the one of these that it is another name of."""
    places = {_place(held[name]): name for name in names if held[name].numel()}
    found = {name: places.get(_place(tensor)) for name, tensor in held.items() if name not in names}
    return {name: first for name, first in found.items() if first is not None}


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
