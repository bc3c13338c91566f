"""Two models, closures, the gradient elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import gradchain as gch


def gan(generator: nn.Module, discriminator: nn.Module, real: Tensor) -> None:
    both = gch.group(
        generator=gch.chain(gch.accumulate(2), gch.adam(2e-4, b1=0.5)).bind(generator),
        discriminator=gch.adam(2e-4, b1=0.5).bind(discriminator),
    )
    assert_type(both, gch.Group)
    fake = generator(torch.randn(4, 8))
    both.discriminator.update((discriminator(real) - discriminator(fake.detach())).mean())
    both["generator"].update(discriminator(fake).mean())
    for name, updater in both.items():
        assert_type(name, str)
        assert_type(updater, gch.Updater)
    both.save("gan.pt", epoch=1)
    both.save("gan.pt", weights="none", epoch=1)
    epoch: int = both.load("gan.pt")["epoch"]
    reports = both.load_state_dict(both.state_dict(), strict=False)
    assert_type(reports, dict[str, gch.LoadReport])
    assert_type(both.hyperparams(), dict[str, Any])
    print(epoch)


def sharpness(model: nn.Module, inputs: Tensor) -> gch.UpdateInfo:
    updater = gch.chain(gch.sam(rho=0.05), gch.sgd(0.1, momentum=0.9)).bind(model)

    def closure() -> Tensor:
        loss: Tensor = model(inputs).square().mean()
        return loss

    updater.update(lambda: model(inputs).square().mean())
    return updater.update(closure)
