"""Scenarios: windows under DDP. Each returns what its test compares with one process and the whole batch."""

import torch
from little_task import loss_of, net, rows, share, train, weights
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from two_ranks import Scenarios, same_on_both, sentence

import gradchain as gch

scenario = Scenarios()


def full_chain(k=4):
    lr = gch.linear(0.0, 0.05, 3).then(gch.cosine(0.05, 0.01, 10))
    return gch.chain(gch.accumulate(k), gch.clip_by_norm(0.2), gch.adamw(lr, weight_decay=0.1), gch.average_params(0.9))


def plain_chain(k=4):
    return gch.chain(gch.accumulate(k), gch.clip_by_norm(0.5), gch.sgd(0.1, momentum=0.9))


def counted(ddp):
    """How many times this model's gradients were reduced: a list that grows by one each time."""
    calls = []

    def hook(state, bucket):
        if bucket.is_last():
            calls.append(bucket.index())
        return allreduce_hook(state, bucket)

    ddp.register_comm_hook(None, hook)
    return calls


def windows(rank, micros=16, **options):
    model = net()
    ddp = DistributedDataParallel(model, **options)
    calls = counted(ddp)
    updater = full_chain().bind(ddp)
    reduced, parked_equal = [], []
    for micro in range(micros):
        train(updater, ddp, [micro], rank)
        reduced.append(len(calls))
        window = updater._bound.state.links["accumulate"].window
        parked_equal.append(all(same_on_both(w) for w in window.values()) if len(window) else None)
    return {
        "weights": weights(model),
        "averages": list(updater.averages().values()),
        "reduced": reduced,
        "parked_equal": parked_equal,
        "names": updater.names,
        "hyperparams": updater.hyperparams(),
        "clocks": updater.clocks,
    }


@scenario
def plain(rank):
    return windows(rank)


@scenario
def bucket_view(rank):
    return windows(rank, gradient_as_bucket_view=True)


@scenario
def static_graph(rank):
    return windows(rank, static_graph=True)


@scenario
def static_graph_and_bucket_view(rank):
    return windows(rank, static_graph=True, gradient_as_bucket_view=True)


@scenario
def unused_allowed(rank):
    return windows(rank, find_unused_parameters=True)


@scenario
def without_context(rank):
    """Nothing tells DDP of the window: every micro-batch is reduced, and the result is the same."""
    model = net()
    ddp = DistributedDataParallel(model)
    calls = counted(ddp)
    updater = full_chain().bind(ddp)
    for micro in range(8):
        updater.update(loss_of(ddp(share(micro, rank))))
    return {"weights": weights(model), "reduced": len(calls)}


@scenario
def static_graph_after_load(rank):
    """A new process takes up a run: its first backward must synchronise again, whatever num_micro is."""
    model = net()
    updater = full_chain().bind(DistributedDataParallel(model))
    train(updater, updater._bound.target.replicated[0], range(4), rank)
    again = net()
    again.load_state_dict(model.state_dict())
    ddp = DistributedDataParallel(again, static_graph=True)
    second = full_chain().bind(ddp)
    second.load_state_dict(updater.state_dict())
    return {"weights": train(second, ddp, range(4, 16), rank)}


@scenario
def buffer(rank):
    """A window in a buffer of its own: every micro-batch is reduced."""
    model = net()
    ddp = DistributedDataParallel(model)
    calls = counted(ddp)
    updater = gch.chain(gch.accumulate(4, dtype=torch.float64), gch.sgd(0.1, momentum=0.9)).bind(ddp)
    return {"weights": train(updater, ddp, range(8), rank), "reduced": len(calls)}


@scenario
def branch(rank):
    """A window in a branch of partition: every micro-batch is reduced."""
    model = net()
    ddp = DistributedDataParallel(model)
    return {"weights": train(branching().bind(ddp), ddp, range(8), rank)}


def branching():
    slow = gch.chain(gch.accumulate(4), gch.adamw(0.05))
    return gch.partition((gch.named("0.*"), slow), (gch.rest, gch.sgd(0.1)))


@scenario
def weighted_branch(rank):
    ddp = DistributedDataParallel(net())
    updater = branching().bind(ddp)
    with updater.context():
        loss = loss_of(ddp(share(0, rank)))
    return {"said": sentence(ValueError, updater.update, loss, weight=rank + 1.0)}


def counts(micro, rank):
    return 1 + (3 * micro + 2 * rank) % 5


def summed(out):
    return (out - 0.3).square().sum()


def weighted_run(chain, rank, flush=False, **options):
    """Micro-batches of unequal size: the mean over all rows of a window."""
    model = net()
    ddp = DistributedDataParallel(model, **options)
    updater = chain.bind(ddp)
    losses = []
    for micro in range(8):
        n = counts(micro, rank)
        with updater.context():
            loss = summed(ddp(rows(micro, rank, n))) / n
        info = updater.update(loss, weight=n)
        if flush and micro == 5:
            info = updater.flush()
        losses.append(info.loss if info else None)
    if flush:
        updater.flush()
    return {"weights": weights(model), "loss": losses}


@scenario
def weighted(rank):
    return weighted_run(plain_chain(), rank)


@scenario
def weighted_and_flushed(rank):
    return weighted_run(plain_chain(), rank, flush=True)


@scenario
def weighted_buffer(rank):
    chain = gch.chain(gch.accumulate(4, dtype=torch.float64), gch.sgd(0.1, momentum=0.9))
    return weighted_run(chain, rank)


@scenario
def weighted_in_own_group(rank):
    """Each rank trains a model of its own: weights are summed over the ranks that share the model."""
    groups = [torch.distributed.new_group([r]) for r in range(2)]
    return weighted_run(plain_chain(), rank, process_group=groups[rank])


@scenario
def summed_weighted(rank):
    chain = gch.chain(gch.accumulate(4, reduce="sum"), gch.sgd(0.01, momentum=0.9))
    return weighted_run(chain, rank)


HEAVY = {
    "tokens": lambda micro, rank: 100_000 * (1 + rank),
    "tiny": lambda micro, rank: 1e-9 * (1 + micro + rank),
    "falling": lambda micro, rank: 10.0 ** (8 - 4 * (micro // 3)),
}


@scenario
def heavy(rank):
    """Half weights, and weights of any size: what each window gave, what lay in `.grad`, and how often ranks talked."""
    talks, own = [], torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor, *args, **options: (talks.append(1), own(tensor, *args, **options))[1]
    results = {}
    try:
        for kind, weight in HEAVY.items():
            model = nn.Linear(1, 1, bias=False).half()
            nn.init.ones_(model.weight)
            ddp, seen, largest = DistributedDataParallel(model), [], []

            def look(g, w, seen=seen):
                seen.append(g["weight"].item())
                return g

            updater = gch.chain(gch.accumulate(3), gch.stateless(look), gch.sgd(0.0)).bind(ddp)
            talks.clear()
            for micro in range(9):
                with updater.context():
                    loss = ddp(torch.full((1, 1), 1.0 + rank, dtype=torch.float16)).sum()
                updater.backward(loss, weight=weight(micro, rank))
                largest.append(model.weight.grad.abs().item())
                updater.step()
            results[kind] = (seen, max(largest), len(talks))
    finally:
        torch.distributed.all_reduce = own
    return results


@scenario
def flushed(rank):
    model = net()
    ddp = DistributedDataParallel(model)
    updater = plain_chain().bind(ddp)
    nothing = bool(updater.flush())
    train(updater, ddp, range(4), rank)
    closed = bool(updater.flush())
    train(updater, ddp, range(4, 7), rank)
    applied = updater.flush()
    train(updater, ddp, range(7, 12), rank)
    return {"weights": weights(model), "said": [nothing, closed, applied.reason], "micro": updater.num_micro}


@scenario
def flushed_unequal(rank):
    """One rank has run out of data sooner: all ranks say so, none waits for ever."""
    ddp = DistributedDataParallel(net())
    updater = plain_chain().bind(ddp)
    train(updater, ddp, range(2 - rank), rank)
    one = sentence(RuntimeError, updater.flush)
    updater.zero_grad()
    train(updater, ddp, range(1 - rank), rank)
    return {"said": [one, sentence(RuntimeError, updater.flush)]}


@scenario
def last(rank):
    model = net()
    ddp = DistributedDataParallel(model)
    calls = counted(ddp)
    updater = plain_chain().bind(ddp)
    for micro in range(9):
        with updater.context(last=micro % 3 == 2):
            loss = loss_of(ddp(share(micro, rank)))
        updater.update(loss)
    return {"weights": weights(model), "reduced": len(calls), "updates": updater.num_updates}


@scenario
def last_too_late(rank):
    """Said after an unsynchronised forward: refused, and the window goes on as if nothing had been said."""
    model = net()
    ddp = DistributedDataParallel(model)
    updater = plain_chain().bind(ddp)
    train(updater, ddp, range(2), rank)
    with updater.context():
        loss = loss_of(ddp(share(2, rank)))
    in_update = sentence(RuntimeError, updater.update, loss, last=True)
    updater.backward(loss)
    in_step = sentence(RuntimeError, updater.step, last=True)
    updater.step()
    train(updater, ddp, [3], rank)
    return {"weights": weights(model), "said": [in_update, in_step]}


@scenario
def closed_by_override(rank):
    """What closes the window changed between forward and backward: refused like a late `last`."""
    ddp = DistributedDataParallel(net())
    updater = plain_chain().bind(ddp)
    with updater.context():
        loss = loss_of(ddp(share(0, rank)))
    updater.override("every", 1)
    return {"said": sentence(RuntimeError, updater.update, loss)}


@scenario
def by_hand(rank):
    """loss.backward() in a window: the ranks could not reduce what the updater has parked."""
    ddp = DistributedDataParallel(net())
    updater = plain_chain().bind(ddp)
    with updater.context():
        loss_of(ddp(share(0, rank))).backward()
    first = sentence(RuntimeError, updater.step)
    updater.zero_grad()
    train(updater, ddp, range(3), rank)
    loss_of(ddp(share(3, rank))).backward()
    return {"said": [first, sentence(RuntimeError, updater.step)]}


@scenario
def by_hand_without_window(rank):
    model = net()
    ddp = DistributedDataParallel(model)
    updater = gch.chain(gch.clip_by_norm(0.5), gch.adamw(0.05)).bind(ddp)
    for micro in range(4):
        loss_of(ddp(share(micro, rank))).backward()
        updater.step()
    return {"weights": weights(model)}


@scenario
def harmless_context(rank):
    """Evaluating in it, nesting it, leaving it by an exception."""
    model = net()
    ddp = DistributedDataParallel(model)
    calls = counted(ddp)
    updater = plain_chain().bind(ddp)
    for micro in range(8):
        try:
            with updater.context():
                raise KeyError("left")
        except KeyError:
            pass
        with updater.context(), updater.context():
            loss = loss_of(ddp(share(micro, rank)))
            with torch.no_grad():
                ddp(share(micro + 1, rank))
        updater.update(loss)
        with torch.no_grad():
            ddp(share(micro + 1, rank))
    return {"weights": weights(model), "reduced": len(calls)}


@scenario
def two_backwards(rank):
    """Two losses to a micro-batch."""
    model = net()
    ddp = DistributedDataParallel(model)
    updater = plain_chain().bind(ddp)
    for micro in range(8):
        for part in range(2):
            with updater.context():
                loss = loss_of(ddp(share(10 * micro + part, rank)))
            updater.backward(loss)
        updater.step()
    return {"weights": weights(model)}


# GANs


def gan_nets():
    torch.manual_seed(11)
    return (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(),
    )


def train_gan(generator, critic, u_g, u_c, rank, micros=8):
    for micro in range(micros):
        z, real = share(2 * micro, rank), share(2 * micro + 1, rank)
        # DDP reduces after any forward outside its no_sync, also one whose output is detached: hence both contexts
        with u_c.context(), u_g.context():
            loss = critic(torch.cat([real, generator(z).detach()])).tanh()
            loss = (loss * torch.cat([-torch.ones(len(z), 1), torch.ones(len(z), 1)]).to(loss)).mean()
        u_c.update(loss)
        with u_g.context():
            loss = -critic(generator(z)).tanh().mean()
        u_g.update(loss)
    return weights(generator) + weights(critic)


def gan_chains():
    return gch.chain(gch.accumulate(4), gch.sgd(0.3, momentum=0.9)), gch.chain(gch.accumulate(2), gch.adam(0.03))


def gan_run(rank, **options):
    models = gan_nets()
    generator, critic = (DistributedDataParallel(m, **options) for m in models)
    calls = [counted(generator), counted(critic)]
    u_g, u_c = (chain.bind(ddp) for chain, ddp in zip(gan_chains(), (generator, critic), strict=True))
    trained = train_gan(generator, critic, u_g, u_c, rank)
    return {"weights": trained, "reduced": [len(c) for c in calls]}


@scenario
def gan(rank):
    return gan_run(rank)


@scenario
def gan_bucket_view(rank):
    return gan_run(rank, gradient_as_bucket_view=True)


@scenario
def pair_in_one_updater(rank):
    """A dict of two DDP models, one window."""
    torch.manual_seed(3)
    models = {"body": nn.Linear(3, 4).double(), "head": nn.Linear(4, 2).double()}
    ddps = {name: DistributedDataParallel(model) for name, model in models.items()}
    updater = plain_chain().bind(ddps)
    for micro in range(8):
        with updater.context():
            loss = loss_of(ddps["head"](ddps["body"](share(micro, rank)).tanh()))
        updater.update(loss)
    return {"weights": [w for m in models.values() for w in weights(m)], "names": updater.names}


# unused parameters


class Forked(nn.Module):
    """A branch is used when asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.always, self.sometimes = nn.Linear(3, 2), nn.Linear(3, 2)
        self.double()

    def forward(self, x, fork):
        return self.always(x) + self.sometimes(x) if fork else self.always(x)


def forks(micro, rank):
    """Whether a rank uses the fork in a micro-batch: early in a window, on one rank, on both, in none."""
    return (micro, rank) in {(0, 1), (5, 0), (5, 1), (7, 0), (9, 1), (9, 0), (12, 1), (13, 1)}


def train_forked(updater, model, rank, micros=16, parts=(0, 1)):
    for micro in range(micros):
        with updater.context():
            seen = parts if rank is None else (rank,)
            loss = sum(loss_of(model(rows(micro, r), forks(micro, r))) for r in seen) / len(seen)
        updater.update(loss)
    return [p.detach().clone() for p in model.parameters()]


@scenario
def unused(rank):
    model = Forked()
    updater = plain_chain().bind(DistributedDataParallel(model, find_unused_parameters=True))
    return {"weights": train_forked(updater, updater._bound.target.replicated[0], rank)}


@scenario
def unused_bucket_view(rank):
    model = Forked()
    updater = plain_chain().bind(
        DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    )
    return {"weights": train_forked(updater, updater._bound.target.replicated[0], rank)}


@scenario
def unused_flushed(rank):
    """At the flush one rank has a gradient where the other has none."""
    model = Forked()
    updater = plain_chain().bind(DistributedDataParallel(model, find_unused_parameters=True))
    train_forked(updater, updater._bound.target.replicated[0], rank, micros=3)
    updater.flush()
    return {"weights": weights(model)}
