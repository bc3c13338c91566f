"""Scenarios: FSDP2 on two ranks."""

import shutil

import torch
import torch.distributed as dist
from ddp_state import shared_folder
from ddp_windows import counts, full_chain, gan_chains, gan_nets, plain_chain, summed, train_gan
from later import later
from little_task import loss_of, net, rows, share, train, weights
from two_ranks import Scenarios, sentence

import gradchain as gch
from gradchain.core import eager

device_mesh, fsdp = later("torch.distributed.device_mesh"), later("torch.distributed.fsdp")
checkpoint = later("torch.distributed.checkpoint")
tensor, debug = later("torch.distributed.tensor"), later("torch.distributed.tensor.debug")
scenario = Scenarios()


def no_pointer(self):
    raise AssertionError("data_ptr of a DTensor was read")


def sharded(model, each=True, **options):
    """FSDP2 of each layer with weights, and of the whole."""
    tensor.DTensor.data_ptr = no_pointer
    mesh = device_mesh.init_device_mesh("cpu", (2,))
    for layer in model if each else ():
        if list(layer.parameters()):
            fsdp.fully_shard(layer, mesh=mesh, **options)
    return fsdp.fully_shard(model, mesh=mesh, **options)


def run(rank, chain, micros=8, each=True, context=True, **options):
    model = sharded(net(), each, **options)
    updater = chain.bind(model)
    grads = []
    for micro in range(micros):
        if context:
            train(updater, model, [micro], rank)
        else:
            updater.update(loss_of(model(share(micro, rank))))
        grads.append(any(p.grad is not None for p in model.parameters()))
    return {
        "weights": weights(model),
        "names": updater.names,
        "updates": updater.num_updates,
        "norm": updater.metrics.get("clip_by_norm.norm"),
        "sharded": all(isinstance(p, tensor.DTensor) for p in updater._bound.target.parameters()),
    }


@scenario
def full(rank):
    return run(rank, full_chain(2))


@scenario
def only_the_whole(rank):
    return run(rank, full_chain(2), each=False)


@scenario
def whole_weights_stay_after_forward(rank):
    return run(rank, full_chain(2), reshard_after_forward=False)


@scenario
def without_context(rank):
    return run(rank, full_chain(2), context=False)


@scenario
def without_window(rank):
    return run(rank, gch.chain(gch.clip_by_norm(0.2), gch.adamw(0.05)))


def noisy_chain():
    return gch.chain(gch.add_noise(0.01, 0.55, seed=2), gch.sgd(0.05, momentum=0.9))


@scenario
def noisy(rank):
    return run(rank, noisy_chain())


@scenario
def drawn(rank):
    """What is drawn for shards of all kinds, put together; the same for the whole; whether they are sharded."""
    mesh, found = device_mesh.init_device_mesh("cpu", (2,)), []
    kinds = [tensor.Shard(0), tensor.Shard(1), tensor.Shard(2), tensor.Replicate()]
    for dtype in (torch.float32, torch.float64):
        for placement in kinds:
            whole = torch.zeros(5, 3, 7, dtype=dtype)
            shard = tensor.distribute_tensor(whole, mesh, [placement])
            random = gch.Context(gch.Tensors.of({}), step=3).random(1)
            for kind in ("bits", "uniform", "signs", "normal"):
                mine, all_of_it = (getattr(random, kind)(gch.Tensors.of({"w": t}))["w"] for t in (shard, whole))
                found.append((mine.full_tensor(), all_of_it, mine.placements == shard.placements))
    return found


@scenario
def buffer(rank):
    return run(rank, gch.chain(gch.accumulate(2, dtype=torch.float64), gch.clip_by_norm(0.2), gch.adamw(0.05)))


def many_links():
    """Selectors by shape, branches, whole tensors, every kind of norm, a projection."""
    matrices = gch.chain(gch.accumulate(2), gch.clip_by_norm(0.3, per="tensor"), gch.adamw(0.05))
    others = gch.chain(
        gch.clip_by_norm(0.3, per=[gch.named("2.*")], p=float("inf")),
        gch.clip_by_value(0.2),
        gch.trace(0.9, nesterov=True),
        gch.masked(gch.add_decayed_weights(0.1), gch.named("0.*")),
        gch.scale_by_learning_rate(0.1),
    )
    return gch.chain(
        gch.nan_to_num(),
        gch.clip_by_norm(5.0, p=1.0),
        gch.partition((gch.min_ndim(2), matrices), (gch.rest, others)),
        gch.project(lambda w: w.clamp(-0.45, 0.45)),
    )


@scenario
def reductions(rank):
    """Over all shards, also where a rank has none of a tensor, and in one collective."""
    mesh = device_mesh.init_device_mesh("cpu", (2,))
    whole = {"row": torch.randn(1, 4), "column": torch.randn(5, 2), "one": torch.randn(1), "none": torch.randn(0, 3)}
    dist.broadcast_object_list(box := [whole])
    whole = {name: value.double() for name, value in box[0].items()}
    shards = gch.Tensors.of(
        {name: tensor.distribute_tensor(value, mesh, [tensor.Shard(0)]) for name, value in whole.items()}
    )
    plain, out = gch.Tensors.of(whole), {}
    for p in (1.0, 2.0, 3.0, float("inf")):
        out[f"norm {p}"] = [(0.5 * t).norm(p) for t in (shards, plain)]
        out[f"norms {p}"] = [list((0.5 * t).norms(p=p).values()) for t in (shards, plain)]
    out["sum"] = [(0.5 * t).sum() for t in (shards, plain)]
    out["finite"] = [t.all_finite() for t in (shards, plain)]
    with debug.CommDebugMode() as talk:
        shards.norm()
        shards.all_finite()
    return {"pairs": out, "talk": sum(talk.get_comm_counts().values())}


@scenario
def norms_on_the_device(rank):
    """On an accelerator a norm stays a 0-d tensor, which then meets DTensors."""
    host, eager.on_host = eager.on_host, lambda value: value
    try:
        result = run(rank, full_chain(2))
    finally:
        eager.on_host = host
    return {**result, "norm": float(result["norm"])}


@scenario
def many(rank):
    return run(rank, many_links())


@scenario
def lion(rank):
    return run(rank, gch.chain(gch.accumulate(2), gch.lion(0.01)))


@scenario
def sam(rank):
    model = sharded(net())
    updater = gch.chain(gch.sam(rho=0.1), gch.clip_by_norm(0.5), gch.adamw(0.05)).bind(model)
    for micro in range(6):
        updater.update(lambda micro=micro: loss_of(model(share(micro, rank))))
    return {"weights": weights(model)}


@scenario
def weighted(rank):
    model = sharded(net())
    updater = plain_chain().bind(model)
    for micro in range(8):
        n = counts(micro, rank)
        with updater.context():
            loss = summed(model(rows(micro, rank, n))) / n
        updater.update(loss, weight=n)
    return {"weights": weights(model)}


@scenario
def gan(rank):
    """The generator's loss reaches the critic in the middle of its window."""
    generator, critic = (sharded(m) for m in gan_nets())
    u_g, u_c = (chain.bind(m) for chain, m in zip(gan_chains(), (generator, critic), strict=True))
    return {"weights": train_gan(generator, critic, u_g, u_c, rank)}


@scenario
def by_hand(rank):
    """loss.backward() reduces every micro-batch, which makes a window as good as any."""
    model = sharded(net())
    updater = plain_chain(2).bind(model)
    for micro in range(8):
        loss_of(model(share(micro, rank))).backward()
        updater.step()
    return {"weights": weights(model)}


@scenario
def dropped(rank):
    """zero_grad, and an exception in backward, forget what FSDP2 has of the window."""
    model = sharded(net())
    updater = plain_chain(2).bind(model)
    train(updater, model, range(3), rank)
    updater.zero_grad()
    train(updater, model, range(4, 8), rank)
    return {"weights": weights(model)}


@scenario
def overflow(rank):
    """Inf on one rank: both skip, and the scales stay equal."""
    model = sharded(net())
    chain = gch.chain(gch.accumulate(2), gch.amp_scale(init_scale=64.0, always=True), gch.adamw(0.05))
    updater = chain.bind(model)
    reasons = []
    for micro in range(8):
        with updater.context():
            loss = loss_of(model(share(micro, rank))) * (float("inf") if micro == 3 and rank == 1 else 1.0)
        reasons.append(updater.update(loss).reason)
    return {"weights": weights(model), "reasons": reasons, "scale": updater.metrics["amp_scale.scale"]}


@scenario
def refused(rank):
    """What cannot be done in the middle of a window, in sentences; then the window goes on."""
    model = sharded(net())
    updater = plain_chain().bind(model)
    train(updater, model, range(2), rank)
    said = {
        "state_dict": sentence(RuntimeError, updater.state_dict),
        "sync": sentence(RuntimeError, updater.state_dict, sync=True),
        "flush": sentence(RuntimeError, updater.flush),
        "save": sentence(RuntimeError, updater.save, "never"),
    }
    updater.backward(loss_of(model(share(2, rank))))
    said["step"] = sentence(RuntimeError, updater.step, last=True)
    updater.step()
    train(updater, model, [3], rank)
    return {"weights": weights(model), "said": said}


@scenario
def without_context_refused(rank):
    """The same where the forward ran outside context(): it is the backward that withholds."""
    model = sharded(net())
    updater = plain_chain().bind(model)
    updater.update(loss_of(model(share(0, rank))))
    return {"said": [sentence(RuntimeError, updater.state_dict), sentence(RuntimeError, updater.flush)]}


@scenario
def last(rank):
    model = sharded(net())
    updater = plain_chain().bind(model)
    for micro in range(9):
        with updater.context():
            loss = loss_of(model(share(micro, rank)))
        updater.update(loss, last=micro % 3 == 2)
    return {"weights": weights(model)}


# state


@scenario
def state(rank):
    """Each rank loads its own state; and all of them the whole one of a single process."""
    first, second, third = (sharded(net()) for _ in range(3))
    updater = full_chain(2).bind(first)
    train(updater, first, range(4), rank)
    saved = updater.state_dict()
    second.load_state_dict(first.state_dict())
    again = full_chain(2).bind(second)
    again.load_state_dict(saved)

    bare = net()
    single = full_chain(2).bind(bare)
    train(single, bare, range(4))
    with torch.no_grad():
        for sharded_one, whole in zip(third.parameters(), first.parameters(), strict=True):
            sharded_one.copy_(whole)
    other = full_chain(2).bind(third)
    other.load_state_dict(single.state_dict())
    out = [train(u, m, range(4, 8), rank) for u, m in ((again, second), (other, third))]
    return {"own": out[0], "whole": out[1], "shapes": {n: tuple(v.shape) for n, v in mu(saved).items()}}


def mu(saved):
    return saved["links"]["scale_by_adam"]["mu"]


def taken(rank, folder):
    """What the files of a folder hold, by name, on the first rank; and they are gone."""
    dist.barrier()
    if rank != 0:
        return {}
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    return contents


@scenario
def distributed_checkpoint(rank):
    folder = shared_folder("dcp")
    first, second = sharded(net()), sharded(net())
    updater = full_chain(2).bind(first)
    train(updater, first, range(4), rank)
    updater.override("learning_rate", factor=1.0)
    state = updater.state_dict(form="fixed")
    checkpoint.save({"model": first.state_dict(), "updater": state}, checkpoint_id=folder)
    again = full_chain(2).bind(second)
    found = {"model": second.state_dict(), "updater": again.state_dict(form="fixed")}
    checkpoint.load(found, checkpoint_id=folder)
    second.load_state_dict(found["model"])
    report = again.load_state_dict(found["updater"])
    shards = {type(t) for fields in state["tensors"].values() for entries in fields.values() for t in entries.values()}
    result = {"weights": train(again, second, range(4, 8), rank), "shards": shards == {tensor.DTensor}}
    result["overrides"] = report.overrides
    taken(rank, folder)
    return result


# averages, and weights that FSDP2 gathered before they were written


@scenario
def averages(rank):
    """Evaluation shows the weights that are there: FSDP2 keeps whole ones of the root after a forward."""
    model = sharded(net(), each=False)
    updater = full_chain(2).bind(model)
    train(updater, model, range(6), rank)
    seen = {}
    with torch.no_grad():
        seen["before"] = model(share(20, None)).clone()
        with updater.averaged():
            seen["averaged"] = model(share(20, None)).clone()
        seen["after"] = model(share(20, None)).clone()
    train(updater, model, [6], rank)
    updater.backward(loss_of(model(share(7, rank))))
    with torch.no_grad():
        model(share(20, None))  # whole weights stay, and the step writes the sharded ones
        updater.step()
        seen["stepped"] = model(share(20, None)).clone()
    return seen


@scenario
def bound_after_a_forward(rank):
    """The whole weights of the last evaluation are no parameters."""
    model = sharded(net(), each=False)
    with torch.no_grad():
        model(share(0, rank))
    updater = full_chain(2).bind(model)
    return {"weights": train(updater, model, range(8), rank), "names": updater.names}


@scenario
def part_of_a_model(rank):
    """Only a part is sharded, the rest is wrapped by nobody: its gradients differ from rank to rank."""
    tensor.DTensor.data_ptr = no_pointer
    model = net()
    fsdp.fully_shard(model[0], mesh=device_mesh.init_device_mesh("cpu", (2,)))
    updater = gch.chain(gch.accumulate(2), gch.clip_by_norm(0.2), gch.adamw(0.05)).bind(model)
    for micro in range(4):  # the same rows on both ranks: so that they agree without a reduction
        updater.update(loss_of(model(share(micro, None))))
    return {"weights": weights(model)}


@scenario
def compiled(rank):
    model = torch.compile(sharded(net()), backend="eager")
    updater = full_chain(2).bind(model)
    return {"weights": train(updater, model, range(8), rank), "names": updater.names}


@scenario
def low_precision(rank):
    """bfloat16 compute and float32 reduction: FSDP2 then keeps a window elsewhere. Nobody else's loss gets in."""
    out = []
    for stranger in (False, True):
        policy = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model = sharded(net().float(), mp_policy=policy)
        updater = gch.chain(gch.accumulate(2), gch.sgd(0.1)).bind(model)
        for micro in range(4):
            if stranger:
                loss_of(model(share(50, rank).float())).backward()
            updater.update(loss_of(model(share(micro, rank).float())))
        out.append(weights(model))
    return {"alone": out[0], "disturbed": out[1]}


# torch.distributed.checkpoint with an open window


def branched(k):
    """A window in a branch, which no rank withholds, beside one that closes at other times."""
    return gch.partition(
        (gch.min_ndim(2), gch.chain(gch.accumulate(k), gch.adamw(0.05))),
        (gch.rest, gch.chain(gch.accumulate(k - 1), gch.sgd(0.1, momentum=0.9))),
    )


def held_chain(k):
    """A window behind a gate: a buffer takes the gradients in at every micro-batch."""
    return gch.chain(gch.skip_nonfinite(), gch.accumulate(k, dtype=torch.float64), gch.adamw(0.05))


WINDOWS = {
    "in .grad": plain_chain,
    "in .grad, with all links": full_chain,
    "a wide buffer": lambda k: gch.chain(gch.accumulate(k, dtype=torch.float64), gch.adamw(0.05)),
    "a buffer behind a gate": held_chain,
    "in branches": branched,
}
IN_GRAD = ("in .grad", "in .grad, with all links")
BEGUN, DONE = 5, 12


def fed_by_hand(updater, model, micro, rank):
    """`loss.backward()` reduces each micro-batch."""
    loss_of(model(share(micro, rank))).backward()
    updater.step()


def fed_by_update(updater, model, micro, rank):
    """FSDP2 is asked to withhold the reduction where the window lies in `.grad`."""
    train(updater, model, [micro], rank)


def fed_by_weight(updater, model, micro, rank):
    """Other numbers of rows on each rank, which are their weights; in one process all rows, of the mean weight."""
    batch = [rows(micro, r, counts(micro, r)) for r in ((0, 1) if rank is None else (rank,))]
    together = torch.cat(batch)
    with updater.context():
        loss = summed(model(together)) / len(together)
    updater.update(loss, weight=len(together) / len(batch))


FEEDS = {"by hand": fed_by_hand, "by update": fed_by_update, "by weight": fed_by_weight}


def fed(updater, model, micros, rank, feed):
    for micro in micros:
        FEEDS[feed](updater, model, micro, rank)
    return weights(model)


def kinds():
    """Each window with each feed that it can have: ranks weigh micro-batches in the outermost chain only."""
    return [(name, feed) for name in WINDOWS for feed in FEEDS if (name, feed) != ("in branches", "by weight")]


def withheld(name, feed):
    """Whether FSDP2 holds gradients that are not reduced before the window closes."""
    return name in IN_GRAD and feed != "by hand"


def resumed(rank, name, feed, each, loaded):
    """Weights of a run that saved in an open window, of one that loaded that, and the files; or what was said.

    The loading run has done some micro-batches before.
    """
    models = [sharded(net(), each) for _ in range(2)]
    (first, second), (updater, again) = models, (WINDOWS[name](3).bind(model) for model in models)
    fed(updater, first, range(BEGUN), rank, feed)
    said = ""
    if withheld(name, feed) or feed == "by weight":
        said = sentence(RuntimeError, updater.state_dict, form="fixed")
    if withheld(name, feed):
        return {"said": said, "through": fed(updater, first, range(BEGUN, DONE), rank, feed)}
    folder, state = shared_folder("window"), updater.state_dict(form="fixed", sync=True)
    checkpoint.save({"model": first.state_dict(), "updater": state}, checkpoint_id=folder)
    fed(again, second, range(30, 30 + loaded), rank, feed)
    found = {"model": second.state_dict(), "updater": again.state_dict(form="fixed", sync=True)}
    checkpoint.load(found, checkpoint_id=folder)
    second.load_state_dict(found["model"])
    report = str(again.load_state_dict(found["updater"]))
    through, continued = (fed(u, m, range(BEGUN, DONE), rank, feed) for u, m in ((updater, first), (again, second)))
    files = taken(rank, folder)
    return {"said": said, "report": report, "through": through, "continued": continued, "files": files}


@scenario
def windows_in_checkpoints(rank):
    """Of models sharded by layers and whole, into fresh runs and others."""
    return {
        (name, feed, each): resumed(rank, name, feed, each, 0 if each else 2)
        for name, feed in kinds()
        for each in (True, False)
    }
