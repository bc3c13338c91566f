"""The one typed file of torch's private calls: `torch._foreach_*`, functorch's stack, pytree registration.

When torch moves one of these, this is the place to change.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch.optim import optimizer as _optimizers
from torch.utils import _pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradchain.core.operations import OPERATIONS
from gradchain.core.place import Place

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

Number: TypeAlias = "float | Tensor"
Column: TypeAlias = "list[Tensor] | list[Number] | Number"

LOW = frozenset({torch.float16, torch.bfloat16})


def under_functorch() -> bool:
    """Whether a `torch.func` transform is running: foreach kernels have no batching rule, so it decides the path."""
    return torch._C._are_functorch_transforms_active()  # to look at its stack would make one, which backward copies


class no_grad:  # noqa: N801  # as torch's
    """`torch.no_grad()` for a `with` that is paid at every step: it makes no decorator of itself."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._set_grad_enabled(self._before)


def casting() -> list[tuple[str, torch.dtype]]:
    """The kinds of device that autocast is on for, and its dtypes."""
    if not torch._C._is_any_autocast_enabled():
        return []
    kinds = torch._C._autocast_supported_devices()
    return [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]


@contextmanager
def recast(kinds: list[tuple[str, torch.dtype]], enabled: bool) -> Iterator[None]:
    """Autocast on or off for these kinds of device."""
    with ExitStack() as stack:
        for kind, dtype in kinds:
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
        yield


def forget_casts() -> None:
    """Weights were written: what autocast, where it is on, has kept of them in another dtype is of the old ones."""
    if torch._C._is_any_autocast_enabled():
        torch.clear_autocast_cache()


def on_host() -> AbstractContextManager[Any]:
    """Where tensors that are made without a device lie on the host, whatever the user's default device is."""
    return torch.device("cpu") if torch._C._len_torch_function_stack() else nullcontext()


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Whether `value` is a DTensor; where none was ever made, its file may not have been imported."""
    found = sys.modules.get("torch.distributed.tensor")
    return found is not None and isinstance(value, found.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor: of a DTensor its shard, and without asking the others."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def shard(tensor: Tensor) -> Tensor:
    """The memory that this rank has of a DTensor, once what fills it is done; any other tensor as it is."""
    if not is_dtensor(tensor):
        return tensor
    inner: Any = tensor._local_tensor
    return inner if type(inner) is Tensor or not hasattr(inner, "wait") else inner.wait()  # type: ignore[no-any-return]


def lie_alike(tensors: Sequence[Tensor], places: Sequence[Tensor]) -> bool:
    """Whether each tensor is a DTensor like another one of its ranks and of its shape, or neither is one."""
    return [getattr(t, "_spec", None) for t in tensors] == [getattr(t, "_spec", None) for t in places]


def sharded_as(tensor: Tensor, place: Tensor) -> Tensor:
    """A DTensor laid out over the ranks as another of its mesh, reduced where it is not yet; any other as it is."""
    if not is_dtensor(tensor) or not is_dtensor(place) or _alike(tensor, place):
        return tensor
    return tensor.redistribute(place.device_mesh, place.placements)


def laid_as(tensors: list[Tensor], places: list[Tensor]) -> list[Tensor]:
    """Tensors laid out over the ranks as others: a dimension of one element is not shared out any more once it met."""
    if not number_of_meshes(places):
        return tensors
    return [sharded_as(tensor, place) for tensor, place in zip(tensors, places, strict=True)]


def _alike(tensor: DTensor, other: DTensor) -> bool:
    """Whether two DTensors lie over the same ranks in the same way."""
    same = tensor._spec is other._spec
    return same or (tensor.device_mesh == other.device_mesh and tensor.placements == other.placements)


def unsharded_dims(tensor: Tensor, weight: Tensor) -> frozenset[int] | None:
    """Along which dimensions of a weight another tensor has one element, which every rank has.

    None where they lie over ranks in other ways: then parts of the two do not belong together.
    """
    if not is_dtensor(tensor) or not is_dtensor(weight):
        return None if is_dtensor(tensor) or is_dtensor(weight) else frozenset()
    if _alike(tensor, weight) and tensor.shape == weight.shape:
        return frozenset()
    if tensor.device_mesh != weight.device_mesh or tensor.ndim != weight.ndim:
        return None
    if any(mine not in (1, n) for mine, n in zip(tensor.shape, weight.shape, strict=True)):
        return None
    one = {d for d, size in enumerate(tensor.shape) if size == 1}
    for mine, place in zip(tensor.placements, weight.placements, strict=True):
        dim = _dim_of(place)
        if mine == place:
            one.discard(-1 if dim is None else dim)
        elif not (mine.is_replicate() and dim in one):
            return None
    return frozenset(one)


def _dim_of(placement: Any) -> int | None:
    """The dimension that a placement shards."""
    return getattr(placement, "dim", None)


def joined_as(local: Tensor, place: Tensor) -> Tensor:
    """The DTensor of which this is the shard, laid out as `place`; the tensor itself where that is no DTensor."""
    if not is_dtensor(place):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, place.device_mesh, place.placements, run_check=False, shape=place.shape, stride=place.stride()
    )


def groups_of_shards(tensor: Tensor) -> list[tuple[int, Any]]:
    """The dimensions in which a tensor is shared out over ranks, each with the process group that has its parts."""
    if not is_dtensor(tensor):
        return []
    mesh = tensor.device_mesh
    places = [(i, _dim_of(place)) for i, place in enumerate(tensor.placements) if mesh.size(i) > 1]
    return [(dim, mesh.get_group(i)) for i, dim in places if dim is not None]


def groups_of_ranks(tensor: Tensor) -> list[Any]:
    """The process groups over which together all ranks of a tensor's mesh meet."""
    mesh = tensor.device_mesh if is_dtensor(tensor) else None
    return [mesh.get_group(i) for i in range(mesh.ndim) if mesh.size(i) > 1] if mesh is not None else []


def place_of(tensor: Tensor) -> Place | None:
    """Where this rank's part of a DTensor lies in the whole; None for any other tensor."""
    return _place(tensor)[1] if is_dtensor(tensor) else None


def _place(tensor: DTensor) -> tuple[tuple[int, ...], Place]:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return shape, Place(tuple(tensor.shape), tuple(offsets))


def whole(tensor: Tensor) -> Tensor:
    """A DTensor gathered, on every rank; any other tensor as it is."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this rank keeps of a whole tensor that is to lie over the ranks as a DTensor of its shape does."""
    if not is_dtensor(like):
        return tensor
    shape, place = _place(like)
    for dim, (begin, size) in enumerate(zip(place.offsets, shape, strict=True)):
        tensor = tensor.narrow(dim, min(begin, tensor.shape[dim] - size), size)
    return tensor.contiguous()


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as a DTensor that lies as `like`; of another shape, as one that every rank has."""
    if not is_dtensor(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    if tensor.shape == like.shape:
        local, placements = part_of(tensor, like), like.placements
    else:
        local, placements = tensor, (Replicate(),) * like.device_mesh.ndim
    return DTensor.from_local(
        local, like.device_mesh, placements, run_check=False, shape=tensor.shape, stride=_row_major(tensor.shape)
    )


def along(truth: Callable[[Tensor, Sequence[int]], Tensor], value: Tensor, dims: Sequence[int]) -> Tensor:
    """A reduction along dimensions. Of a DTensor each rank has them whole first: torch loses a NaN on the way."""
    if not is_dtensor(value):
        return truth(value, dims)
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate() if p.is_partial() or _dim_of(p) in dims else p for p in value.placements]
    made = truth(value.redistribute(placements=placements).to_local(), dims)
    shape = torch.Size([1 if d in dims else n for d, n in enumerate(value.shape)])
    return DTensor.from_local(
        made, value.device_mesh, placements, run_check=False, shape=shape, stride=_row_major(shape)
    )


def guard(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """What tells in one call whether other tensors are like these, one by one. None where torch has no such thing.

    Like is: of the same type, dtype, device, layout, shape and strides, requiring a gradient or not, and no view read
    negated or conjugated where these are none. Of different ones it is always right; of like ones it may say no.
    """
    try:
        check: Callable[..., bool] = torch._C._dynamo.guards.TensorGuards(
            *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
        ).check
        return check if check(*tensors) else None
    except (AttributeError, TypeError, RuntimeError):
        return None


def reduced_by(module: DistributedDataParallel) -> list[Tensor]:
    """The parameters whose gradients a DDP module reduces over ranks: all but those it was told to ignore."""
    return [*getattr(module, "_module_parameters", ()), *getattr(module, "_delay_all_reduce_params", ())]


def number_reduced_by(module: DistributedDataParallel) -> int:
    """How many those are that a DDP module does reduce: what was frozen when it was made is not among them."""
    data = module._get_ddp_logging_data() if module.logger is not None else {}  # type: ignore[no-untyped-call]
    return int(data.get("num_parameter_tensors", 0)) + len(getattr(module, "_delay_all_reduce_params", ()))


def runs_last(parameter: Tensor, handle: Any) -> bool:
    """Whether the hook of a handle comes after all others that run once a gradient was accumulated."""
    hooks: dict[int, Any] = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    return bool(next(reversed(hooks), None) == handle.id)


def cloned(tensor: Tensor) -> Tensor:
    """A tensor in memory of its own; one made of others, as low-bit classes keep, by what it is made of.

    Such a class implements what its owner computes with, and a clone may not be among it.
    """
    if type(tensor) is Tensor or not is_traceable_wrapper_subclass(tensor) or is_dtensor(tensor):
        return tensor.detach().clone()
    names, how = tensor.__tensor_flatten__()
    inner = {name: cloned(getattr(tensor, name)) for name in names}
    made: Tensor = type(tensor).__tensor_unflatten__(inner, how, tensor.size(), tensor.stride())
    return made


def number_of_meshes(*columns: Any) -> int:
    """Over how many meshes the tensors of these lists are sharded, whole ones beside them counted as one; else 0."""
    lists = [column for column in columns if isinstance(column, list)]
    found = sys.modules.get("torch.distributed.tensor")
    if found is None or not any(issubclass(t, found.DTensor) for t in set().union(*(map(type, ts) for ts in lists))):
        return 0
    return len({getattr(t, "device_mesh", None) for ts in lists for t in ts if isinstance(t, Tensor)})


def sharded_max_norm(value: Any, dtype: torch.dtype) -> Tensor:
    """The largest magnitude of a DTensor, not yet reduced over ranks. torch raises on ranks that have none of it."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    local = value.to_local().to(dtype)
    norm = torch.linalg.vector_norm(local, float("inf")) if local.numel() else local.new_zeros(()).abs()
    placements = [Replicate() if place.is_replicate() else Partial("max") for place in value.placements]
    return DTensor.from_local(norm, value.device_mesh, placements, run_check=False)


def in_shards(make: Callable[..., Tensor], fact: Any, like: Tensor, dtype: torch.dtype) -> Tensor:
    """`make` of a parameter's fact, and of a shape, dtype and device; of a DTensor each rank makes its own shard."""
    if not is_dtensor(like):
        return make(fact, like.shape, dtype, like.device)
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    shape, place = _place(like)
    made = make(dataclasses.replace(fact, place=place), shape, dtype, like.to_local().device)
    return DTensor.from_local(made, mesh, placements, run_check=False, shape=like.shape, stride=_row_major(like.shape))


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def unreduced(module: Any) -> list[tuple[Any, str, Tensor]]:
    """Where an FSDP2 module keeps the gradients it has not reduced: holder, attribute, gradient."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    found: list[tuple[Any, str, Tensor]] = []
    for group in [state._fsdp_param_group] if groups is None else groups:
        for parameter in () if group is None else group.fsdp_params:
            places = [(parameter, "unsharded_accumulated_grad"), (getattr(parameter, "_unsharded_param", None), "grad")]
            holders = [(holder, name, getattr(holder, name, None)) for holder, name in places]
            found += [(holder, name, grad) for holder, name, grad in holders if grad is not None]
    return found


def widened(tensors: list[Tensor]) -> list[Tensor]:
    """`tensors` in the compute dtype: float16 and bfloat16 become float32, the rest stay the very same objects."""
    if any(t.dtype in LOW for t in tensors):
        if in_lists(tensors):
            return _widened(tensors)
        return [t.float() if t.dtype in LOW else t for t in tensors]
    return tensors


# The kernels over whole lists that `Operation.lists` names.
_FOREACH: dict[str, Callable[..., Any]] = {
    name.removeprefix("_foreach_"): getattr(torch, name) for name in dir(torch) if name.startswith("_foreach_")
}


def in_lists(tensors: Sequence[Tensor]) -> bool:
    """Whether kernels over lists take these as they are: nobody follows what is done, and all are plain tensors."""
    plain = all(type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)
    return plain and not torch.is_grad_enabled() and not under_functorch()


def _by_dtype(tensors: Sequence[Tensor]) -> dict[tuple[torch.dtype, torch.device], list[int]]:
    """Where tensors of one dtype and device are: lists of several take torch's slow way."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, t in enumerate(tensors):
        groups.setdefault((t.dtype, t.device), []).append(i)
    return groups


def _widened(tensors: list[Tensor]) -> list[Tensor]:
    out = [torch.empty_like(t, dtype=torch.float32) if t.dtype in LOW else t for t in tensors]
    for (dtype, _), at in _by_dtype(tensors).items():
        if dtype in LOW:
            torch._foreach_copy_([out[i] for i in at], [tensors[i] for i in at])
    return out


def norms(tensors: list[Tensor], p: float) -> list[Tensor]:
    """The norm of each in float64, by as many calls as there are dtypes; 0 of one without elements."""
    out = [t if t.numel() else t.new_zeros((), dtype=torch.float64) for t in tensors]
    for at in _by_dtype(tensors).values():
        held = [i for i in at if tensors[i].numel()]
        found = torch._foreach_norm([tensors[i] for i in held], p, dtype=torch.float64) if held else []
        for i, norm in zip(held, found, strict=True):
            out[i] = norm
    return out


def _as_factor(factor: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """A 0-d factor in the dtype of the tensors, where that is what it meets them in: fast kernels want it so."""
    dtype = tensors[0].dtype
    alike = all(t.dtype is dtype and t.ndim for t in tensors) and dtype.is_floating_point
    return factor.to(dtype) if alike and factor.is_floating_point() and dtype not in LOW else factor


def foreach(name: str) -> Callable[..., Any]:
    """torch's kernel over lists of this name; in place where the name ends with an underscore."""
    return _FOREACH[name]


def has_foreach(name: str) -> bool:
    """Whether torch has a kernel over lists of this name."""
    return name in _FOREACH


def _kind(column: Column) -> str:
    if isinstance(column, list):
        tensors = sum(isinstance(c, Tensor) for c in column)
        return "t" if tensors == len(column) else "S" if not tensors else "m"
    return "z" if isinstance(column, Tensor) else "s"


def pointwise(op: str, columns: Sequence[Column], size: int) -> list[Tensor]:
    """Apply one elementwise operation over `size` entries; a column is a list of that size or one scalar for all."""
    if size == 0:
        return []
    operation = OPERATIONS[op]
    if operation.fits is not None:
        columns = operation.fits(columns)
    if not under_functorch():
        kinds = "".join(map(_kind, columns))
        kernel = operation.lists.get(kinds)
        # `_foreach_mul` by a 0-d tensor has a broken backward ("inconsistent range for TensorList output").
        broken = kinds.endswith("z") and torch.is_grad_enabled()
        if kernel is not None and not broken and number_of_meshes(*columns) < 2:
            if kinds == "tz" and in_lists(columns[0]):  # type: ignore[arg-type]  # a list of tensors
                columns = [columns[0], _as_factor(columns[1], columns[0])]  # type: ignore[arg-type]
            return list(_FOREACH[kernel](*columns))
    rule = operation.truth
    rows = zip(*(c if isinstance(c, list) else [c] * size for c in columns), strict=True)
    return [rule(*row) for row in rows]


def add_scaled(a: list[Tensor], b: list[Tensor], alpha: Number) -> list[Tensor]:
    """`a + alpha * b` over lists, in one pass where torch has one."""
    if not a:
        return []
    if not isinstance(alpha, Tensor) and not under_functorch() and number_of_meshes(a, b) < 2:
        return list(torch._foreach_add(a, b, alpha=alpha))
    if isinstance(alpha, Tensor) and alpha.ndim == 0 and in_lists([*a, *b]):
        factor = _as_factor(alpha, b)
        if factor.dtype is b[0].dtype and all(x.device == factor.device for x in b):
            return list(torch._foreach_add(a, list(torch._foreach_mul(b, factor))))
    return [x + alpha * y for x, y in zip(a, b, strict=True)]


def add_(targets: list[Tensor], updates: list[Tensor], alpha: Number = 1.0) -> None:
    """`targets += alpha * updates`, in place, each rounded once to its target's dtype, with the bits of add_scaled."""
    updates = laid_as(updates, targets)
    if not isinstance(alpha, Tensor) and number_of_meshes(targets, updates) < 2:
        torch._foreach_add_(targets, updates, alpha=alpha)
        return
    for target, update in zip(targets, updates, strict=True):
        if isinstance(alpha, Tensor):
            target.copy_(target + alpha * update)
        else:
            target.add_(update, alpha=alpha)


def copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Write `sources` into `targets`, in place, each rounded once to its target's dtype."""
    if not number_of_meshes(targets, sources):  # DTensor has no rule for `_foreach_copy_`
        torch._foreach_copy_(targets, sources)
        return
    for target, source in zip(targets, laid_as(sources, targets), strict=True):
        target.copy_(source)


def fused_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    mu: list[Tensor],
    nu: list[Tensor],
    steps: list[Tensor],
    grad_scale: Tensor | None,
    **hyper: Any,
) -> Callable[[], object]:
    """torch's fused AdamW over lists of one dtype and of equal strides, in place, as one call of C that is to be made.

    It overwrites gradients it scales.
    """
    how = {"amsgrad": False, "maximize": False, "grad_scale": grad_scale, **hyper}
    return partial(torch._fused_adamw_, params, grads, mu, nu, [], steps, **how)


def fused_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    nesterov: bool,
    grad_scale: Tensor | None,
    **hyper: Any,
) -> Callable[[], object]:
    """The same of torch's fused SGD."""
    how = {"nesterov": nesterov, "dampening": 0.0, "maximize": False, "is_first_step": False, **hyper}
    return partial(torch._fused_sgd_, params, grads, buffers, grad_scale=grad_scale, **how)


def increment_version(tensors: list[Tensor]) -> None:
    """Tell autograd that these were written by what it knows nothing of."""
    torch._C._increment_version(tensors)


def register_pytree(cls: type, flatten: Callable[[Any], tuple[list[Any], Any]], unflatten: Callable[..., Any]) -> None:
    """Let `torch.func` transforms take and return values of `cls`."""
    _pytree.register_pytree_node(cls, flatten, unflatten)


def watches_optimizers() -> bool:
    """Whether somebody is to be told of the steps of every optimizer: a profiler, or a hook of the user's."""
    hooked = _optimizers._global_optimizer_pre_hooks or _optimizers._global_optimizer_post_hooks
    return bool(hooked) or torch._C._autograd._profiler_enabled()
