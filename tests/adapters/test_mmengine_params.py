"""MMEngine's paramwise_cfg: its recorded settings, itself on random configs, and every fault in words."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import math
import random
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine_live import constructed, value_of
from torch import nn

import gradchain as gch
from gradchain.adapters import mmengine
from gradchain.adapters.mmengine.groups.paramwise import RULES
from gradchain.selectors.rules import settings_of

FOLDER = Path(__file__).parents[3] / "shared" / "openmmlab"
recorded = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the recorded values in {FOLDER}")


def rows() -> list[dict[str, Any]]:
    with gzip.open(FOLDER / "paramwise.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def build(name: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location("openmmlab_modules", FOLDER / "modules.py")
    modules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules)
    return modules.build(name)


def wrapper_of(row: dict[str, Any]) -> dict[str, Any]:
    return row["optim_wrapper"] | {"constructor": row["constructor"]}


def loosely(model: nn.Module, wrapper: dict[str, Any]) -> tuple[Any, list[str]]:
    """What is read without strictness, and the warnings of what strictly is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = mmengine.param_settings(model, wrapper, strict=False)
    return settings, [text for w in caught if "says no decay_mult" not in (text := str(w.message))]


@recorded
@pytest.mark.filterwarnings("ignore:.*says no decay_mult")
def test_every_recorded_setting() -> None:
    """363 configs on 18 modules: to the bit what MMEngine gave, and its errors; strict refuses what else is warned."""
    settled = 0
    for row in rows():
        model, wrapper = build(row["module"]), wrapper_of(row)
        before = copy.deepcopy(wrapper)
        if "error" in row:
            for strict in (True, False):
                with pytest.raises((TypeError, ValueError)) as caught:
                    mmengine.param_settings(model, wrapper, strict)
                assert type(caught.value).__name__ == row["error"].partition(":")[0], row["id"]
            continue
        settings, said = loosely(model, wrapper)
        assert settings == row["params"], row["id"]
        if said:
            with pytest.raises(ValueError) as refused:
                mmengine.param_settings(model, wrapper)
            head = f"mmengine.param_settings: {row['constructor'].rpartition(':')[2]}: "
            assert str(refused.value) == head + " ".join(s.removeprefix(head) for s in said), row["id"]
        else:
            assert mmengine.param_settings(model, wrapper) == settings
            settled += 1
        assert wrapper == before
    assert settled > 200


class Block(nn.Module):
    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.norm = rng.choice([nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm, lambda n: nn.GroupNorm(1, n)])(4)
        self.dw = nn.Conv2d(4, 4, 3, groups=rng.choice([1, 4]), bias=rng.random() < 0.7)
        self.attn = nn.MultiheadAttention(4, 2) if rng.random() < 0.3 else nn.Linear(4, 4)
        if rng.random() < 0.5:
            self.gamma = nn.Parameter(torch.ones(4))
            self.bias = nn.Parameter(torch.zeros(rng.choice([(4,), (2, 2)])))


class Model(nn.Module):
    """Some of everything: norms, depthwise convolutions, what is bare on the root, shared, tied or frozen."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        if rng.random() < 0.5:
            self.bias = nn.Parameter(torch.zeros(4))
        self.backbone = nn.Sequential(*[Block(rng) for _ in range(3)])
        self.neck = nn.ModuleDict({"conv_offset": nn.Conv2d(4, 4, 1), "norm": nn.LayerNorm(4)})
        self.head = nn.Linear(4, 4)
        if rng.random() < 0.2:
            self.again = rng.choice([self.backbone[1], self.head, self.neck["norm"]])
        if rng.random() < 0.2:
            self.neck["conv_offset"].weight = nn.Parameter(self.neck["conv_offset"].weight.detach())
            self.head.weight = self.backbone[0].dw.weight
        for parameter in self.parameters():
            parameter.requires_grad_(rng.random() < 0.9)


KEYS = (
    "backbone", "backbone.0", "backbone.1.norm", "norm", "bias", ".bias", ".cls_token", "cls", "conv_offset", "head",
    "attn", "gamma", "neck.", "weight", "no_such_name", "dw.weight",
)  # fmt: skip


def random_wrapper(rng: random.Random) -> dict[str, Any]:
    optimizer: dict[str, Any] = {"type": rng.choice(["SGD", "AdamW"]), "lr": rng.choice([0.1, 1e-3, 3e-4])}
    if rng.random() < 0.9:
        optimizer["weight_decay"] = rng.choice([0.05, 1e-4, 0.0, 0])
    mults = (0.0, 0.1, 0.3, 1.0, 2.5, 3)
    given: dict[str, Any] = {name: rng.choice(mults) for name in RULES if rng.random() < 0.4}
    if rng.random() < 0.6:
        entries: dict[str, Any] = {}
        for key in rng.sample(KEYS, rng.randint(1, 5)):
            entry = {name: rng.choice(mults) for name in ("lr_mult", "decay_mult") if rng.random() < 0.6}
            entry |= {"lr": 0.02} if rng.random() < 0.1 else {}
            entry |= {"weight_decay": 0.3} if rng.random() < 0.1 else {}
            entry |= {"decay_multi": 0.0} if rng.random() < 0.1 else {}
            entries[key] = entry
        given["custom_keys"] = entries
    if rng.random() < 0.7:
        given["bypass_duplicate"] = rng.random() < 0.8
    return {"optimizer": optimizer, "paramwise_cfg": given}


@pytest.mark.parametrize("seed", range(200))
def test_random_configs_against_mmengine(seed: int) -> None:
    """What MMEngine's own constructor gives, to the bit, or its refusal; and written as values, the same again."""
    rng = random.Random(seed)
    model, wrapper = Model(rng), random_wrapper(rng)
    try:
        wanted = constructed(model, wrapper)
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            loosely(model, wrapper)
        return
    settings, _ = loosely(model, wrapper)
    assert settings == wanted
    for field in ("lr", "weight_decay"):
        for proportional in (True, False):
            check_values(model, wrapper, settings, field, proportional)


def check_values(model: nn.Module, wrapper: Any, settings: Any, field: str, proportional: bool) -> Any:
    """The value, resolved over the model, is the settings; where curves do not scale, each has its own."""
    value = value_of(model, wrapper, field, Curve, proportional)
    facts = [(n, p, model.get_submodule(n.rpartition(".")[0])) for n, p in model.named_parameters()]
    for (name, _, _), setting in zip(facts, settings_of(value, facts), strict=True):
        if settings[name] is not None:
            got = math.prod(setting.factors, start=setting.value.base)
            assert math.isclose(got, settings[name].get(field, got), rel_tol=1e-15), f"{name}: {value!r}"
            assert proportional or not setting.factors
    return value


@dataclass(frozen=True)
class Curve:
    """A schedule that says what it was made of."""

    base: float

    def __call__(self, step: float) -> float:
        return self.base / (1 + step)


@recorded
def test_every_recorded_setting_as_a_value() -> None:
    """lr and weight decay of every recorded config, with curves that scale and with curves that do not.

    A number that the config has outright stays that number.
    """
    kinds = Counter()
    for row in rows():
        if "error" not in row:
            model, wrapper = build(row["module"]), wrapper_of(row)
            settings, _ = loosely(model, wrapper)
            for field in ("lr", "weight_decay"):
                for proportional in (True, False):
                    value = check_values(model, wrapper, settings, field, proportional)
                    entries = (wrapper.get("paramwise_cfg") or {}).get("custom_keys", {}).values()
                    kinds[proportional and all(field not in entry for entry in entries), type(value).__name__] += 1
                    code = repr(value_of(model, wrapper, field, float, proportional))
                    again = eval(code, {**vars(gch), "torch": torch, "depth": gch.selectors.depth})
                    assert repr(again) == code
                    assert len(code) < 700, code
    assert not kinds[True, "choose"] and not kinds[False, "multiply"] and kinds[True, "multiply"] > 300
