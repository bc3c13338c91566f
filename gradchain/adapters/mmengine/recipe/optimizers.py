"""The optimizer of a config as the rule of a chain: gradchain's own links where they are equal, else its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gradchain.adapters import registry, torch_names
from gradchain.adapters.mmengine.entries import OWNER, ZERO, Entry, listed, type_name
from gradchain.combinators.masked import masked
from gradchain.core import config
from gradchain.core.chain import chain
from gradchain.core.hyper import varies
from gradchain.core.transform import Transform
from gradchain.optimizers import adam, adamw, lion, sgd
from gradchain.rules.adafactors import adafactor
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
OF_ZERO = ("optimizer_type", "overlap_with_ddp", "parameters_as_bucket_view", "process_group")
# what constructors read from the optimizer's dict
CONSTRUCTOR = ("batch_size_per_gpu", "base_total_batch_size", "layer_decay_rate", "model_type")
# MMEngine's registry has these under other names than `from_torch`
RENAMED = {"Adafactor": "transformers.Adafactor", "TorchAdafactor": "torch.Adafactor"}
# OpenMMLab's own, which have other formulas than the classes of that name elsewhere
OWN_ELSEWHERE = {"LAMB": "MMPretrain's"}
# what no link here is, by how its name begins or ends: why, and what is nearest
_HESSIAN = (
    "it divides by an estimate of the Hessian's diagonal, which takes a second backward every few steps",
    "gch.adamw, or gch.lion with a tenth of AdamW's rate",
)
_NO_RATE = (
    "it finds its own learning rate, for all parameters together, from norms over the whole run",
    "the class itself with its package installed (dadaptation, prodigyopt), or gch.adamw with a rate of yours",
)
_EIGHT_BITS = (
    "its moments are 8-bit numbers in blocks, which no link keeps",
    "the class itself with bitsandbytes installed, or gch.adamw with the moments in half precision: mu_dtype",
)
MISSING = {"Sophia": _HESSIAN, "DAdapt": _NO_RATE, "Prodigy": _NO_RATE, "8bit": _EIGHT_BITS}


class Optimizer:
    """The optimizer's dict of a config.

    Attributes:
        entry: the dict.
        zero_redundancy: whether it is ZeroRedundancyOptimizer's: of another class, whose state ranks share out.
        args: its arguments, without what says how torch computes or what constructors read.
    """

    def __init__(self, items: object, name: str, strict: bool) -> None:
        if not isinstance(items, Mapping):
            Entry(name, {}, strict, OWNER).refuse(f"it must be a dict with a type, got {items!r}.", TypeError)
        self.entry = Entry(name, items, strict, OWNER)
        given = items.get("type")
        self.zero_redundancy = type_name(given) == ZERO
        if self.zero_redundancy:
            if items.get("overlap_with_ddp"):
                self.entry.object_to("overlap_with_ddp must be False: it waits for a hook of DDP's, which nobody adds.")
            given, items = items.get("optimizer_type"), {k: v for k, v in items.items() if k not in OF_ZERO}
        if not isinstance(given, (str, type)):
            name = "optimizer_type" if self.zero_redundancy else "type"
            self.entry.refuse(f"{name} must be the name of an optimizer, got {given!r}.", TypeError)
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

    @property
    def is_times_rate(self) -> bool:
        """Whether half the learning rate is half the update, with the same memory."""
        return self._type != "torch.Adafactor" and not (self._type == "LARS" and self.args.get("momentum"))

    def parameters(self) -> Mapping[str, Any]:
        """What may be given to the rule, by name, with its default."""
        own = config.registered.get(self._type) if self._type not in torch_names.registered else None
        try:
            if self._of_openmmlab:
                return SIGNED[self._type]
            found = inspect.signature(torch_names.class_of(self._type) if own is None else own).parameters
            return {name: parameter.default for name, parameter in found.items()}
        except KeyError as error:
            if self._type == "Lion":  # ours stands for a package that need not be installed
                return SIGNED["Lion"]
            said = str(error.args[0]).removeprefix("from_torch: ")
            for part, (why, near) in MISSING.items():
                if part in str(self._type):
                    said = f"{self._type!r} is not read where its class is not installed: {why}. Nearest is {near}."
            self.entry.refuse(said, KeyError)

    def given(self, values: Mapping[str, Value], **only: Any) -> dict[str, Any]:
        """All arguments of a class that is known by its signature; some can only be what they are by default."""
        known = self.parameters()
        for key in self.args:
            if key not in known:
                self.entry.refuse(f"every argument must be one of {listed(known)}, got {key!r}.", TypeError)
        out = {key: self.args.get(key, usual) for key, usual in known.items()} | dict(values)
        for key, value in only.items():
            if out[key] != value:
                self.entry.refuse(f"{key} must be {value!r}, got {out[key]!r}; for another register its class.")
        return out

    def base(self, field: str) -> Any:
        """The number that a field of a parameter group has by itself; None if there is no such field."""
        known, also = self.parameters(), {"lr": "learning_rate", "momentum": "b1"}
        for name in (field, also.get(field, field)):
            if name in self.args or name in known:
                return self.args.get(name, known.get(name))
        if field == "momentum" and "betas" in known:
            betas = self.args.get("betas", known["betas"])
            if not isinstance(betas, (list, tuple)) or not betas:
                self.entry.refuse(f"betas must be a list of numbers, got {betas!r}.")
            return betas[0]
        return None

    def links(self, values: Mapping[str, Value], where: Where) -> list[Transform]:
        """The links of the rule, with these values in place of the numbers of a field.

        `where(field, holds)`: the parameters whose group has such a value of a field.
        """
        try:
            if self._of_openmmlab:
                return [OF_OPENMMLAB[self._type](self, dict(values), where)]
            own = self._type in OWN and self._type not in config.registered
            made = _own(self._type, self.args, values) if own else None
            return [registry.builder(self._type)(**{**_tuples(self.args), **values})] if made is None else made
        except (TypeError, ValueError, KeyError) as error:
            if (said := str(error.args[0])).startswith(OWNER):
                raise
            self.entry.refuse(said.removeprefix("from_torch: "), type(error))


def _own(kind: Any, args: Mapping[str, Any], values: Mapping[str, Value]) -> list[Transform] | None:
    """The links that are equal to a class with these arguments; None where only the class itself will do."""
    defaults, off, make = OWN[kind]
    known = all(key in defaults or (key in off and args[key] == off[key]) for key in args)
    # torch's buffer begins at the first update with a momentum, and it refuses nesterov without one
    late = kind == "SGD" and not args.get("momentum") and (varies(values.get("momentum", 0.0)) or args.get("nesterov"))
    moves = {"lr", "weight_decay", *(("momentum",) if {"betas", "momentum"} & defaults.keys() else ())}
    if not known or late or not values.keys() <= moves:
        return None
    given = {key: args.get(key, usual) for key, usual in defaults.items()} | dict(values)
    if "betas" in given:
        betas = given.pop("betas")
        if not isinstance(betas, (list, tuple)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}.")
        given |= {"b1": given.pop("momentum", betas[0]), "b2": betas[1]}
    return [make(given.pop("lr"), **given)]


def _tuples(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}


def _adam(lr: Value, weight_decay: Value, **given: Any) -> Transform:
    rule = adam(lr, **given)
    return chain(add_decayed_weights(weight_decay), rule) if varies(weight_decay) or weight_decay else rule


def _of_lars(optimizer: Optimizer, values: dict[str, Value], where: Where) -> Transform:
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
    return chain(*links)


def _of_lamb(optimizer: Optimizer, values: dict[str, Value], where: Where) -> Transform:
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
    return chain(*links, scale_by_learning_rate(given["lr"]))


Where = Callable[[str, "Callable[[Any], bool]"], "Selector | bool"]
OF_OPENMMLAB = {"LARS": _of_lars, "Lamb": _of_lamb}
NO_DEFAULT = inspect.Parameter.empty
SIGNED: dict[str, dict[str, Any]] = {
    # MMPretrain's and MMSelfSup's, and its item of a group
    "LARS": {
        "lr": NO_DEFAULT, "momentum": 0.0, "weight_decay": 0.0, "dampening": 0.0, "eta": 0.001, "nesterov": False,
        "eps": 1e-8, "lars_exclude": False,
    },
    # MMPretrain's
    "Lamb": {
        "lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01,
        "grad_averaging": True, "max_grad_norm": 1.0, "trust_clip": False, "always_adapt": False,
    },
    # lion_pytorch's
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "of_the_class": NO_DEFAULT},
}  # fmt: skip
"""The arguments, with their defaults, of classes that need not be installed."""
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
OFF = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
OWN: dict[Any, tuple[dict[str, Any], dict[str, Any], Callable[..., Transform]]] = {
    "SGD": (
        {"lr": 1e-3, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        {"dampening": 0, "maximize": False},
        sgd,
    ),
    "Adam": (ADAM, OFF, _adam),
    "AdamW": ({**ADAM, "weight_decay": 1e-2}, OFF, adamw),
    "Lion": ({"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}, {}, lion),
    "torch.Adafactor": (
        {"lr": 1e-2, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0},
        {"maximize": False},
        lambda lr, **given: adafactor(lr, **_tuples(given)),
    ),
}
"""By class: its arguments with their defaults, those that must be switched off, and ours."""
