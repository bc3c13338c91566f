"""The optimizer of a config as the rule of a chain: gradchain's own links where they are equal, else its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gradchain.adapters import registry, torch_names
from gradchain.adapters.mmengine.entries import Entry, listed
from gradchain.adapters.mmengine.wrappers import OWNER
from gradchain.combinators.masked import masked
from gradchain.core import config
from gradchain.core.chain import chain
from gradchain.core.hyper import varies
from gradchain.core.transform import Transform
from gradchain.optimizers import adam, adamw, lion, sgd
from gradchain.rules.trust_ratio import scale_by_trust_ratio
from gradchain.selectors import Selector
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.clip import clip_by_norm
from gradchain.transforms.decay import add_decayed_weights
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.transforms.trace import trace

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

__all__ = ["Optimizer"]

# how torch computes, not what
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# what constructors read from the optimizer's dict
CONSTRUCTOR = ("batch_size_per_gpu", "base_total_batch_size", "layer_decay_rate", "model_type")
# MMEngine's registry has these under other names than `from_torch`
RENAMED = {"Adafactor": "transformers.Adafactor", "TorchAdafactor": "torch.Adafactor"}
# OpenMMLab's own, which have other formulas than the classes of that name elsewhere
OWN_ELSEWHERE = {"LAMB": "MMPretrain's"}


class Optimizer:
    """The optimizer's dict of a config.

    Attributes:
        entry: the dict.
        args: its arguments, without what says how torch computes or what constructors read.
    """

    def __init__(self, items: object, name: str, strict: bool) -> None:
        if not isinstance(items, Mapping):
            Entry(name, {}, strict, OWNER).refuse(f"it must be a dict with a type, got {items!r}.", TypeError)
        self.entry = Entry(name, items, strict, OWNER)
        given = items.get("type")
        if not isinstance(given, (str, type)):
            self.entry.refuse(f"type must be the name of an optimizer, got {given!r}.", TypeError)
        left_out = ("type", "_scope_", "_delete_", *IMPLEMENTATION, *CONSTRUCTOR)
        self.args = {key: value for key, value in items.items() if key not in left_out}
        if "_delete_" in items:
            self.entry.object_to("'_delete_' must not be left in a config: it is an order to the reader of the file.")
        self._of_openmmlab = False  # a class of OpenMMLab's own that links here are equal to
        self._type = self._registered(given)

    def _registered(self, given: Any) -> Any:
        """What `registry.builder` is asked for."""
        if isinstance(given, type) and not given.__module__.startswith("torch.optim."):
            return given
        given = given.__name__ if isinstance(given, type) else given
        short = given.rpartition(".")[2]
        mine = next((name for name in (given, short) if name in config.registered), None)
        if mine is not None:
            return mine
        if short in OF_OPENMMLAB:
            self._of_openmmlab = True
            return short
        if short in OWN_ELSEWHERE:
            self.entry.object_to(
                f"{short} is {OWN_ELSEWHERE[short]} own, and its formula is not that of the class of this name "
                f"elsewhere. Register it: gch.register({short!r})(its class)."
            )
        return RENAMED.get(short, short.removeprefix("bnb_"))

    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What may be given to the rule, by name."""
        if self._of_openmmlab:
            return inspect.signature(SIGNED[self._type]).parameters
        if self._type in config.registered and self._type not in torch_names.registered:
            return inspect.signature(config.registered[self._type]).parameters
        try:
            return inspect.signature(torch_names.class_of(self._type)).parameters
        except KeyError as error:
            if self._type == "Lion":  # ours stands for a package that need not be installed
                return inspect.signature(_lion_arguments).parameters
            self.entry.refuse(str(error.args[0]).removeprefix("from_torch: "), KeyError)

    def given(self, values: Mapping[str, Value], **only: Any) -> dict[str, Any]:
        """All arguments of a class that is known by its signature; some can only be what they are by default."""
        known = self.parameters()
        for key in self.args:
            if key not in known:
                self.entry.refuse(f"every argument must be one of {listed(known)}, got {key!r}.", TypeError)
        out = {key: self.args.get(key, parameter.default) for key, parameter in known.items()} | dict(values)
        for key, value in only.items():
            if out[key] != value:
                self.entry.refuse(f"{key} must be {value!r}, got {out[key]!r}; for another register its class.")
        return out

    def base(self, field: str) -> Any:
        """The number that a field of a parameter group has by itself; None if there is no such field."""
        known, also = self.parameters(), {"lr": "learning_rate", "momentum": "b1"}
        for name in (field, also.get(field, field)):
            if name in self.args or name in known:
                return self.args.get(name, known[name].default if name in known else None)
        if field == "momentum" and "betas" in known:
            betas = self.args.get("betas", known["betas"].default)
            if not isinstance(betas, (list, tuple)) or not betas:
                self.entry.refuse(f"betas must be a list of numbers, got {betas!r}.")
            return betas[0]
        return None

    def links(self, values: Mapping[str, Value], where: Where) -> list[Transform]:
        """The links of the rule, with these values in place of the numbers of a field.

        `where(field, holds)`: the parameters whose group has such a value of a field.
        """
        own = None if self._type in config.registered else OWN.get(self._type)
        made = own(dict(self.args), values) if own is not None else None
        if made is None and self._of_openmmlab:
            made = OF_OPENMMLAB[self._type](self, dict(values), where)
        if made is not None:
            return made
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in self.args.items()}
        try:
            return [registry.builder(self._type)(**{**given, **values})]
        except (TypeError, ValueError, KeyError) as error:
            self.entry.refuse(str(error.args[0]).removeprefix("from_torch: "), type(error))


Own = Callable[["dict[str, Any]", "Mapping[str, Value]"], "list[Transform] | None"]


def _only(args: Mapping[str, Any], off: Mapping[str, Any], *known: str) -> bool:
    """Whether every argument is known, or is one that is switched off."""
    return all(key in known or (key in off and args[key] == off[key]) for key in args)


def _sgd(args: dict[str, Any], values: Mapping[str, Value]) -> list[Transform] | None:
    momentum, nesterov = values.get("momentum", args.get("momentum", 0.0)), args.get("nesterov", False)
    known = _only(args, {"dampening": 0, "maximize": False}, "lr", "momentum", "weight_decay", "nesterov")
    # torch's buffer begins at the first update with a momentum, and it refuses nesterov without one
    late = not args.get("momentum") and (varies(momentum) or nesterov)
    if not known or late or not _covered(values):
        return None
    decay = values.get("weight_decay", args.get("weight_decay", 0.0))
    return [sgd(values.get("lr", args.get("lr", 1e-3)), momentum, nesterov, decay)]


OFF = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
ADAM = ("lr", "betas", "eps", "weight_decay")


def _adam(args: dict[str, Any], values: Mapping[str, Value]) -> list[Transform] | None:
    if not _only(args, OFF, *ADAM) or not _covered(values):
        return None
    decay = values.get("weight_decay", args.get("weight_decay", 0.0))
    rule = adam(values.get("lr", args.get("lr", 1e-3)), *_betas(args, values, 0.999), args.get("eps", 1e-8))
    return [add_decayed_weights(decay), rule] if varies(decay) or decay else [rule]


def _adamw(args: dict[str, Any], values: Mapping[str, Value]) -> list[Transform] | None:
    if not _only(args, OFF, *ADAM) or not _covered(values):
        return None
    decay = values.get("weight_decay", args.get("weight_decay", 1e-2))
    b1, b2 = _betas(args, values, 0.999)
    return [adamw(values.get("lr", args.get("lr", 1e-3)), b1, b2, args.get("eps", 1e-8), decay)]


def _lion(args: dict[str, Any], values: Mapping[str, Value]) -> list[Transform] | None:
    if not _only(args, {}, "lr", "betas", "weight_decay") or not _covered(values):
        return None
    decay = values.get("weight_decay", args.get("weight_decay", 0.0))
    return [lion(values.get("lr", args.get("lr", 1e-4)), *_betas(args, values, 0.99), decay)]


def lars_arguments(
    lr: float, momentum: float = 0.0, weight_decay: float = 0.0, dampening: float = 0.0, eta: float = 0.001,
    nesterov: bool = False, eps: float = 1e-8, lars_exclude: bool = False,
) -> None:  # fmt: skip
    """What MMPretrain's and MMSelfSup's LARS takes, and its item of a group."""


def lamb_arguments(
    lr: float = 1e-3, bias_correction: bool = True, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
    weight_decay: float = 0.01, grad_averaging: bool = True, max_grad_norm: float = 1.0, trust_clip: bool = False,
    always_adapt: bool = False,
) -> None:  # fmt: skip
    """What MMPretrain's Lamb takes."""


def _of_lars(optimizer: Optimizer, values: dict[str, Value], where: Where) -> list[Transform]:
    """The ratio has the decay in its norm; what is excluded has both the bare gradient and its decay."""
    given = optimizer.given(values)
    excluded = where("lars_exclude", bool)
    decay, momentum = given["weight_decay"], given["momentum"]
    ratio = scale_by_trust_ratio(0.0, given["eta"], given["eps"], decay)
    links: list[Transform] = []
    if excluded is not True:
        links.append(ratio if excluded is False else masked(ratio, ~excluded))
    if excluded is not False and (varies(decay) or decay):
        bare = add_decayed_weights(decay)
        links.append(bare if excluded is True else masked(bare, excluded))
    links.append(scale_by_learning_rate(given["lr"]))
    if varies(momentum) or momentum:
        links.append(trace(momentum, given["nesterov"], dampening=given["dampening"]))
    return [chain(*links)]


def _of_lamb(optimizer: Optimizer, values: dict[str, Value], where: Where) -> list[Transform]:
    """The norm of all gradients is clipped first, and only what decays is scaled to its weights."""
    given = optimizer.given(values, bias_correction=True, grad_averaging=True, trust_clip=False)
    b1, b2 = given["betas"]
    adapted = True if given["always_adapt"] else where("weight_decay", bool)
    links: list[Transform] = []
    if given["max_grad_norm"] is not None:
        links.append(clip_by_norm(given["max_grad_norm"], eps=0))
    links.append(scale_by_adam(values.get("momentum", b1), b2, given["eps"]))
    decay = given["weight_decay"]
    if varies(decay) or decay:
        links.append(add_decayed_weights(decay))
    if adapted is not False:
        ratio = scale_by_trust_ratio()
        links.append(ratio if adapted is True else masked(ratio, adapted))
    return [chain(*links, scale_by_learning_rate(given["lr"]))]


def _betas(args: Mapping[str, Any], values: Mapping[str, Value], b2: float) -> tuple[Any, Any]:
    betas = args.get("betas", (0.9, b2))
    if not isinstance(betas, (list, tuple)) or len(betas) != 2:
        raise ValueError(f"mmengine.from_config: betas must be two numbers, got {betas!r}.")
    b1, b2 = betas
    return values.get("momentum", b1), b2


def _covered(values: Mapping[str, Value]) -> bool:
    """Whether only numbers move that our links take from a schedule under these names."""
    return set(values) <= {"lr", "momentum", "weight_decay"}


def _lion_arguments(
    lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0, **of_the_class: Any
) -> None:
    """What lion_pytorch's class takes, with its defaults."""


Where = Callable[[str, "Callable[[Any], bool]"], "Selector | bool"]
OF_OPENMMLAB = {"LARS": _of_lars, "Lamb": _of_lamb}
SIGNED: dict[str, Callable[..., None]] = {"LARS": lars_arguments, "Lamb": lamb_arguments}
OWN: dict[str, Own] = {"SGD": _sgd, "Adam": _adam, "AdamW": _adamw, "Lion": _lion}
