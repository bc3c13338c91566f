"""3D Gaussian splatting: https://github.com/graphdeco-inria/gaussian-splatting.

Six tensors of a row per Gaussian, each with a rate of its own; that of the positions falls on a log scale. Now and
then rows are added and taken away: new tensors take the places of the old, and moments go along, with zeros for what
is new. Opacities are reset, and their moments with them.
"""

import torch

import gradchain as gch

settings = {
    "position_lr": (1.6e-4, 1.6e-6),
    "position_steps": 30_000,
    "scene": 1.0,  # its size
    "feature_lr": 2.5e-3,
    "rest_part": 1 / 20,
    "opacity_lr": 0.05,
    "scaling_lr": 5e-3,
    "rotation_lr": 1e-3,
    "eps": 1e-15,
    "densify_every": 100,
    "densify_from": 500,
    "densify_until": 15_000,
    "opacity_every": 3000,
}


def chain(s=settings):
    first, last = (s["scene"] * lr for lr in s["position_lr"])
    falling = gch.schedules.exponential(first, last / first, s["position_steps"], end=last)
    lr = gch.choose(
        (gch.named("xyz"), lambda step: falling(step + 1)),  # the script counts from 1
        (gch.named("f_dc"), s["feature_lr"]),
        (gch.named("f_rest"), s["feature_lr"] * s["rest_part"]),
        (gch.named("opacity"), s["opacity_lr"]),
        (gch.named("scaling"), s["scaling_lr"]),
        rest=s["rotation_lr"],
    )
    return gch.adam(lr, eps=s["eps"])


def densify(updater, scene, keep, new):
    """Rows of `keep` stay, those of `new` are added; moments of the new are 0."""
    for name, tensor in scene.items():
        scene[name] = torch.cat([tensor.detach()[keep], new[name]]).requires_grad_()
    added = len(next(iter(new.values())))
    moved = {n: lambda slot: torch.cat([slot[keep], slot.new_zeros(added, *slot.shape[1:])]) for n in scene}
    updater.rebind(scene, remap=moved)


def reset_opacity(updater, scene):
    scene["opacity"] = scene["opacity"].detach().clamp(max=-4.59512).requires_grad_()  # the logit of 0.01
    updater.rebind(scene, remap={"opacity": torch.zeros_like})


def train(scene, views, loss, choose, s=settings):
    updater = chain(s).bind(scene)
    for i, view in enumerate(views, 1):
        updater.update(loss(scene, view))
        if s["densify_from"] < i < s["densify_until"] and i % s["densify_every"] == 0:
            densify(updater, scene, *choose(scene))
        if i < s["densify_until"] and i % s["opacity_every"] == 0:
            reset_opacity(updater, scene)
    return updater
