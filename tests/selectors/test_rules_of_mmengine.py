"""MMEngine's paramwise rules, each written as what it is here: recorded settings come out to the last bit."""

import gzip
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from torch import nn

import gradchain as gch
from gradchain.selectors import depth, resolve

DATA = Path(__file__).parents[3] / "shared" / "openmmlab"

# what MMEngine counts as a norm, as a depthwise convolution, and in "parent.conv_offset.weight" as an offset
NORM = gch.owner(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
DEPTHWISE = gch.depthwise & gch.owner(nn.Conv2d)
OFFSET = gch.named("*conv_offset*") & gch.owner(nn.Conv2d) & gch.owner_named("*DeformConv2d*")

if not DATA.exists():
    pytest.skip("the recorded cases are not at ../shared/openmmlab", allow_module_level=True)
with gzip.open(DATA / "paramwise.jsonl.gz", "rt") as file:
    ROWS = [row for row in map(json.loads, file) if "error" not in row]


def build(name: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location("openmmlab_modules", DATA / "modules.py")
    modules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules)
    return modules.build(name)


def values(model, lr, weight_decay):
    """Name → (learning rate, weight decay), as the updater reports them."""
    links = [gch.scale_by_adam(), gch.add_decayed_weights(weight_decay), gch.scale_by_learning_rate(lr)]
    numbers = gch.chain(*links).bind(model).hyperparams()
    rows = numbers["scale_by_learning_rate.learning_rate"], numbers["add_decayed_weights.weight_decay"]
    return {n: tuple(row[n] if isinstance(row, dict) else row for row in rows) for n, _ in model.named_parameters()}


def recorded(row, model):
    """The same from the data; what MMEngine leaves out of its optimizer is left out."""
    kept = {n for n, p in model.named_parameters() if p.requires_grad}
    return {n: (v["lr"], v["weight_decay"]) for n, v in row["params"].items() if v is not None and n in kept}


def contains(key: str):
    """A custom key: a part of "module.name"; of a parameter on the root that is ".name"."""
    found = gch.named(f"*{key}*", missing_ok=True)
    at_root = gch.named(re.compile(r"[^.]*"), missing_ok=True) & gch.named(f"{key[1:]}*", missing_ok=True)
    return found | at_root if key.startswith(".") else found


def rules(cfg, facts):
    """The rules of a paramwise_cfg for the learning rate and for the decay, without those that match nothing here."""
    custom = cfg.get("custom_keys") or {}
    keys = [(contains(key), custom[key]) for key in sorted(sorted(custom), key=len, reverse=True)]
    lr = [(s, entry.get("lr_mult", 1.0)) for s, entry in keys]
    lr += [(OFFSET, cfg["dcn_offset_lr_mult"])] if "dcn_offset_lr_mult" in cfg else []
    lr += [(gch.bias & ~NORM, cfg["bias_lr_mult"])] if "bias_lr_mult" in cfg else []
    decay = [(s, entry.get("decay_mult", 1.0)) for s, entry in keys]
    for name, selector in (("norm", NORM), ("bias", gch.bias), ("dwconv", DEPTHWISE), ("flat", gch.ndim(1))):
        factor = cfg.get(f"{name}_decay_mult")
        decay += [(selector, factor)] if factor is not None else []
    return [[(s, float(f)) for s, f in pairs if resolve(s, facts, allow_empty=True)] for pairs in (lr, decay)]


def expressible(row) -> bool:
    """The default constructor, on an optimizer with both numbers; entries that only multiply."""
    optimizer, cfg = row["optim_wrapper"].get("optimizer", {}), row["optim_wrapper"].get("paramwise_cfg") or {}
    own = {key for entry in (cfg.get("custom_keys") or {}).values() for key in entry} & {"lr", "weight_decay"}
    return row["constructor"].startswith("Default") and {"lr", "weight_decay"} <= set(optimizer) and not own


DEFAULT = [row for row in ROWS if expressible(row)]


def test_nearly_all_recorded_cases_are_tried():
    """The default constructor's cases that are no errors, and every rule of it among them."""
    assert len(DEFAULT) > 280
    seen = Counter(key for row in DEFAULT for key in row["optim_wrapper"].get("paramwise_cfg") or {})
    wanted = "norm_decay_mult bias_lr_mult bias_decay_mult dwconv_decay_mult flat_decay_mult dcn_offset_lr_mult"
    assert all(seen[key] >= 5 for key in [*wanted.split(), "bypass_duplicate", "custom_keys"])


@pytest.mark.parametrize("module", sorted({row["module"] for row in DEFAULT}))
def test_the_default_constructor(module):
    """Every recorded learning rate and decay of the default constructor, to the last bit."""
    model = build(module)
    facts = [(n, p, model.get_submodule(n.rpartition(".")[0])) for n, p in model.named_parameters()]
    for row in DEFAULT:
        if row["module"] != module:
            continue
        optimizer, cfg = row["optim_wrapper"]["optimizer"], row["optim_wrapper"].get("paramwise_cfg") or {}
        given = [
            gch.multiply(base, gch.first(*pairs)) if pairs else base
            for base, pairs in zip((optimizer["lr"], optimizer["weight_decay"]), rules(cfg, facts), strict=True)
        ]
        ours = values(model, *given)
        assert {n: ours[n] for n in recorded(row, model)} == recorded(row, model), row["id"]


BACKBONE = {"prefix": "backbone."}
WITHOUT_MASK_TOKEN = ("cls_token", "pos_embed", "patch_embed")
DEPTHS = {
    "pw-0178": (0.65, depth.vit(3, stem=WITHOUT_MASK_TOKEN, **BACKBONE)),
    "pw-0181": (0.65, depth.convnext((2, 1, 4, 1), **BACKBONE)),
    "pw-0182": (0.75, depth.convnext((2, 1, 4, 1), **BACKBONE)),
    "pw-0184": (0.7, depth.vit(3, **BACKBONE)),
    "pw-0185": (0.7, depth.vit(3, **BACKBONE)),
    "pw-0186": (0.9, depth.vit(3, **BACKBONE)),
    "pw-0188": (0.9, depth.convnext_stages(6, **BACKBONE)),
    "pw-0190": (0.9, depth.convnext((2, 1, 4, 1), last=12, **BACKBONE)),
    "pw-0192": (0.7, depth.convnext((2, 1, 4, 1), last=6, **BACKBONE)),
    "pw-0196": (0.75, depth.vit(3, blocks="blocks", **BACKBONE)),
    "pw-0202": (0.65, depth.vit(3, **BACKBONE)),
}


@pytest.mark.parametrize("case", sorted(DEPTHS))
def test_layer_decay_constructors(case):
    """The learning rates of MMPretrain's, MMSegmentation's, MMDetection's and MMAction2's constructors."""
    row = next(row for row in ROWS if row["id"] == case)
    model, (rate, layers) = build(row["module"]), DEPTHS[case]
    ours = values(model, gch.multiply(row["optim_wrapper"]["optimizer"]["lr"], gch.layer_decay(rate, layers)), 0.05)
    theirs = recorded(row, model)
    assert len({lr for lr, _ in theirs.values()}) > 3
    assert {n: ours[n][0] for n in theirs} == {n: lr for n, (lr, _) in theirs.items()}


def test_rules_on_top_of_custom_keys():
    """MMPose's force_default_settings is a further rule, not a first match: both factors count."""
    row = next(row for row in ROWS if row["id"] == "pw-0173")
    model = build(row["module"])
    lr = gch.multiply(0.001, (gch.named("*backbone*"), 0.1))
    ours = values(model, lr, gch.multiply(0.05, gch.first((NORM, 0.0), (gch.bias, 0.0), (gch.ndim(1), 0.0))))
    theirs = recorded(row, model)
    assert {n: v[1] for n, v in ours.items()} == {n: v[1] for n, v in theirs.items()}
