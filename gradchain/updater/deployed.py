"""The weights in a file, or their averages, without a model: for what is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradchain.core.address import find
from gradchain.core.readable import is_readable
from gradchain.updater import files, in_trainers, sealed
from gradchain.updater.averages import disjoint
from gradchain.updater.files import FilePath
from gradchain.updater.fixed import from_fixed, is_fixed
from gradchain.updater.parts import Part


def read_weights(path: FilePath, averaged: bool | str = False, *, updater: str | None = None) -> dict[str, Tensor]:
    """Name → weight or buffer in a file that `updater.save` wrote, as the model's own `state_dict` has them.

    Of a checkpoint of Lightning's, whose optimizers `updater.as_optimizer()` made, names are those of the
    LightningModule: its `load_state_dict` takes what is returned.

    Tied weights are there under each of their names, and are one tensor. Buffers that the model's `state_dict` leaves
    out are not there, nor are weights that were not saved. The file is verified as `updater.load` does it.

    Args:
        path: the file, of either format, or a `.ckpt` of Lightning's.
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
    found, has_seal = sealed.read(sealed.path_of("read_weights", path), "read_weights")
    if in_trainers.is_one(found):
        return _of_trainer(path, found, averaged, updater)
    parts, _ = files.whole(path, "read_weights", files.checked(path, "read_weights", found, has_seal))
    part = Part.read("read_weights", parts[_updater(parts, updater)])
    where = repr(str(path))
    if averaged is False:
        if part.saved == "none":
            raise ValueError(f"read_weights: {where} has no weights: it was saved with weights='none'.")
        tensors = {**part.weights, **part.buffers}
    else:
        tensors = _averaged(part, averaged, where)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in part.transient}
    return {**tensors, **{name: tensors[first] for name, first in part.tied.items() if first in tensors}}


def _of_trainer(path: FilePath, checkpoint: Any, averaged: bool | str, updater: str | None) -> dict[str, Tensor]:
    """The same of what Lightning wrote."""
    where = repr(str(path))
    if updater is not None:
        raise KeyError(f"read_weights: {where} is a trainer's, whose optimizers have no names: leave updater out.")
    held = in_trainers.weights(checkpoint)
    if averaged is False:
        return held
    found = averages_in("read_weights", checkpoint, averaged)
    if not found:
        why = "no link of its chains averages the weights"
        if not in_trainers.has_states(checkpoint):
            why = "it was saved without optimizer_states, as ModelCheckpoint(save_weights_only=True) does"
        raise ValueError(f"read_weights: {where} has no averages: {why}.")
    return {**held, **found}


def averages_in(owner: str, checkpoint: Mapping[str, Any], averaged: bool | str = True) -> dict[str, Tensor]:
    """The averages in a trainer's checkpoint by the names of its model, tied weights under each; empty without any.

    Raises:
        ValueError, KeyError: of a chain whose parameters have other names in the model; as for `read_weights`.
    """
    held = in_trainers.weights(checkpoint)
    found: dict[str, Tensor] = {}
    chains = [one for one in in_trainers.trained(owner, checkpoint) if any(map(_averages, one.state["links"].values()))]
    if averaged is not True:
        links = {address: one for one in chains for address, fields in one.state["links"].items() if _averages(fields)}
        chains = [links[find(str(averaged), [*links], owner)]]
    for one in chains:
        own = {name: held[full] for name, full in one.names.items()}
        part = Part(own, {}, one.state)
        for name, average in _averaged(part, averaged, "the checkpoint").items():
            full = one.names.get(name, one.prefix + name)
            if full in held and full in found:
                raise KeyError(
                    f"{owner}: there are several averages of {full!r}. Name the link of the one that is meant."
                )
            if full in held:
                found[full] = average.to(held[full].dtype)
    return {**found, **{name: found[first] for name, first in in_trainers.aliases(held, [*found]).items()}}


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
