"""What a chain is bound to: modules and tensors, seen through wrappers, under names that do not depend on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradchain.core._torch import is_dtensor
from gradchain.core.index import Fact, Index
from gradchain.updater.memory import Memory
from gradchain.updater.structure import Place, Structure, followed, stands_in, unwrapped


class Target:
    """The parameters and buffers of what a chain is bound to.

    It is what it was at bind, or an error: parameters are followed where that is right, and whatever else changed in
    the model is a RuntimeError with its cure.

    Attributes:
        roots: the bound modules, with what comes before their names.
        index: the parameters, each under its first name.
        last_seen: the parameters, as they were when last looked at.
        replicated, sharded: the modules that are under DDP, and those that FSDP2 shards.
        distributed: whether gradients are averaged over ranks.
    """

    def __init__(self, source: Any) -> None:
        self.roots: list[tuple[str, nn.Module]] = []
        self._places: list[Place] = []
        self._numbers: dict[tuple[int, str], int] = {}  # which parameter lies in which place
        seen: dict[int, int] = {}
        names: set[str] = set()
        for place in self._found(source):
            number = seen.get(id(place.tensor))
            if number is None:  # otherwise a tied weight, which is one parameter under its first name
                check_parameter(place.path, place.tensor)
                if place.path in names:
                    cure = "Bind a dict, {'first': …, 'second': …}."
                    raise ValueError(f"bind: two parameters are called {place.path!r}. {cure}")
                number = seen[id(place.tensor)] = len(self._places)
                names.add(place.path)
                self._places.append(place)
            self._numbers[place.key] = number
        if not self._places:
            raise ValueError("bind: found no parameter to update. Bind a module, a dict, or (name, tensor) pairs.")
        self.index = Index([Fact(place.path, place.tensor, place.owner) for place in self._places])
        self.last_seen = [place.tensor for place in self._places]
        self._memory = Memory(self.index.names, self.last_seen)
        problem = self._memory.problem(self.last_seen)
        if problem is not None:
            raise ValueError(f"bind: {problem}")
        self._settle(Structure(self.roots))

    def _found(self, source: Any) -> Iterator[Place]:
        if isinstance(source, nn.Module):
            yield from self._root("", source)
        elif isinstance(source, Tensor):
            yield Place(-1, "parameter", source, None)
        elif isinstance(source, Mapping):
            for name, item in source.items():
                if isinstance(item, nn.Module):
                    yield from self._root(f"{name}.", item)
                else:
                    yield Place(-1, str(name), item, None)
        elif isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
            for item in source:
                if isinstance(item, nn.Module):
                    yield from self._root("", item)
                elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
                    yield Place(-1, item[0], item[1], None)
                else:
                    raise TypeError(
                        f"bind: a list must hold modules or (name, tensor) pairs, got {type(item).__name__}. "
                        "In place of model.parameters() bind the model, or model.named_parameters()."
                    )
        else:
            raise TypeError(
                f"bind: takes a module, a dict of modules and tensors, or a list of modules or (name, tensor) pairs, "
                f"got {type(source).__name__}."
            )

    def _root(self, prefix: str, module: nn.Module) -> Iterator[Place]:
        for inner in Structure([(prefix, module)]).sharded():
            inner.reshard()  # type: ignore[operator]  # after a forward it may still show whole weights
        yield from (place._replace(root=len(self.roots)) for place in Structure([(prefix, module)]).places)
        self.roots.append((prefix, module))

    def _settle(self, structure: Structure) -> None:
        self._structure = structure
        self.replicated = structure.of(DistributedDataParallel)
        self.sharded = structure.sharded()
        self.distributed = bool(self.replicated or self.sharded)

    def ranks(self) -> tuple[list[Any], str]:
        """The process groups whose ranks share a gradient's mean, and the device they talk about."""
        if self.replicated:
            module = self.replicated[0]
            return [module.process_group], next(module.parameters()).device.type
        mesh = next(p.device_mesh for p in self.parameters() if is_dtensor(p))
        return mesh.get_all_groups(), mesh.device_type

    def reshard(self) -> None:
        """After weights were written: FSDP2 must not go on computing with whole weights that it gathered before."""
        for module in self.sharded:
            module.reshard()  # type: ignore[operator]  # an FSDPModule

    def parameters(self) -> list[Tensor]:
        """The parameters as they are now: a module's attribute may have been given another tensor since.

        Raises:
            RuntimeError: the model has become another one than was bound, and this is not for an update to follow.
        """
        if not self._structure.still():
            self._follow()
        return self.last_seen

    def lie(self) -> object:
        """What is the same object for as long as the parameters that were last seen lie in memory as they did."""
        return self._memory.lie(self.last_seen)

    def check(self) -> None:
        """RuntimeError, in a sentence with its cure, unless all of the model is what was bound: a walk over it."""
        self._follow()
        self._memory.lie(self.last_seen)

    def _follow(self) -> None:
        """Take up what the model has now in place of what it had; nothing changes on an error."""
        structure = Structure(self.roots)
        places = followed(self._numbers, self._places, structure.places)
        tensors = [place.tensor for place in places]
        changed = [place for place, before in zip(places, self.last_seen, strict=True) if place.tensor is not before]
        for place in changed:
            check_parameter(place.path, place.tensor, "update")
        problem = self._memory.problem(tensors) if changed else None
        if problem is not None:
            raise RuntimeError(problem)
        for fact, place in zip(self.index.facts, places, strict=True):
            fact.parameter, fact.owner = place.tensor, place.owner
        self._places, self.last_seen = places, tensors if changed else self.last_seen
        there = {place.key: place.tensor for place in structure.places}
        if not any(p.key in there and stands_in(there[p.key], p.tensor) for p in places):
            self._settle(structure)  # otherwise the one before is what will be there again

    def sparse(self) -> list[str]:
        """The parameters whose gradients will be sparse: embeddings that say so, and nothing else is there for them."""
        places = [(self._numbers.get(place.key), place) for place in self._structure.places]
        dense = {number for number, place in places if not _is_sparse(place)}
        return [self.index.names[n] for n, _ in places if n is not None and n not in dense]

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of every bound module, by name."""
        return {name: buffer for prefix, root in self.roots for name, buffer in _buffers(root, prefix)}

    def transient(self) -> list[str]:
        """The names of the buffers that a module's own state_dict leaves out."""
        return [name for prefix, root in self.roots for name, _ in _buffers(root, prefix, persistent=False)]

    def tied(self) -> dict[str, str]:
        """Every further name of a parameter that has several → its first."""
        places = [(place.path, self._numbers.get(place.key)) for place in self._structure.places]
        names = {path: self.index.names[number] for path, number in places if number is not None}
        return {path: name for path, name in names.items() if path != name}


def _buffers(module: nn.Module, prefix: str, persistent: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every buffer by name, or those only that are not `persistent`."""
    module = unwrapped(module)
    for name, buffer in module._buffers.items():
        if buffer is not None and (persistent or name in module._non_persistent_buffers_set):
            yield prefix + name, buffer
    for name, child in module._modules.items():
        if child is not None:
            yield from _buffers(child, f"{prefix}{name}.", persistent)


def _is_sparse(place: Place) -> bool:
    owner = place.owner
    return isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.sparse and place.tensor.requires_grad


def check_parameter(name: str, tensor: Any, owner: str = "bind") -> None:
    """TypeError, ValueError for what can be no parameter of an updater."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{owner}: {name!r} must be a tensor, got {type(tensor).__name__}.")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"{owner}: {name!r} must be floating point or complex, got {tensor.dtype}.")
    if not tensor.is_leaf:
        got = type(tensor.grad_fn).__name__
        raise ValueError(f"{owner}: {name!r} must be a leaf tensor, got the result of {got}. Use .detach() on it.")
    if tensor.layout != torch.strided:
        raise TypeError(f"{owner}: {name!r} must be a dense tensor, got layout {tensor.layout}.")
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"{owner}: {name!r} has no shape yet. Run the lazy module once before bind.")
    if tensor.is_inference():
        raise ValueError(
            f"{owner}: {name!r} must be a tensor that can have a gradient, and was made under torch.inference_mode(): "
            "an inference tensor. Make the model outside of it."
        )
    if tensor.is_conj() or tensor.is_neg():
        cure = "Bind .resolve_conj().resolve_neg() of it."
        raise ValueError(f"{owner}: {name!r} is another tensor, conjugated or negated as it is read. {cure}")
