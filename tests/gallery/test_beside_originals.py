"""Recipes beside loops in torch that do what the originals do, in their order, written here anew: the same weights.

The formulas are the originals'; models and data are small, and long runs are made short by their settings.
"""

import copy
import math

import models
import numpy as np
import pytest
import torch
from toys import DECAY, RATE, batches, bound, numbers, of, pull, recipe


def same(mine, theirs, rtol=2e-5, atol=1e-7):
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def averages_of(updater):
    return {name: average.clone() for name, average in updater.averages().items()}


def close(value, want):
    assert value == pytest.approx(want, rel=1e-11, abs=1e-14)


# rates by formula


def by_linspace(first, last, epochs, n, warmup=0):
    """DINO's arrays: a line that reaches its end, then half a cosine."""
    line = np.linspace(0, first, warmup * n) if warmup else np.array([])
    at = np.arange(epochs * n - len(line))
    return np.concatenate((line, last + 0.5 * (first - last) * (1 + np.cos(np.pi * at / len(at)))))


def test_dino_has_the_values_of_its_three_arrays():
    s, updater = recipe("dino").settings, bound("dino", models)
    n, epochs = s["updates_per_epoch"], s["epochs"]
    rates = by_linspace(s["base_lr"] * s["batch"] / 256, s["min_lr"], epochs, n, s["warmup_epochs"])
    decays, stays = by_linspace(0.04, 0.4, epochs, n), by_linspace(0.996, 1.0, epochs, n)
    for step in (0, 1, 2, 10 * n - 1, 10 * n, 10 * n + 1, 17 * n, 60 * n + 7, epochs * n - 2, epochs * n - 1):
        close(numbers(updater, RATE, step=step), rates[step])
        close(numbers(updater, "average_params.decay", step=step), stays[step])
        decay = numbers(updater, DECAY, step=step)
        close(decay["backbone.weight"], decays[step])
        assert decay["backbone.bias"] == decay["norm.weight"] == 0


def timm_cosine(t, lr, low, total, warmup, first):
    """timm's CosineLRScheduler without a prefix, by epoch."""
    return (
        first + t * (lr - first) / warmup
        if t < warmup
        else low + 0.5 * (lr - low) * (1 + math.cos(math.pi * t / total))
    )


@pytest.mark.parametrize(("name", "late"), [("deit", 1), ("timm", 0)])
def test_deit_is_an_epoch_behind_and_timm_is_not(name, late):
    s, updater = recipe(name).settings, bound(name, models)
    lr = s["base_lr"] * s["batch"] / 512 if late else s["lr"]
    for epoch in (0, 1, 2, 4, 5, 6, 77, 298, 299):
        want = timm_cosine(max(epoch - late, 0), lr, s["min_lr"], s["epochs"], s["warmup_epochs"], s["warmup_lr"])
        close(numbers(updater, RATE, epoch=epoch), want)


def test_deit_does_not_decay_vectors_nor_tokens():
    decay = numbers(bound("deit", models), DECAY)
    assert {n for n, d in decay.items() if d} == {"head.weight"}


def test_detr_drops_once_and_has_a_slow_backbone():
    updater = bound("detr", models)
    for epoch, want in ((0, 1e-4), (199, 1e-4), (200, 1e-5), (299, 1e-5)):
        rate = numbers(updater, RATE, epoch=epoch)
        close(rate["transformer.weight"], want)
        close(rate["backbone.0.body.conv1.weight"], want / 10)


def test_byol_s_rate_and_target():
    updater = bound("byol", models)
    total, warmup = 1000 * 1281167 // 4096, 10 * 1281167 // 4096

    def cosine(t, n):
        return 0.5 * (1 + math.cos(math.pi * min(t, n) / n))

    for t in (0, 1, warmup - 1, warmup, warmup + 1, 100_000, total - 1):
        want = t / warmup * 3.2 if t < warmup else 3.2 * cosine(t - warmup, total - warmup)
        close(numbers(updater, RATE, step=t), want)
        close(numbers(updater, "average_params.decay", step=t), 1 - (1 - 0.996) * cosine(t, total))


def test_ppo_pinn_and_splatting_fall_as_their_scripts_have_it():
    updater = bound("ppo", models)
    for iteration in (1, 2, 500, 976):
        close(numbers(updater, RATE, iteration=iteration - 1), (1.0 - (iteration - 1.0) / 976) * 2.5e-4)
    updater = bound("pinn", models)
    for step in (0, 1, 1999, 2000, 200_000):
        close(numbers(updater, RATE, step=step), 1e-3 * 0.9 ** (step / 2000))
    names = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")
    updater = recipe("gaussian_splatting").chain().bind({n: torch.zeros(2, 3, requires_grad=True) for n in names})
    for iteration in (1, 2, 15_000, 29_999, 30_000):
        t = iteration / 30_000
        rate = numbers(updater, RATE, step=iteration - 1)
        close(rate["xyz"], math.exp(math.log(1.6e-4) * (1 - t) + math.log(1.6e-6) * t))
        assert [rate[n] for n in names[1:]] == pytest.approx([2.5e-3, 1.25e-4, 0.05, 5e-3, 1e-3])


def test_lora_plus_has_four_groups():
    updater = bound("lora_plus", models)
    rate, decay = numbers(updater, RATE), numbers(updater, DECAY)
    assert {n: (rate[n], decay[n]) for n in rate} == {
        "q.lora_A.weight": (1e-4, 0.01),
        "q.lora_B.weight": (1e-4 * 16, 0.01),
        "word.lora_embedding_A": (1e-6, 0.01),
        "norm.weight": (1e-4 * 16, 0.0),
        "norm.bias": (1e-4 * 16, 0.0),
        "score.weight": (1e-4, 0.01),
        "score.bias": (1e-4 * 16, 0.0),
    }


# weights by a loop


def test_yolov5_moves_through_its_warm_up_as_the_script_does():
    """Windows that grow, sums, three rates, a momentum that rises, an average with buffers, and epochs that cut."""
    two = recipe("yolov5")
    s = {**two.settings, "batches_per_epoch": 50, "epochs": 4, "average_ramp": 5, "warmup_epochs": 2.0}
    mine = models.yolov5()
    theirs, ema = copy.deepcopy(mine), copy.deepcopy(mine)
    groups = [[], [], []]  # biases, weights that decay, those of norms
    for name, p in theirs.named_parameters():
        groups[0 if name.endswith("bias") else 2 if name.startswith("bn") else 1].append(p)
    optimizer = torch.optim.SGD(groups[0], lr=0.01, momentum=0.937, nesterov=True)
    optimizer.add_param_group({"params": groups[1], "weight_decay": 5e-4})
    optimizer.add_param_group({"params": groups[2], "weight_decay": 0.0})
    nw, n, last, updates, sizes = 100, 50, -1, 0, []
    data = [batches(50) for _ in range(4)]
    for epoch, part in enumerate(data):
        optimizer.zero_grad()
        lf = (1 - epoch / 4) * (1.0 - 0.01) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * lf
        for i, batch in enumerate(part):
            ni = i + n * epoch
            if ni <= nw:
                wanted = max(1, np.interp(ni, [0, nw], [1, 4]).round())
                for j, group in enumerate(optimizer.param_groups):
                    group["lr"] = np.interp(ni, [0, nw], [0.1 if j == 0 else 0.0, 0.01 * lf])
                    group["momentum"] = np.interp(ni, [0, nw], [0.8, 0.937])
            pull(theirs, batch).backward()
            if ni - last >= wanted:
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), 10.0)
                optimizer.step()
                optimizer.zero_grad()
                sizes.append(ni - last)
                updates, last = updates + 1, ni
                d = 0.9999 * (1 - math.exp(-updates / 5))
                for a, p in zip(ema.parameters(), theirs.parameters(), strict=True):
                    a.data.mul_(d).add_((1 - d) * p.detach())
    updater = two.train(mine, data, pull, s)
    assert {1, 2, 3, 4} <= {*sizes} and sizes[:3] == [1, 1, 1]
    same(mine, theirs)
    for name, a in ema.named_parameters():
        torch.testing.assert_close(updater.averages()[name], a, rtol=2e-5, atol=1e-7)
    assert updater.num_updates == updates


def test_the_average_of_the_diffusion_model_has_its_rhythm():
    """A copy at updates 1, 11, …, 101, and from the 111th on a part of it, by the power of the time since."""
    two = recipe("diffusion")
    mine = torch.nn.Linear(4, 4)
    theirs, ema = copy.deepcopy(mine), copy.deepcopy(mine)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4, betas=(0.9, 0.99))
    updater = two.chain().bind(mine)
    for step, batch in enumerate(batches(150)):
        optimizer.zero_grad()
        pull(theirs, batch).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            since = max(step - 100, 0)
            stays = min(1 - (1 + since) ** -(2 / 3), 0.995) if since else 0.0
            for a, p in zip(ema.parameters(), theirs.parameters(), strict=True):
                a.data.lerp_(p.detach(), 1 - stays)
        updater.update(pull(mine, batch))
        if step in (0, 9, 10, 99, 100, 109, 110, 149):
            for a, b in zip(updater.averages().values(), ema.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_stylegan2_ada_has_lazy_adam_and_an_average_in_images():
    two = recipe("stylegan2_ada")
    s = {**two.settings, "half_life": 200}
    torch.manual_seed(0)
    mine = torch.nn.Linear(4, 4)
    theirs, ema = copy.deepcopy(mine), copy.deepcopy(mine)
    part = 4 / 5
    optimizer = torch.optim.Adam(theirs.parameters(), lr=2.5e-3 * part, betas=(0.0, 0.99**part), eps=1e-8)
    updater = two.generator_chain(s).bind(mine)
    seen = 0
    for i, batch in enumerate(batches(90)):
        for phase in (1, 4) if i % 4 == 0 else (1,):
            optimizer.zero_grad()
            (phase * pull(theirs, batch)).backward()
            optimizer.step()
            updater.update(phase * pull(mine, batch))
        updater.tick("batch")
        beta = 0.5 ** (64 / max(min(200, seen * 0.05), 1e-8))
        close(numbers(updater, "average_params.decay", batch=i), beta)
        for a, p in zip(ema.parameters(), theirs.parameters(), strict=True):
            a.data.copy_(p.detach().lerp(a.data, beta))
        seen += 64
    same(mine, theirs)
    for a, b in zip(updater.averages().values(), ema.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert numbers(two.discriminator_chain().bind(torch.nn.Linear(2, 2)), RATE) == pytest.approx(2.5e-3 * 16 / 17)


def test_nanogpt_is_adamw_over_windows_with_a_clip():
    two = recipe("nanogpt")
    s = {**two.settings, "micro_batches": 3, "warmup": 4, "steps": 20}
    mine = models.nanogpt()
    theirs = copy.deepcopy(mine)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))
    for k, batch in enumerate(batches(36)):
        (pull(theirs, batch) / 3).backward()
        if k % 3 == 2:
            it = k // 3
            coefficient = 0.5 * (1.0 + math.cos(math.pi * (it - 4) / 16))
            for group in optimizer.param_groups:
                group["lr"] = 6e-4 * (it + 1) / 5 if it < 4 else 6e-5 + coefficient * (6e-4 - 6e-5)
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert two.train(mine, batches(36), pull, s).num_updates == 12
    same(mine, theirs)


def test_dino_clips_each_tensor_and_its_last_layer_rests():
    two = recipe("dino")
    s = {**two.settings, "updates_per_epoch": 4, "warmup_epochs": 1, "epochs": 3, "clip": 0.01, "freeze_epochs": 1}
    mine = models.dino()
    theirs = copy.deepcopy(mine)
    teacher = copy.deepcopy(mine)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1]},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    rates = by_linspace(s["base_lr"] * s["batch"] / 256, s["min_lr"], 3, 4, 1)
    decays, stays = by_linspace(0.04, 0.4, 3, 4), by_linspace(0.996, 1.0, 3, 4)
    updater = two.chain(s).bind(mine, autocast=torch.float16)
    for it, batch in enumerate(batches(12)):
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = rates[it]
            if i == 0:
                group["weight_decay"] = decays[it]
        optimizer.zero_grad()
        pull(theirs, batch).backward()
        for name, p in theirs.named_parameters():
            factor = 0.01 / (p.grad.norm(2) + 1e-6)
            if factor < 1:
                p.grad.mul_(factor)
            if it < 4 and "last_layer" in name:
                p.grad = None
        optimizer.step()
        for a, p in zip(teacher.parameters(), theirs.parameters(), strict=True):
            a.data.mul_(stays[it]).add_((1 - stays[it]) * p.detach())
        updater.update(pull(mine, batch))
    same(mine, theirs)
    for a, b in zip(updater.averages().values(), teacher.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_sam_looks_uphill_in_proportion_to_the_weights():
    two = recipe("sam")
    s = {**two.settings, "epochs": 3, "drops": (0.3, 0.6, 0.9)}
    torch.manual_seed(0)
    mine = torch.nn.Linear(4, 4)
    theirs = copy.deepcopy(mine)

    def loss(m, x):
        return (m(x) - 1).square().mean()

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(3):
        for batch in batches(4):
            optimizer.zero_grad()
            loss(theirs, batch).backward()
            w = [p.detach().clone() for p in theirs.parameters()]
            norm = torch.stack([(p.abs() * p.grad).norm() for p in theirs.parameters()]).norm()
            with torch.no_grad():
                for p in theirs.parameters():
                    p.add_(p**2 * p.grad * 2.0 / (norm + 1e-12))
            optimizer.zero_grad()
            loss(theirs, batch).backward()
            for p, old in zip(theirs.parameters(), w, strict=True):
                p.data.copy_(old)
            optimizer.step()
            for group in optimizer.param_groups:  # behind the step
                group["lr"] = 0.1 * 0.2 ** sum(epoch >= 3 * part for part in (0.3, 0.6, 0.9))
    two.train(mine, [batches(4)] * 3, loss, s)
    same(mine, theirs)


def test_timm_s_lamb_leaves_vectors_alone_and_holds_the_norm():
    two = recipe("timm")
    mine = models.timm()
    theirs = [p.detach().clone() for p in mine.parameters()]
    updater = two.chain().bind(mine)
    data = batches(8)
    for start in (0, 4):
        for batch in data[start : start + 4]:
            updater.update(10 * pull(mine, batch))
    m, v = [torch.zeros_like(p) for p in theirs], [torch.zeros_like(p) for p in theirs]
    for t, start in ((1, 0), (2, 4)):
        ws = [w.clone().requires_grad_() for w in theirs]
        sum(10 * pull(dict(enumerate(ws)), b) / 4 for b in data[start : start + 4]).backward()
        norm = torch.stack([w.grad.norm() for w in ws]).norm()
        assert norm > 1
        for i, w in enumerate(ws):
            g = w.grad / max(norm, 1.0)
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            step = m[i] / (1 - 0.9**t) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-6)
            if w.dim() > 1:
                step = step + 0.02 * theirs[i]
                step = step * theirs[i].norm() / step.norm()
            theirs[i] = theirs[i] - 1e-5 * step
    for p, w in zip(mine.parameters(), theirs, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-6, atol=1e-8)


def test_byol_s_lars_is_decay_then_a_length_then_momentum():
    two = recipe("byol")
    mine = models.byol()
    names = [n for n, _ in mine.named_parameters()]
    w = {n: p.detach().clone() for n, p in mine.named_parameters()}
    updater, mu = two.chain().bind(mine), {n: torch.zeros_like(p) for n, p in w.items()}
    for t, batch in enumerate(batches(6)):
        leaves = {n: p.clone().requires_grad_() for n, p in w.items()}
        pull(leaves, batch).backward()
        for n in names:
            u = leaves[n].grad
            if n == "0.weight":
                u = u + 1.5e-6 * w[n]
                u = u * 1e-3 * w[n].norm() / u.norm()
            mu[n] = 0.9 * mu[n] + u
            w[n] = w[n] - 3.2 * t / 3127 * mu[n]
        updater.update(pull(mine, batch))
    for n, p in mine.named_parameters():
        torch.testing.assert_close(p.detach(), w[n], rtol=1e-5, atol=1e-7)


def test_splatting_keeps_the_moments_of_the_rows_that_stay():
    """As the script does it with torch's Adam: rows of the state are cut and put together, the count goes on."""
    two = recipe("gaussian_splatting")
    torch.manual_seed(0)
    names = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")
    scene = {n: torch.randn(5, 2, requires_grad=True) for n in names}
    theirs = {n: t.detach().clone().requires_grad_() for n, t in scene.items()}
    rates = dict(zip(names, (None, 2.5e-3, 1.25e-4, 0.05, 5e-3, 1e-3), strict=True))

    def adam(tensors):
        return torch.optim.Adam([{"params": [tensors[n]], "lr": rates[n] or 0.0} for n in names], eps=1e-15)

    optimizer, updater, data = adam(theirs), two.chain().bind(scene), batches(9)
    keep, new = torch.tensor([True, False, True, True, True]), {n: torch.randn(2, 2) for n in names}
    for i, batch in enumerate(data, 1):
        optimizer.param_groups[0]["lr"] = 1.6e-4 * 0.01 ** (i / 30_000)
        optimizer.zero_grad()
        pull(theirs, batch).backward()
        optimizer.step()
        updater.update(pull(scene, batch))
        if i in (3, 6):
            moved = {}
            for n in names:
                state, old = optimizer.state[theirs[n]], theirs[n].detach()
                rows = (lambda t, n=n, pad=None: torch.cat([t[keep], pad])) if i == 3 else None
                if i == 3:
                    grown = {k: rows(state[k], pad=torch.zeros(2, 2)) for k in ("exp_avg", "exp_avg_sq")}
                    moved[n] = (rows(old, pad=new[n]), {**grown, "step": state["step"]})
                elif n == "opacity":
                    zeros = {k: torch.zeros_like(old) for k in ("exp_avg", "exp_avg_sq")}
                    low = torch.special.logit(torch.sigmoid(old).clamp(max=0.01))
                    moved[n] = (low, {**zeros, "step": state["step"]})
                else:
                    moved[n] = (old, state)
            theirs = {n: value.clone().requires_grad_() for n, (value, _) in moved.items()}
            optimizer = adam(theirs)
            for n, (_, state) in moved.items():
                optimizer.state[theirs[n]] = state
            two.densify(updater, scene, keep, new) if i == 3 else two.reset_opacity(updater, scene)
    for n in names:
        torch.testing.assert_close(scene[n], theirs[n], rtol=1e-5, atol=2e-6)


def test_clip_holds_its_temperature():
    two = recipe("clip")
    model = models.clip()
    model.logit_scale.data.fill_(4.6)
    updater = two.chain({**two.settings, "warmup": 2, "lr": 0.1}).bind(model)
    for _ in range(4):
        updater.update(-model.logit_scale + 0 * pull(model, torch.ones(1)))
    assert model.logit_scale.item() == torch.tensor(math.log(100)).item()


def test_wgan_s_three_backwards_are_one_of_the_sum():
    two = recipe("wgan_gp")
    torch.manual_seed(0)
    g, critic = torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)
    theirs = copy.deepcopy(critic)
    fakes = []

    def noise(n):
        z = torch.ones(n, 2)
        fakes.append(g(z).detach())
        return z

    def penalty(critic, real, fake):
        return (critic.weight.norm() - 1).square()

    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4, betas=(0.5, 0.9))
    data = batches(4)
    two.train(g, critic, data, noise, penalty)
    for real, fake in zip(data, fakes, strict=True):
        optimizer.zero_grad()
        (theirs(fake).mean() - theirs(real).mean() + 10 * penalty(theirs, real, fake)).backward()
        optimizer.step()
    same(critic, theirs)


def test_simsiam_and_textual_inversion_are_their_optimizers():
    """SGD with a group whose rate stays; AdamW over a whole embedding of which all rows but one are put back."""
    two = recipe("textual_inversion")
    torch.manual_seed(0)
    mine = torch.nn.Embedding(6, 4)
    theirs = copy.deepcopy(mine)
    first = theirs.weight.detach().clone()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-4 * 4, weight_decay=0.01)
    ids = [torch.tensor([[1, 5]]), torch.tensor([[2, 5]])] * 4

    def loss(m, x):
        return (m(x) - 1).square().mean()

    for k, x in enumerate(ids, 1):
        (loss(theirs, x) / 4).backward()
        if k % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
            theirs.weight.data[:5] = first[:5]
    two.train(mine, [5], ids, loss)
    same(mine, theirs)
    assert torch.equal(mine.weight[:5], first[:5])


def test_the_rest_have_the_numbers_of_their_scripts():
    assert repr(recipe("wgan_gp").chain()) == repr(recipe("wgan_gp").gch.adam(1e-4, b1=0.5, b2=0.9))
    sac, gch = recipe("sac"), recipe("sac").gch
    assert repr(sac.critic_chain()) == repr(gch.chain(gch.adam(1e-3), gch.average_params(1 - 0.005)))
    assert repr(sac.actor_chain()) == repr(gch.adam(3e-4)) and repr(sac.temperature_chain()) == repr(gch.adam(1e-3))
    assert repr(recipe("schedule_free").chain()) == repr(gch.rules.schedule_free_adamw(2.5e-3))
    assert of(numbers(bound("modded_nanogpt", models), "muon/scale_by_normuon.b2"), "qk_bank") == 0.9
