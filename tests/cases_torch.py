"""Rows of the rules of torch.optim, each beside the class itself, Optax where it has the rule, and a twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from case import Case
from harness import Problem
from peers import Peer, Rule, Weights, of_optax, of_torch, twin
from rules import falling
from torch import Tensor

import gradchain as gch


def torchs(name: str, **given: Any) -> Peer:
    """A class of torch.optim, whose own numbers are float64 as the weights are."""
    watch, before, foreach = given.pop("watch", None), None, {"foreach": False}
    if name == "SparseAdam":
        before, foreach = sparse, {}
    shown = ", ".join(f"{n}={v}" for n, v in given.items())
    peer = of_torch(
        f"torch.optim.{name}({shown})",
        lambda w, lr: getattr(torch.optim, name)(w.values(), lr=lr, **foreach, **given),
        watch=watch,
        before=before,
    )
    return replace(peer, run=lambda problem: in_double(peer.run, problem))


def sparse(params: list[Any], t: int) -> None:
    """Each gradient as that of all rows."""
    for p in params:
        p.grad = p.grad.to_sparse(1)


def of_rows(peer: Peer) -> Peer:
    """A peer that takes gradients of rows alone: a number is one row to it. Of complex ones it has no root."""

    def run(problem: Problem) -> list[dict[str, Any]]:
        moved = peer.run(problem.map(lambda tensors: {n: x if x.ndim else x[None] for n, x in tensors.items()}))
        return [{n: x.reshape(problem.params[n].shape) for n, x in row.items()} for row in moved]

    return replace(peer, run=run, complex=False)


def in_double(fn: Callable[..., Any], *args: Any) -> Any:
    """What `fn` gives where torch's default dtype is float64: some classes keep numbers in that."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return fn(*args)
    finally:
        torch.set_default_dtype(before)


def optaxs(make: Callable[[Any], Any], name: str) -> Peer:
    """A direction of Optax with the learning rate behind it."""
    return of_optax(f"optax.{name}", lambda ox, lr: ox.chain(make(ox), ox.scale_by_learning_rate(lr)))


# twins, written from the papers: direction of (g, memory, count), memory beginning empty


def directed(direction: Callable[[Tensor, dict[str, Any], int], Tensor]) -> Peer:
    """A twin that moves along minus the learning rate times a direction."""
    return twin(_along(direction))


def _along(direction: Callable[[Tensor, dict[str, Any], int], Tensor]) -> Rule:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        count = memory["t"] = memory.get("t", 0) + 1
        return w - lr * direction(g, memory, count)

    return rule


def _mean(memory: dict[str, Any], name: str, b: float, x: Tensor, start: float = 0.0) -> Tensor:
    old = memory.get(name, torch.full_like(x, start))
    memory[name] = b * old + (1 - b) * x
    return memory[name]


def rms(decay: float, eps: float, *, inside: bool = False, start: float = 0.0, correct: bool = False) -> Any:
    """Tieleman and Hinton, 2012."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        v = _mean(memory, "v", decay, g * g, start) / (1 - decay**t if correct else 1)
        return g / (v + eps).sqrt() if inside else g / (v.sqrt() + eps)

    return direction


def stddev(decay: float, eps: float, *, inside: bool = False, start: float = 0.0, correct: bool = False) -> Any:
    """Graves, 2013, equations 38 to 40."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        known = 1 - decay**t if correct else 1
        m = _mean(memory, "m", decay, g) / known
        v = _mean(memory, "v", decay, g * g, start) / known - m * m
        return g / (v + eps).sqrt() if inside else g / (v.sqrt() + eps)

    return direction


def rss(start: float, eps: float, *, inside: bool = False, lr_decay: float = 0.0) -> Any:
    """Duchi et al., 2011, figure 1, diagonal."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        s = memory["s"] = memory.get("s", start) + g * g
        return g / ((s + eps).sqrt() if inside else s.sqrt() + eps) / (1 + lr_decay * (t - 1))

    return direction


def adadelta(rho: float, eps: float) -> Any:
    """Zeiler, 2012, Algorithm 1."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        v = _mean(memory, "v", rho, g * g)
        u = (memory.get("x", torch.zeros_like(g)) + eps).sqrt() / (v + eps).sqrt() * g
        _mean(memory, "x", rho, u * u)
        return u

    return direction


def adamax(b1: float, b2: float, eps: float) -> Any:
    """Kingma and Ba, 2014, Algorithm 2, with eps as torch has it."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        m = _mean(memory, "m", b1, g)
        n = memory["n"] = torch.maximum(b2 * memory.get("n", torch.zeros_like(g)), g.abs() + eps)
        return m / (1 - b1**t) / n

    return direction


def radam(b1: float, b2: float, eps: float, *, hat: bool = True) -> Any:
    """Liu et al., 2019, Algorithm 2."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        m = _mean(memory, "m", b1, g) / (1 - b1**t)
        v = _mean(memory, "v", b2, g * g)
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length <= 5:
            return m
        r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
        l = math.sqrt(1 - b2**t) / (v.sqrt() + eps) if hat else 1 / ((v / (1 - b2**t)).sqrt() + eps)  # noqa: E741
        return m * r * l

    return direction


def amsgrad(b1: float, b2: float, eps: float, *, late: bool = False) -> Any:
    """Reddi et al., 2018, Algorithm 2, with Adam's corrections; `late`: the largest of what is corrected."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        m = _mean(memory, "m", b1, g) / (1 - b1**t)
        v, known = _mean(memory, "v", b2, g * g), 1 - b2**t
        n = memory["n"] = torch.maximum(memory.get("n", torch.zeros_like(g)), v / known if late else v)
        return m / ((n if late else n / known).sqrt() + eps)

    return direction


def eps_hat(b1: float, b2: float, eps: float) -> Any:
    """Kingma and Ba, 2014, the last lines of section 2."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        m, v = _mean(memory, "m", b1, g), _mean(memory, "v", b2, g * g)
        return math.sqrt(1 - b2**t) / (1 - b1**t) * m / (v.sqrt() + eps)

    return direction


def nadam(b1: float, b2: float, eps: float, psi: float) -> Any:
    """Dozat, 2016, Algorithm 8 of the report."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        def momentum(s: int) -> float:
            return b1 * (1 - 0.5 * 0.96 ** (s * psi))

        product = math.prod(momentum(s) for s in range(1, t + 1))
        m, v = _mean(memory, "m", b1, g), _mean(memory, "v", b2, g * g) / (1 - b2**t)
        ahead = momentum(t + 1) * m / (1 - product * momentum(t + 1)) + (1 - momentum(t)) * g / (1 - product)
        return ahead / (v.sqrt() + eps)

    return direction


def damped(decay: float, dampening: float) -> Any:
    """torch.optim.SGD, of which the first gradient is taken whole."""

    def direction(g: Tensor, memory: dict[str, Any], t: int) -> Tensor:
        memory["b"] = g if t == 1 else decay * memory["b"] + (1 - dampening) * g
        return memory["b"]

    return direction


def rprop(first: float, down: float, up: float, low: float, high: float) -> Rule:
    """Igel and Hüsken, 2003, Rprop without backtracking."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        agree = g.sign() * memory.get("g", torch.zeros_like(g)).sign()
        factor = torch.ones_like(g).masked_fill(agree > 0, up).masked_fill(agree < 0, down)
        memory["s"] = (memory.get("s", torch.full_like(g, first)) * factor).clamp(low, high)
        memory["g"] = g.masked_fill(agree < 0, 0.0)
        return w - memory["s"] * memory["g"].sign()

    return rule


def asgd(lambd: float, alpha: float) -> Rule:
    """Bottou, 2012, section 5.2: a rate that falls by own time, of which the decay is part."""

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], lr: float, t: int) -> Tensor:
        count = memory["t"] = memory.get("t", 0) + 1
        eta = lr / (1 + lambd * lr * (count - 1)) ** alpha
        return (1 - lambd * eta) * w - eta * g

    return rule


# averages that both have


def ax(weights: Weights, kept: dict[str, Any], t: int) -> dict[str, Any]:
    """The mean of the weights from the fifth update of each on, which torch's ASGD has as `ax` with t0=3."""
    seen = kept.setdefault("seen", {n: [] for n in weights})
    for n, w in weights.items():
        if w.grad is not None:
            seen[n].append(w.detach().clone())
    means = {n: torch.stack(s[4:] or s[-1:]).mean(0) if s else w.detach() for (n, w), s in _with(weights, seen)}
    return {f"mean of {n}": m.clone() for n, m in means.items()}


def _with(weights: Weights, seen: dict[str, list[Tensor]]) -> Any:
    return zip(weights.items(), seen.values(), strict=True)


def means(state: Any) -> dict[str, Any]:
    """The means that average_each keeps."""
    average = state.links["average_each"].average
    return {f"mean of {n}": average[n] for n in average}


ONE_GRADIENT = "the corrected variance of one gradient is a difference of equal numbers"

ROWS: tuple[Case, ...] = (
    Case(
        "maximize",
        gch.maximize(),
        (torchs("SGD", maximize=True), twin(lambda w, g, m, lr, t: w + lr * g)),
        lr=falling,
        degree=1,
    ),
    Case(
        "trace-dampening",
        gch.trace(0.9, dampening=0.5),
        (torchs("SGD", momentum=0.9, dampening=0.5), directed(damped(0.9, 0.5))),
        lr=falling,
        degree=1,
    ),
    Case(
        "scale_by_adam-eps-hat",
        gch.scale_by_adam(0.8, 0.95, 0.3, eps_hat=True),
        (directed(eps_hat(0.8, 0.95, 0.3)),),
        lr=falling,
    ),
    Case(
        "scale_by_rms",
        gch.scale_by_rms(eps=0.1),
        (torchs("RMSprop", eps=0.1), directed(rms(0.99, 0.1))),
        lr=falling,
    ),
    Case(
        "scale_by_rms-optax",
        gch.scale_by_rms(0.8, 0.1, 0.5, eps_in_sqrt=True, bias_correction=True),
        (
            optaxs(lambda ox: ox.scale_by_rms(0.8, 0.1, 0.5, True, True), "scale_by_rms"),
            directed(rms(0.8, 0.1, inside=True, start=0.5, correct=True)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_stddev",
        gch.scale_by_stddev(eps=0.1),
        (torchs("RMSprop", eps=0.1, centered=True), directed(stddev(0.99, 0.1))),
        lr=falling,
    ),
    Case(
        "scale_by_stddev-optax",
        gch.scale_by_stddev(0.8, 0.1, 0.5, bias_correction=True),
        (
            optaxs(lambda ox: ox.scale_by_stddev(0.8, 0.1, 0.5, False, True), "scale_by_stddev"),
            directed(stddev(0.8, 0.1, start=0.5, correct=True)),
        ),
        lr=falling,
        low=ONE_GRADIENT,
    ),
    Case(
        "scale_by_rss",
        gch.scale_by_rss(0.2, lr_decay=0.1),
        (
            torchs("Adagrad", initial_accumulator_value=0.2, lr_decay=0.1),
            directed(rss(0.2, 1e-10, lr_decay=0.1)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_rss-optax",
        gch.scale_by_rss(0.0, 0.1, eps_in_sqrt=True, lr_decay=0.1),
        (
            optaxs(
                lambda ox: ox.chain(ox.scale_by_rss(0.0, 0.1), ox.scale_by_schedule(lambda t: 1 / (1 + t / 10.0))),
                "scale_by_rss",
            ),
            directed(rss(0.0, 0.1, inside=True, lr_decay=0.1)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_adadelta",
        gch.scale_by_adadelta(0.8, 0.01),
        (
            torchs("Adadelta", rho=0.8, eps=0.01),
            optaxs(lambda ox: ox.scale_by_adadelta(0.8, 0.01), "scale_by_adadelta"),
            directed(adadelta(0.8, 0.01)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_adamax",
        gch.scale_by_adamax(0.8, 0.9, 0.01),
        (
            torchs("Adamax", betas=(0.8, 0.9), eps=0.01),
            optaxs(lambda ox: ox.scale_by_adamax(0.8, 0.9, 0.01), "scale_by_adamax"),
            directed(adamax(0.8, 0.9, 0.01)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_radam",
        gch.scale_by_radam(0.8, eps=0.01),
        (torchs("RAdam", betas=(0.8, 0.999), eps=0.01), directed(radam(0.8, 0.999, 0.01))),
        lr=falling,
    ),
    Case(
        "scale_by_radam-optax",
        gch.scale_by_radam(0.8, 0.9, 0.1, eps_hat=False),
        (
            optaxs(lambda ox: ox.scale_by_radam(0.8, 0.9, 0.1), "scale_by_radam"),
            directed(radam(0.8, 0.9, 0.1, hat=False)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_radam-nesterov",
        gch.scale_by_radam(0.8, 0.9, 0.1, 0.2, 6.0, nesterov=True, eps_hat=False),
        (
            optaxs(
                lambda ox: ox.scale_by_radam(0.8, 0.9, 0.1, 0.2, 6.0, nesterov=True), "scale_by_radam(nesterov=True)"
            ),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_amsgrad",
        gch.scale_by_amsgrad(0.8, 0.7, 0.1),
        (torchs("Adam", betas=(0.8, 0.7), eps=0.1, amsgrad=True), directed(amsgrad(0.8, 0.7, 0.1))),
        lr=falling,
    ),
    Case(
        "scale_by_amsgrad-optax",
        gch.scale_by_amsgrad(0.8, 0.7, 0.1, max_of="nu_hat"),
        (
            optaxs(lambda ox: ox.scale_by_amsgrad(0.8, 0.7, 0.1), "scale_by_amsgrad"),
            directed(amsgrad(0.8, 0.7, 0.1, late=True)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_amsgrad-mu",
        gch.scale_by_amsgrad(0.8, 0.7, 0.1, 0.2, bias_correction_nu=False),
        (
            optaxs(
                lambda ox: ox.scale_by_amsgrad(0.8, 0.7, 0.1, 0.2, bias_correction_nu=False),
                "scale_by_amsgrad(bias_correction_nu=False)",
            ),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_nadam",
        gch.scale_by_nadam(0.8, 0.95, 0.1, 0.3),
        (
            torchs("NAdam", betas=(0.8, 0.95), eps=0.1, momentum_decay=0.3),
            directed(nadam(0.8, 0.95, 0.1, 0.3)),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_nadam-optax",
        gch.scale_by_nadam(0.8, 0.95, momentum_decay=math.inf),
        (optaxs(lambda ox: ox.scale_by_adam(0.8, 0.95, nesterov=True), "scale_by_adam(nesterov=True)"),),
        lr=falling,
    ),
    Case(
        "scale_by_rprop",
        gch.scale_by_rprop(1.0, 0.4, 1.5, 0.5, 3.0),
        (torchs("Rprop", etas=(0.4, 1.5), step_sizes=(0.5, 3.0)), twin(rprop(1.0, 0.4, 1.5, 0.5, 3.0))),
        lr=1.0,
        degree=0,
    ),
    Case(
        "scale_by_asgd",
        gch.scale_by_asgd(0.5, 0.1, 0.6),
        (torchs("ASGD", lambd=0.1, alpha=0.6), twin(asgd(0.1, 0.6))),
        lr=None,
        uses_params=True,
    ),
    Case(
        "average_each",
        gch.average_each(4),
        (torchs("ASGD", lambd=0.0, t0=3, watch=ax),),
        watch=means,
        uses_params=True,
    ),
    # aliases
    Case(
        "rmsprop",
        gch.rmsprop(0.5, 0.8, 0.1, momentum=0.7, weight_decay=0.1),
        (torchs("RMSprop", alpha=0.8, eps=0.1, momentum=0.7, weight_decay=0.1),),
        covers="rmsprop",
        lr=None,
        uses_params=True,
    ),
    Case(
        "rmsprop-optax",
        gch.rmsprop(0.5, 0.8, 0.1, 0.5, True, True, 0.7, True, True),
        (of_optax("optax.rmsprop", lambda ox, lr: ox.rmsprop(lr, 0.8, 0.1, 0.5, True, True, 0.7, True, True)),),
        covers="rmsprop",
        lr=None,
        low=ONE_GRADIENT,
    ),
    Case(
        "adagrad",
        gch.adagrad(0.5, lr_decay=0.1, weight_decay=0.1),
        (torchs("Adagrad", lr_decay=0.1, weight_decay=0.1),),
        covers="adagrad",
        lr=None,
        uses_params=True,
    ),
    Case(
        "adagrad-optax",
        gch.adagrad(0.5, 0.1, 1e-7, eps_in_sqrt=True, lr_decay=0.1),
        (
            of_optax(
                "optax.adagrad",
                lambda ox, lr: ox.chain(ox.adagrad(lr), ox.scale_by_schedule(lambda t: 1 / (1 + t / 10.0))),
            ),
        ),
        covers="adagrad",
        lr=None,
    ),
    Case(
        "adadelta",
        gch.adadelta(0.5, eps=0.01, weight_decay=0.1),
        (
            torchs("Adadelta", eps=0.01, weight_decay=0.1),
            of_optax("optax.adadelta", lambda ox, lr: ox.adadelta(lr, eps=0.01, weight_decay=0.1)),
        ),
        covers="adadelta",
        lr=None,
        uses_params=True,
    ),
    Case(
        "adamax",
        gch.adamax(0.5, weight_decay=0.1),
        (
            torchs("Adamax", weight_decay=0.1),
            of_optax("optax.adamax", lambda ox, lr: ox.chain(ox.add_decayed_weights(0.1), ox.adamax(lr))),
        ),
        covers="adamax",
        lr=None,
        uses_params=True,
    ),
    Case(
        "adamax-decoupled",
        gch.adamax(0.5, weight_decay=0.1, decoupled_weight_decay=True),
        (of_optax("optax.adamaxw", lambda ox, lr: ox.adamaxw(lr, weight_decay=0.1)),),
        covers="adamax",
        lr=None,
        uses_params=True,
    ),
    Case(
        "radam",
        gch.radam(0.5, weight_decay=0.1, decoupled_weight_decay=True),
        (torchs("RAdam", weight_decay=0.1, decoupled_weight_decay=True),),
        covers="radam",
        lr=None,
        uses_params=True,
    ),
    Case(
        "radam-optax",
        gch.radam(0.5, b2=0.9, eps=0.1, eps_hat=False),
        (of_optax("optax.radam", lambda ox, lr: ox.radam(lr, b2=0.9, eps=0.1)),),
        covers="radam",
        lr=None,
    ),
    Case(
        "nadam",
        gch.nadam(0.5, weight_decay=0.1),
        (torchs("NAdam", weight_decay=0.1),),
        covers="nadam",
        lr=None,
        uses_params=True,
    ),
    Case(
        "sparse_adam",
        gch.sparse_adam(0.5, eps=0.1),
        (of_rows(torchs("SparseAdam", eps=0.1)), directed(eps_hat(0.9, 0.999, 0.1))),
        covers="sparse_adam",
        lr=None,
    ),
    Case(
        "rprop",
        gch.rprop(0.5),
        (torchs("Rprop"), twin(rprop(0.5, 0.5, 1.2, 1e-6, 50.0))),
        covers="rprop",
        lr=None,
        degree=0,
    ),
    Case(
        "asgd",
        gch.asgd(0.5, lambd=0.1, t0=3, weight_decay=0.1),
        (torchs("ASGD", lambd=0.1, t0=3, weight_decay=0.1, watch=ax),),
        covers="asgd",
        lr=None,
        watch=means,
        uses_params=True,
    ),
)
