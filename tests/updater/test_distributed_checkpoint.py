"""torch.distributed.checkpoint: the fixed form comes back whole, and the plain one is refused where it would not."""

import io
import re

import pytest
import torch
from later import later
from little import net, same, snapshot, untouched
from test_checkpoint_links import CHAINS, EARLY, model, train

import gradchain as gch

checkpoint = later("torch.distributed.checkpoint")

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")

CURE = r'state_dict\(form="fixed"\)'

MORE = {
    "from torch": gch.from_torch("Adam", lr=0.05, amsgrad=True),
    "a window in .grad": gch.chain(gch.accumulate(4), gch.adamw(0.05)),
    "a wide window": gch.chain(gch.accumulate(4, dtype=torch.float64), gch.adamw(0.05)),
    "narrow moments": gch.adamw(0.05, mu_dtype=torch.bfloat16),
    "nothing to remember": gch.sgd(0.05),
    "late start": gch.chain(gch.freeze(gch.bias, until=2), gch.lion(0.05)),
}


def save(folder, net, updater):
    checkpoint.save({"model": net.state_dict(), "updater": updater.state_dict(form="fixed")}, checkpoint_id=folder)


def load(folder, net, updater):
    found = {"model": net.state_dict(), "updater": updater.state_dict(form="fixed")}
    checkpoint.load(found, checkpoint_id=folder)
    net.load_state_dict(found["model"])
    return updater.load_state_dict(found["updater"])


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("kind", [*CHAINS, *MORE])
def test_continue_is_bitwise(kind, k, before, tmp_path):
    """Saved after k micro-batches and loaded into an updater that has done others, every link continues to the bit."""
    tx = (CHAINS | MORE)[kind]
    through, early, fresh = model(), model(), model()
    kept, updater, other = tx.bind(through), tx.bind(early), tx.bind(fresh)
    train(through, kept, 0, 10)
    train(early, updater, 0, k)
    save(tmp_path, early, updater)
    train(fresh, other, 0, before)
    assert str(load(tmp_path, fresh, other)) == "everything matched"
    assert same(snapshot(fresh, other), snapshot(early, updater))
    train(fresh, other, k, 10)
    assert same(snapshot(fresh, other), snapshot(through, kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_dtypes_of_windows(dtype, tmp_path):
    """An open window comes back in the dtype that it had."""

    def begun():
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(3, 2).to(dtype))
        return w, gch.chain(gch.accumulate(3), gch.sgd(0.1, momentum=0.9)).bind({"w": w})

    (w, updater), (other, again) = begun(), begun()
    for _ in range(4):
        updater.update((w.abs() ** 2).sum())
    checkpoint.save({"w": w.detach(), "updater": updater.state_dict(form="fixed")}, checkpoint_id=tmp_path)
    found = {"w": other.detach(), "updater": again.state_dict(form="fixed")}
    checkpoint.load(found, checkpoint_id=tmp_path)
    again.load_state_dict(found["updater"])
    assert same(again.state_dict(), updater.state_dict())
    assert again.state_dict()["links"]["accumulate"]["window"]["w"].dtype == dtype


def test_what_is_set_beside_the_code(tmp_path):
    """Overrides, clocks, what was observed, and parameters that were not trained."""
    tx = gch.chain(gch.sgd(gch.by("epoch", gch.linear(0.1, 0.01, 5)), momentum=0.9), gch.reduce_on_plateau("val"))
    early, fresh = model(), model()
    early[0].weight.requires_grad_(False)
    updater, other = tx.bind(early), tx.bind(fresh)
    train(early, updater, 0, 3)
    updater.tick("epoch", 2)
    updater.observe("val", 1.5)
    updater.override("trace.decay", 0.5)
    updater.override("learning_rate", factor=0.5)
    save(tmp_path, early, updater)
    report = load(tmp_path, fresh, other)
    assert len(report.overrides) == 2 and not report.problems()
    assert same(other.state_dict(), updater.state_dict())


@pytest.mark.parametrize("kind", [*CHAINS, *MORE])
def test_shape_is_the_same_at_every_step(kind):
    """Keys, shapes and dtypes of the fixed form are those of a fresh updater, whatever was trained."""

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)

    built = model()
    updater = (CHAINS | MORE)[kind].bind(built)
    first = shape(updater.state_dict(form="fixed"))
    assert set(first) == {"format", "tensors", "rest"}
    for i in range(7):
        train(built, updater, i, i + 1)
        assert shape(updater.state_dict(form="fixed")) == first


def nothing(net, updater):
    pass


def given(net, updater):
    updater.step({name: torch.ones_like(p) for name, p in net.named_parameters()})


PLAIN = {
    "memory": (gch.from_torch("Adam", lr=0.05), 2, nothing, r"from_torch.state\[0.weight\]\[exp_avg\] is missing"),
    "window": (MORE["a window in .grad"], 0, given, r"accumulate.window\[0.weight\] is missing"),
    "buffer": (MORE["a wide window"], 0, given, r"accumulate.window\[0.weight\] is missing"),
    "override": (
        gch.adam(0.1),
        2,
        lambda net, updater: updater.override("learning_rate", 0.01),
        r"overrides\[.*learning_rate\] is missing",
    ),
    "observed": (gch.adam(0.1), 1, lambda net, updater: updater.observe("val", 1.0), r"news\[val\] is missing"),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("stateful", [False, True])
def test_the_plain_form_is_not_half_filled(kind, stateful, tmp_path):
    """What is lost where torch fills a fresh plain state is named, with the cure; nothing changes."""
    tx, k, more, message = PLAIN[kind]
    early, fresh = model(), model()
    updater, other = tx.bind(early), tx.bind(fresh)
    train(early, updater, 0, k)
    more(early, updater)
    checkpoint.save({"updater": updater if stateful else updater.state_dict()}, checkpoint_id=tmp_path)
    found = {"updater": other if stateful else other.state_dict()}
    with untouched(fresh, other), pytest.raises(ValueError, match=message) as error:
        checkpoint.load(found, checkpoint_id=tmp_path)
        other.load_state_dict(found["updater"])
    assert re.search(CURE, str(error.value))
    if not stateful:
        assert other.load_state_dict(found["updater"], strict=False).missing


def test_unequal_counts_in_the_plain_form(tmp_path):
    """These torch refuses itself, for one number is there and one per parameter is not."""
    early, fresh = model(), model()
    tx = gch.chain(gch.freeze(EARLY, until=2), gch.adam(0.1))
    updater, other = tx.bind(early), tx.bind(fresh)
    train(early, updater, 0, 4)
    checkpoint.save({"updater": updater.state_dict()}, checkpoint_id=tmp_path)
    with pytest.raises(checkpoint.api.CheckpointException, match=r"scale_by_adam\.count"):
        checkpoint.load({"updater": other.state_dict()}, checkpoint_id=tmp_path)


# what is no fixed form


def edited(change):
    updater = gch.chain(gch.accumulate(4), gch.adam(0.1)).bind(built := model())
    train(built, updater, 0, 2)
    saved = updater.state_dict(form="fixed")
    change(saved)
    return saved


def rest(contents):
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()


WRONG = {
    "no bytes": (lambda s: s.update(rest=3), "rest must be the bytes that state_dict gives, and cannot be read"),
    "cut short": (lambda s: s.update(rest=s["rest"][:99]), "rest must be the bytes"),
    "something else": (lambda s: s.update(rest=rest([1])), "rest must be the bytes"),
    "of nothing": (lambda s: s.update(rest=rest({"state": {}, "tensors": {}})), "rest must be the bytes"),
    "no dtypes": (
        lambda s: s.update(rest=rest({"state": {"links": {}}, "tensors": {"a": {"b": {"c": [1, 2]}}}})),
        "holds something else",
    ),
    "no tensors": (lambda s: s.pop("tensors"), r"mu\[0.weight\] is missing"),
    "a tensor less": (lambda s: s["tensors"]["accumulate"]["window"].pop("0.bias"), r"window\[0.bias\] is missing"),
    "one in another dtype": (
        lambda s: s["tensors"]["scale_by_adam"]["mu"].update({"0.bias": torch.zeros(4)}),
        "scale_by_adam.mu was saved in float64 for '0.bias' and was read into float32",
    ),
    "one of another shape": (
        lambda s: s["tensors"]["scale_by_adam"]["mu"].update({"0.bias": torch.zeros(5, dtype=torch.float64)}),
        "scale_by_adam.mu",
    ),
    "outside its domain": (lambda s: s["tensors"]["scale_by_adam"]["nu"]["0.bias"].fill_(-1), "scale_by_adam.nu"),
    "a key more": (lambda s: s.update(epoch=1), "the field 'epoch' is unexpected"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_damage_is_refused(kind):
    change, message = WRONG[kind]
    built = model()
    updater = gch.chain(gch.accumulate(4), gch.adam(0.1)).bind(built)
    with untouched(built, updater), pytest.raises(ValueError, match=message):
        updater.load_state_dict(edited(change))


def test_forms():
    updater = gch.adam(0.1).bind(net())
    with pytest.raises(ValueError, match=r"state_dict: form must be 'plain' or 'fixed', got 'flat'\."):
        updater.state_dict(form="flat")


def test_a_group(tmp_path):
    nets = [model(), model()]
    group, again = (gch.group(a=gch.adam(0.1).bind(nets[i]), b=gch.from_torch("Adam").bind(net(i))) for i in (0, 1))
    train(nets[0], group["a"], 0, 3)
    checkpoint.save(group.state_dict(form="fixed"), checkpoint_id=tmp_path)
    found = again.state_dict(form="fixed")
    checkpoint.load(found, checkpoint_id=tmp_path)
    again.load_state_dict(found)
    for name, state in again.state_dict().items():
        other = group[name].state_dict()
        assert same(state | {"fingerprint": {}}, other | {"fingerprint": {}})  # the weights are others
