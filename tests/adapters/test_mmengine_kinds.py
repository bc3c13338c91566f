"""Constructors, schedulers and optimizers of OpenMMLab's projects, beside twins of their formulas."""

from __future__ import annotations

import copy
import functools
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from later import later
from mmengine_live import optimizer_of, registry, trajectory, values
from mmengine_training import batches, model
from torch import Tensor, nn

import gradchain as gch
from gradchain.adapters import mmengine
from gradchain.adapters.mmengine.groups import params

SGD = {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
RUN = {"max_epochs": 5, "epoch_length": 4}


# layers that are not there


class BEiT(nn.Module):
    """A backbone of four blocks, with the name that its list of blocks has."""

    def __init__(self, blocks: str = "layers", count: int = 4) -> None:
        super().__init__()
        self.patch_embed, self.cls_token = nn.Linear(2, 2), nn.Parameter(torch.zeros(1, 1, 2))
        setattr(self, blocks, nn.ModuleList(nn.Linear(2, 2) for _ in range(count)))


class Vision(nn.Module):
    def __init__(self, blocks: str = "layers", count: int = 4) -> None:
        super().__init__()
        self.backbone, self.head = BEiT(blocks, count), nn.Linear(2, 2)

    def get_layer_depth(self, name: str) -> tuple[int, int]:
        """MMPretrain's, of a model whose blocks are called layers."""
        found = re.match(r"backbone\.layers\.(\d+)\.", name)
        return (int(found[1]) + 1 if found else 0 if name.startswith("backbone") else 5), 6


LAYERED = [
    ("mmseg.LearningRateDecayOptimizerConstructor", {"num_layers": 4, "decay_rate": 0.5}),
    ("LayerDecayOptimizerConstructor", {"num_layers": 4, "layer_decay_rate": 0.5}),
    ("LayerDecayOptimWrapperConstructor", {"num_layers": 4, "layer_decay_rate": 0.5}),
    ("LearningRateDecayOptimWrapperConstructor", {"layer_decay_rate": 0.5}),
]


@pytest.mark.parametrize(("constructor", "rules"), LAYERED)
def test_a_layer_decay_needs_its_layers(constructor: str, rules: dict[str, Any]) -> None:
    """Blocks by timm's name, none, or more than the config says: an error, or a warning and MMEngine's numbers."""
    wrapper = {"optimizer": SGD, "constructor": constructor, "paramwise_cfg": rules}
    assert len({s["lr"] for s in mmengine.param_settings(Vision(), wrapper).values()}) == 6
    for net in (Vision("blocks"), Vision(count=0)):
        with pytest.raises(ValueError, match="the model must have layers by the names that"):
            mmengine.param_settings(net, wrapper)
        with pytest.warns(UserWarning, match="the model must have layers by the names that"):
            found = mmengine.param_settings(net, wrapper, strict=False)
        assert found["backbone.patch_embed.weight"]["lr"] == 0.5**5 * 0.05
    if "num_layers" in rules:
        with pytest.raises(ValueError, match=re.escape("one of the 4, got 'backbone.layers.5.weight'")):
            mmengine.param_settings(Vision(count=6), wrapper)


class Timm(nn.Module):
    """A transformer with timm's names, by itself or as MMPretrain's TimmClassifier holds it."""

    def __init__(self, within: str = "") -> None:
        super().__init__()
        inner = BEiT("blocks")
        inner.head = nn.Linear(2, 2)
        for name, part in {within: inner}.items() if within else inner.named_children():
            setattr(self, name, part)


@pytest.mark.parametrize("within", ["", "model", "backbone"])
def test_timms_names_have_layers_too(within: str) -> None:
    """MMPretrain's constructor asks the model, which of timm's has no get_layer_depth: there it raises."""
    wrapper = {
        "optimizer": SGD, "constructor": "LearningRateDecayOptimWrapperConstructor",
        "paramwise_cfg": {"layer_decay_rate": 0.5, "bias_decay_mult": 0.0},
    }  # fmt: skip
    net, before = Timm(within), f"{within}." if within else ""
    rates = {name: s["lr"] / 0.05 for name, s in mmengine.param_settings(net, wrapper).items()}
    known = {"patch_embed.bias": 5, "blocks.0.weight": 4, "blocks.3.bias": 1, "head.weight": 0}
    assert {name: rates[before + name] for name in known} == {name: 0.5**deep for name, deep in known.items()}
    text = repr(mmengine.from_config(net, wrapper, **RUN).chain)
    said = f'prefix="{before}", ' if before else ""
    assert f'layer_decay(0.5, depth.vit(4, {said}blocks="blocks"))' in text
    for strange in (nn.Sequential(nn.Linear(2, 2)), nn.ModuleDict({"a": BEiT("blocks"), "b": BEiT("blocks")})):
        with pytest.raises(NotImplementedError, match="the model must have a method get_layer_depth"):
            mmengine.param_settings(strange, wrapper)


# what a constructor is called


@pytest.mark.parametrize("name", [
    "MyMultiOptimWrapperConstructor", "my.LearningRateDecayOptimizerConstructor", "mymm.MultiOptimWrapper",
    "DefaultOptimWrapperConstructors", "mmdet.MyDefaultOptimWrapperConstructor",
    "my_project.DefaultOptimizerConstructor",
])  # fmt: skip
def test_a_constructor_is_no_other(name: str) -> None:
    """Nobody's becomes another for having its name at the end, or another project's scope."""
    for read in (lambda w: mmengine.from_config(model(), w, **RUN), lambda w: mmengine.unbound(w, **RUN)):
        with pytest.raises(ValueError, match=f"constructor must be one of .* got '{re.escape(name)}'"):
            read({"optimizer": SGD, "constructor": name, "paramwise_cfg": {"bias_lr_mult": 2.0}})


@pytest.mark.parametrize("name", ["DefaultOptimWrapperConstructor", "mmengine.DefaultOptimWrapperConstructor",
                                  "mmdet::DefaultOptimWrapperConstructor"])  # fmt: skip
def test_a_constructor_may_have_its_project_before_it(name: str) -> None:
    rate = mmengine.from_config(
        model(), {"optimizer": SGD, "constructor": name, "paramwise_cfg": {"bias_lr_mult": 2.0}}, **RUN
    ).hyperparams()["scale_by_learning_rate.learning_rate"]
    assert rate["head.1.bias"] == 0.1 and rate["body.1.bias"] == 0.05


@pytest.mark.parametrize("constructor", ["GenOptimWrapperConstructor", "mmrazor.SeparateOptimWrapperConstructor"])
def test_one_optimizer_for_each_child(constructor: str) -> None:
    """MMGeneration's and MMRazor's, which look for children only; with rules for each, and schedulers."""
    wrapper = {
        "constructor": constructor, "body": {"optimizer": SGD, "paramwise_cfg": {"norm_decay_mult": 0.0}},
        "head": {"optimizer": {"type": "Adam", "lr": 0.1}},
    }  # fmt: skip
    schedulers = {"body": [{"type": "ConstantLR", "factor": 0.5}], "head": []}
    both = mmengine.from_config(model(), wrapper, schedulers, **RUN)
    assert list(both) == ["body", "head"] and both["head"].hyperparams()["scale_by_learning_rate.learning_rate"] == 0.1
    assert both["body"].hyperparams()["add_decayed_weights.weight_decay"]["1.weight"] == 0.0
    assert [part.of for part in mmengine.unbound(wrapper, schedulers, **RUN)] == ["body", "head"]
    with pytest.raises(ValueError, match=r"'\.\*head' must name a child of the model, which has body, head"):
        mmengine.from_config(model(), {"constructor": constructor, ".*head": {"optimizer": SGD}}, **RUN)


def test_a_constructor_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a function of the model and its dict; its groups are read as any, and what is no constructor is refused."""
    monkeypatch.setattr(params, "registered", {})

    @mmengine.register_constructor("Halves")
    def halves(net: nn.Module, config: dict[str, Any]) -> list[dict[str, Any]]:
        parts = list(net.parameters())
        return [
            {"params": parts[:3], "lr": config["optimizer"]["lr"] * config["paramwise_cfg"]["slow"]},
            {"params": parts[3:], "weight_decay": 0.0},
        ]

    wrapper = {"optimizer": SGD, "constructor": "my.Halves", "paramwise_cfg": {"slow": 0.1}}
    numbers = mmengine.from_config(model(), wrapper, **RUN).hyperparams()
    assert numbers["scale_by_learning_rate.learning_rate"]["body.0.weight"] == pytest.approx(0.005, rel=1e-15)
    assert numbers["add_decayed_weights.weight_decay"]["head.1.weight"] == 0.0
    with pytest.raises(NotImplementedError, match="depends on the model"):
        mmengine.unbound(wrapper, **RUN)
    with pytest.raises(TypeError, match=r"name must be a name without a scope, got 'a\.b'"):
        mmengine.register_constructor("a.b")
    with pytest.raises(ValueError, match="register_constructor"):
        mmengine.from_config(model(), {**wrapper, "constructor": "Thirds"}, **RUN)


# what counts with a custom key, and what 0 becomes


@pytest.mark.parametrize(("rules", "said"), [
    ({"norm_decay_mult": 0.0, "custom_keys": {"body": {"lr_mult": 0.1}}}, True),
    ({"bias_decay_mult": 0.0, "custom_keys": {"head": {"lr": 0.1}}}, True),
    ({"dwconv_decay_mult": 0.5, "custom_keys": {"body": {"lr_mult": 0.1}}}, True),
    ({"norm_decay_mult": 0.0, "custom_keys": {"body": {"lr_mult": 0.1, "decay_mult": 1.0}}}, False),
    ({"norm_decay_mult": 0.0, "custom_keys": {"head.1": {"lr_mult": 0.1}}}, False),
    ({"bias_lr_mult": 2.0, "custom_keys": {"head": {"lr_mult": 0.1}}}, False),
])  # fmt: skip
def test_a_custom_key_that_puts_off_a_rule_is_said(rules: dict[str, Any], said: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mmengine.from_config(model(), {"optimizer": SGD, "paramwise_cfg": rules}, **RUN)
    assert bool([w for w in caught if "says no decay_mult, and no other rule counts" in str(w.message)]) is said
    forced = {"constructor": "ForceDefaultOptimWrapperConstructor", "optimizer": SGD}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mmengine.from_config(model(), {**forced, "paramwise_cfg": {**rules, "force_default_settings": True}}, **RUN)


@pytest.mark.parametrize(("scheduler", "said"), [
    ({"type": "CosineAnnealingLR", "eta_min": 1e-3}, True),
    ({"type": "PolyLR", "eta_min": 1e-3}, True),
    ({"type": "OneCycleLR", "eta_max": 0.1, "by_epoch": False}, True),
    ({"type": "CosineAnnealingLR", "eta_min_ratio": 0.1}, False),
    ({"type": "MultiStepLR", "milestones": [2]}, False),
    (None, False),
])  # fmt: skip
@pytest.mark.parametrize("bound", [True, False], ids=["model", "no model"])
def test_a_rate_of_0_that_moves_is_said(scheduler: Any, said: bool, bound: bool) -> None:
    wrapper = {"optimizer": SGD, "paramwise_cfg": {"custom_keys": {"head": {"lr_mult": 0.0, "decay_mult": 1.0}}}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if bound:
            mmengine.from_config(model(), wrapper, scheduler, **RUN)
        else:
            mmengine.unbound(wrapper, scheduler, **RUN)
    assert bool([w for w in caught if "lr of 0 does not stay" in str(w.message)]) is said


# MMFlow's scheduler


@functools.cache
def stages_of_mmflow() -> None:
    """MMFlow's MultiStageParamScheduler as its formula is, on MMEngine's own base class and mixins."""
    base = later("mmengine.optim.scheduler.param_scheduler").StepParamScheduler.__mro__[1]
    mixins = {
        "LR": later("mmengine.optim.scheduler.lr_scheduler").LRSchedulerMixin,
        "Momentum": later("mmengine.optim.scheduler.momentum_scheduler").MomentumSchedulerMixin,
    }

    class Stages(base):  # type: ignore[misc]  # mmengine has no types
        def __init__(self, optimizer: Any, param_name: str, milestone_params: Sequence[float],
                     milestone_iters: Sequence[int], gammas: Sequence[float], steps: Sequence[Sequence[int]],
                     by_epoch: bool = False, **given: Any) -> None:  # fmt: skip
            self.given = milestone_params, milestone_iters, gammas, steps
            super().__init__(optimizer, param_name, by_epoch=by_epoch, **given)

        def _get_value(self) -> list[float]:
            numbers, firsts, gammas, steps = self.given
            if self.last_step < firsts[0]:
                return [group[self.param_name] for group in self.optimizer.param_groups]
            stage = -1
            for i, first in enumerate(firsts[1:]):
                if self.last_step < first:
                    stage = i
                    break
            passed = sum(self.last_step >= s for s in steps[stage])
            return [numbers[stage] * gammas[stage] ** passed] * len(self.optimizer.param_groups)

    for name, mixin in mixins.items():
        registry.PARAM_SCHEDULERS.register_module(
            name=f"MultiStage{name}", force=True, module=type(name, (mixin, Stages), {})
        )


STAGES = {"milestone_params": [0.3, 0.2, 0.1], "gammas": [0.5, 0.1, 0.5]}


@pytest.mark.parametrize("schedulers", [
    [{"type": "MultiStageLR", **STAGES, "milestone_iters": [0, 12, 20], "steps": [[3, 7], [15], [25, 28]]}],
    [{"type": "MultiStageLR", **STAGES, "milestone_iters": [4, 12, 20], "steps": [[5, 9], [13], [25, 99]],
      "by_epoch": False}],
    [{"type": "MultiStageLR", **STAGES, "milestone_iters": [0, 2, 4], "steps": [[1], [3], [5]], "by_epoch": True}],
    [{"type": "MultiStageMomentum", **STAGES, "milestone_iters": [1, 9, 11], "steps": [[2], [10], [12]], "begin": 3,
      "by_epoch": False}],
    [{"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "end": 6},
     {"type": "MultiStageLR", **STAGES, "milestone_iters": [8, 12, 20], "steps": [[9], [15], [25]], "begin": 2,
      "by_epoch": False}],
])  # fmt: skip
def test_stages_of_mmflow(schedulers: list[dict[str, Any]]) -> None:
    stages_of_mmflow()
    optimizer = optimizer_of("SGD", 0.1, 0.9, 0.05)
    bases = values(optimizer)
    theirs = trajectory(optimizer, schedulers, 5, max_epochs=6)
    fields = mmengine.schedules(schedulers, max_epochs=6, epoch_length=5)
    for group, base in enumerate(bases):
        for field in ("lr", "momentum"):
            schedule = fields[field](base[field])
            for i in reversed(range(30)):
                assert math.isclose(schedule(i), theirs[i][group][field], rel_tol=1e-9), (group, field, i, schedule)


@pytest.mark.parametrize("change", [
    {"gammas": [0.5]}, {"steps": [[3], [13], [19]]}, {"steps": [3, 13, 25]}, {"steps": [[], [13], [25]]},
])  # fmt: skip
def test_stages_that_cannot_be(change: dict[str, Any]) -> None:
    stages = {"type": "MultiStageLR", **STAGES, "milestone_iters": [0, 12, 20], "steps": [[3], [13], [25]]}
    with pytest.raises((ValueError, TypeError), match="must be"):
        mmengine.schedules({**stages, **change}, **RUN)


# OpenMMLab's own optimizers


def lars(w: Tensor, g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
    """MMPretrain 1.2's and MMSelfSup's."""
    ratio = 1.0
    if not o["lars_exclude"] and w.norm() != 0 and g.norm() != 0:
        ratio = o["eta"] * float(w.norm()) / (float(g.norm()) + o["weight_decay"] * float(w.norm()) + o["eps"])
    step = (g + o["weight_decay"] * w) * ratio * o["lr"]
    if o["momentum"]:
        first = "buffer" not in state
        state["buffer"] = step if first else o["momentum"] * state["buffer"] + (1 - o["dampening"]) * step
        step = step + o["momentum"] * state["buffer"] if o["nesterov"] else state["buffer"]
    return w - step


def lamb(w: Tensor, g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
    """MMPretrain 1.2's, of gradients that are clipped together."""
    state["t"] = state.get("t", 0) + 1
    (b1, b2), t = o["betas"], state["t"]
    state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g * g
    u = state["m"] / (1 - b1**t) / (state["v"].sqrt() / math.sqrt(1 - b2**t) + o["eps"])
    u = u + o["weight_decay"] * w
    if o["weight_decay"] != 0 or o["always_adapt"]:
        u = u * (w.norm() / u.norm() if w.norm() > 0 and u.norm() > 0 else 1.0)
    return w - o["lr"] * u


LARS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.0, "eta": 0.02, "nesterov": False, "eps": 1e-8,
        "lars_exclude": False}  # fmt: skip
LAMB = {
    "lr": 0.01,
    "betas": (0.8, 0.95),
    "eps": 1e-6,
    "weight_decay": 0.02,
    "max_grad_norm": 1.0,
    "always_adapt": False,
}
TRAINED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("LARS", {}, {}),
    ("LARS", {"nesterov": True, "eta": 0.1}, {}),
    ("LARS", {"momentum": 0.0, "weight_decay": 0.0}, {}),
    ("LARS", {"dampening": 0.3}, {"norm_decay_mult": 0.0}),
    ("mmpretrain.LARS", {}, {"custom_keys": {"bias": {"decay_mult": 0.0, "lars_exclude": True},
                                            "head.0": {"lars_exclude": True, "decay_mult": 0.5}}}),
    ("LARS", {}, {"custom_keys": {"head": {"lars_exclude": True, "decay_mult": 1.0}, "head.1": {"lars_exclude": False,
                                                                                            "decay_mult": 1.0}}}),
    ("Lamb", {}, {}),
    ("Lamb", {"max_grad_norm": 0.05}, {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}),
    ("mmcls.Lamb", {"weight_decay": 0.0}, {}),
    ("Lamb", {"always_adapt": True, "weight_decay": 0.0}, {}),
    ("Lamb", {"always_adapt": True}, {"bias_decay_mult": 0.0, "custom_keys": {"head": {"lr_mult": 0.1,
                                                                                      "decay_mult": 1.0}}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "rules"), TRAINED, ids=range(len(TRAINED)))
def test_lars_and_lamb_of_mmpretrain(kind: str, change: dict[str, Any], rules: dict[str, Any]) -> None:
    """Their own formulas, by links of ours: weight by weight in float64, under a schedule and with rules."""
    own = {**(LARS if "LARS" in kind else LAMB), **change}
    given = {key: value for key, value in own.items() if key != "lars_exclude"}
    wrapper: dict[str, Any] = {"optimizer": {"type": kind, **given}, "paramwise_cfg": rules}
    falling = {"type": "PolyLR", "by_epoch": False}
    net, start = model(), model()
    updater = mmengine.from_config(net, wrapper, falling, **RUN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = mmengine.param_settings(start, wrapper)
    [part] = mmengine.unbound(copy.deepcopy(wrapper), falling, **RUN)
    other, unbound = model(), None
    unbound = part.chain.bind(other)
    weights = {name: p.detach().clone() for name, p in start.named_parameters()}
    states: dict[str, dict[str, Any]] = {name: {} for name in weights}
    for i, (x, y) in enumerate(batches(12)):
        torch.nn.utils.vector_to_parameters(torch.cat([w.flatten() for w in weights.values()]), start.parameters())
        loss = (start(x) - y).square().mean()
        grads = dict(zip(weights, torch.autograd.grad(loss, list(start.parameters())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        for name, w in weights.items():
            options = {**own, **{k: v for k, v in groups[name].items() if k in own}}
            options["lr"] *= 1 - i / 19
            clipped = grads[name] / max(1.0, norm / own["max_grad_norm"]) if "Lamb" in kind else grads[name]
            weights[name] = (lars if "LARS" in kind else lamb)(w, clipped, states[name], options)
        for one, live in ((updater, net), (unbound, other)):
            one.update((live(x) - y).square().mean())
            for name, p in live.named_parameters():
                torch.testing.assert_close(p.detach(), weights[name], rtol=1e-10, atol=1e-12)
    assert gch.from_config(gch.to_config(updater.chain)) == updater.chain


@pytest.mark.parametrize(("optimizer", "sentence"), [
    ({"type": "Lamb", "lr": 0.1, "trust_clip": True}, "trust_clip must be False, got True; for another register its"),
    ({"type": "Lamb", "lr": 0.1, "bias_correction": False}, "bias_correction must be True, got False"),
    ({"type": "LARS", "lr": 0.1, "trust": 1}, "every argument must be known, got 'trust'; it takes dampening, eps, "),
])  # fmt: skip
def test_what_they_cannot_be_is_named(optimizer: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        mmengine.from_config(model(), {"optimizer": optimizer}, **RUN)


def test_adafactor_of_torch_is_links() -> None:
    """MMEngine's TorchAdafactor; its `Adafactor` is that of transformers, another rule."""
    given = {"type": "TorchAdafactor", "lr": 0.1, "eps": [None, 0.01], "d": 2.0, "weight_decay": 0.1}
    net, other = model(), model()
    updater = mmengine.from_config(net, {"optimizer": given}, **RUN)
    theirs = torch.optim.Adafactor(other.parameters(), lr=0.1, eps=(None, 0.01), d=2.0, weight_decay=0.1)
    assert "from_torch" not in repr(updater.chain)
    for x, y in batches(8):
        updater.update((net(x) - y).square().mean())
        theirs.zero_grad()
        (other(x) - y).square().mean().backward()
        theirs.step()
    for mine, one in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "sentence"), [
    ("Sophia", "the Hessian's diagonal, which takes a second backward every few steps. Nearest is gch.adamw"),
    ("DAdaptLion2", "it finds its own learning rate"),
    ("mmpretrain.Adam4bitAnd8bit", "its moments are 8-bit numbers in blocks"),
])  # fmt: skip
def test_why_there_is_no_link_and_what_is_nearest(kind: str, sentence: str) -> None:
    with pytest.raises(KeyError, match=re.escape(sentence)):
        mmengine.from_config(model(), {"optimizer": {"type": kind, "lr": 0.1}}, **RUN)
