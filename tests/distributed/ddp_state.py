"""Scenarios: state, skipped updates, closures and names under DDP."""

from contextlib import nullcontext
from pathlib import Path
from tempfile import mkdtemp

import torch
import torch.distributed as dist
from ddp_windows import counts, full_chain, plain_chain, summed
from little_task import loss_of, net, rows, share, train, weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import Scenarios, same_on_both, sentence

import gradchain as gch

scenario = Scenarios()


def shared_folder(name):
    """A folder of this run that both ranks know."""
    said = [mkdtemp(prefix=f"gradchain-{name}-")] if dist.get_rank() == 0 else [None]
    dist.broadcast_object_list(said)
    return Path(said[0])


# inside a window


@scenario
def state_in_a_window(rank):
    """Refused without sync; with it, training goes on as if nothing had been asked."""
    model = net()
    ddp = DistributedDataParallel(model)
    updater = full_chain().bind(ddp)
    train(updater, ddp, range(6), rank)
    said = sentence(RuntimeError, updater.state_dict)
    state = updater.state_dict(sync=True)
    again = updater.state_dict()  # it is synchronised now
    train(updater, ddp, range(6, 7), rank)
    refused_again = sentence(RuntimeError, updater.state_dict)
    return {
        "weights": train(updater, ddp, range(7, 16), rank),
        "said": [said, refused_again],
        "window": state["links"]["accumulate"]["window"],
        "same": all(
            torch.equal(w, again["links"]["accumulate"]["window"][n])
            for n, w in state["links"]["accumulate"]["window"].items()
        ),
    }


def buffered_chain():
    """plain_chain with its window in a buffer, which every micro-batch enters reduced."""
    links = gch.clip_by_norm(0.5), gch.sgd(0.1, momentum=0.9)
    return gch.chain(gch.accumulate(4, dtype=torch.float64), *links)


WEIGHED = {
    "withheld in .grad": (plain_chain, True),
    "reduced in .grad": (plain_chain, False),
    "withheld, a buffer": (buffered_chain, True),
    "reduced, a buffer": (buffered_chain, False),
}


@scenario
def weighted_state_in_a_window(rank):
    """The sums of the weights are saved with the window, wherever it lies and whoever reduced it."""

    def feed(updater, ddp, micros, context):
        for micro in micros:
            n = counts(micro, rank)
            with updater.context() if context else nullcontext():
                loss = summed(ddp(rows(micro, rank, n))) / n
            updater.update(loss, weight=n)

    def resumed(chain, context):
        first, second = net(), net()
        ddp = DistributedDataParallel(first)
        updater = chain().bind(ddp)
        feed(updater, ddp, range(6), context)
        said = sentence(RuntimeError, updater.state_dict)
        saved = [updater.state_dict(sync=True), first.state_dict()]
        dist.broadcast_object_list(saved)  # everybody continues from what rank 0 has written
        second.load_state_dict(saved[1])
        ddp = DistributedDataParallel(second)
        updater = chain().bind(ddp)
        updater.load_state_dict(saved[0])
        feed(updater, ddp, range(6, 8), context)
        return {"weights": weights(second), "said": said}

    return {kind: resumed(*how) for kind, how in WEIGHED.items()}


@scenario
def saved_in_a_window(rank):
    """save reduces the window itself: all ranks call it, and one writes."""
    path = shared_folder("saved") / "run.pt"
    first, second = net(), net()
    ddp = DistributedDataParallel(first)
    updater = full_chain().bind(ddp)
    train(updater, ddp, range(6), rank)
    updater.save(path, epoch=3)
    ddp = DistributedDataParallel(second)
    updater = full_chain().bind(ddp)
    extra = updater.load(path)
    result = {"weights": train(updater, ddp, range(6, 16), rank), "extra": extra}
    dist.barrier()
    if rank == 0:
        path.unlink()
        path.parent.rmdir()
    return result


@scenario
def state_in_a_synchronised_window(rank):
    """Without context() every micro-batch is reduced, and a state is a state."""
    ddp = DistributedDataParallel(net())
    updater = plain_chain().bind(ddp)
    updater.update(loss_of(ddp(share(0, rank))))
    return {"micro": updater.state_dict()["links"]["accumulate"]["micro"]}


@scenario
def unequal_windows(rank):
    ddp = DistributedDataParallel(net())
    updater = plain_chain().bind(ddp)
    train(updater, ddp, range(1 + rank), rank)
    return {"said": sentence(RuntimeError, updater.state_dict, sync=True)}


# overflow


def poisoned(updater, ddp, rank, bad, micros=16):
    """Micro-batches of which one rank sees an infinite loss at `bad`."""
    reasons = []
    for micro in range(micros):
        with updater.context():
            out = ddp(share(micro, rank))
            loss = loss_of(out) * (float("inf") if micro == bad and rank == 1 else 1.0)
        reasons.append(updater.update(loss).reason)
    return reasons


def overflowing(rank, chain, bad=5):
    model = net()
    ddp = DistributedDataParallel(model)
    updater = chain.bind(ddp)
    reasons = poisoned(updater, ddp, rank, bad)
    state = updater.state_dict()["links"]
    return {
        "weights": weights(model),
        "reasons": reasons,
        "scale": state.get("amp_scale", {}).get("scale"),
        "skipped": updater.num_skipped,
    }


def amp_chain(every=1):
    amp = gch.amp_scale(init_scale=64.0, growth_interval=2, always=True)
    return gch.chain(*([gch.accumulate(every)] if every > 1 else []), amp, gch.clip_by_norm(0.5), gch.adamw(0.05))


def amp_first_chain():
    amp = gch.amp_scale(init_scale=64.0, growth_interval=2, always=True)
    return gch.chain(amp, gch.accumulate(4), gch.clip_by_norm(0.5), gch.adamw(0.05))


def skip_chain():
    return gch.chain(gch.accumulate(4), gch.skip_nonfinite(), gch.clip_by_norm(0.5), gch.adamw(0.05))


def skip_first_chain():
    return gch.chain(gch.skip_nonfinite(), gch.accumulate(4), gch.clip_by_norm(0.5), gch.adamw(0.05))


@scenario
def amp(rank):
    return overflowing(rank, amp_chain())


@scenario
def amp_after_accumulate(rank):
    return overflowing(rank, amp_chain(4))


@scenario
def amp_before_accumulate(rank):
    return overflowing(rank, amp_first_chain())


@scenario
def skip(rank):
    return overflowing(rank, skip_chain())


@scenario
def skip_before_accumulate(rank):
    return overflowing(rank, skip_first_chain())


# closures


class seen_before_and_after(gch.Transform):
    """Adds the gradient at twice the weights to the gradient here: whoever reads both must see both."""

    descends = False

    def update(self, g, state, ctx):
        _, other = ctx.evaluate(2 * ctx.params)
        _, third = ctx.evaluate(3 * ctx.params)
        return g + 0.5 * other + 0.25 * third, state


def closures(rank, chain, micros=6, **options):
    model = net()
    ddp = DistributedDataParallel(model, **options)
    updater = chain.bind(ddp)
    for micro in range(micros):
        updater.update(lambda micro=micro: loss_of(ddp(share(micro, rank))), keep_grads=True)
    return {"weights": weights(model), "grads": [p.grad.clone() for p in model.parameters()]}


def sam_chain():
    return gch.chain(gch.sam(rho=0.1), gch.clip_by_norm(0.5), gch.adamw(0.05))


class uphill(gch.Transform):
    """A link of a user's that takes the gradient uphill, wherever it is put: of a window that of its last part."""

    descends = False

    def update(self, g, state, ctx):
        _, u = ctx.evaluate(ctx.new_params(0.1 / (g.norm() + 1e-12) * g))
        return u, state


def sam_in_windows():
    return gch.chain(gch.accumulate(2), uphill(), gch.sgd(0.1, momentum=0.9))


def reading_chain():
    return gch.chain(seen_before_and_after(), gch.sgd(0.1))


class Ahead(torch.optim.Optimizer):
    """Moves the weights, and asks there first: as what averages by itself does."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        params = self.param_groups[0]["params"]
        for way in (0.25, -0.25):
            for p in params:
                p.add_(way)
            loss = float(closure())
        for p in params:
            p.sub_(self.param_groups[0]["lr"] * loss * p.grad)


def classes_with_closures():
    search = {"max_iter": 5, "line_search_fn": "strong_wolfe"}
    return {"lbfgs": gch.from_torch("LBFGS", lr=0.1, **search), "ahead": gch.from_torch(Ahead)}


@scenario
def closures_of_classes(rank):
    return {name: closures(rank, link) for name, link in classes_with_closures().items()}


@scenario
def sam(rank):
    return closures(rank, sam_chain())


@scenario
def sam_bucket_view(rank):
    return closures(rank, sam_chain(), gradient_as_bucket_view=True)


@scenario
def sam_static_graph(rank):
    return closures(rank, sam_chain(), static_graph=True)


@scenario
def sam_after_accumulate(rank):
    model = net()
    ddp = DistributedDataParallel(model)
    updater = sam_in_windows().bind(ddp)
    for micro in range(6):
        updater.update(lambda micro=micro: loss_of(ddp(share(micro, rank))))
    return {"weights": weights(model)}


@scenario
def sam_weighted(rank):
    model = net()
    ddp = DistributedDataParallel(model)
    updater = sam_in_windows().bind(ddp)
    for micro in range(6):
        n = counts(micro, rank)
        updater.update(lambda micro=micro, n=n: summed(ddp(rows(micro, rank, n))) / n, weight=n)
    return {"weights": weights(model)}


@scenario
def reading_both(rank):
    return closures(rank, reading_chain())


@scenario
def reading_both_bucket_view(rank):
    return closures(rank, reading_chain(), gradient_as_bucket_view=True)


@scenario
def kept_state_bucket_view(rank):
    """A momentum that begins as the gradient must not be the bucket that the next reduction overwrites."""
    model = net()
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    updater = gch.sgd(0.1, momentum=0.9).bind(ddp)
    train(updater, ddp, range(6), rank)
    return {"weights": weights(model)}


# names and checkpoints


@scenario
def names(rank):
    bare = gch.sgd(0.1).bind(net()).names
    wrapped = {
        "ddp": gch.sgd(0.1).bind(DistributedDataParallel(net())).names,
        "ddp of compiled": gch.sgd(0.1).bind(DistributedDataParallel(torch.compile(net(), backend="eager"))).names,
        "compiled ddp": gch.sgd(0.1).bind(torch.compile(DistributedDataParallel(net()), backend="eager")).names,
        "inside": gch.sgd(0.1).bind(nn.ModuleDict({"net": DistributedDataParallel(net())})).names,
    }
    return {"bare": bare, "wrapped": wrapped}


@scenario
def compiled(rank):
    """A checkpoint written under DDP(torch.compile(model)); its windows are those of DDP."""
    path = shared_folder("compiled") / "run.pt"
    model = net()
    ddp = DistributedDataParallel(torch.compile(model, backend="eager"))
    updater = full_chain().bind(ddp)
    train(updater, ddp, range(6), rank)
    unsynchronised = sentence(RuntimeError, updater.state_dict)
    updater.save(path)
    result = {"weights": train(updater, ddp, range(6, 16), rank), "said": unsynchronised}
    result["file"] = path.read_bytes()
    dist.barrier()
    if rank == 0:
        path.unlink()
        path.parent.rmdir()
    return result


@scenario
def compiled_outside(rank):
    """torch.compile(DDP(model)): the DDP inside is found, and its window is not reduced too early."""
    model = net()
    whole = torch.compile(DistributedDataParallel(model), backend="eager")
    updater = full_chain().bind(whole)
    train(updater, whole, range(2), rank)
    said = sentence(RuntimeError, updater.state_dict)
    return {"weights": train(updater, whole, range(2, 8), rank), "said": said}


@scenario
def ddp_inside(rank):
    """A module that holds a DDP one."""
    model = net()
    outer = nn.ModuleDict({"net": DistributedDataParallel(model)})
    updater = full_chain().bind(outer)
    train(updater, outer["net"], range(2), rank)
    said = sentence(RuntimeError, updater.state_dict)
    return {"weights": train(updater, outer["net"], range(2, 8), rank), "said": said}


@scenario
def group(rank):
    """One file for several updaters, in the middle of their windows."""
    path = shared_folder("group") / "run.pt"

    def both():
        models = [net(), net()]
        ddps = [DistributedDataParallel(m) for m in models]
        return models, ddps, gch.group(a=plain_chain(3).bind(ddps[0]), b=plain_chain(4).bind(ddps[1]))

    def feed(ddps, updaters, micros):
        for updater, ddp in zip(updaters.values(), ddps, strict=True):
            train(updater, ddp, micros, rank)

    _, ddps, updaters = both()
    feed(ddps, updaters, range(5))
    updaters.save(path)
    models, ddps, updaters = both()
    updaters.load(path)
    feed(ddps, updaters, range(5, 12))
    dist.barrier()
    if rank == 0:
        path.unlink()
        path.parent.rmdir()
    return {"weights": [w for m in models for w in weights(m)]}


@scenario
def spikes_of_one_rank(rank):
    """A batch that is a spike on one rank alone: both hold, by the gradient and by the loss, and go on alike."""
    out = {}
    for of in ("norm", "loss"):
        model = net()
        ddp = DistributedDataParallel(model)
        updater = gch.chain(gch.rules.skip_spikes(8.0, warmup=4, of=of), gch.sgd(1e-3, momentum=0.9)).bind(ddp)
        reasons = []
        for micro in range(12):
            size = 1e4 if micro in (6, 9) and rank == 1 else 1.0
            reasons.append(updater.update(size * (loss_of(ddp(share(micro, rank))) + 1.0)).reason)
        numbers = updater.state_dict()["links"]["skip_spikes"]
        numbers = torch.tensor([float(numbers[name]) for name in ("count", "mean", "var", "skip_rate")]).double()
        out[of] = {"reasons": reasons, "numbers": numbers, "alike": same_on_both(numbers), "weights": weights(model)}
    return out


@scenario
def a_loop_that_is_resumed(rank):
    """Broken off in mid-epoch and in mid-window, each rank with its share, its draws and its own idea of the best."""
    folder = shared_folder("loop")
    data = torch.stack([rows(micro, 0, 1)[0] for micro in range(22)])

    def training(name, kill=None):
        torch.manual_seed(rank)  # dropout differs
        model = net()
        ddp = DistributedDataParallel(nn.Sequential(model, nn.Dropout(0.2)))
        torch.manual_seed(rank)
        updater = plain_chain(2).bind(ddp)
        loader = torch.utils.data.DataLoader(data, 2, sampler=gch.loop.sampler(data, seed=1))
        saving = gch.loop.checkpoints(folder / name, 1, "iter", keep=2, best=("drawn", "min"))
        log = folder / f"{name}.jsonl"
        drawn = (lambda: {"drawn": torch.rand(())}, 2)
        run = gch.loop(loader, updater, epochs=2, validate=drawn, checkpoint=saving, log=log)
        seen = []
        for batch in run:
            if run.iter == kill:
                return seen
            with updater.context():
                loss = loss_of(ddp(batch))
            run.update(loss)
            seen.append(batch)
        return {"weights": weights(model), "draws": torch.get_rng_state(), "seen": seen, "updates": run.num_updates}

    whole, begun, rest = training("whole"), training("broken", 7), training("broken")
    dist.barrier()
    files = sorted(path.name for path in (folder / "broken").iterdir())
    return {"whole": whole, "seen": begun + rest["seen"], "rest": rest, "files": files}


def gan(generator, critic, order, micros, rank=None):
    """Two models whose losses meet in the critic, in an order of updates."""
    both = gch.group(g=gch.adam(1e-2).bind(generator), c=gch.adam(1e-2).bind(critic))
    for micro in micros:
        x = share(micro, rank)
        fake = generator(x)

        def of_critic(x=x, fake=fake):
            return loss_of(critic(fake.detach())) - loss_of(critic(x[:, :2]))

        def of_generator(fake=fake):
            return -loss_of(critic(fake))

        if order == "critic first":  # by functions, which run when it is their turn
            both.c.update(of_critic)
            both.g.update(of_generator)
            continue
        of = {"inputs": [*generator.parameters()]} if order == "generator first, of its own" else {}
        losses = of_generator(), of_critic()
        both.g.update(losses[0], **of)
        both.c.update(losses[1])
    return [*weights(generator), *weights(critic)]


def critic_net():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


@scenario
def two_models(rank):
    """A critic that another model's loss goes through."""
    out = {}
    for order in ("critic first", "generator first", "generator first, of its own"):
        torch.manual_seed(3)
        pair = DistributedDataParallel(net()), DistributedDataParallel(critic_net())
        out[order] = gan(*pair, order, range(6), rank)
    return out
