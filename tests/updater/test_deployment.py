"""What is deployed: files with some of the weights, weights read without a model, and files for other tools."""

import copy
import json
import os
import random
import resource
import stat
import subprocess
import sys
import warnings
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from damage import DAMAGES, reheaded
from little import data, same, untouched
from test_files import LOADS
from torch import nn

import gradchain as gch
from gradchain.updater import safe_tensors

SUFFIXES = ("pt", "safetensors")
suffixes = pytest.mark.parametrize("suffix", SUFFIXES)


class Tied(nn.Module):
    """Two names of one weight, a buffer that state_dict leaves out, and one that is there twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("seen", torch.arange(3.0))
        self.register_buffer("again", self.seen)
        self.register_buffer("away", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.b(self.a(x).tanh())


class Odd(nn.Module):
    """Weights of odd shapes and layouts."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.turned = nn.Parameter(torch.randn(4, 3).t())
        self.conv = nn.Conv2d(1, 2, 2).to(memory_format=torch.channels_last)
        self.register_buffer("steps", torch.randn(5, 2)[:, 1])

    def forward(self, x):
        return (x @ self.turned).sum() * self.scale + self.conv(x[None, None, :4, :3]).sum() + self.none.sum()


def seeded(make):
    def made(seed=0):
        torch.manual_seed(seed)
        return make()

    return made


def batch_norm():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


MODELS = {
    "buffers": seeded(batch_norm),
    "tied": seeded(Tied),
    "odd": seeded(Odd),
    "wrapped": seeded(lambda: nn.DataParallel(batch_norm())),
    "a dict": seeded(lambda: nn.ModuleDict({"g": nn.Linear(3, 2), "d": nn.Linear(2, 1)})),
    "bfloat16": seeded(lambda: nn.Linear(3, 2).bfloat16()),
    "float16": seeded(lambda: nn.Linear(3, 2).half()),
}
EARLY = gch.min_ndim(2)
CHAINS = {
    "adam": lambda: gch.adam(0.1),
    "an average": lambda: gch.chain(gch.accumulate(2), gch.adamw(0.1), gch.average_params(0.9, buffers="average")),
    "a mask": lambda: gch.chain(
        gch.trace(0.9), gch.masked(gch.scale_by_adam(), EARLY), gch.scale_by_learning_rate(0.1)
    ),
    "branches": lambda: gch.partition(
        (EARLY, gch.chain(gch.adam(0.1), gch.average_params(0.5, on="ema"))), (gch.rest, gch.lion(0.01))
    ),
    "from torch": lambda: gch.from_torch("NAdam", lr=0.05),
    "a gate": lambda: gch.chain(gch.amp_scale(64.0, always=True), gch.sgd(0.1, momentum=0.9), gch.average_params(0.9)),
}


def target_of(model):
    return dict(model.items()) if isinstance(model, nn.ModuleDict) else model


def bare(model):
    """The model that has no wrapper in its names."""
    return model.module if isinstance(model, nn.DataParallel) else model


def trained(model, chain, steps=3, seed=1):
    updater = CHAINS[chain]().bind(target_of(model))
    go_on(model, updater, steps, seed)
    return updater


def go_on(model, updater, steps, seed):
    dtype = next(model.parameters()).dtype
    for rows in data(steps, seed, dtype):
        if isinstance(model, nn.ModuleDict):
            updater.update(model["d"](model["g"](rows)).square().mean())
        else:
            updater.update(bare(model)(rows).square().mean())
        if "ema" in updater.clocks:
            updater.tick("ema")


@suffixes
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_run_goes_on_and_weights_are_those_of_the_model(kind, chain, suffix, tmp_path):
    """Bit for bit; and read without a model they are what its own state_dict has, strictly."""
    path, model = tmp_path / f"run.{suffix}", MODELS[kind]()
    updater = trained(model, chain)
    updater.save(path, epoch=3)
    again = MODELS[kind](7)
    second = CHAINS[chain]().bind(target_of(again))
    assert second.load(path) == {"epoch": 3}
    assert same(second.contents(), updater.contents())
    found = gch.read_weights(path)
    assert found.keys() == bare(model).state_dict().keys()
    assert same({n: found[n] for n in bare(model).state_dict()}, dict(bare(model).state_dict()))
    fresh = bare(MODELS[kind](3))
    fresh.load_state_dict(found)
    assert same(dict(fresh.state_dict()), dict(bare(model).state_dict()))
    for each in ((model, updater), (again, second)):
        go_on(*each, 3, 5)
    assert same(second.contents(), updater.contents())


@suffixes
@pytest.mark.parametrize("chain", ["an average", "branches", "a gate"])
@pytest.mark.parametrize("kind", MODELS)
def test_averages_are_those_that_averaged_swaps_in(kind, chain, suffix, tmp_path):
    path, model = tmp_path / f"run.{suffix}", MODELS[kind]()
    updater = trained(model, chain)
    updater.save(path)
    fresh = bare(MODELS[kind](3))
    fresh.load_state_dict(gch.read_weights(path, averaged=True))
    with updater.averaged():
        assert same(dict(fresh.state_dict()), dict(bare(model).state_dict()))


@pytest.mark.parametrize("chain", CHAINS)
def test_files_of_before_are_read(chain, tmp_path):
    """Of the first format, and of the second without what the model says; a state in the fixed form."""
    model = MODELS["buffers"]()
    updater = trained(model, chain)
    state = dict(model.state_dict())
    averages = any(link.role == "average" for _, link in updater.chain.named) or chain == "branches"
    parts = updater.contents()
    for form in ("plain", "fixed"):
        part = {"weights": parts["weights"], "buffers": parts["buffers"], "state": updater.state_dict(form=form)}
        torch.save({"format": 1, "parts": {"updater": part}, "extra": {}}, tmp_path / "run.pt")
        found = gch.read_weights(tmp_path / "run.pt")
        assert same({n: found[n] for n in state}, state)
        second = CHAINS[chain]().bind(MODELS["buffers"](7))
        second.load(tmp_path / "run.pt")
        assert same(second.contents(), parts)
        if averages:
            found = gch.read_weights(tmp_path / "run.pt", averaged=True)
            with updater.averaged():
                assert same({n: found[n] for n in state}, dict(model.state_dict()))


# some of the weights


def lora(seed=0):
    model = MODELS["buffers"](seed)
    model[0].requires_grad_(False)
    return model


@suffixes
def test_trainable_weights_leave_frozen_ones_as_they_are(suffix, tmp_path):
    path, model = tmp_path / f"run.{suffix}", lora()
    updater = trained(model, "an average")
    updater.save(path, weights="trainable")
    assert set(gch.read_weights(path)) == {n for n in model.state_dict() if not n.startswith("0.")}
    again = lora(7)
    own = copy.deepcopy(again[0].state_dict())
    second = CHAINS["an average"]().bind(again)
    second.load(path)
    assert same(dict(again[0].state_dict()), dict(own))
    for part in (1, 2):
        assert same(dict(again[part].state_dict()), dict(model[part].state_dict()))
    assert same(second.state_dict()["links"], updater.state_dict()["links"])
    with pytest.warns(UserWarning, match=r"saved with other weights: 2 of 6 parameters differ, first '0\.weight'"):
        go_on(again, second, 1, 5)


@suffixes
def test_frozen_weights_that_are_the_same_are_no_news(suffix, tmp_path):
    """And the run goes on as it was."""
    path, model = tmp_path / f"run.{suffix}", lora()
    updater = trained(model, "adam")
    updater.save(path, weights="trainable")
    again = lora()
    second = CHAINS["adam"]().bind(again)
    second.load(path)
    for each in ((model, updater), (again, second)):
        go_on(*each, 3, 5)
    assert same(dict(again.state_dict()), dict(model.state_dict()))


@suffixes
def test_without_weights_there_is_the_state_alone(suffix, tmp_path):
    path, model = tmp_path / f"run.{suffix}", MODELS["buffers"]()
    updater = trained(model, "an average")
    updater.save(path, weights="none", epoch=2)
    again = MODELS["buffers"](7)
    own = copy.deepcopy(dict(again.state_dict()))
    second = CHAINS["an average"]().bind(again)
    assert second.load(path) == {"epoch": 2}
    assert same(dict(again.state_dict()), own)
    assert same(second.state_dict()["links"], updater.state_dict()["links"])
    with pytest.warns(UserWarning, match="saved with other weights: 6 of 6"):
        go_on(again, second, 1, 5)
    with pytest.raises(ValueError, match=r"^read_weights: '.*' has no weights: it was saved with weights='none'\.$"):
        gch.read_weights(path)
    found = gch.read_weights(path, averaged=True)
    assert same(found["0.weight"], updater.averages()["0.weight"])


def test_without_weights_averages_of_some_are_refused(tmp_path):
    path, model = tmp_path / "run.pt", MODELS["buffers"]()
    updater = trained(model, "branches")
    updater.save(path, weights="none")
    with pytest.raises(ValueError, match=r"^read_weights: .* has no weights, and no average of '0\.bias': .*'none'\.$"):
        gch.read_weights(path, averaged=True)


@suffixes
@pytest.mark.parametrize("weights", ["all", "trainable", "none"])
def test_a_file_of_another_model_is_refused(weights, suffix, tmp_path):
    """Whatever it has of the weights."""
    path = tmp_path / f"run.{suffix}"
    trained(lora(), "adam").save(path, weights=weights)
    others = {
        "larger": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
        "one more": nn.Sequential(*MODELS["buffers"](), nn.Linear(2, 2)),
        "one less": nn.Sequential(*list(MODELS["buffers"]())[:2]),
        "other names": nn.Sequential(nn.Identity(), *MODELS["buffers"]()),
        "double": MODELS["buffers"]().double(),
    }
    for kind, other in others.items():
        updater = CHAINS["adam"]().bind(other)
        if weights == "none" and kind == "one more":
            continue  # a parameter that was never there has no state, which is no difference
        with untouched(other, updater), pytest.raises(ValueError, match=r"^load(_state_dict)?: .*\.$"):
            updater.load(path)


@pytest.mark.parametrize("weights", ["ALL", "", None, True, 3, ("all",), "frozen"])
def test_what_is_no_part_of_the_weights_is_refused(weights, tmp_path):
    updater = trained(MODELS["buffers"](), "adam")
    for each in (updater, gch.group(it=updater)):
        with pytest.raises(ValueError, match=r"^save: weights must be 'all', 'trainable' or 'none', got .*\.$"):
            each.save(tmp_path / "run.pt", weights=weights)
    assert os.listdir(tmp_path) == []


# reading


@suffixes
def test_what_is_asked_for_and_is_not_there(suffix, tmp_path):
    path, model = tmp_path / f"run.{suffix}", MODELS["buffers"]()
    trained(model, "adam").save(path)
    with pytest.raises(ValueError, match=r"^read_weights: '.*' has no averages: no link of its chain averages"):
        gch.read_weights(path, averaged=True)
    two = gch.chain(gch.sgd(0.1), ("fast", gch.average_params(0.5)), ("slow", gch.average_params(0.9))).bind(model)
    go_on(model, two, 3, 1)
    two.save(path)
    with pytest.raises(KeyError, match="there are several averages, name one of: fast, slow"):
        gch.read_weights(path, averaged=True)
    with pytest.raises(KeyError, match="read_weights: there is no 'quick'"):
        gch.read_weights(path, averaged="quick")
    for name in ("fast", "slow"):
        assert same(gch.read_weights(path, averaged=name)["0.bias"], two.averages(name)["0.bias"])
    for averaged in (None, 1, 0, b"fast", ["fast"]):
        with pytest.raises(TypeError, match=r"^read_weights: averaged must be True, False or the name of a link, got"):
            gch.read_weights(path, averaged=averaged)


@suffixes
def test_a_group_has_several_updaters(suffix, tmp_path):
    path, g, d = tmp_path / f"run.{suffix}", MODELS["tied"](), MODELS["buffers"]()
    both = gch.group(g=trained(g, "an average"), d=trained(d, "adam"))
    both.save(path, epoch=1, weights="all")
    assert gch.group(g=trained(MODELS["tied"](5), "an average"), d=trained(MODELS["buffers"](5), "adam")).load(path)
    for name, model in (("g", g), ("d", d)):
        fresh = copy.deepcopy(model)
        fresh.load_state_dict(gch.read_weights(path, updater=name))
        assert same(dict(fresh.state_dict()), dict(model.state_dict()))
    with pytest.raises(KeyError, match=r"the file has the updaters 'g', 'd': name one, updater='g'\."):
        gch.read_weights(path)
    with pytest.raises(KeyError, match=r"the file has no updater 'e'\. It has: 'g', 'd'\."):
        gch.read_weights(path, updater="e")
    if suffix == "safetensors":
        assert {"g.a.weight", "d.1.running_mean"} <= set(safetensors.torch.load_file(path))


FOREIGN = {
    "torch": lambda path: torch.save(nn.Linear(2, 1).state_dict(), path),
    "safetensors": lambda path: safetensors.torch.save_file(nn.Linear(2, 1).state_dict(), path),
    "with metadata": lambda path: safetensors.torch.save_file(
        nn.Linear(2, 1).state_dict(), path, {"format": "pt", "gradchain": "{}"}
    ),
    "no tensors": lambda path: safetensors.torch.save_file({}, path),
    "text": lambda path: path.write_text("weights"),
    "JSON": lambda path: path.write_text('{"weights": []}'),
    "empty": lambda path: path.write_bytes(b""),
    "nine bytes": lambda path: path.write_bytes(b"\xff" * 8 + b"{"),
    "a header alone": lambda path: path.write_bytes((1).to_bytes(8, "little") + b"{"),
}


@suffixes
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind, suffix, tmp_path):
    path = tmp_path / f"run.{suffix}"
    FOREIGN[kind](path)
    model = MODELS["buffers"]()
    updater = trained(model, "adam")
    with warnings.catch_warnings(), untouched(model, updater):
        warnings.simplefilter("ignore")
        for owner, read in (("load", updater.load), ("read_weights", gch.read_weights)):
            with pytest.raises(ValueError, match=rf"^{owner}: '.*' (cannot be read: it is|must be a checkpoint) .*\.$"):
                read(path)


def test_paths_of_every_kind(tmp_path):
    for path in (3, None, b"run.pt"):
        with pytest.raises(TypeError, match=r"^read_weights: path must be a str or an os\.PathLike"):
            gch.read_weights(path)
    with pytest.raises(FileNotFoundError, match=r"^read_weights: there is no file '.*run\.pt'\.$"):
        gch.read_weights(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"^read_weights: '.*' must be a regular file, got a folder\.$"):
        gch.read_weights(tmp_path)
    os.mkfifo(tmp_path / "fifo.safetensors")
    with pytest.raises(ValueError, match=r"must be a regular file, got a FIFO\.$"):
        gch.read_weights(tmp_path / "fifo.safetensors")


def test_what_is_read_is_nobody_elses(tmp_path):
    """The file may be written over or removed: no tensor is its memory."""
    for suffix in SUFFIXES:
        path, model = tmp_path / f"run.{suffix}", MODELS["buffers"]()
        trained(model, "adam").save(path)
        found = gch.read_weights(path)
        path.write_bytes(bytes(path.stat().st_size))
        assert same({n: found[n] for n in model.state_dict()}, dict(model.state_dict()))
        found["0.weight"].zero_()


# safetensors


@pytest.mark.parametrize("kind", MODELS)
def test_other_tools_find_plain_weights_under_the_models_names(kind, tmp_path):
    """As safetensors reads them: all that state_dict has, but for further names of tied weights, as is usual there."""
    path, model = tmp_path / "run.safetensors", MODELS[kind]()
    trained(model, "an average").save(path)
    found = safetensors.torch.load_file(path)
    own = {n: t for n, t in found.items() if not n.startswith("gradchain/")}
    expected = {n: t for n, t in bare(model).state_dict().items() if n != "b.weight" or kind != "tied"}
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[n], t) and own[n].dtype == t.dtype for n, t in expected.items())
    fresh = bare(MODELS[kind](3))
    if kind == "odd":  # the package loads into no model that has a part of a tensor for a buffer
        fresh.load_state_dict(found, strict=False)
    else:
        assert not safetensors.torch.load_model(fresh, path, strict=False)[0]
    assert all(torch.equal(t, fresh.state_dict()[n]) for n, t in bare(model).state_dict().items())
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and (metadata.get("b.weight") == "a.weight") == (kind == "tied")


@pytest.mark.parametrize(("name", "format", "is_one"), [
    ("run.safetensors", None, True), ("run.pt", "safetensors", True), ("run.safetensors", "torch", False),
    ("run", None, False), ("run.safetensors.pt", None, False),
])  # fmt: skip
def test_the_suffix_or_the_argument_says_which_format(name, format, is_one, tmp_path):
    """And a file says of itself which it is, whatever it is called."""
    model = MODELS["buffers"]()
    updater = trained(model, "an average")
    updater.save(tmp_path / name, format=format)
    assert (tmp_path / name).read_bytes()[8:9] == b"{" or not is_one
    os.rename(tmp_path / name, tmp_path / "another.name")
    updater.load(tmp_path / "another.name")
    assert gch.read_weights(tmp_path / "another.name").keys() == model.state_dict().keys()


@pytest.mark.parametrize("format", ["pt", "", "Safetensors", 3, True])
def test_what_is_no_format_is_refused(format, tmp_path):
    with pytest.raises(ValueError, match=r"^save: format must be 'torch', 'safetensors' or None, got .*\.$"):
        trained(MODELS["buffers"](), "adam").save(tmp_path / "run.pt", format=format)


def nested(depth):
    return [] if depth == 0 else [nested(depth - 1)]


TREES = {
    **LOADS, "floats": [float("nan"), float("inf"), -float("inf"), -0.0, 0.1, 1e-320],
    "integers": [2**64, -(2**70), 10**5000, 0],
    "strings": ["", "ü\ud800\0", "$tensor", '"gradchain.seal":"' + "0" * 64 + '"'], "words": {"$tensor": 1, "$x": {}},
    "ordered": OrderedDict(b=1, a=(2, [3])), "size": torch.Size([2, 3]), "bools": [True, False, None, 1, 1.0],
    "parameter": nn.Parameter(torch.ones(2)), "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
    "half": torch.ones(2).bfloat16(), "turned": torch.randn(2, 3, 4).permute(2, 0, 1), "negative": torch.ones(2)[...],
    "integers of torch": torch.arange(3).to(torch.uint16), "complex": torch.randn(3, dtype=torch.complex64),
    "empty dict": {}, "tensor keys": {1: {2: torch.ones(1)}},
}  # fmt: skip
TOO_MUCH = {
    "sparse": torch.eye(3).to_sparse(), "meta": torch.ones(3, device="meta"), "deep": nested(300),
    "complex128": torch.ones(2, dtype=torch.complex128), "quantized": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in TREES if kind not in ("sparse", "meta")])
def test_what_is_saved_as_safetensors_loads(kind, tmp_path):
    """Plain data of every kind, and what tensors there are."""
    path, updater = tmp_path / "run.safetensors", trained(MODELS["buffers"](), "adam")
    updater.save(path, mine=TREES[kind], other=1)
    extra = updater.load(path)
    found, given = extra["mine"], TREES[kind]
    assert extra["other"] == 1 and type(found) is type(given)
    if isinstance(given, torch.Tensor):
        assert (found.dtype, found.shape, found.requires_grad) == (given.dtype, given.shape, given.requires_grad)
        assert vars(found) == vars(given)
        dense = given.numel() and kind not in ("repeats", "slice")
        assert not dense or found.stride() == given.stride()
        assert torch.equal(found.float() if kind == "float8" else found, given.float() if kind == "float8" else given)
    else:
        assert same(found, given)


@pytest.mark.parametrize("kind", ["sparse", "meta", "deep", "complex128"])
def test_what_the_format_cannot_hold_is_refused_and_the_old_file_stays(kind, tmp_path):
    path, updater = tmp_path / "run.safetensors", trained(MODELS["buffers"](), "adam")
    updater.save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"^save: mine (is|must) .*\.$"):
        updater.save(path, mine=TOO_MUCH[kind])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.safetensors"]


def test_weights_that_the_format_cannot_hold_are_named(tmp_path):
    model = nn.Linear(2, 1, dtype=torch.complex128)
    updater = gch.sgd(0.1).bind(model)
    match = r"^save: updater\.weights\.weight is complex128, and safetensors holds no such tensors\. Save it under "
    with pytest.raises(ValueError, match=match):
        updater.save(tmp_path / "run.safetensors")
    updater.save(tmp_path / "run.pt")
    assert same(gch.read_weights(tmp_path / "run.pt")["weight"], model.weight.detach())


@pytest.mark.parametrize("name", ["gradchain/a", "__metadata__", "format", "gradchain"])
def test_names_that_the_file_has_for_itself(name, tmp_path):
    """A weight that is called so is loaded and read as any other."""
    path, weight = tmp_path / "run.safetensors", nn.Parameter(torch.randn(3))
    updater = gch.adam(0.1).bind([(name, weight), ("w", nn.Parameter(torch.randn(2)))])
    updater.step({name: torch.ones(3)})
    updater.save(path)
    before = weight.detach().clone()
    updater.step({name: torch.ones(3)})
    updater.load(path)
    assert torch.equal(weight.detach(), before) and torch.equal(gch.read_weights(path)[name], before)
    safetensors.torch.load_file(path)


# damage


def whole_file(path):
    updater = trained(MODELS["tied"](), "an average")
    updater.save(path, epoch=3)
    return path.read_bytes()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files_of_safetensors_are_refused(damage, tmp_path):
    """By load and by read_weights, in one sentence, and all stays as it was."""
    path = tmp_path / "run.safetensors"
    whole, rng = whole_file(path), random.Random(damage.__name__)
    model = MODELS["tied"](4)
    updater = trained(model, "an average")
    with untouched(model, updater):
        for _ in range(60):
            path.write_bytes(damage(whole, rng))
            for read in (updater.load, gch.read_weights):
                with pytest.raises(ValueError, match=r"^(load|read_weights): '.*' cannot be read: it is .*\.$"):
                    read(path)


def test_every_bit_of_the_header_is_under_the_seal(tmp_path):
    path = tmp_path / "run.safetensors"
    whole = whole_file(path)
    end = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    seal = whole.index(b'"gradchain.seal":"')
    for at in [*range(8), *range(seal, seal + 90), *rng.sample(range(8, end), 200)]:
        for bit in range(8) if at < 8 else (0, 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(ValueError, match=r"^read_weights: '.*' cannot be read: it is .*\.$"):
                gch.read_weights(path)


def with_tree(change):
    def edit(header):
        header["__metadata__"]["gradchain"] = json.dumps(change(json.loads(header["__metadata__"]["gradchain"])))

    return edit


def at(tree, path, value):
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


UPDATER = ("parts", "updater")
MADE = {
    "claims more": lambda h: h["a.bias"].update(shape=[1 << 40]),
    "overlaps": lambda h: h["a.bias"].update(data_offsets=[4, 16]),
    "another dtype": lambda h: h["a.bias"].update(dtype="F13"),
    "no tree": lambda h: h["__metadata__"].pop("gradchain"),
    "a tree of nothing": with_tree(lambda tree: []),
    "no such tensor": with_tree(lambda tree: at(tree, (*UPDATER, "weights", "a.bias", "$tensor"), "zz")),
    "an order of too many": with_tree(lambda tree: at(tree, (*UPDATER, "weights", "a.bias", "order"), [0, 1, 2])),
    "a word for a tensor": with_tree(lambda tree: at(tree, (*UPDATER, "weights", "a.bias"), "x")),
    "an unknown word": with_tree(lambda tree: at(tree, ("extra", "epoch"), {"$run": "rm"})),
    "an integer of letters": with_tree(lambda tree: at(tree, ("extra", "epoch"), {"$int": "zz"})),
    "another format": with_tree(lambda tree: at(tree, ("format",), 3)),
    "the first format": with_tree(lambda tree: at(tree, ("format",), 1)),
    "saved is no word": with_tree(lambda tree: at(tree, (*UPDATER, "model", "saved"), "some")),
    "saved is a list": with_tree(lambda tree: at(tree, (*UPDATER, "model", "saved"), [])),
    "nothing was saved": with_tree(lambda tree: at(tree, (*UPDATER, "model", "saved"), "none")),
    "tied to a number": with_tree(lambda tree: at(tree, (*UPDATER, "model", "tied"), {"b": 3})),
    "a model of words": with_tree(lambda tree: at(tree, (*UPDATER, "model"), "x")),
    "deep": with_tree(lambda tree: at(tree, ("extra", "epoch"), nested(900))),
    "an average of another shape": with_tree(
        lambda tree: at(
            tree, (*UPDATER, "state", "links", "average_params", "average", "a.bias"), {"$tensor": "a.weight"}
        )
    ),
}


@pytest.mark.parametrize("kind", MADE)
def test_files_that_somebody_made_are_refused_in_little_memory(kind, tmp_path):
    """Under a seal that is right."""
    path = tmp_path / "run.safetensors"
    whole = whole_file(path)
    path.write_bytes(reheaded(whole, lambda header: None))
    gch.read_weights(path)
    path.write_bytes(reheaded(whole, MADE[kind]))
    model = MODELS["tied"](4)
    updater = trained(model, "an average")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with untouched(model, updater):
        with pytest.raises(ValueError, match=r"^load(_state_dict)?: .*\.$"):
            updater.load(path)
        with pytest.raises(ValueError, match=r"^read_weights: .*\.$"):
            gch.read_weights(path, averaged=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# the package, and the system


@pytest.mark.parametrize("format", [None, "safetensors"])
def test_where_the_package_is_not_there_a_sentence_says_how_to_have_it(format, tmp_path, monkeypatch):
    updater = trained(MODELS["buffers"](), "adam")
    path = tmp_path / "run.safetensors"
    updater.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(safe_tensors.importlib.util, "find_spec", lambda name: None)
    cure = (
        r"needs the package safetensors, which is not installed\. Install it: pip install gradchain\[safetensors\]\.$"
    )
    for owner, call in (
        ("save", lambda: updater.save(path, format=format)), ("load", lambda: updater.load(path)),
        ("read_weights", lambda: gch.read_weights(path)),
    ):  # fmt: skip
        with pytest.raises(ModuleNotFoundError, match=f"^{owner}: '.*' {cure}"):
            call()
    assert path.read_bytes() == before
    updater.save(tmp_path / "run.pt")
    updater.load(tmp_path / "run.pt")


IMPORTED = """
import sys, torch, gradchain as gch
path, updater = sys.argv[1], gch.adam(0.1).bind(torch.nn.Linear(2, 1))
updater.save(path + ".pt"), updater.load(path + ".pt"), gch.read_weights(path + ".pt")
print("safetensors" in sys.modules)
updater.save(path + ".safetensors")
print("safetensors" in sys.modules)
"""


def test_the_package_is_imported_where_it_is_used_only(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", IMPORTED, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_system_leaves_the_old_file(call, tmp_path, monkeypatch):
    path, updater = tmp_path / "run.safetensors", trained(MODELS["buffers"](), "adam")
    updater.save(path)
    path.chmod(0o640)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"^save: '.*' cannot be written: No space left on device\.$"):
        updater.save(path, more=1)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.safetensors"]
    updater.save(path, more=1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and updater.load(path) == {"more": 1}
