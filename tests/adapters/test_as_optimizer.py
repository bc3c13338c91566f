"""An updater as a `torch.optim.Optimizer`: torch's own schedulers, scaler, averages, checkpoints and hooks take it."""

import copy
import pickle

import pytest
import torch
from adapters.trainer_chains import CHAINS, batches, loss_of, model_of, same, stored
from later import later
from torch.optim import lr_scheduler as schedulers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import SWALR, AveragedModel

import gradchain as gch

files = later("torch.distributed.checkpoint")
state_dicts = later("torch.distributed.checkpoint.state_dict")

BATCHES = batches(24)
chains = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in CHAINS.items()])
SCHEDULERS = {
    "StepLR": lambda o: schedulers.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5], 0.3),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, 1.0, 6),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 15, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-3, 1e-2, 3, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1e-2, 30, cycle_momentum=False),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 3), schedulers.CosineAnnealingLR(o, 10)], [3]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 3), schedulers.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "SWALR": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=4),
}  # fmt: skip


def train(optimizer, model, data, scheduler=None):
    for batch in data:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step(*([1.0] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []))


def bound(make, seed=0):
    model = model_of(seed)
    return model, make().bind(model).as_optimizer()


def gap(one, other):
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@chains
def test_a_step_is_the_updaters_own(make):
    """Bit for bit, window or not, with the gradients that the loop made."""
    model, optimizer = bound(make)
    other = model_of()
    updater = make().bind(other)
    train(optimizer, model, BATCHES)
    for batch in BATCHES:
        other.zero_grad()
        loss_of(other, batch).backward()
        updater.step()
    assert same(model, other) and not same(model, model_of())
    assert optimizer.updater.num_updates == updater.num_updates


@chains
def test_a_resumed_run_is_the_uninterrupted_one(make):
    """Cut at each of many steps, in windows too, through a file that runs no code."""
    for cut in range(12):
        model, optimizer = bound(make)
        scheduler = schedulers.StepLR(optimizer, 2, 0.7) if make is not CHAINS["no rate"] else None
        train(optimizer, model, BATCHES[:cut], scheduler)
        if cut > 3 and scheduler is not None and make is CHAINS["schedule"]:
            optimizer.updater.override("learning_rate", 0.03)
        parts = (model, optimizer) if scheduler is None else (model, optimizer, scheduler)
        saved = stored([part.state_dict() for part in parts])
        again, resumed = bound(make, seed=9)
        back = schedulers.StepLR(resumed, 2, 0.7) if scheduler is not None else None
        for part, state in zip((again, resumed, back), saved, strict=False):
            part.load_state_dict(state)
        train(optimizer, model, BATCHES[cut : cut + 8], scheduler)
        train(resumed, again, BATCHES[cut : cut + 8], back)
        assert same(model, again), cut
        assert optimizer.updater.state_dict()["clocks"] == resumed.updater.state_dict()["clocks"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_torchs_schedulers_drive_a_constant_rate_as_they_drive_torchs(name):
    model, optimizer = bound(lambda: gch.chain(gch.adamw(2e-2)))
    other = model_of()
    theirs = torch.optim.AdamW(other.parameters(), lr=2e-2)
    train(optimizer, model, BATCHES, SCHEDULERS[name](optimizer))
    train(theirs, other, BATCHES, SCHEDULERS[name](theirs))
    assert optimizer.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert gap(model, other) < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: gch.chain(gch.adamw(lambda step: rate(step) * 0.02)),
        lambda rate: gch.chain(gch.from_torch("AdamW", lr=lambda step: rate(step) * 0.02)),
    ],
    ids=["ours", "from_torch"],
)
def test_a_scheduler_multiplies_the_chains_schedule(make):
    """Under accumulation the chain's schedule reads updates, and the factor is that of the step."""
    model, optimizer = bound(lambda: make(lambda step: 0.9**step))
    assert optimizer.param_groups[0]["lr"] == 1.0
    other = model_of()
    both = make(lambda step: 0.9**step * 0.8**step).bind(other)
    train(optimizer, model, BATCHES, schedulers.ExponentialLR(optimizer, 0.8))
    for batch in BATCHES:
        both.update(loss_of(other, batch))
    assert gap(model, other) < 1e-6


def test_an_override_of_the_users_is_multiplied_and_stays_the_users():
    model, optimizer = bound(CHAINS["constant"])
    optimizer.updater.override("learning_rate", 0.05)
    optimizer.param_groups[0]["lr"] = 5e-3  # half of the code's
    train(optimizer, model, BATCHES[:4])
    other = model_of()
    updater = gch.chain(gch.adamw(0.025)).bind(other)
    for batch in BATCHES[:4]:
        updater.update(loss_of(other, batch))
    assert gap(model, other) < 1e-7
    assert 0.05 in optimizer.updater.hyperparams().values()


def test_a_rate_that_the_chain_does_not_have_cannot_be_turned():
    model, optimizer = bound(CHAINS["no rate"])
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match=r"as_optimizer: the group's lr must be 1.0, got 0.5: .* no learning rate"):
        train(optimizer, model, BATCHES[:1])
    assert same(model, before)


def test_a_rate_out_of_range_changes_nothing():
    model, optimizer = bound(CHAINS["constant"])
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = -0.5
    with pytest.raises(ValueError, match="learning_rate must be"):
        train(optimizer, model, BATCHES[:1])
    assert same(model, before) and not optimizer.updater.state_dict()["overrides"]


@chains
def test_a_grad_scaler_scales_and_skips(make):
    """As without it, but for the step whose gradients overflow, which nobody takes."""
    model, optimizer = bound(make)
    other, plain = bound(make)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number, batch in enumerate(BATCHES):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch) * (float("inf") if number == 5 else 1.0)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if number != 5:
            plain.zero_grad()
            loss_of(other, batch).backward()
            torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            plain.step()
    assert optimizer.updater.num_micro == len(BATCHES) - 1
    assert optimizer.updater.num_updates == plain.updater.num_updates > 4
    assert gap(model, other) < 1e-6


def test_two_loss_scales_are_refused():
    model = model_of()
    optimizer = gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(model, autocast=torch.float16).as_optimizer()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, BATCHES[0])).backward()
    with pytest.raises(RuntimeError, match="as_optimizer: the chain has amp_scale, and a GradScaler scales"):
        scaler.step(optimizer)


def test_an_updater_that_works_in_backward_is_refused():
    with pytest.raises(ValueError, match="as_optimizer: an updater bound with in_backward=True"):
        gch.chain(gch.sgd(0.1)).bind(model_of(), in_backward=True).as_optimizer()


def test_averaged_model_and_swalr():
    model, optimizer = bound(CHAINS["constant"])
    averaged = AveragedModel(model)
    scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)
    seen = []
    for batch in BATCHES[:6]:
        train(optimizer, model, [batch], scheduler)
        averaged.update_parameters(model)
        seen.append(model[0].weight.detach().clone())
    assert torch.allclose(averaged.module[0].weight, sum(seen) / len(seen), atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0.05


@chains
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints_calls_bring_all_back(make, flat):
    """Without a fake step, at every place of a window."""
    options = state_dicts.StateDictOptions(flatten_optimizer_state_dict=flat)
    for cut in (0, 1, 5):
        model, optimizer = bound(make)
        train(optimizer, model, BATCHES[:cut])
        saved = stored(state_dicts.get_optimizer_state_dict(model, optimizer, options=options))
        assert optimizer.updater.num_micro == cut
        again, resumed = bound(make, seed=3)
        again.load_state_dict(model.state_dict())
        state_dicts.set_optimizer_state_dict(again, resumed, saved, options=options)
        train(optimizer, model, BATCHES[cut : cut + 7])
        train(resumed, again, BATCHES[cut : cut + 7])
        assert same(model, again), cut


@chains
def test_pickled_and_copied_runs_go_on(make):
    for through in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        model, optimizer = bound(make)
        train(optimizer, model, BATCHES[:4])
        again, resumed = through((model, optimizer))
        assert all(a is b for a, b in zip(resumed.param_groups[0]["params"], again.parameters(), strict=True))
        train(optimizer, model, BATCHES[4:10])
        train(resumed, again, BATCHES[4:10])
        assert same(model, again)


def test_hooks_are_called():
    model, optimizer = bound(CHAINS["constant"])
    called = []
    optimizer.register_step_pre_hook(lambda *a: called.append("before"))
    optimizer.register_step_post_hook(lambda *a: called.append("after"))
    optimizer.register_state_dict_pre_hook(lambda o: called.append("saving"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, s: called.append(s.pop("mine")))
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("loaded"))
    train(optimizer, model, BATCHES[:1])
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["before", "after", "saving", 1, "loaded"]


def test_hooks_for_all_optimizers_are_called_and_may_change_the_closure():
    model, optimizer = bound(CHAINS["constant"])
    called = []
    handles = [
        register_optimizer_step_pre_hook(lambda *a: called.append("before")),
        register_optimizer_step_post_hook(lambda *a: called.append("after")),
        optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: called.append("closure")), {})),
    ]
    train(optimizer, model, BATCHES[:1])
    for handle in handles:
        handle.remove()
    train(optimizer, model, BATCHES[1:2])
    assert called == ["before", "closure", "after"] and optimizer.updater.num_updates == 2


def test_a_profiler_sees_its_steps():
    model, optimizer = bound(CHAINS["constant"])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(optimizer, model, BATCHES[:2])
    (seen,) = (event for event in profile.key_averages() if event.key == "Optimizer.step#ChainOptimizer.step")
    assert seen.count == 2


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    model, optimizer = bound(CHAINS["constant"])

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, BATCHES[0])
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() > 0 and optimizer.updater.num_updates == 1


def test_zero_grad_keeps_the_window_and_flush_closes_it_under_the_groups_rate():
    model, optimizer = bound(CHAINS["window"])
    optimizer.param_groups[0]["lr"] = 5e-3
    train(optimizer, model, BATCHES[:2])
    optimizer.zero_grad()
    assert optimizer.info.reason == "window" and optimizer.flush() and optimizer.updater.num_updates == 1
    other = model_of()
    updater = gch.chain(gch.adamw(5e-3)).bind(other)
    updater.update((loss_of(other, BATCHES[0]) + loss_of(other, BATCHES[1])) / 2)
    assert gap(model, other) < 1e-7
    assert not optimizer.flush()


def test_gradients_stay_for_those_who_look_at_them():
    model, optimizer = bound(CHAINS["constant"])
    train(optimizer, model, BATCHES[:1])
    assert all(p.grad is not None for p in model.parameters())


def test_state_is_plain_and_each_tensor_has_its_place():
    """What torch.save, DCP and Lightning know; slots under the parameter they are of."""
    model, optimizer = bound(CHAINS["window and averages"])
    train(optimizer, model, BATCHES[:2])

    def plain(value):
        if isinstance(value, dict):
            return type(value) is dict and all(plain(v) for v in value.values())
        if isinstance(value, list):
            return type(value) is list and all(map(plain, value))
        return type(value) in (int, float, str, bool, torch.Tensor)

    saved = optimizer.state_dict()
    assert plain(saved) and set(saved["state"]) == {0, 1, 2, 3}
    for number, parameter in enumerate(model.parameters()):
        shapes = {key: tuple(t.shape) for key, t in saved["state"][number].items() if key != "gradchain"}
        assert len(shapes) == 3 and set(shapes.values()) == {tuple(parameter.shape)}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: saved["state"].clear(),
        lambda saved: saved["param_groups"][0]["params"].pop(),
        lambda saved: saved["state"][0].pop("gradchain"),
        lambda saved: saved["state"][1].popitem(),
        lambda saved: saved["state"][0].update(gradchain=torch.zeros(64, dtype=torch.uint8)),
        lambda saved: saved["param_groups"].append(dict(saved["param_groups"][0])),
        lambda saved: saved["param_groups"].clear(),
        lambda saved: saved["param_groups"][0].pop("lr"),
        lambda saved: saved["param_groups"][0].update(lr=None),
        lambda saved: saved["param_groups"][0].update(lr="0.1"),
        lambda saved: saved["param_groups"][0].update(lr=float("nan")),
        lambda saved: saved["param_groups"][0].update(lr=torch.ones(2)),
        lambda saved: saved["param_groups"][0].pop("params"),
        lambda saved: saved["param_groups"][0].update(params=None),
        lambda saved: saved["param_groups"][0].update(params=[0, 0, 1, 2]),
        lambda saved: saved["param_groups"].__setitem__(0, [0, 1, 2, 3]),
        lambda saved: saved.update(param_groups=None),
        lambda saved: saved.update(state=[]),
        lambda saved: saved["state"].update({0: None}),
        lambda saved: saved.pop("param_groups"),
        lambda saved: saved.pop("state"),
    ],
    ids=["no state", "fewer parameters", "no rest", "no slot", "no bytes", "two groups", "no groups", "no lr",
         "lr None", "lr a word", "lr NaN", "lr of two", "no params", "params None", "one twice", "group a list",
         "groups None", "state a list", "slots None", "groups gone", "state gone"],
)  # fmt: skip
def test_what_is_not_its_state_changes_nothing(spoil):
    model, optimizer = bound(CHAINS["constant"])
    train(optimizer, model, BATCHES[:3])
    saved = copy.deepcopy(optimizer.state_dict())
    spoil(saved)
    train(optimizer, model, BATCHES[3:5])
    optimizer.param_groups[0].update(lr=5e-3, initial_lr=1e-2)
    untouched, twin = copy.deepcopy((model, optimizer))
    with pytest.raises(ValueError, match="load_state_dict: expected"):
        optimizer.load_state_dict(saved)
    assert same(model, untouched) and optimizer.updater.clocks == twin.updater.clocks
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == {"lr": 5e-3, "initial_lr": 1e-2}
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True))
    train(optimizer, model, BATCHES[5:8])
    train(twin, untouched, BATCHES[5:8])
    assert same(model, untouched)


def test_a_state_of_torchs_class_is_refused():
    _, optimizer = bound(CHAINS["constant"])
    other = model_of()
    theirs = torch.optim.AdamW(other.parameters())
    train(theirs, other, BATCHES[:1])
    with pytest.raises(ValueError, match=r"load_state_dict: expected the state that as_optimizer"):
        optimizer.load_state_dict(theirs.state_dict())


def test_groups_cannot_be_added():
    _, optimizer = bound(CHAINS["constant"])
    with pytest.raises(ValueError, match="as_optimizer: its parameters are those that the chain is bound to"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})


def test_it_follows_a_rebound_updater():
    model, optimizer = bound(CHAINS["constant"])
    train(optimizer, model, BATCHES[:2])
    model.append(torch.nn.Linear(1, 1))
    optimizer.updater.rebind(model)
    train(optimizer, model, BATCHES[:2])
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters())) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_slots_keep_their_dtypes(dtype):
    """Torch's own load casts what is floating to the parameter's dtype."""
    model, again = model_of().to(dtype), model_of(3).to(dtype)
    optimizer, resumed = (CHAINS["averages"]().bind(m).as_optimizer() for m in (model, again))
    data = [batch.to(dtype) for batch in BATCHES]
    train(optimizer, model, data[:5])
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(stored(optimizer.state_dict()))
    train(optimizer, model, data[5:12])
    train(resumed, again, data[5:12])
    assert same(model, again)


@pytest.mark.parametrize("word", ["param_groups", "state", "defaults"])
def test_an_updater_in_an_optimizers_place_names_the_door(word):
    updater = gch.chain(gch.sgd(0.1)).bind(model_of())
    with pytest.raises(AttributeError, match=rf"Updater: has no '{word}'.*as_optimizer\(\)"):
        getattr(updater, word)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    with pytest.raises(AttributeError, match=r"as_optimizer\(\)"):
        scaler.step(updater)


def test_an_updater_is_no_list_of_parameters_or_optimizers():
    """Where something goes over it: torch's classes, and torch.distributed.checkpoint, which takes several."""
    model = model_of()
    updater = gch.chain(gch.sgd(0.1)).bind(model)
    for take in (list, torch.optim.AdamW, lambda it: state_dicts.get_state_dict(model, it)):
        with pytest.raises(
            TypeError, match=r"Updater: is no optimizer of torch's, nor a list of them. as_optimizer\(\)"
        ):
            take(updater)


def test_the_updaters_class_in_a_class_of_optimizers_place_names_the_doors():
    with pytest.raises(
        TypeError, match=r"Updater: missing .*chain\(…\).bind\(model\).*as_optimizer\(\).*optimizer_class"
    ):
        gch.Updater(model_of().parameters())
    with pytest.raises(TypeError, match=r"Updater: missing .*as_optimizer\(\)"):
        gch.Updater([{"params": [*model_of().parameters()]}], lr=0.1)


@pytest.mark.filterwarnings("ignore")  # that torch.distributed is not initialised, and its own deprecations
@pytest.mark.parametrize("name", [name for name in CHAINS if name != "from_torch"])
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints_files_bring_all_back(name, flat, tmp_path):
    """Into what a fresh run has, which is of the same shapes; a class of from_torch has no memory before its step."""
    options = state_dicts.StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = bound(CHAINS[name])
    train(optimizer, model, BATCHES[:5])
    files.save({"it": state_dicts.get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=tmp_path)
    again, resumed = bound(CHAINS[name], seed=3)
    again.load_state_dict(model.state_dict())
    into = {"it": state_dicts.get_optimizer_state_dict(again, resumed, options=options)}
    files.load(into, checkpoint_id=tmp_path)
    state_dicts.set_optimizer_state_dict(again, resumed, into["it"], options=options)
    train(optimizer, model, BATCHES[5:12])
    train(resumed, again, BATCHES[5:12])
    assert same(model, again)
