"""from_torch against the raw optimizers: every class of torch.optim and torch_optimizer, bit for bit."""

import copy
import inspect
import warnings

import pytest
import torch
import torch_optimizer
from torch import nn

import gradchain as gch

STEPS = 20
NEEDS = {"LARS": {"lr": 1e-2}, "LBFGS": {"max_iter": 4}, "A2GradUni": {}, "SGDW": {"lr": 1e-2}}
REFUSED = {"torch.SparseAdam", "torch_optimizer.Lookahead", "torch_optimizer.Adahessian"}


def of(module, package):
    return sorted(
        f"{package}.{n}"
        for n, c in vars(module).items()
        if isinstance(c, type) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer
    )


NAMES = [*of(torch.optim, "torch"), *of(torch_optimizer, "torch_optimizer")]
RUN = [name for name in NAMES if name not in REFUSED]
WITH_LR = [name for name in RUN if name != "torch.LBFGS"]
every = pytest.mark.parametrize("name", RUN)


def class_of(name):
    package, _, short = name.partition(".")
    return getattr(torch.optim if package == "torch" else torch_optimizer, short)


def net():
    """A model in float64; of matrices only, since Muon takes no other."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).double()


def batches(n=STEPS):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 5, generator=generator).double(), torch.randn(8, 3, generator=generator).double())
        for _ in range(n)
    ]


def loss_of(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def raw(name, model, **given):
    return class_of(name)(model.parameters(), **{**NEEDS.get(name.partition(".")[2], {}), **given})


def ours(name, **given):
    return gch.from_torch(name, **{**NEEDS.get(name.partition(".")[2], {}), **given})


def raw_step(optimizer, model, batch, clip=None):
    """A step as a user of torch writes it."""

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
        return
    closure()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def our_step(updater, model, batch, name):
    if name == "torch.LBFGS":
        return updater.update(lambda: loss_of(model, batch))
    return updater.update(loss_of(model, batch))


def assert_same(a, b, rtol=0.0):
    for (n, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.isfinite(p).all(), n
        assert (p - q).abs().max() <= rtol * q.abs().max(), n


@every
def test_twenty_steps_are_those_of_the_class_bit_for_bit(name):
    """No clip, no schedule: the weights after each of 20 steps have the same bits."""
    model, twin = net(), net()
    updater, optimizer = gch.chain(ours(name)).bind(model), raw(name, twin)
    start = copy.deepcopy(model)
    for batch in batches():
        our_step(updater, model, batch, name)
        raw_step(optimizer, twin, batch)
        assert_same(model, twin)
    assert updater.num_updates == STEPS
    assert any((p != q).any() for p, q in zip(model.parameters(), start.parameters(), strict=True))


@every
def test_saved_in_the_middle_it_goes_on_bit_for_bit(name, tmp_path):
    """A fresh model and updater take up the file, and every later weight has the same bits."""
    model = net()
    updater = gch.chain(ours(name)).bind(model)
    for batch in batches()[:7]:
        our_step(updater, model, batch, name)
    updater.save(tmp_path / "run.pt")
    other = net()
    again = gch.chain(ours(name)).bind(other)
    again.load(tmp_path / "run.pt")
    for batch in batches()[7:]:
        our_step(updater, model, batch, name)
        our_step(again, other, batch, name)
        assert_same(model, other)


@pytest.mark.parametrize("name", WITH_LR)
def test_a_schedule_and_a_clip_around_the_class(name):
    """The learning rate written into the group at each step, the norm clipped before it; as by hand at 1e-12."""

    def lr(t):
        return 1e-2 * (1 - t / 40)

    model, twin = net(), net()
    updater = gch.chain(gch.clip_by_norm(0.5), ours(name, lr=lr)).bind(model)
    optimizer = raw(name, twin, lr=lr(0))
    for t, batch in enumerate(batches()):
        for group in optimizer.param_groups:
            group["lr"] = lr(t)
        our_step(updater, model, batch, name)
        raw_step(optimizer, twin, batch, clip=0.5)
    assert_same(model, twin, 1e-12)


@pytest.mark.parametrize("name", WITH_LR)
def test_the_class_in_a_branch_and_in_a_window(name):
    """One layer by the class, the other by SGD, two micro-batches to one step; as two optimizers by hand at 1e-12."""
    model, twin = net(), net()
    split = gch.partition((gch.named("0.*"), ours(name)), (gch.rest, gch.sgd(0.1)))
    updater = gch.chain(gch.accumulate(2), split).bind(model)
    optimizers = raw(name, twin[0]), torch.optim.SGD(twin[2].parameters(), lr=0.1)
    data = batches()
    for a, b in zip(data[::2], data[1::2], strict=True):
        assert not updater.update(loss_of(model, a))
        assert updater.update(loss_of(model, b))
        twin.zero_grad()
        ((loss_of(twin, a)) / 2).backward()
        ((loss_of(twin, b)) / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same(model, twin, 1e-12)


# what a link is, apart from its numbers


def bound(name="AdamW", model=None, **given):
    model = net() if model is None else model
    return gch.chain(gch.from_torch(name, **given)).bind(model), model


@pytest.mark.parametrize("name", ["AdamW", "RAdam", "torch_optimizer.RAdam", "torch_optimizer.MADGRAD", "Lamb"])
def test_float32_in_a_mask_has_the_bits_of_the_class(name):
    """The difference is taken in float64: what is added gives the weight itself."""
    model, twin = net().float(), net().float()
    short = name.rpartition(".")[2]
    cls = getattr(torch_optimizer if "." in name or not hasattr(torch.optim, short) else torch.optim, short)
    first = gch.masked(gch.from_torch(name, lr=0.01), gch.named("0.*"))
    second = gch.masked(gch.from_torch(name, lr=0.02), gch.named("2.*"))
    updater = gch.chain(first, second).bind(model)
    optimizers = cls(twin[0].parameters(), lr=0.01), cls(twin[2].parameters(), lr=0.02)
    for x, y in batches():
        batch = x.float(), y.float()
        updater.update(loss_of(model, batch))
        twin.zero_grad()
        loss_of(twin, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
        assert_same(model, twin)


def test_a_number_per_parameter_makes_groups():
    """Scalars from a schedule: one parameter group per set of numbers; also where two parameters come to agree."""

    def lr(t):
        return gch.Scalars({"0.weight": 0.01, "2.weight": 0.02 if t < 10 else 0.01})

    model, twin = net(), net()
    updater = gch.chain(gch.from_torch("torch_optimizer.AdaBound", lr=lr)).bind(model)
    optimizer = torch_optimizer.AdaBound([{"params": [p]} for p in twin.parameters()])
    for t, batch in enumerate(batches()):
        for group, value in zip(optimizer.param_groups, lr(t).values(), strict=True):
            group["lr"] = value
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
        assert_same(model, twin)


@pytest.mark.parametrize("name", ["AdamW", "Adagrad", "RMSprop", "torch_optimizer.Yogi", "torch_optimizer.MADGRAD"])
def test_a_parameter_without_a_gradient_is_left_alone(name):
    """Weight and memory stay, and its own count stays behind, as in the class."""
    model, twin = net(), net()
    updater = gch.chain(gch.from_torch(name, lr=0.01)).bind(model)
    optimizer = class_of(name if "." in name else f"torch.{name}")(twin.parameters(), lr=0.01)
    for t, batch in enumerate(batches()):
        loss_of(twin, batch).backward()
        grads = {n: p.grad.clone() for n, p in twin.named_parameters()}
        if t % 3 == 1:
            grads["0.weight"] = twin[0].weight.grad = None
        kept = copy.deepcopy(updater.state_dict()["links"]["from_torch"]["state"]["0.weight"])
        updater.step(grads)
        optimizer.step()
        twin.zero_grad()
        assert_same(model, twin)
        if t % 3 == 1:
            now = updater.state_dict()["links"]["from_torch"]["state"]["0.weight"]
            assert list(now) == list(kept)
            assert all(torch.equal(torch.as_tensor(now[k]), torch.as_tensor(kept[k])) for k in kept)


def test_overrides_reach_the_group_and_are_checked_by_the_class():
    """`betas[0]` is a number of its own; one out of range is refused in the class's words, and nothing changes."""
    updater, model = bound("AdamW", lr=0.1)
    twin = net()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"^from_torch: AdamW: Invalid beta parameter at index 0: 1.5\.$"):
        updater.override("betas[0]", 1.5)
    updater.override("betas[0]", 0.5)
    updater.override("weight_decay", factor=2.0)
    optimizer.param_groups[0].update(betas=(0.5, 0.999), weight_decay=0.02)
    for batch in batches()[:5]:
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
    assert_same(model, twin)
    updater.override("betas[0]")
    optimizer.param_groups[0].update(betas=(0.9, 0.999))
    assert updater.hyperparams()["from_torch.betas[0]"] == 0.9
    for batch in batches()[5:]:
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
    assert_same(model, twin)


class Restless(torch.optim.Optimizer):
    """Keeps numbers everywhere: in its group, on itself, in its state under no parameter; and writes to gradients."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "d": 1.0})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.calls += 1
        self.state["all"] = self.state.get("all", 0) + 2
        for group in self.param_groups:
            group["d"] *= 1.1
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(group["d"] * self.calls * self.state["all"])
                    p.sub_(group["lr"] * p.grad)


def test_what_an_optimizer_keeps_elsewhere_is_kept_and_saved():
    """In its group, on itself, and under no parameter: as by itself, and after a load."""
    model, twin = net(), net()
    updater, optimizer = gch.chain(gch.from_torch(Restless, lr=1e-4)).bind(model), Restless(twin.parameters(), lr=1e-4)
    for t, batch in enumerate(batches()):
        if t == 9:
            saved = updater.state_dict()
            updater = gch.chain(gch.from_torch(Restless, lr=1e-4)).bind(model)
            updater.load_state_dict(saved)
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
        assert_same(model, twin)


def test_update_changes_none_of_its_arguments():
    """Weights, gradients and memory are as they were, though the class writes to all three."""
    tx = gch.chain(gch.from_torch(Restless, lr=0.1), gch.average_params(0.9))
    params = gch.Tensors.of({"w": torch.ones(3), "b": torch.zeros(2)})
    grads = gch.Tensors.of({"w": torch.full((3,), 2.0), "b": torch.ones(2)})
    state = tx.init(params)
    for t in range(3):
        before = copy.deepcopy((dict(params), dict(grads), dict(state.links["from_torch"].group["w"])))
        _, new = tx.update(grads, state, gch.Context(params, step=t))
        after = dict(params), dict(grads), dict(state.links["from_torch"].group["w"])
        for a, b in zip(before[:2], after[:2], strict=True):
            assert all(torch.equal(a[n], b[n]) for n in a)
        assert before[2] == after[2] != dict(new.links["from_torch"].group["w"])
        state = new


def test_rebind_and_reset():
    """State follows names; a parameter whose shape changed needs a remap; a reset parameter starts afresh."""
    updater, model = bound("AdamW", lr=0.1)
    for batch in batches()[:3]:
        updater.update(loss_of(model, batch))
    step = updater.state_dict()["links"]["from_torch"]["state"]
    other = nn.Sequential(model[0], nn.Tanh(), nn.Linear(6, 4, bias=False).double())
    with pytest.raises(ValueError, match=r"rebind: from_torch.state\['2.weight'\] is of a parameter of shape \(3, 6\)"):
        updater.rebind(other)
    updater.rebind(other, remap={"2.weight": lambda slot: torch.cat([slot, slot[:1]])})
    now = updater.state_dict()["links"]["from_torch"]["state"]
    assert torch.equal(now["2.weight"]["exp_avg"][:3], step["2.weight"]["exp_avg"])
    assert now["2.weight"]["exp_avg"].shape == (4, 6) and now["2.weight"]["step"] == 3.0
    assert torch.equal(now["0.weight"]["exp_avg"], step["0.weight"]["exp_avg"])
    updater.reset(gch.named("0.*"))
    now = updater.state_dict()["links"]["from_torch"]["state"]
    assert now["0.weight"] == {} and now["2.weight"]["step"] == 3.0


def test_a_parameter_that_wakes_up_starts_its_memory_then():
    """Frozen at bind, it has no state; its first gradient gives it one."""
    model = net()
    model[0].weight.requires_grad_(False)
    updater, _ = bound("SGD", model, lr=0.1, momentum=0.9)
    updater.update(loss_of(model, batches()[0]))
    assert list(updater.state_dict()["links"]["from_torch"]["state"]) == ["2.weight"]
    model[0].weight.requires_grad_(True)
    updater.update(loss_of(model, batches()[1]))
    state = updater.state_dict()["links"]["from_torch"]["state"]
    assert sorted(state) == ["0.weight", "2.weight"] and "momentum_buffer" in state["0.weight"]


def test_loading_is_checked():
    """What is not a dict per parameter, or has other shapes than what is known, is refused, and nothing changes."""
    updater, model = bound("AdamW", lr=0.1)
    updater.update(loss_of(model, batches()[0]))
    saved = updater.state_dict()
    bad = copy.deepcopy(saved)
    bad["links"]["from_torch"]["state"]["0.weight"]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"state: expected shape \(6, 5\) in float64 for '0.weight' 'exp_avg'"):
        updater.load_state_dict(bad)
    bad["links"]["from_torch"]["state"] = {"0.weight": 3}
    with pytest.raises(ValueError, match=r"from_torch\.state: expected a dict per parameter"):
        updater.load_state_dict(bad)
    assert torch.equal(
        updater.state_dict()["links"]["from_torch"]["state"]["0.weight"]["exp_avg"],
        saved["links"]["from_torch"]["state"]["0.weight"]["exp_avg"],
    )


def test_a_step_that_fails_changes_nothing():
    """The class raises in the middle: weights and memory are whole, and the next step works."""

    class Failing(Restless):
        def step(self, closure=None):
            super().step()
            if self.calls == 2 and self.param_groups[0]["params"][0].grad[0, 0] > 1e9:
                raise ValueError("enough")

    model = net()
    updater = gch.chain(gch.from_torch(Failing, lr=1e-4)).bind(model)
    updater.update(loss_of(model, batches()[0]))
    before = copy.deepcopy(model), updater.state_dict()
    huge = {n: torch.full_like(p, 1e12) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"^from_torch: Failing: enough"):
        updater.step(huge)
    assert_same(model, before[0])
    assert updater.state_dict()["links"] == before[1]["links"] and updater.num_updates == 1
    assert updater.update(loss_of(model, batches()[1]))


# names, configs, refusals


def test_names_in_the_documented_order():
    """torch.optim first; a package in front of a name asks for that one; a class given is written by its name."""
    assert gch.from_torch("RAdam").optimizer == "RAdam"
    assert gch.from_torch(torch.optim.RAdam) == gch.from_torch("RAdam")
    assert gch.from_torch(torch_optimizer.RAdam).optimizer == "torch_optimizer.RAdam"
    assert gch.from_torch(torch_optimizer.Yogi, lr=0.1) == gch.from_torch("Yogi", lr=0.1) != gch.from_torch("Yogi")
    assert gch.from_torch("torch.SGD") != gch.from_torch("SGD", lr=0.1)
    assert repr(gch.from_torch("Yogi", lr=0.1, betas=[0.9, 0.99])) == 'from_torch("Yogi", lr=0.1, betas=(0.9, 0.99))'


MADE = {
    "scheduled": lambda: gch.from_torch("SGD", lr=gch.linear(0.1, 0.0, 9), momentum=0.9),
    "plain": lambda: gch.from_torch("Lamb"),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_config_makes_it_again(made):
    """Through JSON too."""
    import json
    import pickle

    link = made()
    config = gch.to_config(gch.chain(link))
    assert gch.from_config(json.loads(json.dumps(config))) == gch.chain(link)
    assert pickle.loads(pickle.dumps(link)) == link == copy.deepcopy(link) and hash(link) == hash(copy.deepcopy(link))


def test_a_class_of_the_users_needs_its_name_in_from_config():
    """It is written by module and name, and never imported."""
    link = gch.from_torch(Restless, lr=0.1)
    config = gch.to_config(link)
    assert config["optimizer"]["class"].endswith(":Restless")
    with pytest.raises(KeyError, match="names="):
        gch.from_config(config)
    assert gch.from_config(config, names={"Restless": Restless}) == link


@pytest.mark.parametrize(
    ("error", "sentence", "make"),
    [
        (KeyError, "no optimizer 'AdamWW'.* Did you mean 'AdamW'", lambda: gch.from_torch("AdamWW")),
        (KeyError, "no optimizer 'lamb'.* Did you mean 'Lamb'", lambda: gch.from_torch("lamb")),
        (TypeError, "unexpected .* 'momentm'.*It takes: lr, momentum", lambda: gch.from_torch("SGD", momentm=1)),
        (ValueError, "from_torch: SGD: Invalid learning rate: -1", lambda: gch.from_torch("SGD", lr=-1)),
        (TypeError, "class or its name, got 3", lambda: gch.from_torch(3)),
        (TypeError, "Its arguments go to", lambda: gch.from_torch(torch.optim.SGD(net().parameters()))),
        (ValueError, "SparseAdam cannot be .* sparse gradients only", lambda: gch.from_torch("SparseAdam")),
        (ValueError, "Lookahead cannot be .* inner optimizer", lambda: gch.from_torch("Lookahead")),
        (ValueError, "Adahessian cannot be .* once more", lambda: gch.from_torch("Adahessian")),
        (ValueError, "from_torch: Muon: .*2D", lambda: gch.from_torch("Muon").bind(nn.Linear(2, 2))),
        (ValueError, "sign is flipped 2 times", lambda: gch.chain(gch.sgd(0.1), gch.from_torch("SGD")).bind(net())),
        (ValueError, "weights, but scale comes", lambda: gch.chain(gch.from_torch("SGD"), gch.scale(2)).bind(net())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(error, sentence, make):
    """Each in a sentence."""
    with pytest.raises(error, match=sentence):
        make()


DIFFERENTIABLE = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and "differentiable" in inspect.signature(cls).parameters
)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_class_that_is_to_be_differentiable_is_refused_where_it_is_given(name):
    """Every class of torch that has the argument; given, in a config, or by a class's own default."""
    cls = getattr(torch.optim, name)

    class by_default(cls):
        def __init__(self, params, differentiable=True):
            super().__init__(params, differentiable=differentiable)

    for make in (
        lambda: gch.from_torch(name, differentiable=True),
        lambda: gch.from_torch(cls, [("differentiable", True)]),
        lambda: gch.from_config({"link": "from_torch", "optimizer": name, "differentiable": True}),
        lambda: gch.from_torch(by_default),
    ):
        with pytest.raises(
            ValueError, match=r"^from_torch: \w+: differentiable must be False, got True: .*torch\.func"
        ):
            make()
    gch.from_torch(name, differentiable=False)


def test_what_a_class_asserts_is_told_with_its_name():
    """Such as capturable=True away from an accelerator: nothing has changed."""
    updater, model = bound("Adam", lr=0.1, capturable=True)
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match=r"^from_torch: Adam: If capturable=True"):
        updater.update(loss_of(model, batches()[0]))
    assert_same(model, before)


@pytest.mark.parametrize("word", ["lrr", "momentm", "use_muon", "learning_rate"])
@pytest.mark.parametrize("cls", ["SGD", "AdamW", "torch_optimizer.RAdam", "torch.Muon"])
def test_a_rule_per_parameter_for_what_the_class_never_mentions_is_a_slip(cls, word):
    """A flag of groups is what the class reads in them; another word is an argument that it does not take."""
    with pytest.raises(TypeError, match=rf"^from_torch: \w+: .*'{word}'.*It takes: "):
        gch.from_torch(cls, **{word: gch.choose((gch.ndim(2), 1), rest=0)})


@pytest.mark.parametrize(
    ("given", "written"),
    [({"learning_rate": 0.1}, "lr="), ({"b1": 0.9}, "betas="), ({"beta2": 0.9}, "betas="),
     ({"wd": 0.1}, "weight_decay="), ({"epsilon": 0.1}, "eps=")],
)  # fmt: skip
def test_a_word_of_ours_is_answered_with_that_of_the_class(given, written):
    with pytest.raises(TypeError, match=rf"from_torch: AdamW: .* Write {written}\. It takes: lr, "):
        gch.from_torch("AdamW", **given)


def test_lbfgs_needs_a_closure():
    """A plain loss is refused where the class asks again; nothing has changed."""
    updater, model = bound("LBFGS")
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match=r"from_torch: needs to evaluate the loss again. Call updater.update\("):
        updater.update(loss_of(model, batches()[0]))
    assert_same(model, before)


def test_averages_and_projections_come_after_it():
    """They read the weights that it owns."""
    model = net()
    tx = gch.chain(gch.from_torch("SGD", lr=10.0), gch.project(lambda w: w.clamp(-0.1, 0.1)), gch.average_params(0.5))
    updater = tx.bind(model)
    start = copy.deepcopy(model)
    updater.update(loss_of(model, batches()[0]))
    assert all(p.abs().max() <= 0.1 for p in model.parameters())
    for name, p in start.named_parameters():
        assert torch.allclose(updater.averages()[name], (p + dict(model.named_parameters())[name]) / 2)


def test_an_average_that_starts_later():
    """Until then it is the very weights that the class wrote, and shares no memory with them."""
    model = net()
    updater = gch.chain(gch.from_torch("SGD", lr=0.1), gch.average_params(0.5, start=1)).bind(model)
    updater.update(loss_of(model, batches()[0]))
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(torch.equal(updater.averages()[name], p) for name, p in first.items())
    updater.update(loss_of(model, batches()[1]))
    for name, p in model.named_parameters():
        torch.testing.assert_close(updater.averages()[name], (first[name] + p) / 2)


def test_explain_counts_what_it_keeps():
    """Two moments in float64 and a count in float32 for each of 48 elements in 2 parameters."""
    updater, model = bound("AdamW", lr=0.1)
    updater.update(loss_of(model, batches()[0]))
    assert "state of from_torch: 776 bytes" in updater.explain()


def test_half_precision_weights():
    """bfloat16 weights and memory, as the class has them."""
    model, twin = net().bfloat16(), net().bfloat16()
    updater = gch.chain(gch.from_torch("AdamW", lr=0.01)).bind(model)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01)
    for x, y in batches():
        batch = x.bfloat16(), y.bfloat16()
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
        assert_same(model, twin)


def test_transformers_adafactor_by_name():
    """With a relative step of its own, lr None: as the class."""
    transformers = pytest.importorskip("transformers")
    model, twin = net(), net()
    updater = gch.chain(gch.from_torch("transformers.Adafactor")).bind(model)
    optimizer = transformers.Adafactor(twin.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in batches():
            updater.update(loss_of(model, batch))
            raw_step(optimizer, twin, batch)
    assert_same(model, twin)
    assert "from_torch.lr" not in updater.hyperparams()


ELSEWHERE = {
    "dadaptation": ["DAdaptAdam", "DAdaptSGD", "DAdaptAdaGrad", "DAdaptLion", "DAdaptAdan"],
    "prodigyopt": ["Prodigy"],
    "lion_pytorch": ["Lion"],
}


@pytest.mark.parametrize(("package", "name"), [(p, n) for p, names in ELSEWHERE.items() for n in names])
def test_optimizers_of_other_packages(package, name):
    """Those that keep numbers in their groups too, saved and loaded on the way: bit for bit, where installed."""
    cls = getattr(pytest.importorskip(package), name)
    given = {"lr": 1e-3, "weight_decay": 0.1} if package == "lion_pytorch" else {}
    link = gch.from_torch(name, **given)
    model, twin = net(), net()
    updater, optimizer = gch.chain(link).bind(model), cls(twin.parameters(), **given)
    for t, batch in enumerate(batches()):
        if t == 9:
            saved = updater.state_dict()
            updater = gch.chain(link).bind(model)
            updater.load_state_dict(saved)
        updater.update(loss_of(model, batch))
        raw_step(optimizer, twin, batch)
        assert_same(model, twin)
