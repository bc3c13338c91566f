"""The optimizer of a config as the rule of a chain: gradchain's own links where they are equal, else its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gradchain.adapters import registry, torch_names
from gradchain.adapters.mmengine.entries import OWNER, ZERO, Entry, listed, near, type_name
from gradchain.core import config
from gradchain.core.chain import chain
from gradchain.core.hyper import varies
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.optimizers import adam, adamw, lion, sgd
from gradchain.rules.adafactors import adafactor
from gradchain.rules.trust_ratio import scale_by_trust_ratio
from gradchain.selectors import Selector
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.clip import clip_by_norm
from gradchain.transforms.scale import scale_by_learning_rate

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

__all__ = ["Optimizer"]

# what the chain has no use for: how torch computes, where a type is from, what constructors read
ASIDE = (
    "foreach", "fused", "capturable", "differentiable", "type", "_scope_", "_delete_",
    "batch_size_per_gpu", "base_total_batch_size", "layer_decay_rate", "model_type",
)  # fmt: skip
OF_ZERO = ("optimizer_type", "overlap_with_ddp", "parameters_as_bucket_view", "process_group")
# MMEngine's registry has these under other names than `from_torch`
RENAMED = {"Adafactor": "transformers.Adafactor", "TorchAdafactor": "torch.Adafactor"}
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
Where = Callable[[str, "Callable[[Any], bool]"], "Selector | bool"]
"""(a field, a test) -> the parameters whose group has such a value of it; True or False for all, or none."""


class Optimizer:
    """The optimizer's dict of a config.

    Attributes:
        entry: the dict.
        zero_redundancy: whether it is ZeroRedundancyOptimizer's: of another class, whose state ranks share out.
        args: its arguments, without what says how torch computes or what constructors read.
    """

    def __init__(self, items: Mapping[str, Any], name: str, strict: bool) -> None:
        self.entry = Entry(name, items, strict, OWNER)
        self.zero_redundancy = type_name(items.get("type")) == ZERO
        key = "optimizer_type" if self.zero_redundancy else "type"
        if self.zero_redundancy and items.get("overlap_with_ddp"):
            self.entry.object_to("overlap_with_ddp must be False: it waits for a hook of DDP's, which nobody adds.")
        if not isinstance(items.get(key), (str, type)):
            self.entry.refuse(f"{key} must be the name of an optimizer, got {items.get(key)!r}.", TypeError)
        left_out = (*ASIDE, *OF_ZERO) if self.zero_redundancy else ASIDE
        self.args = {key: value for key, value in items.items() if key not in left_out}
        if "_delete_" in items:
            self.entry.object_to("'_delete_' must not be left in a config: it is an order to the reader of the file.")
        self._type = self._registered(items[key])

    def _registered(self, given: Any) -> Any:
        """What `registry.builder` is asked for, or a function of the links that OpenMMLab's own class is."""
        if isinstance(given, type) and not given.__module__.startswith("torch.optim."):
            return given
        given = given.__name__ if isinstance(given, type) else given
        short = given.rpartition(".")[2]
        for name in (given, short):
            if name in config.registered:
                return name
        if short == "LAMB":
            self.entry.object_to(
                "LAMB is MMPretrain's own, and its formula is not that of the class of this name elsewhere. Register "
                "it: gch.register('LAMB')(its class)."
            )
        return RENAMED.get(short, OF_OPENMMLAB.get(short, short.removeprefix("bnb_")))

    @property
    def is_times_rate(self) -> bool:
        """Whether half the learning rate is half the update, with the same memory."""
        return self._type != "torch.Adafactor" and not (self._type is _lars and self.args.get("momentum"))

    def parameters(self) -> Mapping[str, Any]:
        """What may be given to the rule, by name, with its default."""
        signed = self._type if inspect.isfunction(self._type) else config.registered.get(self._type)
        try:
            if signed is None or self._type in torch_names.registered:
                signed = torch_names.class_of(self._type)
        except KeyError as error:
            if self._type == "Lion":  # ours stands for a package that need not be installed
                return {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
            said = str(error.args[0]).removeprefix("from_torch: ")
            for part, (why, near) in MISSING.items():
                if part in str(self._type):
                    said = f"{self._type!r} is not read where its class is not installed: {why}. Nearest is {near}."
            self.entry.refuse(said, KeyError)
        found = inspect.signature(signed).parameters.items()
        return {name: one.default for name, one in found if name not in ("where", "moved")}  # of ours

    def base(self, field: str) -> Any:
        """The number that a field of a parameter group has by itself; None if there is no such field."""
        if field in self.args:
            return self.args[field]
        known = self.parameters()
        name = next((name for name in registry.CALLED.get(field, ()) if name in known), field)
        value = self.args.get(name, known.get(name))
        if name == field or name != "betas":
            return value
        if not isinstance(value, (list, tuple)) or not value:
            self.entry.refuse(f"betas must be a list of numbers, got {value!r}.")
        return value[0]

    def links(self, values: Mapping[str, Value], where: Where) -> list[Transform]:
        """The links of the rule, with these values in place of the numbers of a field."""
        try:
            known = self.parameters()
            unknown = [key for key in self.args if key not in known]
            if unknown and (inspect.isfunction(self._type) or near(unknown[0], known, "")):
                cure = near(unknown[0], known, f"it takes {listed(known)}.")
                raise TypeError(f"every argument must be known, got {unknown[0]!r}; {cure}")
            if inspect.isfunction(self._type):
                return [self._type(where, **{**self.args, **values})]
            own = self._type in OWN and self._type not in config.registered
            made = self._own(*OWN[self._type], values) if own else None
            return [registry.builder(self._type)(**_tuples({**self.args, **values})) if made is None else made]
        except (TypeError, ValueError, KeyError) as error:
            if (said := str(error.args[0])).startswith(OWNER):
                raise
            self.entry.refuse(said.removeprefix("from_torch: "), type(error))

    def _own(
        self, make: Callable[..., Transform], names: tuple[str, ...], values: Mapping[str, Value]
    ) -> Transform | None:
        """The rule that is equal to a class with these arguments; None where only the class itself will do."""
        args, usual = self.args, self.parameters()
        # torch's buffer begins at the first update with a momentum, and it refuses nesterov without one
        late = not args.get("momentum") and (varies(values.get("momentum", 0.0)) or args.get("nesterov"))
        others = [key for key in args if key not in names and args[key] != usual.get(key, NO_DEFAULT)]
        if others or (make is sgd and late) or not values.keys() <= {"lr", "momentum", "weight_decay"}:
            return None
        given = {key: args.get(key, usual[key]) for key in names} | dict(values)
        if "betas" in given:
            b1, b2 = _two(given.pop("betas"))
            given |= {"b1": given.pop("momentum", b1), "b2": b2}
        return make(given.pop("lr"), **_tuples(given))


def _two(betas: Any) -> Any:
    if not isinstance(betas, (list, tuple)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}.")
    return betas


def _tuples(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}


def _among(links: list[Transform], who: Selector | bool) -> list[Transform]:
    """Links for what is selected: all, some or none."""
    return [parts.among(link, None if who is True else who) for link in links if who is not False]


def _lars(
    where: Where, lr: Value, momentum: Value = 0.0, weight_decay: Value = 0.0, dampening: Value = 0.0,
    eta: float = 0.001, nesterov: bool = False, eps: float = 1e-8, lars_exclude: bool = False,
) -> Transform:  # fmt: skip
    """MMPretrain's and MMSelfSup's, and its item of a group.

    The ratio has the decay in its norm; what is excluded has both the bare gradient and its decay.
    """
    excluded = where("lars_exclude", bool)
    others = not excluded if isinstance(excluded, bool) else ~excluded
    return chain(
        *_among([scale_by_trust_ratio(0.0, eta, eps, weight_decay)], others),
        *_among(parts.decay(weight_decay, None), excluded),
        scale_by_learning_rate(lr),
        *parts.momentum(momentum, nesterov, None, dampening),
    )


def _lamb(
    where: Where, lr: Value = 1e-3, bias_correction: bool = True, betas: Any = (0.9, 0.999), eps: float = 1e-6,
    weight_decay: Value = 0.01, grad_averaging: bool = True, max_grad_norm: float | None = 1.0,
    trust_clip: bool = False, always_adapt: bool = False, **moved: Value,
) -> Transform:  # fmt: skip
    """MMPretrain's. The norm of all gradients is clipped first, and only what decays is scaled to its weights."""
    for name, given, only in (
        ("bias_correction", bias_correction, True), ("grad_averaging", grad_averaging, True),
        ("trust_clip", trust_clip, False),
    ):  # fmt: skip
        if given != only:
            raise ValueError(f"{name} must be {only!r}, got {given!r}; for another register its class.")
    b1, b2 = _two(betas)
    return chain(
        *([] if max_grad_norm is None else [clip_by_norm(max_grad_norm, eps=0)]),
        scale_by_adam(moved.get("momentum", b1), b2, eps),
        *parts.decay(weight_decay, None),
        *_among([scale_by_trust_ratio()], bool(always_adapt) or where("weight_decay", bool)),
        scale_by_learning_rate(lr),
    )


NO_DEFAULT = inspect.Parameter.empty
OF_OPENMMLAB: dict[Any, Callable[..., Transform]] = {"LARS": _lars, "Lamb": _lamb}
"""OpenMMLab's own classes."""
_ADAM = ("lr", "betas", "eps", "weight_decay")
OWN: dict[Any, tuple[Callable[..., Transform], tuple[str, ...]]] = {
    "SGD": (sgd, ("lr", "momentum", "nesterov", "weight_decay")),
    "Adam": (adam, _ADAM),
    "AdamW": (adamw, _ADAM),
    "Lion": (lion, ("lr", "betas", "weight_decay")),
    "torch.Adafactor": (adafactor, ("lr", "beta2_decay", "eps", "d", "weight_decay")),
}
"""By class: ours, and those of its arguments that it is equal with; the others must be at their defaults."""
