"""Mistakes that both checkers must see: an ignore whose mistake is no longer seen is unused, which is an error."""

from __future__ import annotations

import torch
from torch import nn

import gradchain as gch

model = nn.Linear(2, 2)
updater = gch.adamw(1e-3).bind(model)
loss = model(torch.ones(2)).sum()

# a number where a word or a link is meant
gch.scale_by_adam(b1="0.9")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.scale_by_adam(beta1=0.9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.scale_by_learning_rate()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.clip_by_norm(1.0, per="parameter")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.chain(gch.clip_by_norm(1.0), 0.1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.chain(gch.clip_by_norm)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.masked(gch.min_ndim(2), gch.scale(0.1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.masked(gch.scale(0.1), "head.*")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.masked(gch.scale(0.1), {1: True})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
gch.partition((gch.named("head.*"), 0.1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.accumulate(4, reduce=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.amp_scale(dynamic="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# a schedule that gives no number, or takes no step
gch.adamw(lambda: 1e-3)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]
gch.adamw(lambda step: "fast")  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
gch.linear(0.0, 1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.linear("0", 1.0, 10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# rules that are none
gch.multiply("0.1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.choose((gch.bias, None), rest=0.1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.multiply(0.1, 2.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.multiply(0.1, (gch.bias, "2"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.choose((gch.bias, 0.1))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.layer_decay("0.5", gch.selectors.depth.vit(12))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# frozen values
gch.trace(0.9).nesterov = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
gch.linear(0.0, 1.0, 10).end = 2.0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

# the updater
updater.update(0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
updater.update(lambda: 0.5)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
updater.update(loss, last="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
updater.override("learning_rate", factor="half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
updater.save(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.adamw(1e-3).bind(model, autocast=16)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
updater.hyperparams(by="values")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
updater.updat(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
updater.param_groups[0]["lr"] = 0.1  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
updater.update(loss, wieght=3.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
updater.update(loss, retain_graph="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
updater.backward(loss, retain_grap=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
updater.step(closure=None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
updater.zero_grad(set_to_none=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.adamw(1e-3).bind(model, in_backwards=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.Updater(gch.adamw(1e-3), model, lr=1e-3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.adamw(1e-3).step()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
gch.AdamW(1e-3)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
gch.schedules.OneCycleLR(0.1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
gch.selectors.nmaed("head.*")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
gch.adamw(lr=1e-3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.cosine(1.0, 0.0, T_max=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.group(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gch.group(one=model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# links of one's own
class wrong_state(gch.Transform):
    def init(self, params: gch.Tensors) -> dict[str, float]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return {}


class wrong_update(gch.Transform):
    def update(self, g: gch.Tensors) -> gch.Tensors:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return g


class wrong_algebra(gch.Transform):
    eps: gch.Hyper = gch.Hyper(1e-8)

    def update(self, g: gch.Tensors, state: gch.State, ctx: gch.Context) -> tuple[gch.Tensors, gch.State]:
        self.eps.upper()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        self.eps = 0.1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
        g.sigmoid()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        return g.norms(), state  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


class wrong_role(gch.Transform):
    role = "cilp"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class wrong_words(gch.Transform):
    def says(self) -> gch.Says:
        return {"per_paramter": True}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportReturnType]


class wrong_window(gch.KeepsWindow):
    def size(self, state: gch.WindowState) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "2"


class wrong_selector(gch.Selector):
    def __call__(self, name: str) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return True


# Tensors
def wrong_tensors(a: gch.Tensors) -> float:
    gch.Tensors.of([torch.ones(2)])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gch.Context(a, steps=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    a["w"] = torch.ones(2)  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    return a * 2  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
