"""What a run has saved of itself is other than any run saves it: refused before anything is taken up."""

from __future__ import annotations

import copy
import itertools
import random
import warnings

import numpy
import pytest
import torch
from little import same
from torch import nn

import gradchain as gch
from gradchain.updater import sealed

VALUES = ("x", -1, 10**400, None, 0.5, [], {}, torch.ones(2), torch.empty((), device="meta"), {"torch": 1})
EACH = 4  # of these at each place, in turn


def run(folder, kind):
    """A model, and what goes on with it in the folder."""
    model = nn.Linear(2, 1)
    updater = gch.adamw(1e-2).bind(model)
    batches = [torch.ones(3, 2)] * 4
    if kind == "loop":
        return model, updater, gch.loop(batches, updater, epochs=2, checkpoint=gch.loop.checkpoints(folder, 1, "iter"))
    return model, updater, gch.Checkpointer(folder, updater=updater, loader=batches, best=("v", "min"), signals=())


def begun(folder, kind):
    """The file of a run that was left in the middle of an epoch."""
    model, updater, kept = run(folder, kind)
    for number, batch in enumerate(kept if kind == "loop" else kept.batches(1)):
        if number == 2:
            break
        updater.update(model(batch).square().mean())
        if kind != "loop":
            kept.step(v=1.0)
    if kind != "loop":
        kept.save()
        kept.close()
    (path,) = folder.glob("update_00000002.pt" if kind != "loop" else "iter_00000002.pt")
    return path


def places(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def come_to(model, updater):
    """All that a resume may change."""
    draws = [torch.get_rng_state(), random.getstate(), *numpy.random.get_state()[1:3]]
    return [{n: t.clone() for n, t in model.state_dict().items()}, updater.state_dict(), *map(copy.copy, draws)]


def alike(found, expected):
    return same(found[:2], expected[:2]) and torch.equal(found[2], expected[2]) and found[3] == expected[3] and (
        (found[4] == expected[4]).all() and found[5] == expected[5]
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Checkpointer", "loop"])
def test_it_is_refused_in_a_sentence_and_nothing_has_changed(kind, tmp_path):
    path = begun(tmp_path / "run", kind)
    contents, refused = torch.load(path, weights_only=True), 0
    inside = ("extra", "checkpointer") if kind != "loop" else ("extra", "run", "loop")
    entry = contents
    for key in inside:
        entry = entry[key]
    wrong = itertools.cycle(VALUES)
    for place in places(entry):
        for value in (next(wrong) for _ in range(EACH)):
            hostile = copy.deepcopy(contents)
            at = hostile
            *keys, last = (*inside, *place)
            for key in keys:
                at = at[key]
            at[last] = value
            with path.open("wb") as file:
                sealed.write_zip(hostile, file)
            model, updater, kept = run(path.parent, kind)
            before = come_to(model, updater)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    for _ in kept if kind == "loop" else [kept.resume()]:
                        break
                except ValueError as error:
                    refused += 1
                    assert str(error).startswith((f"{kind}: ", "load: ")), (place, value)
                    assert alike(come_to(model, updater), before), (place, value)
                finally:
                    getattr(kept, "close", lambda: None)()
    assert refused > 50
