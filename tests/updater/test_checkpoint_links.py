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
def size(updates):
    return updates.norm()


def sometimes(step):
    return step % 3 != 1


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
    "guard": gch.chain(gch.accumulate(2), gch.guard(loss=50.0, warmup=1), gch.sgd(0.1, momentum=0.9)),
    "sam": gch.chain(gch.sam(0.1), gch.accumulate(2), gch.sgd(0.1, momentum=0.9)),
    "lion": gch.chain(gch.accumulate(3, dtype=torch.float64), gch.lion(0.01)),
    "sign": gch.chain(gch.amp_scale(8.0, growth_interval=1, always=True), gch.accumulate(2), gch.scale_by_sign(),
                      gch.scale_by_learning_rate(0.01)),
    "elsewhere": gch.chain(gch.accumulate(2), gch.reduce_on_plateau("val_loss"), gch.from_torch("NAdam", lr=0.05)),
    "plateau": gch.chain(gch.accumulate(2), gch.rules.tick_on_plateau("val_loss", "plateau"),
                         gch.sgd(0.1, momentum=gch.by("plateau", gch.schedules.exponential(0.9, 0.5)))),
    "schedule-free": gch.chain(gch.accumulate(2), gch.rules.schedule_free_adamw(0.1, 3, weight_decay=0.1, r=0.5)),
    "primal averages": gch.chain(gch.accumulate(2), gch.rules.gpa_adamw(0.1, mu_x=0.8, weight_decay=0.1)),
    "msam": gch.chain(gch.accumulate(2), gch.trace(0.9), gch.rules.msam(0.1)),
    "aggmo": gch.chain(gch.accumulate(2), gch.rules.grokfast_ma(3), gch.rules.aggmo(0.1)),
    "scion": gch.chain(gch.rules.ema(0.9), gch.rules.scale_by_lmo(), gch.scale_by_learning_rate(0.1)),
    "asam": gch.chain(gch.rules.asam(0.1), gch.accumulate(2), gch.sgd(0.1, momentum=0.9)),
    "hyperball": gch.chain(gch.accumulate(2), gch.trace(0.9), gch.rules.hyperball(0.1)),
    "qk_clip": gch.chain(gch.accumulate(2), gch.adam(0.1), gch.rules.qk_clip("logit", EARLY)),
    "lookahead": gch.chain(gch.accumulate(2), gch.sgd(0.1, momentum=0.9), gch.rules.lookahead(2)),
    "noise": gch.chain(gch.accumulate(2), gch.add_noise(0.1, 0.5, seed=3), gch.sgd(0.1, momentum=0.9)),
    "orthogonal": gch.chain(gch.accumulate(2), gch.rules.scale_by_muon(), gch.scale_by_learning_rate(0.1)),
    "orthogonal, adaptive": gch.chain(gch.masked(gch.rules.scale_by_normuon(), EARLY),
                                      gch.masked(gch.rules.scale_by_adamuon(), ~EARLY), gch.scale(-0.1)),
    "soap": gch.rules.soap(0.1, every=2),
    "came": gch.rules.came(0.1, weight_decay=0.1),
    "factored": gch.chain(gch.accumulate(2), gch.rules.scale_by_factored_rms(min_dim_size_to_factor=3),
                          gch.rules.cap_learning_rate(1.0), gch.scale_by_learning_rate(0.01)),
    "frozen": gch.chain(gch.freeze(EARLY, until=3), gch.adam(0.1, mu_dtype=torch.float32)),
    "block sizes": gch.chain(
        gch.accumulate(2), gch.rules.adaptive_grad_clip(0.5), gch.rules.centralize(),
        gch.rules.normalize_by_update_norm(), gch.rules.clip_by_block_rms(0.5),
        gch.rules.scale_by_param_block_norm(), gch.rules.scale_by_param_block_rms(),
        gch.rules.scale_by_trust_ratio(eps=0.1), gch.rules.shrink_by_learning_rate(0.1),
    ),
    "novograd": gch.rules.novograd(0.1, weight_decay=0.1),
    "stable adam": gch.chain(gch.accumulate(3), gch.rules.stable_adamw(0.1)),
    "sm3": gch.chain(gch.rules.scale_by_sm3(b2=0.9), gch.scale_by_learning_rate(0.1)),
    "adam_mini": gch.rules.adam_mini(0.1, blocks=[(EARLY, "row")]),
    "adamp": gch.rules.adamp(0.1, weight_decay=0.1, delta=0.5),
    "usual": gch.chain(
        gch.accumulate(2), gch.rules.skip_spikes(1.0, 0.9, 1), gch.rules.skip_large_updates(1e6),
        gch.rules.clip_by_zscore(1.0, 0.9, 1), gch.rules.clip_by_ema_norm(warmup=2),
        gch.rules.snapshot("size", size, 0.5), gch.sgd(0.1, momentum=0.9),
    ),
    "turns": gch.chain(
        gch.when(sometimes, gch.trace(0.9)), gch.switch(gch.adam(0.1), gch.sgd(0.1, momentum=0.9), at=4)
    ),
    "composed": gch.chain(
        gch.accumulate(2), gch.rules.correct_gradient(), gch.rules.grokfast(0.9), gch.rules.orthogonalize_gradient(),
        gch.rules.cautious(gch.scale_by_adam()), gch.scale_by_learning_rate(0.1),
    ),
    "branches": gch.partition(
        ("held", EARLY, gch.chain(gch.accumulate(3), gch.adam(0.1))),
        (gch.rest, gch.sgd(0.1, momentum=0.9)),
    ),
    # the elementwise rules of Optax and beyond
    "directions": gch.chain(
        gch.accumulate(2), gch.rules.ema(0.9), gch.rules.scale_by_optimistic_gradient(), gch.rules.scale_by_qhm(),
        gch.rules.scale_by_belief(), gch.rules.scale_by_yogi(), gch.rules.scale_by_adopt(), gch.rules.scale_by_laprop(),
        gch.rules.scale_by_adam_atan2(), gch.rules.scale_by_acprop(eps=1e-3),
        gch.rules.scale_by_simplified_ademamix(), gch.rules.scale_by_ademamix(alpha_warmup=4, b3_warmup=4),
        gch.rules.adan(0.01, weight_decay=0.1),
    ),
    "lion, refined": gch.chain(gch.scale_by_lion(mode="refined"), gch.scale_by_learning_rate(0.01)),
    "coins": gch.chain(gch.accumulate(2), gch.rules.cocob()),
    "dual averages": gch.chain(gch.accumulate(2), gch.rules.madgrad(0.01)),
    "torch's, squares": gch.chain(
        gch.accumulate(2), gch.rules.maximize(), gch.scale_by_rms(bias_correction=True), gch.rules.scale_by_stddev(),
        gch.rules.scale_by_rss(0.1, lr_decay=0.1), gch.rules.scale_by_adadelta(), gch.trace(0.5, dampening=0.3),
        gch.scale(-1.0), gch.rules.scale_by_asgd(0.5, 0.1), gch.rules.average_each(2),
    ),
    "torch's, moments": gch.chain(
        gch.accumulate(2), gch.rules.scale_by_adamax(), gch.rules.scale_by_radam(b2=0.9), gch.rules.scale_by_amsgrad(),
        gch.rules.scale_by_nadam(), gch.rules.scale_by_rprop(0.1), gch.scale(-1.0),
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
