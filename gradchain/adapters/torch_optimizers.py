"""Any `torch.optim.Optimizer` class as the rule of a chain."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradchain.adapters.in_place import InPlace, own
from gradchain.adapters.stand_ins import StandIns
from gradchain.adapters.torch_fields import Fields, bare, in_words
from gradchain.adapters.torch_names import class_of, name_of, needs_closure
from gradchain.core import _torch
from gradchain.core.context import Context
from gradchain.core.domain import Domain
from gradchain.core.eager import EagerTensors
from gradchain.core.hyper import evaluated
from gradchain.core.index import Index
from gradchain.core.readable import shown
from gradchain.core.roles import AverageState
from gradchain.core.scalars import Scalars
from gradchain.core.slots import Slots
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights


class OptimizerState(State):
    """What from_torch remembers."""

    state: Slots  # what the optimizer keeps of each parameter, by its own names
    group: Slots  # what it changed by itself in the parameter's group, and what it keeps beside both

    def problem(self) -> str | None:
        return _problem(self.state)


class TwoSetsState(AverageState):
    """What from_torch remembers of a class with train() and eval(): its average is what eval() makes of the weights."""

    state: Slots
    group: Slots

    def problem(self) -> str | None:
        return _problem(self.state)


# What torch.optim's classes, and others after them, mean by these names. Of other names nothing is known.
_STEP = Domain(None, "[0, inf)")
_SQUARE = Domain(None, "[0, inf] or NaN")
_SQUARES = frozenset({"acc_delta", "col_var", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "row_var", "square_avg"})


def _problem(memory: Slots) -> str | None:
    for name, slot in memory.items():
        if "step" in slot and not _STEP.holds(slot["step"]):
            return f"the step of {name!r} must be {_STEP.rule}, got {shown(slot['step'])}"
        for key in _SQUARES & slot.keys():
            if type(slot[key]) is Tensor and (found := _SQUARE.offender(slot[key])) is not None:
                return f"{key} of {name!r} must be {_SQUARE.rule}, got {found!r}"
    return None


class from_torch(Transform):
    """Make any `torch.optim.Optimizer` class the rule of a chain.

        w ← what one step of the class makes of w and the updates so far

    Clips, accumulation, masks and averages go around it, schedules into it, and its memory into our checkpoints: named
    tensors per parameter, which follow `load`, `rebind` and `reset`. Every number of the class is a hyperparameter,
    `lr`, `momentum`, `weight_decay`, and `betas[0]` for one of several; each takes a number or a schedule. Parameters
    of different numbers form groups of their own.

    It owns the weights and comes last, before `project` and averages: they are written as the optimizer made them, bit
    for bit. In a mask or a branch of `partition` it returns the difference instead, taken in float64 (float32 for
    halves): what is then added gives the same bits, except that float64 weights may differ in the last one.

    It works on copies of weights, gradients and memory, so that a step that fails changes nothing, and needs room for
    those while it runs. Where gradchain has the rule itself (`adamw`, `sgd`, …) use that: it runs in place. With
    `in_place=True` the class works on the model's own weights, with the same bits, in little more than its own time.
    It must then be last in the outermost chain, before nothing but `average_params`. Gates in front of it hold it; but
    where the class itself raises, some weights may have been written and others not: the updater then refuses all but
    a load. Classes that need a closure or have two sets of weights do not take it. What a
    schedule gives is not checked by the class; numbers are. A class that calls a closure (LBFGS, the SAM family) needs
    `updater.update(closure)`: where it has not moved the weights yet, its first call is told what backward has found
    and links before it have made of that; every other one is the loss and the gradient as they are at its weights. Of
    the class only `step` is called: what else it wants (SophiaG's update_hessian) does not happen.

    A class with train() and eval() (schedulefree) has two sets of weights: the model has those that are trained, and
    `with updater.averaged():` those that its eval() makes. What a class reads in its groups and does not take itself,
    such as Muon's `use_muon`, is given per parameter: `use_muon=gch.choose((gch.ndim(2), 1), rest=0)`. The classes of
    every package are listed in docs/from_torch.md.

    Args:
        optimizer: the class, or its name: looked up in what `gch.register` was given, torch.optim, torch_optimizer,
            and, where installed, lion_pytorch, dadaptation, prodigyopt, Sophia, bitsandbytes, transformers
            (Adafactor), schedulefree, pytorch_optimizer, timm, torchao and heavyball.
            The first that has it wins; "torch_optimizer.RAdam" asks for one of them.
        arguments: pairs of a name and a value, for what `dataclasses.replace` writes; and for an argument of the class
            that is called as one of these.
        in_place: whether the class works on the model's own weights and memory, in place of copies.
        **given: what the class takes besides the parameters.

    Shapes: as the class; one may want all parameters at once.
    State: whatever the class keeps.
    Units: gradient → weights, or a descent step in a mask or branch.
    Raises: KeyError for an unknown name; TypeError or ValueError for arguments that the class refuses, for one that
        cannot be the rule of a chain (SparseAdam; Adahessian; those that take the model, wrap or keep another
        optimizer, shard their work over ranks, or step other tensors than they are given), for memory
        that no checkpoint can hold, and for sharded parameters; what a step of the class raises, in a sentence.
    Equals: the class itself.

    >>> import gradchain as gch
    >>> lr = gch.linear(0.0, 1e-3, 100)
    >>> gch.chain(gch.clip_by_norm(1.0), gch.from_torch("Lamb", lr=lr, weight_decay=0.01))
    chain(clip_by_norm(1.0), from_torch("Lamb", lr=linear(0.0, 0.001, 100), weight_decay=0.01))
    """

    descends = True
    role = "optimizer"
    calls_back = True  # the class may be a user's
    refuses_rows = (
        "gives its class whole gradients. Put these parameters into another branch of gch.partition, with a rule of "
        "links, or give dense gradients: sparse=False in nn.Embedding and nn.EmbeddingBag."
    )

    optimizer: str | type[Optimizer]
    arguments: tuple[tuple[str, Any], ...]
    in_place: bool = False  # type: ignore[misc]  # what the class says of all its links, and here an argument

    def __init__(
        self,
        optimizer: str | type[Optimizer],
        arguments: Iterable[tuple[str, Any]] = (),
        *,
        in_place: bool = False,
        **given: Any,
    ) -> None:
        cls = class_of(optimizer)
        if not isinstance(in_place, bool):
            raise TypeError(
                f"from_torch: in_place must be True or False, got {in_place!r}. An argument of the class that is "
                "called so goes into arguments."
            )
        given = {name: _frozen(value) for name, value in {**dict(arguments), **given}.items()}
        set_ = self.__dict__
        set_["optimizer"], set_["arguments"], set_["in_place"] = name_of(cls), tuple(given.items()), in_place
        set_["_of_class"] = fields = Fields(cls, given)
        set_["_made"] = object()  # what stand-ins are kept under: copies of this link with other numbers share them
        set_["hypers"] = {name: hyper for name, hyper in fields.hypers.items() if name != "in_place"}  # that is ours
        set_["_given"] = {name: hyper.value for name, hyper in set_["hypers"].items()}
        set_.update(set_["_given"])
        if in_place and needs_closure(cls):
            raise ValueError(
                f"from_torch: {cls.__name__}: in_place must be False for a class that needs a closure, got True: it "
                "evaluates where it has moved the weights to. Leave in_place out."
            )

    @property
    def cls(self) -> type[Optimizer]:
        """The class."""
        return class_of(self.optimizer)

    @cached_property
    def _takes_closure(self) -> tuple[bool, bool]:
        """Whether a step of the class may be given one, and whether it must be."""
        parameters = inspect.signature(self.cls.step).parameters
        takes = "closure" in parameters
        return takes, takes and parameters["closure"].default is inspect.Parameter.empty

    def init(self, params: Tensors) -> OptimizerState | TwoSetsState:
        at = Context(params, step=0)
        flags = {name: evaluated(value, at) for name, value in self._fields.flags.items()}
        stand_ins = self._stand_ins(dict(params), params.index, flags)
        if stand_ins.has_two_sets:
            return TwoSetsState(params.clone(), params.select(()), *stand_ins.first)
        return OptimizerState(*stand_ins.first)

    def update(
        self, g: Tensors, state: OptimizerState | TwoSetsState, ctx: Context
    ) -> tuple[Tensors | Weights, OptimizerState | TwoSetsState]:
        params = ctx.params.select(state.state)
        if self.in_place:
            return self._in_place(g, state, ctx, params)
        old, grads, numbers = dict(params), dict(g), self._numbers()
        _refuse_derivatives(grads.values())
        stand_ins = self._stand_ins(old, params.index, numbers)
        fields = self._numbers_of(stand_ins, numbers)
        takes, must = self._takes_closure
        closure = _Closure(params.index, old, grads, ctx, self.cls) if must or (takes and ctx.evaluates) else None
        try:
            new, memory, group, to_evaluate = stand_ins.step(old, grads, state.state, state.group, fields, closure)
        except Exception as error:
            explained = self._explained(error, ctx.address, takes and closure is None)
            if explained is None or (closure is not None and error is closure.error):
                raise
            raise explained from error
        if closure is not None and ctx.gated and not all(bool(torch.isfinite(w).all()) for w in new.values()):
            # where it evaluates what is not finite it may know what to do; where its step is not, it did not
            ctx.refuse(f"the weights that {_short(self.optimizer)} made of what it evaluated have inf or NaN")
        after = state.replace(state=memory, group=group)
        if isinstance(after, TwoSetsState):
            after = after.replace(average=after.average.overlay(EagerTensors.at(params.index, to_evaluate)))
        if ctx.outermost:
            return Weights(EagerTensors.at(params.index, {n: new[n] for n in g})), after
        differences = {n: _difference(new[n], old[n]) for n in g}
        return EagerTensors.at(params.index, differences), after

    def _in_place(
        self, g: Tensors, state: OptimizerState | TwoSetsState, ctx: Context, params: Tensors
    ) -> tuple[Weights, OptimizerState | TwoSetsState]:
        """The step as something to be done once the update is written: only then is it sure that none holds it."""
        index = params.index
        weights, grads, numbers = cast("list[Tensor]", params.listed(index)), g.listed(index), self._numbers()
        _refuse_derivatives(grads)
        live = self._live(weights, index, numbers)
        fields, is_complex = self._numbers_of(live, numbers), bool(index.complex)
        step = partial(live.step_in_place, weights, state=state.state, group=state.group, fields=fields)

        def write(spared: set[int] | None) -> Callable[[], None]:
            ours = own(grads, weights, None if is_complex else spared)  # complex tensors are views nobody else knows
            return partial(self._written_by, partial(step, ours), ctx.address)

        if state.state is not live.memory or state.group is not live.changed:
            state = state.replace(state=live.memory, group=live.changed)
        return Weights(live.views(g.index, index, weights), write), state

    def _written_by(self, step: Callable[[], None], address: str) -> None:
        """Let the class write the weights. Autocast is for the forward, and off here."""
        kinds = _torch.casting()
        try:
            with _torch.recast(kinds, False) if kinds else nullcontext():
                step()
        except Exception as error:
            explained = self._explained(error, address, self._takes_closure[0])
            if explained is None:
                raise
            raise explained from error

    def _live(self, weights: list[Tensor], index: Index, numbers: Mapping[str, Any]) -> InPlace:
        """The stand-ins in the memory of these weights; looked for anew where that, or a number, may part them."""
        key = (self.__dict__["_made"], "in place")
        live = index.memo.get(key)
        alike = not any(isinstance(value, Scalars) for value in numbers.values())
        if not (alike and isinstance(live, InPlace) and live.lies_in(weights)) or _torch.under_functorch():
            live = self._stand_ins(dict(zip(index.names, weights, strict=True)), index, numbers)
            if alike:
                index.memo[key] = live
        return cast("InPlace", live)

    def _explained(self, error: Exception, address: str, wants_closure: bool) -> Exception | None:
        """What a class raised in a sentence; None for what means something to a program."""
        kind = _kind(error, self.cls)
        if kind is None:
            return None
        cure = _cure(error, self.in_place) if wants_closure else ""
        return kind(f"{address or 'from_torch'}: {_short(self.optimizer)}: {in_words(error)}{cure}")

    def _numbers_of(self, stand_ins: StandIns, numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The numbers of this update as the fields of each parameter group."""
        return [self._fields.grouped(_at(numbers, names[0]) if names else {}) for names in stand_ins.groups]

    def _numbers(self) -> dict[str, Any]:
        """The numbers of this update that are not those the class was constructed with."""
        given, now = self.__dict__["_given"], self.__dict__
        return {n: now[n] for n in self.hypers if now[n] is not given[n] or isinstance(now[n], Scalars)}

    def _stand_ins(self, weights: dict[str, Tensor], index: Index, numbers: Mapping[str, Any]) -> StandIns:
        """The stand-ins for these parameters, in groups by these numbers; made when first asked for."""
        groups = _grouped(weights, numbers)
        flags = [{n: _at(numbers, names[0])[n] for n in self._fields.flags} for names in groups if names]
        places = frozenset((w.dtype, w.device) for w in weights.values())
        told = tuple(tuple(said.values()) for said in flags)
        kind = InPlace if self.in_place else StandIns
        key = (self.__dict__["_made"], tuple(map(tuple, groups)) if len(groups) > 1 else None, told, places, kind)
        if _torch.under_functorch():
            raise RuntimeError(
                "from_torch: its class works in place, which torch.func cannot follow. Use a link of ours."
            )
        sharded = next((name for name, weight in weights.items() if _torch.is_dtensor(weight)), None)
        if sharded is not None:
            raise TypeError(
                f"from_torch: {sharded!r} is sharded, and no class is known to be right there. Use a link of ours."
            )
        if key not in index.memo:
            index.memo[key] = kind(self._fields.made, groups, weights, flags)
        return cast("StandIns", index.memo[key])

    @property
    def _fields(self) -> Fields:
        return cast("Fields", self.__dict__["_of_class"])

    def written(self) -> dict[str, Any]:
        own = {"in_place": True} if self.in_place else {}
        if "in_place" in dict(self.arguments):  # the class's
            return {"optimizer": self.optimizer, "arguments": self.arguments, **own}
        return {"optimizer": self.optimizer, **dict(self.arguments), **own}

    def as_call(self) -> Iterator[tuple[str, Any]]:
        for name, value in self.written().items():
            yield "" if name == "optimizer" else name, value

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(from_torch, in_place=self.in_place), (self.optimizer, self.arguments)


class _Closure:
    """What a class calls to know the loss where it has moved the weights to, and the gradients there.

    Where it has not moved them yet, they are those that the chain brought, for the first call: backward has run.

    Attributes:
        error: what an evaluation raised, which is not the class's to say.
    """

    def __init__(
        self, index: Index, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor], ctx: Context,
        cls: type[Optimizer],
    ) -> None:  # fmt: skip
        self._index, self._weights, self._grads, self._ctx = index, weights, grads, ctx
        self._has_loss = ctx.has_loss
        # torch's own call it before they move anything; to compare what others did waits for a device
        self._asks_first = f"{cls.__module__}.".startswith("torch.optim.")
        self.error: BaseException | None = None

    @torch.no_grad()  # a class calls it with gradients on, for the closure of a user
    def __call__(self, stand_ins: StandIns) -> Any:
        weights, has_loss = stand_ins.weights(), self._has_loss
        self._has_loss = False
        if has_loss and (self._asks_first or all(torch.equal(weights[n], self._weights[n]) for n in weights)):
            loss, grads = self._ctx.loss, self._grads
        else:
            loss, grads = self._evaluated(weights)
        for name in self._index.names:
            stand_ins.put_grad(name, grads[name] if name in grads else None)
        return self._ctx.micro.over_ranks(loss)  # by which a class decides, and all ranks must decide alike

    def _evaluated(self, weights: dict[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
        try:
            return self._ctx.evaluate(EagerTensors.at(self._index, weights), gated=False)
        except BaseException as error:
            self.error = error
            raise


def _kind(error: Exception, cls: type[Optimizer]) -> type[Exception] | None:
    """What a class's own failure is raised as in a sentence; None for one that means something to a program."""
    if isinstance(error, (TypeError, ValueError)):
        return TypeError if isinstance(error, TypeError) else ValueError
    package = cls.__module__.partition(".")[0]
    own = type(error) in (Exception, RuntimeError) or type(error).__module__.partition(".")[0] == package
    usual = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError)
    return RuntimeError if own or isinstance(error, usual) else None


def _cure(error: Exception, in_place: bool) -> str:
    """What to do where a class may have missed the closure that it calls optional."""
    said = str(error)
    missed = bare(error) or "closure" in said or "'NoneType' object is not callable" in said
    without = ", without in_place" if in_place else ""
    return f". Where it asks for a closure, call updater.update(closure){without}" if missed else ""


def _refuse_derivatives(grads: Iterable[Tensor | None]) -> None:
    if torch.is_grad_enabled() and any(g is not None and g.requires_grad for g in grads):
        raise RuntimeError(
            "from_torch: its class works in place and has no derivative: the updates must not require a gradient. "
            "Detach them, or use a link of ours."
        )


def _short(optimizer: str | type[Optimizer]) -> str:
    return optimizer if isinstance(optimizer, str) else optimizer.__name__


def _frozen(value: Any) -> Any:
    """An argument as a value that does not change: lists as tuples, a 0-d tensor as its number."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _grouped(names: Iterable[str], numbers: Mapping[str, Any]) -> list[list[str]]:
    """The parameters by the numbers they have, in the order in which each set of numbers first comes."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    each = [value for value in numbers.values() if isinstance(value, Scalars)]
    for name in names:
        groups.setdefault(tuple(value[name] for value in each), []).append(name)
    return list(groups.values())


def _at(numbers: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The numbers that one parameter has."""
    return {n: value[name] if isinstance(value, Scalars) else value for n, value in numbers.items()}


def _difference(new: Tensor, old: Tensor) -> Tensor:
    """What has to be added to `old` for `new`, in a dtype in which nothing is lost, where there is one."""
    if new.device.type == "mps":
        return new - old
    wide = torch.float32 if new.dtype in (torch.float16, torch.bfloat16) else torch.float64
    wide = torch.complex128 if new.is_complex() else wide
    return new.to(wide) - old.to(wide)
