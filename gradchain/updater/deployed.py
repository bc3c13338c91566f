"""The weights in a file, or their averages, without a model: for what is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradchain.core.address import find
from gradchain.core.readable import is_readable
from gradchain.updater import files
from gradchain.updater.averages import disjoint
from gradchain.updater.files import FilePath
from gradchain.updater.fixed import from_fixed, is_fixed
from gradchain.updater.parts import Part


def read_weights(path: FilePath, averaged: bool | str = False, *, updater: str | None = None) -> dict[str, Tensor]:
    """Name → weight or buffer in a file that `updater.save` wrote, as the model's own `state_dict` has them.

    Tied weights are there under each of their names, and are one tensor. Buffers that the model's `state_dict` leaves
    out are not there, nor are weights that were not saved. The file is verified as `updater.load` does it.

    Args:
        path: the file, of either format.
        averaged: the averages in place of the weights, in their dtypes: True where one link averages, or the address
            of the one that is meant, or a unique suffix of it. What has no average is as it was saved.
        updater: which updater's weights, where a group was saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, is damaged, is no file of gradchain, has no weights or no average.
        KeyError: it has several averages or updaters and none was named, or not one that is there.
        OSError: it cannot be opened or read.
        TypeError: `path` is no path, or `averaged` neither a bool nor a name.
        ModuleNotFoundError: it is a file of safetensors, and that package is not installed.

    >>> import torch, gradchain as gch, os, tempfile
    >>> model = torch.nn.Linear(2, 1)
    >>> updater = gch.chain(gch.adam(0.1), gch.average_params(0.9)).bind(model)
    >>> path = os.path.join(tempfile.mkdtemp(), "run.pt")
    >>> updater.save(path)
    >>> torch.nn.Linear(2, 1).load_state_dict(gch.read_weights(path, averaged=True))
    <All keys matched successfully>
    """
    if not isinstance(averaged, (bool, str)):
        raise TypeError(f"read_weights: averaged must be True, False or the name of a link, got {averaged!r}.")
    parts, _ = files.read(path, "read_weights")
    part = Part.read("read_weights", parts[_updater(parts, updater)])
    where = repr(str(path))
    if averaged is False:
        if part.saved == "none":
            raise ValueError(f"read_weights: {where} has no weights: it was saved with weights='none'.")
        found = {**part.weights, **part.buffers}
    else:
        found = _averaged(part, averaged, where)
    found = {name: tensor for name, tensor in found.items() if name not in part.transient}
    return {**found, **{name: found[first] for name, first in part.tied.items() if first in found}}


def _updater(parts: Mapping[str, Any], name: str | None) -> str:
    """The name of the part that is meant."""
    if name is None and len(parts) != 1:
        some = next(iter(parts), "…")
        raise KeyError(
            f"read_weights: the file has the updaters {', '.join(map(repr, parts))}: name one, updater={some!r}."
        )
    if name is not None and name not in parts:
        raise KeyError(f"read_weights: the file has no updater {name!r}. It has: {', '.join(map(repr, parts))}.")
    return next(iter(parts)) if name is None else name


def _averaged(part: Part, averaged: bool | str, where: str) -> dict[str, Tensor]:
    """The averages, and what has none as it was saved."""
    links = _links(part.state)
    there = links if part.averages is None else part.averages
    averages = [address for address, fields in links.items() if address in there and _averages(fields)]
    if not averages:
        raise ValueError(f"read_weights: {where} has no averages: no link of its chain averages the weights.")
    several = [{**links[address]["average"], **links[address]["buffers"]} for address in averages]
    if averaged is True and not disjoint(several):
        raise KeyError(f"read_weights: there are several averages, name one of: {', '.join(averages)}.")
    if averaged is not True:
        several = [several[averages.index(find(str(averaged), averages, "read_weights"))]]
    found = {**part.weights, **part.buffers}
    for name, average in [entry for entries in several for entry in entries.items()]:
        if name in found and found[name].shape != average.shape:
            raise ValueError(f"read_weights: {where} has an average of {name!r} that is of another shape than it.")
        found[name] = average.to(found[name].dtype) if name in found else average
    lacking = [name for name in part.left if name not in found]
    if part.saved == "none" and lacking:
        raise ValueError(
            f"read_weights: {where} has no weights, and no average of {lacking[0]!r}: it was saved with weights='none'."
        )
    return found


def _links(state: Any) -> Mapping[str, Any]:
    """The fields of each link, by address; of a state in either form."""
    plain = from_fixed(state)[0] if is_fixed(state) else state
    links = plain.get("links") if isinstance(plain, Mapping) else None
    if not isinstance(links, Mapping):
        raise ValueError("read_weights: expected the state of an updater, found something else.")
    return links


def _averages(fields: Any) -> bool:
    """Whether these are the fields of a link that averages."""
    if not isinstance(fields, Mapping) or not {"average", "buffers"} <= set(fields):
        return False
    return all(_are_readable(fields[name]) for name in ("average", "buffers"))


def _are_readable(tensors: Any) -> bool:
    if not isinstance(tensors, Mapping):
        return False
    return all(isinstance(n, str) and isinstance(t, Tensor) and is_readable(t) for n, t in tensors.items())
