"""What a chain is bound to: modules and tensors, seen through wrappers, under names that do not depend on them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gradchain.core._torch import is_dtensor
from gradchain.core.index import Fact, Index


@dataclass
class Site:
    """Where a parameter lives: the module and attribute that hold it (none for a bare tensor)."""

    name: str
    owner: nn.Module | None
    attribute: str


class Target:
    """The parameters and buffers of what a chain is bound to."""

    def __init__(self, source: Any) -> None:
        self.roots: list[tuple[str, nn.Module]] = []
        self.sites: list[Site] = []
        facts: list[Fact] = []
        seen: set[int] = set()
        names: set[str] = set()
        for name, tensor, owner, attribute in self._found(source):
            if id(tensor) in seen:
                continue  # a tied weight is one parameter, under its first name
            _check_parameter(name, tensor)
            if name in names:
                raise ValueError(f"bind: two parameters are called {name!r}. Bind a dict, {{'first': …, 'second': …}}.")
            seen.add(id(tensor))
            names.add(name)
            self.sites.append(Site(name, owner, attribute))
            facts.append(Fact(name, tensor, owner))
        if not facts:
            raise ValueError("bind: found no parameter to update. Bind a module, a dict, or (name, tensor) pairs.")
        self.index = Index(facts)
        # where each parameter is looked up at every step: its module's own dict, or one made for a bare tensor
        self._places: list[dict[str, Any]] = [
            site.owner._parameters if site.owner is not None else {"": fact.parameter}
            for site, fact in zip(self.sites, facts, strict=True)
        ]
        self._attributes = [site.attribute for site in self.sites]
        self.known = [fact.parameter for fact in facts]  # the parameters, as they were when last looked at
        modules = {id(m): m for _, root in self.roots for m in root.modules()}.values()
        self.replicated = [m for m in modules if isinstance(m, DistributedDataParallel)]
        self.sharded = [m for m in modules if _is_fsdp2(m)]

    def _found(self, source: Any) -> Iterator[tuple[str, Tensor, nn.Module | None, str]]:
        if isinstance(source, nn.Module):
            self.roots.append(("", source))
            yield from _parameters(source, "")
        elif isinstance(source, Tensor):
            yield "parameter", source, None, ""
        elif isinstance(source, Mapping):
            for name, item in source.items():
                if isinstance(item, nn.Module):
                    self.roots.append((f"{name}.", item))
                    yield from _parameters(item, f"{name}.")
                else:
                    yield str(name), item, None, ""
        elif isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
            for item in source:
                if isinstance(item, nn.Module):
                    self.roots.append(("", item))
                    yield from _parameters(item, "")
                elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
                    yield item[0], item[1], None, ""
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

    @property
    def distributed(self) -> bool:
        """Whether gradients are averaged over ranks."""
        return bool(self.replicated or self.sharded)

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
        """The parameters as they are now: a module's attribute may have been given another tensor since."""
        now = list(map(dict.get, self._places, self._attributes))
        if all(map(operator.is_, now, self.known)):
            return self.known
        for fact, parameter in zip(self.index.facts, now, strict=True):
            if parameter is not fact.parameter and not _stands_in(parameter, fact.parameter):
                fact.parameter = _followed(fact.name, fact.parameter, parameter)
        self.known = [fact.parameter for fact in self.index.facts]
        return self.known

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of every bound module, by name."""
        return {name: buffer for prefix, root in self.roots for name, buffer in _buffers(root, prefix)}


def _stands_in(now: Tensor | None, parameter: Tensor) -> bool:
    """Whether `now` is the whole weight that FSDP2 shows in place of a sharded one between forward and backward."""
    return now is not None and is_dtensor(parameter) and not is_dtensor(now)


def _followed(name: str, old: Tensor, now: Tensor | None) -> Tensor:
    """The tensor that took a parameter's place, as after load_state_dict(assign=True)."""
    if now is None or now.shape != old.shape or now.is_complex() != old.is_complex():
        got = "nothing" if now is None else f"a tensor of shape {tuple(now.shape)}"
        raise RuntimeError(
            f"{name!r} was a parameter of shape {tuple(old.shape)} and now is {got}. "
            "Carry the state over with updater.rebind(model)."
        )
    return now


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel, torch.compile and checkpoint wrappers, recognised by type."""
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            module = module.module
        elif _is("torch._dynamo.eval_frame", "OptimizedModule", module):
            module = module._orig_mod  # type: ignore[assignment]
        elif _is("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", module):
            module = module._checkpoint_wrapped_module  # type: ignore[assignment]
        else:
            return module


def _is(file: str, name: str, value: object) -> bool:
    """Whether `value` is of a type that may never have been imported: then it is not."""
    found = sys.modules.get(file)
    return found is not None and isinstance(value, getattr(found, name, ()))


def _is_fsdp2(module: nn.Module) -> bool:
    return _is("torch.distributed.fsdp", "FSDPModule", module)


def _parameters(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor, nn.Module, str]]:
    module = unwrapped(module)
    if _is_fsdp2(module):
        module.reshard()  # type: ignore[operator]  # after a forward it may still show whole weights
    if _is("torch.distributed.fsdp", "FullyShardedDataParallel", module):
        raise TypeError("bind: FullyShardedDataParallel flattens its parameters. Use torch's fully_shard (FSDP2).")
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter, module, name
    for name, child in module._modules.items():
        if child is not None:
            yield from _parameters(child, f"{prefix}{name}.")


def _buffers(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    module = unwrapped(module)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            yield prefix + name, buffer
    for name, child in module._modules.items():
        if child is not None:
            yield from _buffers(child, f"{prefix}{name}.")


def _check_parameter(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"bind: {name!r} must be a tensor, got {type(tensor).__name__}.")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"bind: {name!r} must be floating point or complex, got {tensor.dtype}.")
    if not tensor.is_leaf:
        got = type(tensor.grad_fn).__name__
        raise ValueError(f"bind: {name!r} must be a leaf tensor, got the result of {got}. Use .detach() on it.")
    if tensor.layout != torch.strided:
        raise TypeError(f"bind: {name!r} must be a dense tensor, got layout {tensor.layout}.")
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"bind: {name!r} has no shape yet. Run the lazy module once before bind.")
    if tensor.is_conj() or tensor.is_neg():
        cure = ".resolve_conj().resolve_neg()"
        raise ValueError(f"bind: {name!r} is another tensor, conjugated or negated as it is read. Bind {cure} of it.")
