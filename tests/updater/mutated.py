"""Checkpoints with one thing in them that is other than it was: in the plain data, and in the bytes of the file."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from damage import DAMAGES, reheaded, rewritten
from little import data, loss_of, net, same
from torch import nn

import gradchain as gch
from gradchain.updater import sealed

Path_ = tuple[Any, ...]
Mutation = tuple[str, Path_, Callable[[Any], Any]]

# scenes


@dataclass(frozen=True)
class Scene:
    """A run that is in the middle of something.

    Attributes:
        name: of the scene.
        model: makes the model.
        chain: what is bound to it.
        steps: so many micro-batches have been.
        between: what else the user has done.
    """

    name: str
    chain: Callable[[], gch.Transform]
    steps: int = 5
    model: Callable[[int], nn.Module] = net
    between: Callable[[gch.Updater], None] = lambda updater: None

    def run(self, seed: int) -> tuple[nn.Module, gch.Updater]:
        """The model and its updater, trained."""
        model = self.model(seed)
        updater = self.chain().bind(model)
        for i, rows in enumerate(data(self.steps, seed)):
            if i == self.steps - 1:
                self.between(updater)
            advance(model, updater, rows)
        return model, updater


def advance(model: nn.Module, updater: gch.Updater, rows: torch.Tensor) -> None:
    """One micro-batch."""
    updater.update(lambda: loss_of(model, rows))


def with_buffers(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def rich(updater: gch.Updater) -> None:
    updater.override("learning_rate", factor=0.5)
    updater.override("b1", gch.by("epoch", gch.linear(0.9, 0.5, 10)))
    updater.override("max_norm", 0.25)
    updater.tick("epoch", 2.5)
    for value in (1.0, 2.0, 3.0):
        updater.observe("val_loss", value)


def unequal(updater: gch.Updater) -> None:
    updater.step(grads={"0.weight": torch.ones(4, 3, dtype=torch.float64)})


SCENES = (
    Scene(
        "window, scale, average",
        lambda: gch.chain(
            gch.accumulate(3), gch.amp_scale(1024.0, always=True), gch.clip_by_norm(0.5), gch.scale_by_adam(),
            gch.reduce_on_plateau("val_loss"), gch.scale_by_learning_rate(0.01),
            gch.average_params(0.9, buffers="average"),
        ),
        model=with_buffers,
        between=rich,
    ),
    Scene("momentum, skips", lambda: gch.chain(gch.skip_nonfinite(), gch.sgd(0.1, momentum=0.9))),
    Scene("unequal counts", lambda: gch.adam(0.1), between=unequal),
    Scene(
        "branches",
        lambda: gch.partition(
            ("a", gch.named("0.*"), gch.chain(gch.accumulate(3), gch.adam(0.1))), (gch.rest, gch.lion(0.01))
        ),
    ),
    Scene("window of its own", lambda: gch.chain(gch.sam(0.1), gch.accumulate(3, dtype=torch.float32), gch.adam(0.1))),
    Scene("from torch", lambda: gch.from_torch("NAdam", lr=0.05)),
)  # fmt: skip

# plain data


def replaced(path: Path_, value: Any) -> Callable[[Any], Any]:
    def act(state: Any) -> Any:
        at = state
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value(at[path[-1]]) if callable(value) else value
        return state

    return act


def changed_keys(path: Path_, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def act(state: Any) -> Any:
        at = state
        for key in path:
            at = at[key]
        items = change(at)
        at.clear()
        at.update(items) if isinstance(at, dict) else at.extend(items)
        return state

    return act


VALUES: dict[str, Any] = {
    "a word": "x", "an empty word": "", "NaN": math.nan, "inf": math.inf, "-inf": -math.inf, "-1": -1, "-0.5": -0.5,
    "0": 0, "0.0": 0.0, "0.5": 0.5, "1e300": 1e300, "10**400": 10**400, "2**63": 2**63, "None": None, "True": True,
    "[]": [], "{}": {}, "a complex number": 1j, "bytes": b"x", "a meta tensor": torch.empty((), device="meta"),
    "a vector": torch.ones(2), "a tensor of NaN": torch.tensor(math.nan), "a function": len, "a set": {1},
}  # fmt: skip
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "meta": lambda t: t.to("meta"),
    "another shape": lambda t: t[None],
    "flat": lambda t: t.reshape(-1)[:-1],
    "float32": lambda t: t.double() if t.dtype == torch.float32 else t.float(),
    "int": lambda t: t.long() + 1,
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex128),
    "sparse": lambda t: t.reshape(-1).to_sparse(),
    "NaN in it": lambda t: with_last(t, math.nan),
    "inf in it": lambda t: with_last(t, math.inf),
    "-1 in it": lambda t: with_last(t, -1.0),
    "a parameter": lambda t: nn.Parameter(t) if t.is_floating_point() else t,
    "of a graph": lambda t: t.clone().requires_grad_() * 1 if t.is_floating_point() else t,
    "expanded": lambda t: t.reshape(-1)[:1].expand(t.numel()).reshape(t.shape) if t.numel() else t[None],
    "without memory": lambda t: without_memory(t),
    "a list": lambda t: t.tolist(),
}


def with_last(tensor: torch.Tensor, number: float) -> torch.Tensor:
    made = tensor.clone()
    if made.numel() and made.is_floating_point():
        made.view(-1)[-1] = number
    return made


def without_memory(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.clone()
    made.untyped_storage().resize_(0)
    return made


# right numbers that may take weights out of range, as a learning rate may
WILD = ("1e300", "2**63", "inf", "NaN", "NaN in it", "inf in it")
KEYS: dict[str, Callable[[Any], Any]] = {
    "first dropped": lambda at: dict(list(at.items())[1:]) if isinstance(at, dict) else at[1:],
    "last dropped": lambda at: dict(list(at.items())[:-1]) if isinstance(at, dict) else at[:-1],
    "all dropped": lambda at: {} if isinstance(at, dict) else [],
    "one added": lambda at: {**at, "zz": next(iter(at.values()), 1)} if isinstance(at, dict) else [*at, "zz"],
    "a number added": lambda at: {**at, "zz": 1} if isinstance(at, dict) else [*at, 1],
    "an odd key": lambda at: {**at, 3: 1} if isinstance(at, dict) else [*at, [3]],
    "a key of 5000 digits": lambda at: {**at, 10**5000: 1} if isinstance(at, dict) else [*at, 10**5000],
    "renamed": lambda at: {f"{k}x" if i == 0 else k: v for i, (k, v) in enumerate(at.items())}
    if isinstance(at, dict) else [f"{v}x" for v in at],
    "exchanged": lambda at: dict(zip(at, reversed([*at.values()]), strict=True)) if isinstance(at, dict) else at[::-1],
}  # fmt: skip


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every dict, list and value in it, by path."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield from leaves(item, (*path, key))


def mutations(state: Any) -> list[Mutation]:
    """All that is tried on this state.

    What the class of another library calls its own, and where it keeps None, only that class knows.
    """
    found: list[Mutation] = []
    for path, value in leaves(state):
        theirs = path[:2] == ("links", "from_torch")
        if path:
            found += [
                (name, path, replaced(path, lambda _, v=v: v))
                for name, v in VALUES.items()
                if v is not None or not theirs
            ]
        if isinstance(value, torch.Tensor):
            found += [(name, path, replaced(path, make)) for name, make in TENSORS.items()]
        if isinstance(value, (dict, list)) and not theirs:
            found += [(name, path, changed_keys(path, change)) for name, change in KEYS.items()]
    return found


# what came of it


@dataclass
class Tally:
    """How it went, and each time that it went wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.faults.append(f"{kind}: {what}")

    def loaded(self, what: str, owner: str, load: Callable[[], Any]) -> Any:
        """What a load gives, or None where it refuses: in a documented way, or that is a fault."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return load()
            except ValueError as error:
                self.counts["refused"] += 1
                if not str(error).startswith(owner) or not str(error).endswith("."):
                    self.fault("undocumented", f"{what}: {error}")
            except Exception as error:
                self.fault("undocumented", f"{what}: {type(error).__name__}: {error}")
        return None


def contents_of(updater: gch.Updater) -> Any:
    return copy.deepcopy(updater.contents())


def comparable(state: Any) -> Any:
    """What loading takes up: hyperparameters are the code's, fingerprints and inventories only tell of it."""
    made = {name: value for name, value in state.items() if name not in ("chain", "fingerprint", "inventory")}
    windows = {address: fields for address, fields in state["links"].items() if address.endswith("accumulate")}
    for address, fields in windows.items():  # checkpoints of before there was a reference mean 1.0
        made["links"] = {**made["links"], address: {"reference": 1.0, **fields}}
    return made


def plain(scene: Scene, rng: random.Random, many: int, within: str = "") -> Tally:
    """Load the state of one run into another after each of so many mutations, of what has `within` in its path."""
    tally = Tally()
    donor = copy.deepcopy(scene.run(1)[1].state_dict())
    model, updater = scene.run(2)
    before = contents_of(updater)
    tried = [mutation for mutation in mutations(donor) if within in "/".join(map(str, mutation[1]))]
    for name, path, act in rng.sample(tried, min(many, len(tried))):
        what = f"{scene.name}: {'/'.join(map(str, path))} {name}"
        mutated = act(copy.deepcopy(donor))
        if equal(mutated, donor):
            tally.counts["no change"] += 1
            continue
        report = tally.loaded(what, "load_state_dict: ", lambda u=updater, m=mutated: u.load_state_dict(m))
        if report is not None:
            judge(tally, what, mutated, model, updater, report)
        elif same(contents_of(updater), before):
            continue
        else:
            tally.fault("changed", what)
        model, updater = scene.run(2)
    return tally


def equal(a: Any, b: Any) -> bool:
    """The same to whoever loads it: also where a tensor is a parameter or of a graph, or a number has another type."""
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.is_meta or a.layout != torch.strided or (a.numel() and not a.untyped_storage().nbytes()):
            return False
        return a.shape == b.shape and a.dtype == b.dtype and same(a.detach().clone(), b.detach().clone())
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float)) and isinstance(a, bool) == isinstance(b, bool)
    return (a == b or (a != a and b != b)) if numbers else type(a) is type(b) and a == b


OURS = ("update:", "scale_by", "clip_by", "accumulate", "trace", "amp_scale")


def judge(
    tally: Tally, what: str, mutated: Any, model: nn.Module, updater: gch.Updater, report: gch.LoadReport
) -> None:
    """A state that was taken up: it is the one given, or it was said what is not; and a run can go on with it."""
    said = report.differences or any("not restored" in line for line in report.overrides)
    now = updater.state_dict()
    if not equal(comparable(now), comparable(mutated)) and not said:
        tally.fault("silent", what)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for rows in data(3):
                advance(model, updater, rows)
    except Exception as error:
        sentence = isinstance(error, (FloatingPointError, ValueError)) and str(error).startswith(OURS)
        if not sentence:  # else nothing was done
            tally.fault("poisoned", f"{what}: {type(error).__name__}: {error}")
            return
    finite = all(p.isfinite().all() for p in model.parameters())
    if not finite and not what.endswith(WILD):
        tally.fault("poisoned", f"{what}: weights are not finite")
        return
    tally.counts["said" if said else "taken as given"] += 1


# bytes


def resealed(zipped: bytes) -> bytes:
    """With a seal that is right."""
    return zipped + sealed._MARK + hashlib.blake2b(zipped, digest_size=32).digest()


def of_bytes(scene: Scene, kind: str, folder: Path, rng: random.Random, many: int) -> Tally:
    """Load a file after each damage: to a file, to one without a seal, and to its pickle under checksums that fit."""
    tally, path = Tally(), folder / ("run.safetensors" if kind in TENSOR_KINDS else "run.pt")
    scene.run(1)[1].save(path, epoch=1)
    whole = path.read_bytes()
    old = io.BytesIO()
    if kind == "old file":
        torch.save({**torch.load(path, weights_only=True), "format": 1}, old)
    right = contents_of(scene.run(1)[1])
    _, updater = scene.run(2)
    before = contents_of(updater)
    for k in range(many):
        damage = DAMAGES[k % len(DAMAGES)]
        what = f"{scene.name}: {kind}, {damage.__name__}, {k}"
        path.write_bytes(damaged(kind, whole, old.getvalue(), damage, rng))
        if tally.loaded(what, "load", lambda u=updater: u.load(path)) is None:
            if same(contents_of(updater), before):
                continue
            tally.fault("changed", what)
        elif kind in ("file", "safetensors") or (kind == "old file" and not same(updater.contents(), right)):
            tally.fault("silent", what)
        else:
            tally.counts["the same contents" if kind == "old file" else "taken as given"] += 1
        _, updater = scene.run(2)
    return tally


def damaged(kind: str, whole: bytes, old: bytes, damage: Any, rng: random.Random) -> bytes:
    """The bytes of one file of a kind."""
    if kind in ("file", "safetensors"):
        return damage(whole, rng)
    if kind == "tree":
        return reheaded(whole, lambda header: damage_tree(header["__metadata__"], damage, rng))
    if kind == "old file":
        return damage(old, rng)
    pickled = lambda name, part: damage(part, rng) if name.endswith("data.pkl") else part  # noqa: E731
    return resealed(rewritten(whole[:-48], pickled))


def damage_tree(metadata: dict[str, str], damage: Any, rng: random.Random) -> None:
    """What is no tensor in a file of safetensors becomes another text, or one thing in it another."""
    if rng.random() < 0.5:
        metadata["gradchain"] = damage(metadata["gradchain"].encode(), rng).decode(errors="replace")
        return
    tree = json.loads(metadata["gradchain"])
    path = rng.choice([path for path, _ in leaves(tree) if path])
    metadata["gradchain"] = json.dumps(replaced(path, rng.choice(OTHERS))(tree))


OTHERS = ("x", "", -1, 0, 0.5, 2**63, None, True, [], {}, {"$tensor": "0.bias"}, {"$int": "-ff"}, {"$float": "nan"})


KINDS = ("file", "old file", "pickle")
TENSOR_KINDS = ("safetensors", "tree")  # the file, and its JSON under a seal that is right
