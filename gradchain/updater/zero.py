"""ZeRO: replicas share out their state, and each updates its part of the weights, which it then gives the others.

A rank's part of a tensor is a slice of it along the dimension that is outermost in memory, as a DTensor has it. It lies
in the memory of the whole one, of weights and of gradients. So a chain runs as it does over sharded weights: reductions
and random numbers are those of one process, a function of whole tensors gets whole ones, and state is made in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.row_gradients import RowGradients
from gradchain.core.slots import Slots, mapped
from gradchain.core.state import Links, State
from gradchain.core.step import Notes, Step
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.engine.commit import Commit, Copies, sums
from gradchain.engine.engine import Engine
from gradchain.engine.outcome import Outcome
from gradchain.updater.state_dict import rebuilt, states
from gradchain.updater.target import Target

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from gradchain.updater.bound import Bound

BUCKET = 1 << 25  # bytes that ranks give each other at once


class Shares:
    """Which part of each weight of a model under DDP is this rank's.

    ValueError for a model whose weights cannot be shared out.
    """

    def __init__(self, target: Target, owner: str = "bind") -> None:
        _check(target, owner)
        from torch.distributed.device_mesh import DeviceMesh  # only where state is shared out: importing it takes time

        self._target = target
        group = target.replicated[0].process_group
        device = target.last_seen[0].device
        self._group, self._mesh = group, DeviceMesh.from_group(group, device.type)
        self._rank, self._world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self._lie: object = None
        self._weights: EagerTensors | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Shares, (self._target,)

    # this rank's parts

    def weights(self) -> EagerTensors:
        """The weights as DTensors whose shards lie in the memory of the model."""
        lie = self._target.lie()
        if self._weights is None or lie is not self._lie:
            index, parameters = self._target.index, self._target.last_seen
            parts = [self._part(p, p) for p in parameters]
            self._weights, self._lie = EagerTensors(index, list(parts)), lie
            self._weights.alike = lie
        return self._weights

    def of(self, tensors: Tensors) -> EagerTensors:
        """Whole tensors that every rank has, such as gradients, as DTensors whose shards lie in their memory."""
        places = dict(zip(self._target.index.names, self._target.last_seen, strict=True))
        assert isinstance(tensors, EagerTensors)
        parts = [self._part(t, places[n]) for n, t in zip(tensors.index.names, tensors._values(), strict=True)]
        return EagerTensors(tensors.index, list(parts))

    def _part(self, tensor: Tensor, parameter: Tensor) -> DTensor:
        from torch.distributed.tensor import DTensor, Replicate, Shard

        dim, whole = _dim(parameter), tensor.detach()
        if dim is None:
            return DTensor.from_local(whole, self._mesh, [Replicate()], run_check=False)
        begin, size = self._slice(parameter.shape[dim], self._rank)
        return DTensor.from_local(
            whole.narrow(dim, begin, size),
            self._mesh,
            [Shard(dim)],
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )

    def _slice(self, rows: int, rank: int) -> tuple[int, int]:
        """Where the part of a rank begins, and its size: as torch's chunks, of which the last may be small or none."""
        size = -(-rows // self._world)
        begin = min(rank * size, rows)
        return begin, min(size, rows - begin)

    # state

    def whole(self, tx: chain, state: Links, fixed: bool = False) -> Links:
        """A state as one process has it. All ranks call it: tensors are gathered one after the other.

        Args:
            tx: whose state it is.
            state: the state.
            fixed: leave in parts what has a tensor for every parameter, as torch.distributed.checkpoint gathers it.
        """
        return self._changed(tx, state, lambda tensor, _: _torch.whole(tensor), parts=fixed)

    def parted(self, tx: chain, state: Links, in_grad: str | None) -> Links:
        """A state of which this rank keeps its part, but for the window that lies in `.grad`: this link's."""
        places = dict(zip(self._target.index.names, self._target.last_seen, strict=True))

        def part(tensor: Tensor, name: str) -> Tensor:
            fits = name in places and tensor.shape == places[name].shape
            if _torch.is_dtensor(tensor) or not fits or tensor.layout is not torch.strided:
                return tensor
            made = self._part(tensor, places[name])
            return made.clone()

        return self._changed(tx, state, part, in_grad)

    def in_parts(self, state: Links, name: str | None) -> Links:
        """A state with the window of this link, which is closing, as its gradients are."""
        held: Any = None if name is None else state.links[name]
        if held is None or not len(held.window) or any(map(_torch.is_dtensor, held.window.values())):
            return state
        return state.holding({**state.links, str(name): held.replace(window=self.of(held.window))})

    def _changed(
        self,
        tx: chain,
        state: Links,
        change: Callable[[Tensor, str], Tensor],
        but: str | None = None,
        parts: bool = False,
    ) -> Links:
        new: dict[str, State] = {}
        for address, inner in states(tx, state):
            changes: dict[str, Any] = {}
            for name, value in inner.items():
                if (address == but and name == "window") or (
                    parts and isinstance(value, Tensors) and name not in inner.whole
                ):
                    continue
                if isinstance(value, EagerTensors) and len(value):
                    rows = zip(value.index.names, value._values(), strict=True)
                    changes[name] = EagerTensors(value.index, [change(t, n) for n, t in rows])
                elif isinstance(value, Slots):
                    changes[name] = Slots({n: mapped(s, lambda t, n=n: change(t, n)) for n, s in value.items()})
            new[address] = inner.replace(**changes) if changes else inner
        return rebuilt(tx, state, new)

    # weights

    def write(self, commit: Commit, updates: Tensors | Weights, names: Collection[str]) -> None:
        """Have a commit write this rank's part of the weights, as `Gradients.write` does, and the ranks exchange."""
        tensors = updates.tensors if isinstance(updates, Weights) else updates
        assert isinstance(tensors, EagerTensors)
        own = self.weights()
        places = [own[n] for n in tensors]
        misfit = tensors.misfit(places)
        if misfit is not None:
            raise ValueError(
                f"update: the chain returned an update for {misfit!r} of shape {tuple(tensors[misfit].shape)}, and the "
                f"parameter has shape {tuple(own[misfit].shape)}."
            )
        if places:
            values = [tensors[n] for n in tensors]
            commit.add(Copies(places, values) if isinstance(updates, Weights) else sums(*tensors.addends(places)))
        self.after(commit, names)

    def after(self, commit: Commit, names: Collection[str]) -> None:
        """Once a commit has written the weights of these names, each rank gets what the others have written."""
        chosen = [p for n, p in zip(self._target.index.names, self._target.last_seen, strict=True) if n in names]
        commit.after(lambda: self._exchange(chosen))
        commit.after(_torch.forget_casts)

    def _exchange(self, parameters: list[Tensor]) -> None:
        if self._world > 1:
            with _torch.no_grad():
                for bucket in self._buckets(parameters):
                    self._gather(bucket)
        _torch.increment_version(parameters)  # kernels wrote where autograd knows nothing of it

    def _buckets(self, parameters: list[Tensor]) -> list[list[tuple[Tensor, int]]]:
        """Those that are shared out, each with its dimension, in lists that are gathered at once."""
        found: dict[torch.dtype, list[list[tuple[Tensor, int]]]] = {}
        filled: dict[torch.dtype, int] = {}
        for parameter in parameters:
            dim, size = _dim(parameter), parameter.numel() * parameter.element_size()
            if dim is None or not size:
                continue
            lists = found.setdefault(parameter.dtype, [])
            if not lists or filled[parameter.dtype] + size > BUCKET:
                lists.append([])
                filled[parameter.dtype] = 0
            lists[-1].append((parameter.detach(), dim))
            filled[parameter.dtype] += size
        return [bucket for lists in found.values() for bucket in lists]

    def _gather(self, bucket: list[tuple[Tensor, int]]) -> None:
        """One collective for a bucket: each rank sends its slices, one behind the other."""
        sizes = [-(-t.shape[d] // self._world) * (t.numel() // t.shape[d]) for t, d in bucket]
        mine = bucket[0][0].new_zeros(sum(sizes))
        _copied(self._slices(mine, bucket, sizes, self._rank), back=False)
        every = [torch.empty_like(mine) for _ in range(self._world)]
        torch.distributed.all_gather(every, mine, group=self._group)
        for rank, part in enumerate(every):
            if rank != self._rank:
                _copied(self._slices(part, bucket, sizes, rank), back=True)

    def _slices(
        self, flat: Tensor, bucket: list[tuple[Tensor, int]], sizes: list[int], rank: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Where a rank's slices lie in what is sent, and in the weights."""
        pairs = []
        for (tensor, dim), room in zip(bucket, torch.split(flat, sizes), strict=True):
            slice_ = tensor.narrow(dim, *self._slice(tensor.shape[dim], rank))
            pairs.append((room[: slice_.numel()].view(slice_.shape), slice_))
        return pairs


def _copied(pairs: list[tuple[Tensor, Tensor]], back: bool) -> None:
    sent, slices = [a for a, _ in pairs], [b for _, b in pairs]
    _torch.copy_(*((slices, sent) if back else (sent, slices)))


def _dim(parameter: Tensor) -> int | None:
    """The dimension that is outermost in memory, along which slices are in one piece; None for a single number."""
    dims = [d for d, n in enumerate(parameter.shape) if n > 1]
    return max(dims, key=lambda d: (parameter.stride(d), -d)) if dims else None


def _check(target: Target, owner: str) -> None:
    """ValueError, in a sentence, for a model whose state cannot be shared out over replicas."""
    if target.sharded or any(map(_torch.is_dtensor, target.last_seen)):
        raise ValueError(
            f"{owner}: zero_redundancy must be False for sharded weights, got True: FSDP2 and tensor parallelism share "
            "out the state already. Leave it out."
        )
    if not target.replicated:
        raise ValueError(
            f"{owner}: zero_redundancy=True must have a model under DistributedDataParallel, over whose ranks the "
            "state is shared out, got one that is not. Bind DistributedDataParallel(model)."
        )
    if len({id(module.process_group) for module in target.replicated}) > 1:
        raise ValueError(
            f"{owner}: zero_redundancy=True must have all modules in one process group, got several. Bind each alone."
        )
    reduced = {id(p) for module in target.replicated for p in _torch.reduced_by(module)}
    for name, parameter in zip(target.index.names, target.last_seen, strict=True):
        what = _unfit(parameter, reduced)
        if what:
            raise ValueError(f"{owner}: zero_redundancy=True cannot share out {name!r}: {what}")
    sparse = target.sparse()
    if sparse:
        raise ValueError(
            f"{owner}: zero_redundancy=True must have dense gradients, got sparse ones of {sparse[0]!r}: which rank "
            "has their rows differs from step to step. Say sparse=False in nn.Embedding and nn.EmbeddingBag."
        )


def _unfit(parameter: Tensor, reduced: Collection[int]) -> str:
    """Why a parameter cannot be shared out; "" where it can."""
    if parameter.is_complex():
        return "it is complex, which DTensor is not. Keep its real and imaginary parts in two parameters."
    if type(parameter) not in (Tensor, nn.Parameter):
        return f"it is a {type(parameter).__name__}, whose slices torch does not know. Bind without zero_redundancy."
    if parameter.requires_grad and id(parameter) not in reduced:
        return "no DistributedDataParallel reduces its gradient, so it may differ from rank to rank. Put it under DDP."
    return ""


def computed(bound: Bound, received: Tensors, state: Links, step: Step, engine: Engine, lent: bool) -> Outcome:
    """What an update comes to on this rank's part, nothing of it written yet: by the engine, or by the reference."""
    shares = bound.shares
    assert shares is not None and isinstance(step.params, EagerTensors)
    if type(received) is RowGradients:
        raise ValueError(
            f"step: the gradient of {next(iter(received.sparse))!r} must be dense with zero_redundancy=True, got a "
            "sparse one. Say sparse=False in nn.Embedding and nn.EmbeddingBag."
        )
    notes, commit = Notes(step), Commit()
    if step.summed and not step.flushing and not bound.window.closes(state, bound.now, step.last):
        # gradients that ranks have not reduced stay whole, in `.grad`, and no other link sees them
        _, held = bound.chain.update(received, state, Context.of(step, notes))
        assert isinstance(held, Links)
        return Outcome(False, bound.owning(held, state, received, lent), notes, commit)
    closing, grads = shares.in_parts(state, bound.window.name), shares.of(received)
    names = {*bound.active.names, *received}
    done = engine.step(bound.chain, step, grads, closing, step.params, lent)
    if done is None:
        out, new = bound.chain.update(grads, closing, Context.of(step, notes))
        assert isinstance(new, Links)
        if isinstance(out, Weights) and out.write is not None:
            raise RuntimeError(
                "update: a link with in_place=True writes whole weights, and with zero_redundancy=True this rank has "
                "a part. Leave in_place out."
            )
        done = Outcome(out is not None, new, notes, commit)
        if out is not None:
            shares.write(commit, out, names)
    elif done.applied:
        shares.after(done.commit, names)
    # a gradient lies in `.grad`, or in a bucket of DDP's
    return done._replace(state=bound.owning(done.state, closing, grads, True))
