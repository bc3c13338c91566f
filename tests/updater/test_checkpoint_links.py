"""Every registered link, in a chain that is bound, trained, saved in each position of a window, and continued."""

import pytest
import torch
from little import data, loss_of, same, snapshot, weights
from torch import nn

import gradchain as gch
from gradchain.core.transform import registry, walk

EARLY = gch.named("0.*")


def halved(updates, params):
    return 0.5 * updates


def clamped(w):
    return w.clamp(-0.6, 0.6)


# a chain for each link that needs company of its own; `subjects` says which links the table serves
CHAINS = {
    "everything": gch.chain(
        gch.accumulate(2),
        gch.amp_scale(2.0**16, growth_interval=2, always=True),
        gch.skip_nonfinite(),
        gch.nan_to_num(),
        gch.clip_by_value(5.0),
        gch.clip_by_norm(0.5),
        gch.stateless(halved),
        gch.scale_by_adam(b2=0.9),
        gch.masked(gch.add_decayed_weights(0.1), gch.min_ndim(2)),
        gch.scale_by_schedule(gch.linear(1.0, 0.5, 5)),
        gch.scale(2.0),
        gch.scale_by_learning_rate(gch.cosine(0.1, 0.01, 6)),
        gch.project(clamped),
        gch.average_params(0.8, buffers="average"),
        ("late", gch.average_params("mean", start=2, every=2, dtype=torch.float64)),
    ),
    "sam": gch.chain(gch.sam(0.1), gch.accumulate(2), gch.sgd(0.1, momentum=0.9)),
    "lion": gch.chain(gch.accumulate(3, dtype=torch.float64), gch.lion(0.01)),
    "sign": gch.chain(gch.amp_scale(8.0, growth_interval=1, always=True), gch.accumulate(2), gch.scale_by_sign(),
                      gch.scale_by_learning_rate(0.01)),
    "elsewhere": gch.chain(gch.accumulate(2), gch.reduce_on_plateau("val_loss"), gch.from_torch("NAdam", lr=0.05)),
    "noise": gch.chain(gch.accumulate(2), gch.add_noise(0.1, 0.5, seed=3), gch.sgd(0.1, momentum=0.9)),
    "frozen": gch.chain(gch.freeze(EARLY, until=3), gch.adam(0.1, mu_dtype=torch.float32)),
    "branches": gch.partition(
        ("held", EARLY, gch.chain(gch.accumulate(3), gch.adam(0.1))),
        (gch.rest, gch.sgd(0.1, momentum=0.9)),
    ),
    "torch's, squares": gch.chain(
        gch.accumulate(2), gch.maximize(), gch.scale_by_rms(bias_correction=True), gch.scale_by_stddev(),
        gch.scale_by_rss(0.1, lr_decay=0.1), gch.scale_by_adadelta(), gch.trace(0.5, dampening=0.3), gch.scale(-1.0),
        gch.scale_by_asgd(0.5, 0.1), gch.average_each(2),
    ),
    "torch's, moments": gch.chain(
        gch.accumulate(2), gch.scale_by_adamax(), gch.scale_by_radam(b2=0.9), gch.scale_by_amsgrad(),
        gch.scale_by_nadam(), gch.scale_by_rprop(0.1), gch.scale(-1.0),
    ),
}  # fmt: skip


def subjects():
    """The class names of all links in the table, held ones too."""
    found = {"chain"}
    for tx in CHAINS.values():
        found |= {type(tx).__name__} | {type(link).__name__ for _, link, _ in walk(gch.chain(tx), None)}
    return found


def test_every_registered_link_is_in_the_table():
    """A link that is missing here is named."""
    missing = sorted(set(registry) - subjects())
    assert not missing, f"no chain in CHAINS has {', '.join(missing)}: add it to one, or write one more row"


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def train(net, updater, first, last):
    for i, rows in list(enumerate(data(last)))[first:]:
        if i == 5 and "amp_scale" in repr(updater):
            updater.update(lambda rows=rows: loss_of(net, rows) * torch.inf)
        else:
            updater.update(lambda rows=rows: loss_of(net, rows))


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 6])
def test_continue_is_bitwise(kind, k, tmp_path):
    """Saved after k micro-batches and loaded into fresh, every link continues to the bit."""
    through, kept = model(), None
    kept = CHAINS[kind].bind(through)
    train(through, kept, 0, 10)
    early = model()
    updater = CHAINS[kind].bind(early)
    train(early, updater, 0, k)
    updater.save(tmp_path / "run.pt")
    fresh = model()
    other = CHAINS[kind].bind(fresh)
    train(fresh, other, 0, 3)  # whatever it did before
    other.load(tmp_path / "run.pt")
    assert same(snapshot(fresh, other), snapshot(early, updater))
    train(fresh, other, k, 10)
    assert same(snapshot(fresh, other), snapshot(through, kept))
    assert not same(weights(fresh), weights(model()))


@pytest.mark.parametrize("kind", CHAINS)
def test_state_has_the_same_names_at_every_step(kind):
    """Fields of the state are there from bind on, and stay; only windows and buffers have entries that come and go."""
    net = model()
    updater = CHAINS[kind].bind(net)

    come_and_go = ("window", "buffers", "count")

    def shape():
        return {
            f"{address}.{name}": sorted(value) if isinstance(value, dict) and name not in come_and_go else 0
            for address, fields in updater.state_dict()["links"].items()
            for name, value in fields.items()
        }

    first = shape()
    for i in range(6):
        train(net, updater, i, i + 1)
        assert shape() == first
