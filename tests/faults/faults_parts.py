"""A checkpoint in parts: hostile indexes and parts, a disk without power or room, and kills inside the write."""

from __future__ import annotations

import contextlib
import copy
import datetime
import importlib
import io
import itertools
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faults_keeper as kept
import faults_kills as kills
import guided
import torch
import torch.distributed as dist
from disk import Disk, Op
from fault_runs import RECIPES, Recipe, Run, numbers, put, straight
from faults_fuzz import DAMAGES, KEYS, ODD, VALUES, changed_keys, leaves, outcome, replaced, sealed_again
from faults_world import calls_of
from killing import Board, Child
from what_goes_wrong import Fault, Kind

import gradchain as gch
from gradchain.updater import sealed

RANKS = 2
NAME = "update_00000001"
AGAIN = tuple(RECIPES[name] for name in ("window in a buffer", "lookahead", "scale about to grow"))


# runs in parts


class PartRun(Run):
    """A run whose weights are sharded over the ranks, of which there may be one."""

    def __init__(self, recipe: Recipe) -> None:
        from torch.distributed.fsdp import fully_shard

        super().__init__(recipe)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(self.model, mesh=mesh)
        self.updater = recipe.chain().bind(self.model)

    def step(self) -> None:
        """The same, with the forward where the updater hears of it."""
        with self.updater.context():
            super().step()

    def shown(self) -> Any:
        """The same, of what this rank has."""
        return _local(super().shown())


def _local(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _local(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_local(item) for item in value]
    return value.to_local() if hasattr(value, "to_local") else value


def join(rank: int = 0, world: int = 1, meeting: Path | None = None) -> None:
    """This process is one of so many ranks."""
    seconds = datetime.timedelta(seconds=120)
    where = {"store": dist.HashStore()} if meeting is None else {"init_method": f"file://{meeting}"}
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=seconds, **where)


@contextlib.contextmanager
def ranks(rank: int = 0, world: int = 1, meeting: Path | None = None) -> Iterator[None]:
    """It is one meanwhile."""
    join(rank, world, meeting)
    try:
        yield
    finally:
        dist.destroy_process_group()


def alone(of: Callable[..., Iterator[str]], n: int, folder: Path) -> Iterator[str]:
    """What is tried of a run in one file, of a run in parts on one rank."""
    with ranks():
        yield from of(n, folder, lambda recipe: PartRun(AGAIN[0]))


# kills


def looked_after(run: Run, folder: Path, board: Board) -> None:
    """On one rank."""
    kept.looked_after(run, folder, board)


def _made(recipe: Recipe) -> Run:
    join()
    return PartRun(recipe)


def in_parts(keep: kills.Keep) -> Iterator[kills.Life]:
    """Over and over, runs in parts, each in a process that is a rank of its own."""
    with ranks():  # here what a child would load by itself is loaded, too
        known = {recipe.name: straight(recipe, make=PartRun) for recipe in AGAIN}
    importlib.import_module("gradchain.updater.dcp")
    for recipe in itertools.cycle(AGAIN):
        yield kills.Life(recipe, keep, known[recipe.name], _made)


# what is read


class Saved:
    """What two ranks have saved, twice, and its files.

    Attributes:
        folder: where they are.
        index: that of the second.
        shards: the folder of its parts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        importlib.import_module("gradchain.updater.dcp")
        children = [Child(partial(self._save, rank, folder / "meeting")) for rank in range(RANKS)]
        for child in children:
            assert child.wait() and not child.said, child.said
        self.index, self.other = self.folder / f"{NAME}.pt", self.folder / "best_x.pt"
        self.contents, self.of_other = (torch.load(path, weights_only=True) for path in (self.index, self.other))
        self.shards, self.others = (self.folder / c["shards"]["folder"] for c in (self.contents, self.of_other))
        self.outside = folder / "outside"
        self.outside.write_bytes(bytes(50_000))
        self._files = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        self.plain = Run(AGAIN[0])
        self.plain.updater.load(self.index)
        self._numbers, self.digest = numbers(), self.plain.digest()

    def _save(self, rank: int, meeting: Path) -> str:
        with ranks(rank, RANKS, meeting):
            run = PartRun(AGAIN[0])
            with gch.Checkpointer(self.folder, updater=run.updater, best=("x", "max"), signals=()) as keeper:
                for x in (1.0, 0.5):
                    for _ in range(3):
                        run.step()
                    keeper.step(x=x)
                keeper.save()
        return ""

    def restore(self) -> None:
        """Have all files as they were, and the random numbers: Python draws others in a forked child."""
        put(self._numbers)
        shutil.rmtree(self.folder)
        for path, data in self._files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def part(self, rng: random.Random) -> Path:
        """One of the files in which tensors lie, that no change before has made a link or a FIFO: it is written to."""
        return rng.choice([p for p in sorted(self.shards.glob("*.distcp")) if p.is_file() and not p.is_symlink()])

    def write(self, contents: Any) -> None:
        """Another index, with the checksum that is right of it."""
        with self.index.open("wb") as file:
            sealed.write_zip(contents, file)

    def seal(self, name: str, data: bytes) -> None:
        """A part is this, and the index says so."""
        sealing = sealed.Sealing(io.BytesIO())
        sealing.write(data)
        contents = copy.deepcopy(self.contents)
        contents["shards"]["files"][name] = [len(data), sealing.checksum()]
        place = self.shards / name
        if not place.is_file() or place.is_symlink():
            raise ValueError("an earlier change has taken it")
        place.write_bytes(data)
        self.write(contents)


# hostile ones

NAMES = ("../run", "/etc", "..", "", ".", "a/../../b.0123abcd.dcp", "x.0123abcd.dcp", "\0.0123abcd.dcp", ".metadata",
         "../../x.distcp", "__9_0.distcp", "weights", "state", "buffers")  # fmt: skip
SIZES = (-1, 1 << 40, 1 << 61, 1 << 63, 1 << 200, [1 << 40], [1 << 31, 1 << 31], [0, 1 << 62], [1] * 100, [-1], [])
DTYPES = (torch.quint8, torch.complex32, torch.bool, torch.float8_e4m3fn, torch.int64)


def _of_index(saved: Saved, rng: random.Random) -> None:
    """Something in the index is another, or many things are."""
    contents = copy.deepcopy(saved.contents)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        inside = contents["shards"] if rng.random() < 0.7 else contents
        try:
            path = rng.choice([path for path, _ in leaves(inside) if path])
        except RecursionError:  # an earlier change has put it into itself
            break
        kind = rng.randrange(4)
        value: Any = rng.choice((*NAMES, *SIZES, *DTYPES, saved.of_other["shards"]["folder"]))
        if kind == 0:
            value = rng.choice([*VALUES.values(), *ODD])
        elif kind == 1:
            value = copy.deepcopy(rng.choice([v for _, v in leaves(saved.of_other["shards"])]))
        with contextlib.suppress(Exception):  # an earlier change has taken that place away
            change = changed_keys(path, rng.choice([*KEYS.values()])) if kind == 2 else replaced(path, value)
            change(inside)
    with contextlib.suppress(Exception):  # what torch cannot write
        saved.write(contents)


def _of_many(saved: Saved, rng: random.Random) -> None:
    """Many tensors of the same bytes, or many boxes of one tensor."""
    contents = copy.deepcopy(saved.contents)
    rows = contents["shards"]["tensors"]
    row = rng.choice(rows)
    if rng.random() < 0.5:
        rows += [[[*row[0][:-1], f"{row[0][-1]}{n}"], *row[1:]] for n in range(20_000)]
    else:
        row[3] *= 3000
    saved.write(contents)


def _of_version(saved: Saved, rng: random.Random) -> None:
    """Of another version, or an index that is none."""
    contents = copy.deepcopy(saved.contents)
    if rng.random() < 0.5:
        contents["format"] = rng.choice((0, 1, 2, 4, 1000, -1, True, "3", None))
    else:
        del contents[rng.choice([*contents])]
    saved.write(contents)


def _of_bytes(saved: Saved, rng: random.Random) -> None:
    """The index is other bytes; most of them with a checksum that is right again."""
    whole = rng.choice(DAMAGES)(saved.index.read_bytes(), rng)
    saved.index.write_bytes(sealed_again(whole) if rng.random() < 0.8 else whole)


def _of_part(saved: Saved, rng: random.Random) -> None:
    """A part is other bytes; most of them with an index that says so."""
    path = saved.part(rng)
    data = rng.choice(DAMAGES)(path.read_bytes(), rng)
    if rng.random() < 0.7:
        saved.seal(path.name, data)
    else:
        path.write_bytes(data)


def _of_tensor(saved: Saved, rng: random.Random) -> None:
    """A tensor in a part is a zip of something else: compressed, without end, or code."""
    row = rng.choice([row for row in saved.contents["shards"]["tensors"] if row[3]])
    _, _, name, begin, length = rng.choice(row[3])
    made = io.BytesIO()
    torch.save(rng.choice((len, {"a": 1}, [1], torch.zeros(()), torch.zeros(1).expand(1 << 40), "x" * 9999)), made)
    if rng.random() < 0.3:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(1 << 24))
    if not (saved.shards / name).is_file():
        return  # an earlier change has taken it
    data = bytearray((saved.shards / name).read_bytes())
    data[begin : begin + length] = made.getvalue()[:length].ljust(length, b"\0")
    saved.seal(name, bytes(data))


def _of_names(saved: Saved, rng: random.Random) -> None:
    """A part is gone, has another's name, is of another save, a folder, a link, a FIFO, or more than it was."""
    path, kind = saved.part(rng), rng.randrange(8)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        other = saved.part(rng)
        data = path.read_bytes(), other.read_bytes()
        path.write_bytes(data[1])
        other.write_bytes(data[0])
    elif kind == 2:
        shutil.copy(saved.others / path.name, path)
    elif kind == 3:
        shutil.rmtree(saved.shards)
        if rng.random() < 0.5:
            saved.others.rename(saved.shards)
    else:
        path.unlink()
        if kind == 4:
            path.mkdir()
        elif kind == 5:
            os.mkfifo(path)
        else:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", saved.outside, path.name, saved.index.name)))


WAYS = (_of_index, _of_index, _of_index, _of_part, _of_part, _of_tensor, _of_bytes, _of_names, _of_version, _of_many)


def hostile(n: int, folder: Path) -> Iterator[str]:
    """An index and its parts, changed; read whole by one process, which has a plain model."""
    saved = Saved(folder)
    updater = saved.plain.updater

    def resumed() -> None:
        with contextlib.closing(gch.Checkpointer(saved.folder, updater=updater, signals=())) as keeper:
            keeper.resume()

    readers = (
        ("load", lambda: updater.load(saved.index)),
        ("load", lambda: updater.load(saved.index)),
        ("Checkpointer|load", resumed),
        ("read_weights", lambda: gch.read_weights(saved.index)),
        ("Checkpointer", lambda: gch.Checkpointer(saved.folder, updater=updater, signals=()).last_good),
    )

    def attempt(seeds: guided.Seeds) -> str:
        saved.restore()
        for rng in map(random.Random, seeds):
            with contextlib.suppress(OSError, ValueError, IndexError):  # an earlier change has taken what is changed
                rng.choice(WAYS)(saved, rng)
        before, (owner, read) = updater._bound.state, rng.choice(readers)
        wrong = outcome(read, (ValueError,), owner)
        if not wrong and updater._bound.state is before and saved.plain.digest() != saved.digest:
            return "it was refused, and the run is another"
        if updater._bound.state is not before:
            saved.restore()
            updater.load(saved.index)
        return wrong

    yield from guided.tried(n, attempt)


def _change(saved: Saved, path: Path, way: int, rng: random.Random) -> None:
    """As a file of a run is changed; or it is that of another save, put in its place or written into it."""
    if way < 4:
        kept.change(path, way, rng)
    elif way == 4:
        shutil.copy(saved.others / path.name, path.with_name("other"))
        path.with_name("other").replace(path)
    else:
        path.write_bytes((saved.others / path.name).read_bytes())


def changed(n: int, folder: Path) -> Iterator[str]:
    """A part is cut, changed by a bit, replaced, removed or that of another save, at a call of a load."""
    saved, rng = Saved(folder), random.Random(0)
    updater = saved.plain.updater
    many = len(calls_of(lambda: updater.load(saved.index), saved.folder))
    for k in range(n):
        seen, way, at = itertools.count(), k % 6, rng.randrange(many)
        saved.restore()
        path = saved.part(rng)

        def before(op: Op, at: int = at, seen: Iterator[int] = seen, way: int = way, path: Path = path) -> None:
            if next(seen) == at:
                _change(saved, path, way, rng)

        with Disk(saved.folder, before):
            lost = outcome(lambda: updater.load(saved.index), (ValueError,), "load")
        lost = lost or ("" if saved.plain.digest() == saved.digest else "the run is another")
        yield lost and f"changed in way {way} at call {at} of {many}: {lost}"


REFUSED = "it loads, or is refused by a ValueError in a sentence and nothing has changed, in 5 s of a core and 1 GiB"
KIND = Kind(
    "A checkpoint in parts",
    "Weights are sharded (FSDP2), and `gch.Checkpointer` writes parts and an index. Hostile ones are of two ranks, "
    "made and limited as those of `fuzz`, and read by one process: `load`, `resume`, `read_weights`, `last_good`. The "
    "other rows are those of `keeper`, of a run in parts on one rank.",
    (
        # first: inputs are tried in forks, and the others leave threads of process groups behind
        Fault(
            "hostile",
            "an index or parts that are others: damaged, of another save or version, renamed, outside, without end",
            REFUSED,
            hostile,
            50,
            260,
        ),
        Fault(
            "changed",
            "a part is cut, changed by a bit, replaced, removed or that of another save at a call of a load",
            "it is refused in a sentence and nothing has changed, or is what was saved, bit for bit",
            changed,
            24,
            200,
        ),
        Fault("inside", "SIGKILL inside the write of a part or an index", kills.EQUAL,
              partial(kills.inside, looked_after, runs=in_parts, calls=90), 2, 40),
        Fault("power", "the power goes at any call, in a folder that is new",
              "`resume` goes on from the last save that returned, or the one under way", partial(alone, kept.power),
              40, 800),
        Fault("full", "the disk is full after so many bytes, of a part, the index or the manifest", kept.SAYS,
              partial(alone, kept.full), 5, 100),
        Fault("broken", "EIO, ENOSPC, EDQUOT, EROFS, EACCES or ESTALE at each call", kept.SAYS,
              partial(alone, kept.broken), 12, 150),
    ),
    alone=True,
)  # fmt: skip
