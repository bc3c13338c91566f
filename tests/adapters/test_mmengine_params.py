"""MMEngine's paramwise_cfg: its recorded settings, itself on random configs, and every fault in words."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradchain.adapters import mmengine

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
    """What is read without strictness, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return mmengine.param_settings(model, wrapper, strict=False), [str(w.message) for w in caught]


@recorded
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
