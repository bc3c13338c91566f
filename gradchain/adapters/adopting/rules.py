"""The classes of torch.optim: the chain that a group's numbers say, and where what they remember goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gradchain import optimizers
from gradchain.adapters.adopting.moved import Slots
from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules.adafactors import adafactor
from gradchain.rules.orthogonal_steps import scale_by_muon
from gradchain.transforms.asgd import average_each, scale_by_asgd

Numbers = Mapping[str, Any]
"""By name in a group: what it is for all parameters; `lr` is the learning rate."""


@dataclass(frozen=True)
class Rule:
    """A class of torch.optim.

    Attributes:
        alias: the chain of a group, of its learning rate and keywords.
        numbers: name in a group → keyword of the alias, or keywords where the group has a tuple.
        flags: names that are no numbers: groups which differ in one are chains of their own.
        slots: names in the state of a parameter, each with the field of a link's state; see `moved.fill_rule`.
        decoupled: the alias where a group decouples its decay, if that is another one.
        behind: what comes behind the chains of all groups, for it takes their final weights: the name of its number in
            a group, what is added to that, and the link.
    """

    alias: Callable[..., chain]
    numbers: Mapping[str, str | tuple[str, str]]
    flags: tuple[str, ...] = ("maximize",)
    slots: Slots = ()
    decoupled: Callable[..., chain] | None = None
    behind: tuple[str, int, Callable[[Any], Transform]] | None = None

    def chain_of(self, numbers: Numbers, flags: Mapping[str, Any]) -> chain:
        """The chain that a user would write for these."""
        alias, words = self.alias, {}
        for name, keyword in self.numbers.items():
            if isinstance(keyword, str):
                words[keyword] = numbers[name]
            else:
                words.update(zip(keyword, (numbers[f"{name}[0]"], numbers[f"{name}[1]"]), strict=True))
        given = {name: value for name, value in flags.items() if value is not None and value is not False}
        if given.pop("decoupled_weight_decay", False):
            if self.decoupled is not None:
                alias = self.decoupled
            else:
                given["decoupled_weight_decay"] = True
        return alias(numbers["lr"], **words, **given)


_BETAS: dict[str, str | tuple[str, str]] = {"betas": ("b1", "b2"), "eps": "eps", "weight_decay": "weight_decay"}
_MOMENTS = (("step", "count"), ("exp_avg", "mu"), ("exp_avg_sq", "nu"), ("max_exp_avg_sq", "nu_max"))
_DECOUPLED = ("maximize", "decoupled_weight_decay")


def _muon(
    learning_rate: Any, ns_coefficients: Any, ns_steps: int, eps: float, adjust_lr_fn: str | None = None, **words: Any
) -> chain:
    """torch's Muon, which takes matrices alone."""
    decay, nesterov = words["weight_decay"], words.get("nesterov", False)
    factor = adjust_lr_fn or "original"
    made = scale_by_muon(words["momentum"], nesterov, ns_coefficients, ns_steps, eps, shape_factor=factor)
    return parts.rule(made, learning_rate, decay, decoupled=True)


def _asgd(learning_rate: Any, lambd: Any, alpha: Any, weight_decay: Any, maximize: bool = False) -> chain:
    """torch's ASGD without its mean, which no branch can have."""
    front = [*parts.ascent(maximize), *parts.decay(weight_decay, None)]
    return chain(*front, scale_by_asgd(learning_rate, lambd, alpha))


RULES: dict[type, Rule] = {
    torch.optim.SGD: Rule(
        optimizers.sgd,
        {"momentum": "momentum", "dampening": "dampening", "weight_decay": "weight_decay"},
        ("nesterov", "maximize"),
        (("momentum_buffer", "trace"), ("momentum_buffer", "count")),
    ),
    torch.optim.Adam: Rule(optimizers.adam, _BETAS, ("amsgrad", *_DECOUPLED), _MOMENTS, optimizers.adamw),
    torch.optim.AdamW: Rule(optimizers.adamw, _BETAS, ("amsgrad", "maximize"), _MOMENTS),
    torch.optim.SparseAdam: Rule(
        optimizers.sparse_adam, {"betas": ("b1", "b2"), "eps": "eps"}, ("maximize",), _MOMENTS
    ),
    torch.optim.NAdam: Rule(
        optimizers.nadam,
        {**_BETAS, "momentum_decay": "momentum_decay"},
        _DECOUPLED,
        (*_MOMENTS, ("mu_product", "mu_product")),
    ),
    torch.optim.RAdam: Rule(optimizers.radam, _BETAS, _DECOUPLED, _MOMENTS),
    torch.optim.Adamax: Rule(
        optimizers.adamax, _BETAS, slots=(("step", "count"), ("exp_avg", "mu"), ("exp_inf", "nu"))
    ),
    torch.optim.RMSprop: Rule(
        optimizers.rmsprop,
        {"alpha": "decay", "eps": "eps", "momentum": "momentum", "weight_decay": "weight_decay"},
        ("centered", "maximize"),
        (("step", ""), ("square_avg", "nu"), ("grad_avg", "mu"), ("momentum_buffer", "trace")),
    ),
    torch.optim.Adagrad: Rule(
        optimizers.adagrad,
        {"lr_decay": "lr_decay", "eps": "eps", "weight_decay": "weight_decay"},
        slots=(("step", "count"), ("sum", "sum_of_squares")),
    ),
    torch.optim.Adadelta: Rule(
        optimizers.adadelta,
        {"rho": "rho", "eps": "eps", "weight_decay": "weight_decay"},
        slots=(("step", ""), ("square_avg", "e_g"), ("acc_delta", "e_x")),
    ),
    torch.optim.Rprop: Rule(
        optimizers.rprop,
        {"etas": ("eta_minus", "eta_plus"), "step_sizes": ("min_step_size", "max_step_size")},
        slots=(("step", ""), ("prev", "prev"), ("step_size", "step_sizes")),
    ),
    torch.optim.Adafactor: Rule(
        adafactor,
        {"d": "d", "weight_decay": "weight_decay"},
        ("beta2_decay", "eps", "maximize"),
        (("step", "count"), ("row_var", "rows"), ("col_var", "columns"), ("variance", "nu")),
    ),
    torch.optim.Muon: Rule(
        _muon,
        {"momentum": "momentum", "weight_decay": "weight_decay"},
        ("nesterov", "ns_coefficients", "ns_steps", "eps", "adjust_lr_fn"),
        (("momentum_buffer", "mu"),),
    ),
    torch.optim.ASGD: Rule(
        _asgd,
        {"lambd": "lambd", "alpha": "alpha", "weight_decay": "weight_decay"},
        slots=(("step", "count"), ("eta", "eta"), ("mu", ""), ("ax", "average")),
        behind=("t0", 1, average_each),
    ),
}
