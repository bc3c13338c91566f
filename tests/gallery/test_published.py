"""Rates, decays, momenta and groups against what the originals' own code gave where it stood: published.jsonl.

Its lines were made by running those functions, or torch's schedulers with the scripts' arguments, at the steps listed.
"""

import json
from pathlib import Path

import models
import pytest
from toys import DECAY, RATE, bound, numbers, of, recipe

PUBLISHED = [json.loads(line) for line in (Path(__file__).parent / "published.jsonl").read_text().splitlines()]
# id: the recipe, the clock of its steps, and the parameters that stand for each group
WHERE = {
    "nanogpt_gpt2_124m": ("nanogpt", "step", {
        "decay": ["transformer.wte.weight"], "no_decay": ["transformer.h0.ln_1.weight"],
    }),
    "mae_finetune_vitb_layer_decay": ("mae", "step", {}),
    "convnext_l_finetune_layer_decay": ("convnext", "step", {}),
    "detectron2_rcnn_1x": ("detectron2", "step", {
        "weights": ["backbone.conv1.weight"], "norm": ["backbone.norm.weight"], "bias": ["head.bias"],
    }),
    "modded_nanogpt_normuon_adam": ("modded_nanogpt", "step", {
        "hidden_matrices": ["qk_bank", "vo_bank", "mlp_bank"], "lm_head": ["lm_head.weight"],
        "bigram_embed": ["bigram_embed.weight"], "scalars": ["scalars"], "smear_gate": ["smear_gate.weight"],
        "ve_gate_bank": ["ve_gate_bank"],
    }),
    "simsiam_fix_pred_lr": ("simsiam", "epoch", {"encoder": ["encoder.weight"], "predictor": ["predictor.bias"]}),
    "swa_vgg16_cifar100": ("swa", "epoch", {"all": ["weight"]}),
    "sam_wrn_cifar10": ("sam", "epoch", {"all": ["weight"]}),
    "open_clip_vitb32_cosine": ("clip", "step", {
        "decay": ["visual.proj", "transformer.mlp.weight"],
        "no_decay": ["logit_scale", "visual.ln_pre.weight", "transformer.mlp.bias"],
    }),
}  # fmt: skip
MUON = ("muon/", "scale_by_normuon.momentum")


def close(value, want):
    assert value == pytest.approx(want, rel=1e-11, abs=1e-17)


@pytest.mark.parametrize("row", [r for r in PUBLISHED if r["id"] in WHERE], ids=lambda row: row["id"])
def test_every_number_of_every_group_is_the_original_s(row):
    name, clock, groups = WHERE[row["id"]]
    updater, groups = bound(name, models), groups or row["members"]
    assert {*groups} == {*row["values"]}
    for group, parameters in groups.items():
        split = name == "modded_nanogpt"
        branch, momentum = MUON if group == "hidden_matrices" else ("adam/" if split else "", "trace.decay")
        for i, step in enumerate(row["steps"]):
            now = {key: column[i] for key, column in row["values"][group].items()}
            want = {RATE: now["lr"], DECAY: now["weight_decay"] * (now["lr"] if branch == "adam/" else 1)}
            if "momentum" in now:
                want[momentum] = now["momentum"]
            if "betas" in now:
                want["scale_by_adam.b1"], want["scale_by_adam.b2"] = now["betas"]
            for address, value in want.items():
                got = numbers(updater, branch + address, **{clock: step})
                for parameter in parameters:
                    close(of(got, parameter), value)


def test_a_line_of_detectron2_ends_on_a_cosine_too():
    """The chord's other published case: what it ends on moves."""
    (row,) = (r for r in PUBLISHED if r["id"] == "detectron2_warmup_cosine")
    given, two = row["hyperparameters"], recipe("detectron2")
    s = {**two.settings, "lr": given["base_lr"], "warmup": given["warmup_iters"]}
    schedule = two.warmed_up(two.gch.cosine(s["lr"], 0.0, given["max_iter"]), s)
    for step, want in zip(row["steps"], row["values"]["weights"]["lr"], strict=True):
        close(schedule(step), want)


def test_every_line_is_looked_at():
    assert {row["id"] for row in PUBLISHED} == {*WHERE, "detectron2_warmup_cosine"}
    assert all(len(row["steps"]) >= 14 for row in PUBLISHED)
