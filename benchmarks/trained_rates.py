"""The rate at which each rule trains the demo's network; see `trained.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import gradchain as gch

Make: TypeAlias = "Callable[[Any, float], Any]"
"""The chain of a rate's curve, and of the rate at its highest where the rule takes a number."""


def alias(name: str, **words: Any) -> Make:
    """An alias of this name, the rate first."""
    return lambda curve, rate: getattr(gch.rules, name)(curve, **words)


def link(name: str, *values: Any, **words: Any) -> Make:
    """A direction by itself, with a rate behind it."""
    return lambda curve, rate: gch.chain(getattr(gch.rules, name)(*values, **words), gch.scale_by_learning_rate(curve))


def constant(name: str, **words: Any) -> Make:
    """An alias whose rate is a number: it has a warm-up of its own, or reads it once."""
    return lambda curve, rate: getattr(gch.rules, name)(rate, **words)


def behind(name: str, *values: Any, **words: Any) -> Make:
    """Adam with this link in front of it."""
    return lambda curve, rate: gch.chain(getattr(gch.rules, name)(*values, **words), gch.adam(curve))


def orthogonal(name: str) -> Make:
    """A rule of the hidden matrices, and AdamW at its own rate for the rest: the network's last layer is its head."""
    return lambda curve, rate: getattr(gch.rules, name)(
        curve, head=gch.named("6.*"), aux=gch.adamw(gch.multiply(curve, (gch.everything, 0.3)))
    )


def on_spheres(curve: Any, rate: float) -> Any:
    """The hidden weights, those of the second convolution, keep their norm; the others are Adam's."""
    turned = gch.chain(gch.scale_by_adam(), gch.rules.hyperball(curve))
    return gch.partition((gch.named("2.weight"), turned), (gch.rest, gch.adam(curve)))


RATES: dict[str, tuple[Make, float]] = {
    # torch.optim
    "sgd": (alias("sgd"), 1.0),
    "sgd, momentum": (alias("sgd", momentum=0.9, nesterov=True), 0.1),
    "adam": (alias("adam"), 0.01),
    "adam, amsgrad": (alias("adam", amsgrad=True), 0.01),
    "adamw": (alias("adamw"), 0.01),
    "nadam": (alias("nadam"), 0.01),
    "nadamw": (alias("nadamw"), 0.01),
    "radam": (alias("radam"), 0.03),
    "adamax": (alias("adamax"), 0.03),
    "rmsprop": (alias("rmsprop"), 0.01),
    "rmsprop, centred": (alias("rmsprop", centered=True), 0.01),
    "adagrad": (alias("adagrad"), 0.1),
    "adadelta": (alias("adadelta"), 3.0),
    "adafactor": (alias("adafactor"), 0.1),
    "asgd": (alias("asgd"), 1.0),
    "rprop, accumulate(4)": (
        lambda curve, rate: gch.chain(gch.accumulate(4), gch.rprop(rate, min_step_size=0.0, max_step_size=0.01)), 0.001,
    ),
    "lion": (alias("lion"), 0.005),
    # elementwise, beyond torch
    "adabelief": (alias("adabelief"), 0.01),
    "yogi": (alias("yogi"), 0.03),
    "adan": (alias("adan"), 0.02),
    "adopt": (alias("adopt"), 0.01),
    "ademamix": (alias("ademamix"), 0.01),
    "simplified_ademamix": (alias("simplified_ademamix"), 0.0003),
    "laprop": (alias("laprop"), 0.01),
    "adam_atan2": (alias("adam_atan2"), 0.01),
    "acprop": (alias("acprop", eps=1e-3), 0.01),
    "cocob": (alias("cocob"), 1.0),
    "madgrad": (alias("madgrad"), 0.01),
    "sign_sgd": (alias("sign_sgd"), 0.01),
    "signum": (alias("signum"), 0.003),
    "tiger": (alias("tiger"), 0.003),
    "noisy_sgd": (alias("noisy_sgd", eta=1e-4), 1.0),
    "optimistic_gradient_descent": (alias("optimistic_gradient_descent"), 1.0),
    "optimistic_adam": (alias("optimistic_adam"), 0.003),
    "scale_by_qhm": (link("scale_by_qhm"), 3.0),
    # by tensor and by row
    "lamb": (alias("lamb"), 0.03),
    "lars": (alias("lars"), 9.0),
    "fromage": (alias("fromage"), 0.1),
    "novograd": (alias("novograd"), 0.03),
    "stable_adamw": (alias("stable_adamw"), 0.01),
    "sm3": (alias("sm3"), 0.1),
    "adam_mini": (alias("adam_mini"), 0.01),
    "adamp": (alias("adamp"), 0.01),
    "sgdp": (alias("sgdp", momentum=0.9), 0.1),
    "adaptive_grad_clip, adam": (behind("adaptive_grad_clip", 0.1), 0.01),
    "centralize, adam": (behind("centralize"), 0.01),
    # of matrices
    "muon": (orthogonal("muon"), 0.02),
    "normuon": (orthogonal("normuon"), 0.02),
    "adamuon": (orthogonal("adamuon"), 0.01),
    "came": (alias("came"), 0.01),
    "soap": (alias("soap"), 0.01),
    # that compose
    "cautious, adam": (
        lambda curve, rate: gch.chain(gch.rules.cautious(gch.scale_by_adam()), gch.scale_by_learning_rate(curve)), 0.01,
    ),
    "correct_gradient, adam": (behind("correct_gradient"), 0.01),
    "grokfast, adam": (behind("grokfast"), 0.003),
    "orthogonalize_gradient, adam": (behind("orthogonalize_gradient"), 0.01),
    "sam, adam": (behind("sam", 0.02), 0.01),
    "asam, adam": (behind("asam", 0.2), 0.01),
    # that own the weights
    "schedule_free_sgd": (constant("schedule_free_sgd", warmup_steps=44), 3.0),
    "schedule_free_adamw": (constant("schedule_free_adamw", warmup_steps=44), 0.01),
    "schedule_free_radam": (constant("schedule_free_radam"), 0.01),
    "lookahead, adam": (lambda curve, rate: gch.chain(gch.adam(curve), gch.rules.lookahead()), 0.01),
    "hyperball, adam": (on_spheres, 0.03),
}  # fmt: skip
