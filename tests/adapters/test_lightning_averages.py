"""Lightning's validate, test and predict: the average is that of the weights that are in the model, or none."""

import warnings

import pytest
import torch
from adapters.trainer_runs import DATA, lightning_module
from later import later
from torch.utils.data import DataLoader

import gradchain as gch
from gradchain.adapters.lightning import callback

lightning = later("lightning.pytorch")
BATCHES = DataLoader(DATA[:6], batch_size=None)
STAGES = ("validate", "test", "predict")


def recipe():
    return gch.chain(gch.clip_by_norm(1.0), gch.sgd(gch.linear(0.1, 0.0, 40), momentum=0.5), gch.average_params(0.8))


def module_of(make=recipe, seed=0):
    """A module that notes what weights each stage sees."""
    module = lightning_module(make, seed)
    module.seen = []
    step = lambda *_: module.seen.append(module.model[0].weight.detach().clone())  # noqa: E731
    module.validation_step = module.test_step = module.predict_step = step
    return module


def trainer_of(folder, *more, **options):
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, num_sanity_val_steps=0, max_epochs=3, callbacks=[callback(**options), *more],
    )  # fmt: skip


def run(trainer, stage, module, **given):
    """One stage, and the one weight that it saw."""
    module.seen.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=r".*(num_workers|CombinedLoader)")
        getattr(trainer, stage)(module, *([BATCHES, BATCHES] if stage == "fit" else [BATCHES]), **given)
    assert stage == "fit" or all(torch.equal(module.seen[0], weight) for weight in module.seen)
    return module.seen[-1]


@pytest.fixture
def trained(tmp_path):
    """A trained module, its trainer, a checkpoint of each epoch, and the averages then."""
    kept = []
    module = module_of()

    class Notes(lightning.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            kept.append(trainer.optimizers[0].updater.averages()["0.weight"].clone())

    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = trainer_of(tmp_path, saving, Notes())
    run(trainer, "fit", module)
    paths = [str(tmp_path / f"epoch={epoch}.ckpt") for epoch in range(3)]
    return module, trainer, paths, kept


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_is_that_of_the_checkpoint_whose_weights_are_loaded(trained, stage, tmp_path):
    module, trainer, paths, kept = trained
    live = trainer.optimizers[0].updater.averages()["0.weight"].clone()
    own = module.model[0].weight.detach().clone()
    assert torch.equal(run(trainer, stage, module), live) and torch.equal(module.model[0].weight, own)
    for one in (trainer, trainer_of(tmp_path)):  # after its own training, and one that has trained nothing
        given = module if one is trainer else module_of(seed=5)
        for path, average in zip(paths, kept, strict=True):
            file = torch.load(path, weights_only=True)["state_dict"]["model.0.weight"]
            assert torch.equal(run(one, stage, given, ckpt_path=path), average)
            assert torch.equal(given.model[0].weight, file) and not torch.equal(file, average)
            assert torch.equal(run(one, stage, given), average)  # the module has the weights of the file still
    trainer.fit_loop.max_epochs = 4
    run(trainer, "fit", module)
    assert torch.equal(run(trainer, stage, module), trainer.optimizers[0].updater.averages()["0.weight"])
    off = trainer_of(tmp_path, averages=False)
    assert not torch.equal(run(off, stage, module, ckpt_path=paths[0]), kept[0])


@pytest.mark.parametrize("cut", ["callbacks", "optimizer_states"])
def test_a_checkpoint_without_an_average_is_used_as_it_is_and_said(trained, cut, tmp_path):
    module, trainer, paths, _ = trained
    found = torch.load(paths[0], weights_only=True)
    for key in {"callbacks": ("callbacks", "optimizer_states"), "optimizer_states": ("optimizer_states",)}[cut]:
        del found[key]
    path = str(tmp_path / "bare.ckpt")
    torch.save(found, path)
    for one in (trainer, trainer_of(tmp_path)):
        with pytest.warns(UserWarning, match=r"bare.ckpt' must have optimizer_states .* own weights are used"):
            seen = run(one, "validate", module, ckpt_path=path)
        assert torch.equal(seen, found["state_dict"]["model.0.weight"])
    with pytest.raises(ValueError, match="has no averages: it was saved without optimizer_states"):
        gch.read_weights(path, averaged=True)


def test_a_lightning_file_gives_its_weights_and_its_average(trained, tmp_path):
    _, _, paths, kept = trained
    for path, average in zip(paths, kept, strict=True):
        fresh = module_of(seed=9)
        fresh.load_state_dict(gch.read_weights(path, averaged=True))
        assert torch.equal(fresh.model[0].weight, average)
        assert torch.equal(gch.read_weights(path, averaged="average_params")["model.0.weight"], average)
        held = torch.load(path, weights_only=True)["state_dict"]
        plain = gch.read_weights(path)
        assert plain.keys() == held.keys() and all(torch.equal(plain[n], held[n]) for n in held)
    with pytest.raises(KeyError, match="is a trainer's, whose optimizers have no names"):
        gch.read_weights(paths[0], updater="g")
    with pytest.raises(KeyError, match="no_such"):
        gch.read_weights(paths[0], averaged="no_such")


def file_of(tmp_path, whole, bound, names=None, twin=False):
    """A checkpoint as trainers write it, of a chain that is bound to a part of a model."""
    updater = gch.chain(gch.sgd(0.1), gch.average_params(0.5, buffers="average")).bind(bound)
    optimizer = updater.as_optimizer()
    for _ in range(3):
        for p in bound.values() if isinstance(bound, dict) else bound.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    path = tmp_path / "one.ckpt"
    torch.save({"state_dict": whole.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 1}, path)
    return updater, path


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher, self.student = (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)) for _ in "ab")
        self.again = torch.nn.Linear(3, 3)
        self.again.weight = self.student[0].weight  # a tie


def test_names_are_those_of_the_whole_model(tmp_path):
    whole = Whole()
    updater, path = file_of(tmp_path, whole, whole.student)
    found, averages = gch.read_weights(path, averaged=True), updater.averages()
    assert found.keys() == whole.state_dict().keys()
    for name, average in averages.items():
        assert torch.equal(found[f"student.{name}"], average)
    assert torch.equal(found["again.weight"], averages["0.weight"])
    assert torch.equal(found["teacher.0.weight"], whole.teacher[0].weight)
    updater, path = file_of(tmp_path, whole, whole)
    assert torch.equal(
        gch.read_weights(path, averaged=True)["student.0.weight"], updater.averages()["student.0.weight"]
    )


def test_a_chain_of_other_names_is_refused_with_the_way(tmp_path):
    whole = torch.nn.Linear(2, 1)
    _, path = file_of(tmp_path, whole, {"mine": torch.nn.Parameter(torch.ones(2))})
    with pytest.raises(ValueError, match=r"bound to a module in the trainer's model.* updater.copy_average_to"):
        gch.read_weights(path, averaged=True)


def test_a_test_inside_the_users_own_average(trained):
    module, trainer, _, _ = trained
    updater = trainer.optimizers[0].updater
    live, own = updater.averages()["0.weight"].clone(), module.model[0].weight.detach().clone()
    with updater.averaged():
        assert torch.equal(run(trainer, "test", module), live)
        with pytest.raises(RuntimeError, match="not inside"):  # a checkpoint would have weights that are averages
            trainer.optimizers[0].state_dict()
    assert torch.equal(module.model[0].weight, own)


def test_true_learning_rates_are_logged(tmp_path):
    module = module_of(lambda: gch.chain(gch.sgd(gch.multiply(gch.linear(0.1, 0.0, 40), (gch.bias, 0.5)))))
    trainer = trainer_of(tmp_path)
    run(trainer, "fit", module)
    rates = {name: float(value) for name, value in trainer.callback_metrics.items() if "learning_rate" in name}
    assert rates == pytest.approx(
        {f"scale_by_learning_rate.learning_rate/{n}": 0.055 * f for n, f in (("0.weight", 1), ("0.bias", 0.5))}
    )
