"""A training loop, from the chain to the checkpoint, as a user writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import assert_type

import gradchain as gch


def recipe(updates: int) -> gch.chain:
    lr = gch.linear(0.0, 3e-4, 500).then(gch.cosine(3e-4, 3e-5, updates - 500))
    return gch.chain(
        gch.accumulate(4),
        gch.amp_scale(),
        ("front", gch.clip_by_norm(1.0)),
        gch.scale_by_adam(b1=0.9, b2=0.95),
        gch.masked(gch.add_decayed_weights(0.05), gch.min_ndim(2)),
        gch.scale_by_learning_rate(lr),
        gch.average_params(0.999, start=100, buffers="copy"),
    )


def log(numbers: Mapping[str, float]) -> None:
    """As a logger takes them."""
    print({name: round(value, 3) for name, value in numbers.items()})


def train(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], path: Path) -> float:
    updater = recipe(10_000).bind(model, autocast=torch.float16)
    assert_type(updater, gch.Updater)
    extra = updater.load(path) if path.exists() else {}
    epoch: int = extra.get("epoch", 0)

    for inputs, targets in loader:
        with updater.context():
            loss = F.cross_entropy(model(inputs), targets)
        info = updater.update(loss, weight=len(inputs))
        updater.backward(loss, weight=(targets != -100).sum())
        updater.step()
        assert_type(info, gch.UpdateInfo)
        if info and info["front.norm"] > 10.0:
            updater.override("learning_rate", factor=0.5)
        log(info)
        log(dict(info))
        log({**info, **updater.hyperparams(by="value")})
        log(updater.metrics)
        assert_type(info.get("front.norm"), float | None)
        for name, value in info.items():
            assert_type(name, str)
            assert_type(value, float)
        assert_type(info.reason, str)
        updater.update_batch_norm(loader, lambda batch: model(batch[0]))
        assert_type(info.applied, bool)

    updater.flush()
    updater.tick("epoch")
    updater.observe("val_loss", 0.3)
    updater.observe("val_acc", torch.tensor(0.7))
    with updater.averaged():
        model.eval()
    updater.copy_average_to(model)
    updater.save(path, epoch=epoch + 1, best=0.3)
    updater.save(str(path))
    updater.save(path, weights="trainable", format="safetensors", epoch=1)
    updater.save(path, weights="some")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    updater.tick("ema", 2)
    assert_type(gch.read_weights(path), dict[str, Tensor])
    model.load_state_dict(gch.read_weights(str(path), averaged="slow", updater="g"))
    assert_type(updater.hyperparams(), dict[str, Any])
    assert_type(updater.hyperparams(by="parameter"), dict[str, Any])
    assert_type(updater.hyperparams(by="value"), dict[str, float])
    assert_type(updater.explain()._repr_html_(), str)
    assert_type(updater.averages(), dict[str, Tensor])
    assert_type(updater.num_updates, int)
    return updater.metrics["front.norm"]


def by_hand(model: nn.Module, loss: Tensor) -> dict[str, Any]:
    updater = gch.adamw(1e-3).bind(model)
    updater.backward(loss, retain_graph=True)
    updater.backward(loss)
    updater.step(last=True, keep_grads=True)
    updater.step(grads={"weight": torch.zeros(2, 2), "bias": None})
    updater.zero_grad()
    report = updater.load_state_dict(updater.state_dict(), strict=False)
    assert_type(report, gch.LoadReport)
    updater.reset(gch.named("head.*"))
    updater.rebind(model, remap={"head.weight": lambda slot: slot[:10]})
    return updater.state_dict(sync=True, form="fixed")


def targets_of_bind(model: nn.Module, tensor: Tensor) -> None:
    tx = gch.sgd(0.1, momentum=0.9, nesterov=True)
    tx.bind(model)
    tx.bind({"model": model, "scale": tensor})
    tx.bind([model, ("scale", tensor)])
    gch.Updater(tx, model, autocast=torch.bfloat16)
    gch.scale(-0.1).bind(model)
