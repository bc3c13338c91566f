"""Checkpoints, states and configs that are wrong in every way: refused in a sentence, in bounded time and memory."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import guided
import torch
from what_goes_wrong import HERE, Fault, Kind

sys.path.append(str(HERE.parent / "updater"))

from damage import DAMAGES, reheaded, rewritten
from mutated import KEYS, SCENES, TENSORS, VALUES, changed_keys, leaves, replaced

from gradchain.adapters import mmengine, torch_names
from gradchain.core.readable import is_readable
from gradchain.updater import safe_tensors, sealed


def outcome(call: Callable[[], object], allowed: tuple[type[Exception], ...], owner: str) -> str:
    """What is wrong with how a call ended; "" where it returned, or refused in a sentence of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except allowed as error:
            said = str(error.args[0]) if error.args else ""
            return (
                ""
                if re.match(rf"({owner})[\w.]*: ", said)
                else f"{type(error).__name__} without its owner: {said[:200]!r}"
            )
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


# bytes


def sealed_again(whole: bytes) -> bytes:
    """With the checksum that is right of it, where it has a place for one."""
    size = int.from_bytes(whole[:8], "little")
    place = safe_tensors._place_of_seal(whole[8 : 8 + size]) if whole[8:9] == b"{" else None
    if place is None:
        body = whole.partition(sealed._MARK)[0]
        return body + sealed._MARK + hashlib.blake2b(body, digest_size=32).digest()
    front, behind = whole[: place[0]], whole[place[1] :]
    seal = hashlib.blake2b(front + b"0" * (place[1] - place[0]) + behind, digest_size=32).hexdigest()
    return front + seal.encode() + behind


def _numbers(whole: bytes, rng: random.Random) -> bytes:
    """A length or an offset of two, four or eight bytes that is another: the largest, nothing, or near to it."""
    size = rng.choice((2, 4, 8))
    at = rng.randrange(len(whole) - size)
    there = int.from_bytes(whole[at : at + size], "little")
    number = rng.choice((0, 1, there + 1, there - 1, there << 8, (1 << 8 * size) - 1, 1 << (8 * size - 1)))
    return whole[:at] + (number % (1 << 8 * size)).to_bytes(size, "little") + whole[at + size :]


def _part(whole: bytes, rng: random.Random) -> bytes:
    """One part of a zip is other bytes, under a checksum that is right."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        names = [part.filename for part in archive.infolist()]
    chosen = next((n for n in names if n.endswith("data.pkl")), names[0]) if rng.random() < 0.7 else rng.choice(names)
    change = rng.choice((*map(DAMAGES.__getitem__, (0, 1, 4, 5)), _numbers))
    return rewritten(whole, lambda name, held: change(held, rng) if name == chosen and len(held) > 600 else held)


def _header(whole: bytes, rng: random.Random) -> bytes:
    """Something in the header of a file of safetensors is another: in the tree of what is saved, or of a tensor."""

    def edit(header: dict[str, Any]) -> None:
        if rng.random() < 0.7:
            tree = json.loads(header["__metadata__"]["gradchain"])
            header["__metadata__"]["gradchain"] = json.dumps(_exchanged(tree, rng))
        else:
            header.update(_exchanged(header, rng))

    return reheaded(whole, edit)


def _exchanged(tree: Any, rng: random.Random) -> Any:
    path = rng.choice([path for path, _ in leaves(tree) if path])
    other = rng.choice([*(v for v in VALUES.values() if type(v) in PLAIN), *MARKED])
    return replaced(path, copy.deepcopy(other))(tree)


PLAIN = (str, int, float, bool, type(None), list, dict)
MARKED: tuple[Any, ...] = (
    {"$tensor": "gradchain/x"}, {"$dict": [["a", 1], ["a", 2]]}, {"$dict": [[[], 1]]}, {"$ordered": 3}, {"$size": [-1]},
    {"$int": "0x" + "f" * 5000}, {"$float": "x"}, {"$tuple": {}}, {"$none": 1}, [[[[[[]]]]]], {"dtype": "F64"},
    "F16", [0, 1 << 62], [2, 3],
)  # fmt: skip


def _of_files(n: int, folder: Path, name: str, inside: Callable[[bytes, random.Random], bytes]) -> Iterator[str]:
    """Files of real runs, damaged outside or inside; most of them with a checksum that is right again."""
    path, wholes = folder / name, []
    runs = [scene.run(0)[1] for scene in SCENES[:3]]
    for updater in runs:
        updater.save(path, epoch=3)
        wholes.append(path.read_bytes())

    def damaged(whole: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.6:
            with suppress(Exception):  # an earlier change has taken what is changed
                return inside(whole, rng)
        return rng.choice((*DAMAGES, _numbers))(whole, rng) if len(whole) > 2000 else whole

    def attempt(seeds: guided.Seeds) -> str:
        which = seeds[0] % len(runs)
        whole = wholes[which]
        for rng in map(random.Random, seeds):
            whole = damaged(whole, rng)
        path.write_bytes(sealed_again(whole) if seeds[-1] % 8 else whole)
        before = runs[which]._bound.state
        wrong = outcome(lambda: runs[which].load(path), (ValueError,), "load")
        if not wrong and runs[which]._bound.state is not before:  # it was whole after all: go on from the real one
            path.write_bytes(wholes[which])
            runs[which].load(path)
        return wrong

    yield from guided.tried(n, attempt)


def files(n: int, folder: Path) -> Iterator[str]:
    """torch's zip with its seal."""
    yield from _of_files(n, folder, "run.pt", _part)


def tensors(n: int, folder: Path) -> Iterator[str]:
    """safetensors."""
    yield from _of_files(n, folder, "run.safetensors", _header)


# structure


def _nested(value: Any) -> Any:
    made: Any = value
    for _ in range(3000):
        made = [made]
    return made


def _cyclic(value: Any) -> Any:
    made: list[Any] = [value]
    made.append(made)
    return made


ODD: tuple[Callable[[Any], Any], ...] = (
    _nested,
    _cyclic,
    lambda value: torch.empty(1).expand(1 << 40),
    lambda value: torch.empty((1 << 20, 1 << 20), device="meta"),
    lambda value: "9" * 10_000,
    lambda value: {"schedule": "by", "args": ["step", {"dtype": "seed"}]},
    lambda value: {"value": {"link": "chain", "links": []}, "factor": None},
    lambda value: {value if isinstance(value, (str, int)) else "x": value},
)


CHANGED: tuple[dict[str, dict[str, str]], ...] = (
    {}, {}, {"rename": {"*": "*"}}, {"resize": {"*": "overlap"}}, {"resize": {"*": "anew"}},
    {"links": {"scale_by_adam": "scale_by_adam"}},
)  # fmt: skip


def structures(n: int, folder: Path) -> Iterator[str]:
    """`state_dict()` of runs in the middle of something, with some things in it that are others."""
    runs = [scene.run(0)[1] for scene in SCENES[:5]]
    states = [updater.state_dict() for updater in runs]
    places = [[path for path, _ in leaves(state) if path] for state in states]

    def mutated(state: Any, path: tuple[Any, ...], rng: random.Random) -> Any:
        value = state
        for key in path:
            value = value[key]
        if isinstance(value, (dict, list)) and value and rng.random() < 0.5:
            return changed_keys(path, rng.choice([*KEYS.values()]))(state)
        pools: list[Any] = [[*VALUES.values()], list(ODD)]
        held = isinstance(value, torch.Tensor) and is_readable(value) and value.numel() < 1 << 20
        pools += [[*TENSORS.values()]] * held  # torch ends the process where an element without memory is written
        return replaced(path, rng.choice(rng.choice(pools)))(state)

    def attempt(seeds: guided.Seeds) -> str:
        which = seeds[0] % len(runs)
        state = copy.deepcopy(states[which])
        for rng in map(random.Random, seeds):
            try:
                state = mutated(state, rng.choice(places[which]), rng)
            except Exception:  # an earlier change has taken that place away
                continue
        before, strict = runs[which]._bound.state, rng.random() < 0.7
        load = partial(runs[which].load_state_dict, state, strict, **rng.choice(CHANGED))
        wrong = outcome(load, (ValueError,), "load_state_dict")
        if runs[which]._bound.state is not before:
            runs[which].load_state_dict(states[which])
        return wrong

    yield from guided.tried(n, attempt)


# config text

CONFIGS = (
    "optim_wrapper = dict(type='AmpOptimWrapper', accumulative_counts=4, clip_grad=dict(max_norm=1.0),\n"
    "    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),\n"
    "    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'head': dict(lr_mult=10)}))\n"
    "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),\n"
    "    dict(type='CosineAnnealingLR', T_max=10, eta_min=1e-5, begin=1, end=10, convert_to_iter_based=True)]\n"
    "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10)\n",
    "_base_ = './base.py'\nn = 8\nlrs = [0.1 * 2 ** i for i in range(n)]\nif n > 4:\n    lr = lrs[-1]\n"
    "else:\n    lr = 0.1\n"
    "for k in range(3):\n    lr = lr / 2\noptim_wrapper = dict(optimizer=dict(type='SGD', lr=lr, momentum=0.9))\n"
    "param_scheduler = dict(type='MultiStepLR', milestones=[3, 6], gamma=0.1)\nname = f'{n}x{lr:.2f}'\n",
    "optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)\noptimizer_config = dict(grad_clip=None)\n"
    "lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[8, 11])\n"
    "runner = dict(type='EpochBasedRunner', max_epochs=12)\nfp16 = dict(loss_scale=512.0)\n",
)
BASE = "optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.1))\nx = [1, 2, 3]\n"
TOKENS = (
    "dict(", "list(", "(", ")", "[", "]", "{", "}", ",", ":", "=", "**", "*", "+", "-", "/", "//", "%", "'", "\"",
    "\n", "    ", "\\", "#", "lambda x: x", "for i in range(10**9)", "for i in range(3)", "if", "else",
    "while True:\n    pass\n", "None", "True", "1e999", "-1", "0", "10**10**10", "'a' * 10**9", "[0] * 10**9",
    "nan", "__import__('os')", "().__class__", "{{_base_.x}}", "{{ fileDirname }}", "{{$HOME:x}}",
    "_base_ = './run.py'\n", "_base_ = './base.py'\n", "_delete_=True", "type=", "lr=", "del x\n", "x.append(x)\n",
    "x = x + x\n", "f'{x!r:>9999999}'", "import os\n", "assert False\n", "\0", "é", "\ufeff", "optimizer",
    "param_scheduler", "'ConstantLR'", "by_epoch=True", "end=", "begin=", "global n\n", "yield", "await", ":=",
    "...",
)  # fmt: skip


def configs(n: int, folder: Path) -> Iterator[str]:
    """Config files with pieces taken out, doubled, exchanged or put in; read, and made chains of where they can be."""
    path = folder / "run.py"
    (folder / "base.py").write_text(BASE)
    keys = ("optim_wrapper", "optimizer", "optimizer_config", "lr_config", "fp16")

    def changed(text: str, rng: random.Random) -> str:
        at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        to = min(to, at + rng.choice((1, 4, 20, 200)))
        kind = rng.randrange(5)
        if kind == 0:
            return text[:at] + text[to:]
        if kind == 1:
            return text[:to] + text[at:]
        if kind == 2:
            return text[:at] + rng.choice(CONFIGS)[at:]
        return text[:at] + rng.choice(TOKENS) + text[at if kind == 3 else to :]

    def read() -> None:
        found = mmengine.read_config(path)
        recipe = found.get("optim_wrapper") or {key: found[key] for key in keys if key in found}
        mmengine.unbound(recipe, found.get("param_scheduler"), max_epochs=10, epoch_length=7)

    if n < 1000:  # CI looks through no packages for an unknown optimizer: to import them takes ten seconds
        torch_names.PACKAGES.clear()
    path.write_text("optim_wrapper = dict(optimizer=dict(type='NoSuchOptimizer', lr=0.1))\n")
    assert not outcome(read, (ValueError, KeyError), r"\w")  # looks through optimizer packages, once and slowly

    def attempt(seeds: guided.Seeds) -> str:
        text = CONFIGS[seeds[0] % len(CONFIGS)]
        for rng in map(random.Random, seeds):
            text = changed(text, rng)
        path.write_text(text, encoding="utf-8")
        return outcome(read, (ValueError, TypeError, KeyError, FileNotFoundError, NotImplementedError), r"\w")

    yield from guided.tried(n, attempt)


PROMISE = "it loads, or is refused by a ValueError in a sentence, in 5 s of a core and 1 GiB"
KIND = Kind(
    "Hostile input",
    "Real files, states and configs are changed, and read in a forked child with a limit on time and address space for "
    "each. A third of the inputs is watched, line by line of the package; one that takes a new way is changed further. "
    "Most files get a checksum that is right again. Lost is one that raises anything else, ends the process, or takes "
    "more.",
    (
        Fault("files", "a checkpoint of which bytes are others", PROMISE, files, 200, 16_000),
        Fault("safetensors", "the same, as safetensors", PROMISE, tensors, 100, 32_000),
        Fault("states", "a state dict of which parts are others", PROMISE, structures, 200, 32_000),
        Fault(
            "configs",
            "an OpenMMLab config of which text is other",
            "it is read, or refused in a sentence, in 5 s of a core and 1 GiB; nothing of it is run",
            configs,
            100,
            20_000,
        ),
    ),
    alone=True,
)
