"""Scenarios: a run in parts and its Checkpointer, on four ranks, on two and in one process, over the same files."""

import datetime
import os
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from later import later
from little_task import loss_of, whole
from shards_scenarios import by_both, by_layers, by_tensor
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import sentence

import gradchain as gch
from benchmarks.pinning import leave
from gradchain.updater import sealed

mesh = later("torch.distributed.device_mesh")
WORLD = 4
PHASES = {}


def phase(*runs):
    """A scenario: for each of these a name, on how many ranks it runs, 0 for one process alone, and its arguments."""

    def noted(function):
        for name, ranks, *given in runs or ((function.__name__, WORLD),):
            PHASES[name] = (ranks, function, given)
        return function

    return noted


def run(folder):
    """All of them, one after the other; name → what each rank came to."""
    mp.spawn(_rank, (str(folder),), nprocs=WORLD)
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]
    return {name: [one[name] for one in found[: ranks or 1]] for name, (ranks, _, _) in PHASES.items()}


def _rank(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*random numbers begin anew")
    outcomes = {}
    for number, (name, (ranks, function, given)) in enumerate(PHASES.items()):
        if rank >= max(ranks, 1):
            continue  # the next meeting waits for the others
        if ranks:
            meeting = f"file://{folder}/{number}.meeting"
            seconds = datetime.timedelta(seconds=180)  # two ranks have their turn while two wait, on a busy machine
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=seconds)
        try:
            outcomes[name] = function(Path(folder), *given)
        except Exception:
            outcomes[name] = traceback.format_exc()
        finally:
            if ranks:
                dist.destroy_process_group()
    torch.save(outcomes, Path(folder) / f"rank{rank}.pt")
    leave()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


# what is trained


def net():
    """Sizes that ranks do not divide; running statistics that differ on each."""
    torch.manual_seed(7)
    layers = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 2)
    return nn.Sequential(*layers).double()


def even():
    """What tensor parallelism can split."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def alone(model):
    return model, False


def by_fsdp(model):
    return by_layers(model, dist.get_world_size()), False


def by_zero(model):
    return DistributedDataParallel(model), True


def by_ddp(model):
    return DistributedDataParallel(model), False


def in_tensors(model):
    return by_tensor(model, dist.get_world_size()), False


def in_both(model):
    return by_both(model, dist.get_world_size()), False


def chain():
    """A window, a norm over all parameters, an average."""
    window = gch.accumulate(2, dtype=torch.float64)
    return gch.chain(window, gch.clip_by_norm(0.5), gch.adamw(0.05), gch.average_params(0.9, buffers="keep"))


class Trained:
    """A run."""

    def __init__(self, folder, wrap, make=net, **given):
        self.model = make()
        self.wrapped, zero = wrap(self.model)
        self.updater = chain().bind(self.wrapped, zero_redundancy=zero)
        torch.manual_seed(rank())  # dropout differs from rank to rank
        self.keeper = gch.Checkpointer(folder, updater=self.updater, signals=(), **given)

    def step(self, batch):
        with self.updater.context():
            loss = loss_of(self.wrapped(batch))
        return self.updater.update(loss)

    def until(self, micro):
        """Micro-batches that are the same on all ranks."""
        for number in range(self.updater.num_micro, micro):
            made = torch.Generator().manual_seed(number)
            self.step(torch.randn(6, 3, generator=made, dtype=torch.float64))
            self.keeper.step(at=self.updater.num_micro)

    def shown(self):
        return come_to(self.model, self.updater)


def come_to(model, updater):
    """All that a run has come to, whole."""
    links = _whole(updater.state_dict(sync=True)["links"])
    counts = updater.num_updates, updater.num_micro
    weights = {n: whole(p).detach().clone() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    return {"weights": weights, "links": links, "counts": counts, "buffers": buffers}


def _whole(value):
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return whole(value).clone() if isinstance(value, torch.Tensor) else value


# over other numbers of ranks


@phase(("saved on four", WORLD, "moved", by_fsdp, net), ("saved in tensors", 2, "tensors", in_tensors, even))
def saved(folder, name, wrap, make):
    trained = Trained(folder / name, wrap, make, every=1)
    trained.until(6)
    trained.keeper.save(at="seven", more=torch.arange(3))
    trained.keeper.close()
    return trained.shown()


@phase(
    ("fsdp on two", 2, "moved", by_fsdp, net),
    ("zero on two", 2, "moved", by_zero, net),
    ("ddp on two", 2, "moved", by_ddp, net),
    ("one process", 0, "moved", alone, net),
    ("fsdp on four", WORLD, "moved", by_fsdp, net),
    ("tensors in one process", 0, "tensors", alone, even),
    ("tensors under fsdp on four", WORLD, "tensors", in_both, even),
)
def loaded(folder, name, wrap, make):
    trained = Trained(folder / name, wrap, make)
    found = trained.keeper.resume()
    trained.keeper.close()
    return {**trained.shown(), "found": found}


@phase(("back from one process", 0, "moved", alone))
def went_on_alone(folder, name, wrap):
    """One process goes on with what four wrote, in files of its own."""
    trained = Trained(folder / name, wrap, every=1, keep=2)
    trained.keeper.resume()
    trained.until(8)
    trained.keeper.close()
    other = chain().bind(net())
    other.load(folder / name / "update_00000003.pt")
    weights = gch.read_weights(folder / name / "update_00000003.pt")
    files = sorted(path.name.partition(".")[0] for path in (folder / name).iterdir() if path.suffix == ".dcp")
    return {**trained.shown(), "loaded": _whole(other.state_dict()["links"]), "read": weights, "parts": files}


@phase(("and on four again", WORLD, "moved", by_fsdp), ("zero on four again", WORLD, "moved", by_zero))
def came_back(folder, name, wrap):
    trained = Trained(folder / name, wrap)
    trained.keeper.resume()
    trained.keeper.close()
    return trained.shown()


# broken off, and gone on with on as many ranks


def fed(folder, wrap, stop=None, **given):
    """With a loader, draws of each rank's own, and a best."""
    data = torch.randn(44, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loader = torch.utils.data.DataLoader(data, 2, sampler=gch.loop.sampler(data, seed=1))
    trained = Trained(folder, wrap, loader=loader, every=1, best=("score", "min"), **given)
    found = trained.keeper.resume()
    for batch in trained.keeper.batches(2):
        trained.step(batch)
        trained.keeper.step(score=float(abs(trained.updater.num_updates - 2)), micro=trained.updater.num_micro)
        if trained.updater.num_micro == stop:
            break
    trained.keeper.close()
    return {**trained.shown(), "found": found, "draws": torch.get_rng_state()}


@phase(("fsdp broken off", 2, by_fsdp), ("zero broken off", 2, by_zero))
def broken_off(folder, wrap):
    """In the middle of an epoch, in the foreground and in the background."""
    there = folder / f"off {wrap.__name__}"
    out = {"straight": fed(there / "straight", wrap)}
    for background in (False, True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*due faster than they are written")
            fed(there / str(background), wrap, stop=15, background=background)
            dist.barrier()
            out[background] = fed(there / str(background), wrap, background=background)
        dist.barrier()
        out[background]["files"] = sorted(path.name for path in (there / str(background)).iterdir())
        dist.barrier()
    return out


SEEN = 44


def walked(folder, wrap, size, stop, **given):
    """Which items a run in the middle of an epoch has seen."""
    loader = torch.utils.data.DataLoader(range(SEEN), size, sampler=gch.loop.sampler(SEEN, seed=3))
    trained, seen = Trained(folder / "walked", wrap, loader=loader, **given), []
    with trained.keeper as keeper:
        keeper.resume()
        for batch in keeper.batches(1):
            seen += batch.tolist()
            trained.step(torch.ones(4, 3, dtype=torch.float64))
            if stop and trained.updater.num_micro == stop:
                keeper.save()
                break
    return seen


@phase(("an epoch begun on four", WORLD, by_fsdp, 2, 4))
def begun(folder, wrap, size, stop):
    return walked(folder, wrap, size, stop)


@phase(("and ended on two", 2, by_fsdp))
def ended(folder, wrap):
    """Batches that do not come out even are refused, before anything is changed."""
    said = sentence(ValueError, walked, folder, wrap, 5, None)
    return said, walked(folder, wrap, 4, None)


# what goes wrong


@phase(("a rank that fails", 2))
def a_failure(folder):
    """All hear of it, whatever it was doing; what was there stays, and the next save is whole."""
    trained, said = Trained(folder / "failed", by_fsdp), {}
    trained.until(2)
    trained.keeper.save(at=1)
    before = sorted(path.name for path in (folder / "failed").iterdir())
    write = sealed.Sealing.write

    def full(self, data):
        raise OSError(28, "No space left on device")

    for which in (0, 1):
        if rank() == which:
            sealed.Sealing.write = full
        said[f"disk of {which}"] = sentence((OSError, RuntimeError), trained.keeper.save)
        sealed.Sealing.write = write
        dist.barrier()
        said[f"left by {which}"] = sorted(path.name for path in (folder / "failed").iterdir()) == before
        dist.barrier()
    said["entry"] = sentence((TypeError, RuntimeError), trained.keeper.save, at=object() if rank() == 1 else 1)
    trained.keeper.save(at=2)
    dist.barrier()
    said["last"] = trained.keeper.last_good.name
    trained.keeper.close()
    return said


@phase(("a rank that fails in the background", 2))
def a_failure_in_the_background(folder):
    trained, write = Trained(folder / "behind", by_fsdp, background=True), sealed.Sealing.write

    def full(self, data):
        raise OSError(28, "No space left on device")

    trained.until(2)
    if rank() == 1:
        sealed.Sealing.write = full
    trained.keeper.save()
    trained.keeper._writer.wait()
    sealed.Sealing.write = write
    said = sentence((OSError, RuntimeError), trained.keeper.save)
    trained.keeper.save(at=2)
    trained.keeper.close()
    return said, trained.keeper.last_good.name, trained.keeper._writer.has_failed()


@phase(("damaged parts", 2))
def damaged(folder):
    """The one before is used, and all say the same; then none is whole."""
    trained = Trained(folder / "damaged", by_fsdp, every=1)
    trained.until(4)
    shown = trained.keeper.folder
    trained.keeper.close()
    dist.barrier()
    (newest,) = shown.glob("update_00000002.*.dcp")
    if rank() == 0:
        file = newest / "__1_0.distcp"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    dist.barrier()
    again = Trained(shown, by_fsdp)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = again.keeper.resume()
    last = again.keeper.last_good.name
    dist.barrier()
    if rank() == 0:
        os.remove(next(shown.glob("update_00000001.*.dcp")) / "__0_0.distcp")
    dist.barrier()
    said = sentence(ValueError, again.keeper.resume)
    again.keeper.close()
    return {"found": found, "told": [str(one.message) for one in told], "last": last, "said": said}


@phase(("what was left", 2))
def left_by_a_kill(folder):
    """Parts without an index go with the next save, folders of other names stay."""
    there = folder / "left"
    names = ["update_00000009.0123abcd.dcp", "best_x.0123abcd.dcp", "mine.0123abcd.dcp", "update_00000009.dcp"]
    if rank() == 0:
        for name in names:
            (there / name).mkdir(parents=True)
    dist.barrier()
    trained = Trained(there, by_fsdp)
    trained.until(2)
    trained.keeper.save()
    trained.keeper.save()
    trained.keeper.close()
    dist.barrier()
    return sorted(path.name for path in there.iterdir())


# in a loop, behind all that four ranks do: nobody waits for these two


def looped(folder, wrap, kill=None, **given):
    """A run of `gch.loop`, which may be left in the middle of an epoch, of a window, and of a batch."""
    data = torch.randn(44, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loader = torch.utils.data.DataLoader(data, 2, sampler=gch.loop.sampler(data, seed=1))
    model = net()
    wrapped, zero = wrap(model)
    updater = chain().bind(wrapped, zero_redundancy=zero)
    torch.manual_seed(rank())
    saving = gch.loop.checkpoints(folder, 1, "iter", keep=2, best=("drawn", "min"))
    drawn = (lambda: {"drawn": torch.rand(())}, 2)
    for batch in (run := gch.loop(loader, updater, epochs=2, validate=drawn, checkpoint=saving, **given)):
        if run.iter == kill:
            break
        with updater.context():
            loss = loss_of(wrapped(batch))
        run.update(loss)
    dist.barrier()
    files = sorted(path.name for path in folder.iterdir())
    dist.barrier()
    return {**come_to(model, updater), "draws": torch.get_rng_state(), "files": files, "at": run.iter}


@phase(("fsdp in a loop", 2, by_fsdp), ("zero in a loop", 2, by_zero))
def in_a_loop(folder, wrap):
    there = folder / f"loop {wrap.__name__}"
    straight = looped(there / "straight", wrap)
    killed = looped(there / "broken", wrap, kill=7)
    return {"straight": straight, "killed": killed, "rest": looped(there / "broken", wrap)}


@phase(("fsdp in a loop to one process", 0, "loop by_fsdp"))
def a_loop_in_one_process(folder, name):
    """The best that ranks wrote is read whole."""
    updater = chain().bind(net())
    updater.load(folder / name / "broken" / "best_drawn.pt")
    return updater.num_micro
