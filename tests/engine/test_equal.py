"""Every executor over every chain, over layouts of every kind: equal to the pure reference.

Bounds are in twins.py. A step that fell back to the reference in silence would be equal too, so every step asserts who
ran it.
"""

from __future__ import annotations

import functools
import os

import pytest
import torch
from twins import EXECUTORS, STAND_INS, Shapes, Twins

import gradchain as gch
from gradchain.core.transform import registry, walk

HEAD = gch.named("head.*")
BODY = gch.named("body.*")
RATE = gch.cosine(0.05, 0.005, 7)
STEPS = 8


# links that a user might write


class RadamState(gch.State):
    count: gch.Count
    mu: gch.Tensors
    nu: gch.Tensors


class radam(gch.Transform):
    """A branch on the host: momentum alone, until the variance is known well enough."""

    b1: gch.Hyper = gch.Hyper(0.9)
    b2: gch.Hyper = gch.Hyper(0.9)

    def init(self, params):
        return RadamState(gch.Count(params.index), params.zeros_like(), params.zeros_like())

    def update(self, g, state, ctx):
        count = state.count.tick(g)
        mu, nu = state.mu.lerp(g, 1 - self.b1), state.nu.lerp(g * g, 1 - self.b2)
        u = mu / (1 - self.b1**count)
        if ctx.step >= 3:
            u = u / ((nu / (1 - self.b2**count)).sqrt() + 1e-8)
        return u, RadamState(count, mu, nu)


class lamb(gch.Transform):
    """One ratio per parameter, of norms of the weights and of a direction in the middle of the chain."""

    def update(self, u, state, ctx):
        ratio = gch.where(u.norms() > 0, ctx.params.norms() / (u.norms() + 1e-6), 1.0)
        return gch.minimum(ratio, 10.0) * u, state


class centred(gch.Transform):
    """Reductions that are no norms, over all and per parameter."""

    def update(self, u, state, ctx):
        mean = u.sums() / gch.maximum(u.numels(), 1)
        ctx.record("sum", u.sum())
        return u - mean + 1e-3 * (u * ctx.params).sum() / (1 + u.norm(3)), state


class mapped(gch.Transform):
    """A rule on whole matrices, as Muon's: Newton and Schulz's iteration towards an orthogonal matrix."""

    def update(self, u, state, ctx):
        return u.map(newton_schulz), state


def newton_schulz(g):
    if g.ndim != 2:
        return g
    x = g / (g.norm() + 1e-7)
    for _ in range(3):
        x = 1.5 * x - 0.5 * x @ x.mH @ x
    return x


class per_name(gch.Transform):
    """Numbers per parameter, and one tensor read by its name."""

    def update(self, u, state, ctx):
        rates = gch.Scalars({name: 1.0 + i / 10 for i, name in enumerate(ctx.params)})
        bias = (2.0 * ctx.params)["body.bias"]
        return rates * u * (1.0 + 0.1 * torch.tanh(bias.abs().mean()).item()), state


class branchy(gch.Transform):
    """The same tensors asked for after more or fewer operations that are not needed."""

    def update(self, u, state, ctx):
        doubled = 2.0 * u
        if ctx.step % 2:
            doubled.maximum(0.0)
        return doubled.map(torch.tanh), state


class zeroes(gch.Transform):
    """Zeros that are computed with, and reduced."""

    def update(self, u, state, ctx):
        zero = u.zeros_like()
        return u + (zero + 0.25).sqrt() * (zero.norm() + 1e-3) + zero.maximum(zero), state


class AnchorState(gch.State):
    anchor: gch.Tensors
    same: gch.Tensors


class anchored(gch.Transform):
    """State that init made of the weights themselves, in two fields."""

    def init(self, params):
        return AnchorState(params, params)

    def update(self, u, state, ctx):
        anchor, same = state.anchor.lerp(ctx.params, 0.1), state.same.lerp(ctx.params, 0.5)
        return u + 0.1 * (ctx.params - anchor) + 0.01 * same, AnchorState(anchor, same)


class masks(gch.Transform):
    """Comparisons, and what is made of them."""

    def update(self, u, state, ctx):
        agree = (u * ctx.params > 0) & ~(u.abs() < 0.1) | (u == 0.0)
        share = agree.where(agree, 0.0).sums() / gch.maximum(u.numels(), 1)
        return u.where(agree, 0.1 * u) * (0.5 + share) + u.sign().clamp(-0.5, 0.5), state


class CurvesState(gch.State):
    count: gch.Count
    mu: gch.Tensors


class curves(gch.Transform):
    """The elementary functions and steps, of tensors, masks, and numbers of every kind. Steps only of gradients, which
    are the same numbers in every executor: next to a border another rounding is another step."""

    def init(self, params):
        return CurvesState(gch.Count(params.index), params.zeros_like())

    def update(self, u, state, ctx):
        count = state.count.tick(u)
        mu = state.mu.lerp(u, 0.3)
        phase = gch.remainder(count, 3) / 3 + gch.round(count / 4) + gch.floor(0.3 * count) + count % 2
        each = gch.tanh(u.norms()) + gch.atan2(mu.norms(), ctx.params.norms() + 1.0) + gch.log1p(u.norm())
        bent = (
            mu.atan2(u.abs() + gch.exp(-count / 10)) + (mu * ctx.params).tanh() + gch.atan2(0.5, mu) * (u > 0).expm1()
        )
        steep = (u.abs() + 1e-3).log() + (0.1 * ctx.params).exp() + mu.expm1().erf() + mu.abs().log1p()
        stepped = (4.0 * u).round() / 4 + u.floor() + u % 0.75 + gch.remainder(2.0, u.abs() + 0.5) + (u < 0) % 0.75
        return u + 0.1 * (each * bent + steep + phase * stepped), CurvesState(count, mu)


def clamped(new):
    return new.clamp(-1.0, 1.0) if not new.is_complex() else new / new.abs().clamp(min=1.0)


def wave(u, params):
    return u.map(lambda a, b: a + 0.1 * torch.tanh(b.to(a.dtype)), params)


# the table: name → chain. A chain with a window or a loss scale is taught by losses, the others by gradients.

GRADIENTS = {
    "adamw": lambda: gch.adamw(RATE, mask=gch.min_ndim(2)),
    "adamw, clipped": lambda: gch.chain(gch.clip_by_norm(0.5), gch.adamw(0.01), gch.average_params(0.9)),
    "adamw, each clipped": lambda: gch.chain(gch.clip_by_norm(0.5, per="tensor"), gch.adamw(0.01)),
    "adam": lambda: gch.adam(0.01, eps_root=1e-8),
    "adam, mu_dtype": lambda: gch.adam(0.01, mu_dtype=torch.bfloat16),
    "nadamw": lambda: gch.nadamw(0.01),
    "lion": lambda: gch.chain(gch.clip_by_norm(0.5, p=1), gch.lion(0.01)),
    "sgd": lambda: gch.sgd(0.05, weight_decay=0.1),
    "sgd, nesterov": lambda: gch.sgd(RATE, momentum=gch.linear(0.0, 0.9, 4), nesterov=True, weight_decay=0.1),
    "rmsprop": lambda: gch.rmsprop(RATE, eps=1e-3, momentum=gch.linear(0.1, 0.9, 4), weight_decay=0.1),
    "rmsprop, optax": lambda: gch.rmsprop(0.01, 0.9, 1e-3, 0.1, eps_in_sqrt=True, bias_correction=True),
    "rmsprop, centred": lambda: gch.rmsprop(0.01, 0.9, 0.1, centered=True, maximize=True),
    "adagrad": lambda: gch.adagrad(RATE, lr_decay=0.1),
    "adagrad, optax": lambda: gch.adagrad(0.05, 0.1, 1e-3, eps_in_sqrt=True),
    "adadelta": lambda: gch.adadelta(weight_decay=0.1),
    "adamax": lambda: gch.adamax(RATE, weight_decay=0.1, decoupled_weight_decay=True),
    "amsgrad": lambda: gch.adam(0.01, amsgrad=True, weight_decay=0.1),
    "amsgrad, optax": lambda: gch.chain(gch.rules.scale_by_amsgrad(max_of="nu_hat"), gch.scale_by_learning_rate(RATE)),
    "nadam": lambda: gch.nadam(RATE, momentum_decay=0.3),
    "radam of torch": lambda: gch.radam(0.01, b2=0.9, weight_decay=0.1),
    "rprop": lambda: gch.rprop(0.01),
    "asgd": lambda: gch.asgd(RATE, 0.1, t0=2, weight_decay=0.1),
    "sparse_adam": lambda: gch.sparse_adam(0.01),
    "sgd, dampened": lambda: gch.sgd(0.05, 0.9, dampening=gch.linear(0.1, 0.5, 4), maximize=True),
    "adafactor": lambda: gch.adafactor(0.1, weight_decay=0.1),
    "orthogonal": lambda: gch.chain(gch.rules.scale_by_muon(dtype=None), gch.scale(-0.02)),
    "orthogonal, adaptive": lambda: gch.chain(
        gch.masked(gch.rules.scale_by_normuon(dtype=None), HEAD),
        gch.masked(gch.rules.scale_by_adamuon(dtype=None, sign=False, eps=1e-3), BODY), gch.scale(-0.02),
    ),
    # of those alone whose covariance has no two eigenvalues that are zero: their vectors are any
    "soap": lambda: gch.chain(
        gch.masked(gch.rules.scale_by_soap(every=3), gch.named("body.weight", "body.bias")), gch.scale(-0.01),
    ),
    "came": lambda: gch.rules.came(0.01, weight_decay=0.1),
    "factored": lambda: gch.chain(
        gch.rules.scale_by_factored_rms(min_dim_size_to_factor=2), gch.rules.cap_learning_rate(2.0), gch.scale(-0.01),
    ),
    "factored, last": lambda: gch.chain(
        gch.rules.scale_by_factored_rms(dims="last", min_dim_size_to_factor=0, epsilon=0, floor=0.1), gch.scale(-0.01),
    ),
    "noise": lambda: gch.chain(
        gch.add_noise(0.01, gch.linear(0.3, 0.6, 5), seed=3), gch.clip_by_norm(0.5), gch.trace(0.9),
        gch.masked(gch.add_noise(0.02, 0.0, seed=3), HEAD), gch.scale(-0.05),
    ),
    "clips": lambda: gch.chain(
        gch.clip_by_value(1.5), gch.clip_by_norm(1.0, per="tensor"), gch.clip_by_norm(2.0, p=float("inf")),
        gch.clip_by_norm(1.0, p=3), gch.clip_by_norm(0.5, per=[HEAD, BODY]), gch.scale(-0.1),
    ),
    "late clip": lambda: gch.chain(gch.scale_by_adam(), gch.clip_by_norm(1.0), gch.scale_by_learning_rate(0.05)),
    "masked": lambda: gch.chain(
        gch.masked(gch.chain(gch.clip_by_norm(0.3), gch.trace(0.9)), HEAD), gch.scale_by_adam(),
        gch.masked(gch.scale(gch.linear(0.1, 1.0, 5)), BODY), gch.scale_by_learning_rate(0.01),
    ),
    "partition": lambda: gch.partition(
        ("head", HEAD, gch.chain(gch.accumulate(2), gch.adamw(0.01))), (gch.rest, gch.sgd(0.05, momentum=0.9))
    ),
    "freeze": lambda: gch.chain(gch.freeze(HEAD, until=3), gch.adam(RATE)),
    "cautious": lambda: gch.chain(
        gch.rules.cautious(gch.scale_by_adam()), gch.add_decayed_weights(0.1, by="cautious"), gch.sgd(RATE)
    ),
    "measured decays": lambda: gch.chain(
        gch.rules.grokfast(0.9), gch.masked(gch.add_decayed_weights(0.1, by="schedule", rate=RATE), HEAD),
        gch.masked(gch.add_decayed_weights(0.1, by="corrected", rate=RATE), BODY), gch.sgd(RATE),
    ),
    "in front": lambda: gch.chain(
        gch.rules.correct_gradient(0.1), gch.rules.orthogonalize_gradient(), gch.sgd(0.05)
    ),
    "usual norms": lambda: gch.chain(
        gch.rules.skip_spikes(1.5, 0.9, warmup=2), gch.rules.skip_large_updates(1e6),
        gch.rules.clip_by_zscore(1.0, 0.9, 2), gch.rules.clip_by_ema_norm(1.05, 5.0, 0.9, 3), gch.adam(0.01),
    ),
    "in turns": lambda: gch.chain(
        gch.freeze(HEAD, start=2, until=5), gch.rules.snapshot("size", lambda u: u.norm(), 0.9),
        gch.when(lambda step: step % 3 != 1, gch.trace(0.9)),
        gch.switch(gch.scale_by_adam(), gch.chain(gch.clip_by_norm(0.5), gch.trace(0.9)), at=4), gch.sgd(RATE),
    ),
    "signs": lambda: gch.chain(gch.trace(0.5), gch.scale_by_sign(), gch.scale_by_schedule(RATE), gch.scale(-1.0)),
    "finite": lambda: gch.chain(gch.skip_nonfinite(), gch.nan_to_num(), gch.adam(0.01)),
    "all finite": lambda: gch.chain(
        gch.skip_nonfinite(of="all"), gch.guard(float("inf"), 1.5, 1.5, True, warmup=2), gch.adam(0.01)
    ),
    "mean": lambda: gch.chain(gch.sgd(0.05), gch.average_params("mean", start=2, every=2, dtype=torch.float64)),
    "buffers": lambda: gch.chain(gch.adam(0.01), gch.average_params(0.9, buffers="average")),
    "schedule-free": lambda: gch.chain(gch.clip_by_norm(0.5), gch.rules.schedule_free_adamw(RATE, 3, weight_decay=0.1)),
    "schedule-free, rectified": lambda: gch.chain(
        gch.trace(0.5), gch.rules.schedule_free(0.1, z_decay=0.1, rectify=0.7)
    ),
    "hyperball": lambda: gch.chain(gch.scale_by_adam(), gch.rules.hyperball(RATE)),
    "qk_clip": lambda: gch.chain(gch.adam(0.02), gch.rules.qk_clip("logit", HEAD)),
    "primal averages": lambda: gch.rules.gpa_adamw(RATE, mu_x=0.8, weight_decay=0.1),
    "msam": lambda: gch.chain(gch.trace(0.5), gch.rules.msam(RATE)),
    "aggmo": lambda: gch.rules.aggmo(0.05, weight_decay=0.1),
    "grokfast_ma": lambda: gch.chain(gch.rules.grokfast_ma(3), gch.sgd(0.02)),
    "lmo": lambda: gch.chain(gch.rules.scale_by_lmo(dtype=None), gch.scale(-0.02)),
    "lmo, ends": lambda: gch.chain(
        gch.masked(gch.rules.scale_by_lmo("sign"), HEAD), gch.masked(gch.rules.scale_by_lmo("rows"), BODY),
        gch.scale(-0.02),
    ),
    "lookahead": lambda: gch.chain(gch.adam(0.02), gch.rules.lookahead(3)),
    "project": lambda: gch.chain(gch.adam(0.05), gch.project(clamped, HEAD), gch.average_params(0.5)),
    "plateau": lambda: gch.chain(gch.reduce_on_plateau("val_loss", base=0.5), gch.sgd(0.05)),
    "tick_on_plateau": lambda: gch.chain(gch.rules.tick_on_plateau("val_loss", "plateau"), gch.sgd(0.05)),
    "from torch": lambda: gch.chain(gch.clip_by_norm(0.5), gch.from_torch("SGD", lr=0.05), gch.average_params(0.5)),
    "from torch, in branches": lambda: gch.partition(
        (HEAD, gch.from_torch("SGD", lr=RATE, momentum=0.9)), (gch.rest, gch.sgd(0.05))
    ),
    "stateless": lambda: gch.chain(gch.stateless(wave), gch.masked(gch.stateless(wave), HEAD), gch.sgd(0.05)),
    "radam": lambda: gch.chain(radam(), gch.scale_by_learning_rate(0.02)),
    "lamb": lambda: gch.chain(gch.scale_by_adam(), gch.add_decayed_weights(0.1), lamb(), gch.scale(-0.01)),
    "centred": lambda: gch.chain(centred(), gch.sgd(0.05, momentum=0.9)),
    "muon": lambda: gch.chain(gch.trace(0.9), mapped(), gch.sgd(0.02)),
    "per name": lambda: gch.chain(per_name(), gch.adam(0.01)),
    "branchy": lambda: gch.chain(branchy(), gch.sgd(0.05)),
    "zeroes": lambda: gch.chain(zeroes(), gch.sgd(0.05)),
    "anchored": lambda: gch.chain(anchored(), gch.sgd(0.05)),
    "masks": lambda: gch.chain(masks(), gch.sgd(0.05)),
    "curves": lambda: gch.chain(curves(), gch.sgd(0.05)),
    # the elementwise rules of Optax and beyond
    "adabelief": lambda: gch.rules.adabelief(0.01, eps=1e-8, eps_root=1e-8, nesterov=True),
    "yogi": lambda: gch.rules.yogi(RATE),
    "adan": lambda: gch.rules.adan(RATE, weight_decay=0.1, mask=HEAD),
    "adopt": lambda: gch.rules.adopt(0.01, nesterov=True, weight_decay=0.1),
    "ademamix": lambda: gch.rules.ademamix(0.01, alpha_warmup=5, b3_warmup=5),
    "simplified ademamix": lambda: gch.rules.simplified_ademamix(0.001, alpha=2.0),
    "laprop": lambda: gch.rules.laprop(0.01, eps=1e-8),
    "adam-atan2": lambda: gch.rules.adam_atan2(0.01, weight_decay=0.1),
    "tiger": lambda: gch.chain(gch.rules.ema(0.5), gch.rules.scale_by_qhm(), gch.rules.tiger(0.01)),
    "optimistic": lambda: gch.rules.optimistic_adam(0.01),
    "lion, smooth": lambda: gch.chain(gch.scale_by_lion(mode="smooth"), gch.scale_by_learning_rate(0.01)),
    "lion, refined": lambda: gch.chain(gch.scale_by_lion(mode="refined"), gch.scale_by_learning_rate(0.01)),
    "acprop": lambda: gch.rules.acprop(0.01, eps=1e-3, eps_root=1e-3),
    "cocob": lambda: gch.rules.cocob(),
    "madgrad": lambda: gch.rules.madgrad(RATE, weight_decay=0.01),
    "lamb, trusted": lambda: gch.rules.lamb(RATE, weight_decay=0.1, mask=BODY, trust_ratio_mask=gch.min_ndim(2)),
    "lars": lambda: gch.rules.lars(0.1, 0.1, trust_coefficient=0.2, norms_apart=True, rate_last=True),
    "fromage": lambda: gch.rules.fromage(RATE),
    "novograd": lambda: gch.rules.novograd(0.01, weight_decay=0.1),
    "block norms": lambda: gch.chain(
        gch.rules.normalize_by_update_norm(5.0), gch.rules.clip_by_block_rms(0.5),
        gch.rules.scale_by_param_block_norm(), gch.rules.scale_by_param_block_rms(), gch.scale(-0.05),
    ),
    "rows": lambda: gch.chain(gch.rules.centralize(), gch.rules.adaptive_grad_clip(0.3), gch.sgd(0.05)),
    "stable adam": lambda: gch.rules.stable_adamw(RATE, weight_decay=0.1, mask=HEAD),
    "sm3": lambda: gch.rules.sm3(0.05),
    "adam_mini": lambda: gch.rules.adam_mini(0.01, blocks=[(gch.named("head.weight"), 3), (BODY, "row")]),
    "adamp": lambda: gch.rules.adamp(0.01, weight_decay=0.1, mask=BODY, delta=0.5),
    "sgdp": lambda: gch.rules.sgdp(RATE, 0.9, weight_decay=0.1, delta=0.5),
}  # fmt: skip
LOSSES = {
    "accumulate": lambda: gch.chain(gch.accumulate(2), gch.clip_by_norm(0.5), gch.adamw(0.01)),
    "accumulate, amp": lambda: gch.chain(
        gch.accumulate(2), gch.amp_scale(1024.0, growth_interval=2, always=True), gch.clip_by_norm(1.0),
        gch.adamw(RATE), gch.average_params(0.9),
    ),
    "amp, accumulate": lambda: gch.chain(
        gch.amp_scale(1024.0, growth_interval=2, always=True), gch.accumulate(2, dtype=torch.float32),
        gch.sgd(0.05, momentum=0.9),
    ),
    "amp": lambda: gch.chain(gch.amp_scale(1024.0, growth_interval=2, always=True), gch.adamw(0.01)),
    "sam": lambda: gch.chain(gch.sam(0.05), gch.sgd(0.05, momentum=0.9)),
    "asam": lambda: gch.chain(gch.rules.asam(0.5), gch.sgd(0.05, momentum=0.9)),
}  # fmt: skip
GATED = {"finite", "amp", "accumulate, amp", "amp, accumulate"}
ALIASES = {
    "sgd",
    "adam",
    "adamw",
    "nadamw",
    "lion",
    "rmsprop",
    "adagrad",
    "adadelta",
    "adamax",
    "nadam",
    "radam",
    "rprop",
}
ALIASES |= {"asgd", "sparse_adam"}
MIXED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KINDS = {
    "float64": (torch.float64,),
    "float32": (torch.float32,),
    "mixed": MIXED,
    "complex": (torch.complex128, torch.float64),
}
# where a rule asks for something that complex numbers or float16 do not have
UNFIT = {
    ("adam, mu_dtype", "complex"),
    ("project", "mixed"),
    ("muon", "mixed"),
    ("orthogonal", "mixed"),
    ("lmo", "mixed"),
    ("soap", "mixed"),
    ("soap", "complex"),
    ("orthogonal, adaptive", "mixed"),
    ("orthogonal, adaptive", "complex"),
    ("mean", "complex"),
    ("lion", "complex"),
    ("rprop", "complex"),
    ("adam_mini", "complex"),
    ("clips", "complex"),
}

LOOSE = {
    # a moment in bfloat16 that falls on the other side of a rounding border turns a direction by 2**-8
    "adam, mu_dtype": 2.0**-8,
    # the reference adds to a float32 window in float32; a kernel with a float64 column computes in float64
    "amp, accumulate": 2.0**-24,
}


LONG = bool(os.environ.get("GRADCHAIN_LONG"))


def cases():
    """Each executor runs a chain in one or two kinds in turn; with GRADCHAIN_LONG=1 in every one."""
    for e, executor in enumerate((*EXECUTORS, *STAND_INS)):
        for i, name in enumerate((*GRADIENTS, *LOSSES)):
            fit = [kind for kind in KINDS if (name, kind) not in UNFIT and (executor == "native" or kind != "complex")]
            for k, kind in enumerate(fit):
                if LONG or (e + i + k) % min(3, len(fit)) == 0:
                    yield pytest.param(executor, name, kind, id=f"{executor}-{name}-{kind}")


def teach(twins: Twins, name: str) -> None:
    """Eight steps: with gradients absent, laid out otherwise, infinite; with an override for a while."""
    rated = sum(key.endswith("learning_rate") for key in twins.ours.hyperparams()) == 1 and name != "rprop"  # read once
    for t in range(STEPS):
        if rated and t in (4, 6):
            twins.each(lambda _, u, t=t: u.override("learning_rate", factor=0.5 if t == 4 else None))
        absent = ("body.conv", "head.long") if t == 3 else ()
        if name in LOSSES:
            bad = "head.weight" if t == 5 and name in GATED else ""
            twins.loss(t, absent, bad, closure=name in ("sam", "asam"))
        else:
            size = float("inf") if name in GATED and t == 5 else 1.0
            twins.gradients(t, absent, turned=t in (2, 5), size=size)


@pytest.mark.parametrize(("executor", "name", "kind"), list(cases()))
@pytest.mark.filterwarnings("ignore:chain. scale_by_.* divides out the scale")
@pytest.mark.filterwarnings("ignore:bind. float16")
def test_equal_to_the_reference(executor, name, kind):
    tx = {**GRADIENTS, **LOSSES}[name]()
    twins = Twins(tx, Shapes(KINDS[kind]), {**EXECUTORS, **STAND_INS}[executor])
    teach(twins, name)
    twins.compare(LOOSE.get(name, 0.0))
    if name in ("adamw", "sgd") and kind == "float32":
        assert executor in twins.used


@functools.cache
def links_of_the_table():
    chains = [make() for make in (*GRADIENTS.values(), *LOSSES.values())]
    links = [link for tx in chains for _, link, _ in walk(gch.chain(tx), None)]
    return {type(link).__name__ for link in (*chains, *links)}


@pytest.mark.parametrize("name", sorted(registry))
def test_a_link_occurs(name):
    assert name in links_of_the_table(), "this link is in no chain of GRADIENTS or LOSSES in tests/engine/test_equal.py"


def test_every_alias_occurs():
    from gradchain import optimizers

    assert not set(optimizers.__all__) - ALIASES, "these aliases are in no chain of the table"


def test_a_factor_that_float32_cannot_divide_by():
    """The fused kernels divide gradients by what a clip multiplies them by."""
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(n)) for n in (3, 5)])
    twins = Twins(gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.1)), model, EXECUTORS["patterns"])

    def do(model, updater):
        for p in model:
            p.grad = torch.full_like(p, 3e38)
        return updater.step()

    assert twins.step(do) == "applied"
    assert "patterns" in twins.used
    twins.compare()


def test_a_wrong_kernel_is_seen(monkeypatch):
    """The bounds are tight enough: one update in a thousand too large is not equal."""
    twins = Twins(gch.adamw(0.01), Shapes(), ("blocks",))
    part = type(twins.ours._bound.engine.executors[0])
    ready = part.ready

    def wrong(self, program, dtypes, sizes):
        runner = ready(self, program, dtypes, sizes)
        write = runner.write
        runner.write = lambda to, columns, given, entries: write(to, columns, [1.000001 * s for s in given], entries)
        return runner

    monkeypatch.setattr(part, "ready", wrong)
    teach(twins, "adamw")
    with pytest.raises(AssertionError, match="of"):
        twins.compare()
