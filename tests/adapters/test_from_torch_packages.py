"""Every optimizer class of every package: its bits, with and without a clip and after a load, or a refusal.

What comes out is the table in docs/from_torch.md, which a test writes and compares. GRADCHAIN_WRITE=1 writes it.
"""

from __future__ import annotations

import copy
import functools
import os
import pathlib
import re
import tempfile
from dataclasses import replace

import packages
import pytest
import torch
from packages import CLOSURES, NEEDS, REFUSED, SWITCHED, Way, bare, bare_step, class_of, link, our_step, same

import gradchain as gch
from gradchain.adapters.torch_names import PACKAGES

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "from_torch.md"
ALL = packages.written(TABLE.read_text())
STEPS, LOADED = 12, 6  # AdaShift moves nothing in its first ten
every = pytest.mark.parametrize("name", ALL)
pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def way_of(name: str) -> Way | None:
    return packages.way_of(name, class_of(name))


@functools.cache
def refusal(name: str) -> str:
    """What is said of a class that cannot be the rule of a chain, at the first place that says it; "" if it can."""
    way = way_of(name) or Way(closure=name in CLOSURES)
    model = way.net()
    before = copy.deepcopy(model)
    try:
        updater = link(name, class_of(name)).bind(model)
        for batch in way.batches(2):
            our_step(updater, model, batch, way.closure)
    except (TypeError, ValueError, RuntimeError) as error:
        assert same(model, before)
        return str(error)
    return ""


@every
def test_a_class_is_taken_or_refused_in_a_sentence_with_its_reason(name):
    said = refusal(name)
    assert bool(said) == (name in REFUSED), said
    if said:
        short = name.rpartition(".")[2]
        assert re.match(rf"from_torch: {short}(:| cannot be the rule of a chain:) .*{re.escape(REFUSED[name])}", said)
    else:
        assert way_of(name) is not None, "the class runs here, but in no way by itself"
        assert way_of(name).closure == (name in CLOSURES)


@functools.cache
def is_equal(name: str) -> bool:
    """Whether a chain has the bits of the class at every step, another one taking it up from a file in the middle."""
    way = way_of(name)
    model, twin = way.net(), way.net()
    updater, optimizer = gch.chain(link(name, class_of(name))).bind(model), bare(name, class_of(name), twin)
    start, equal = copy.deepcopy(model), True
    for batch in way.batches(STEPS):
        our_step(updater, model, batch, way.closure)
        bare_step(optimizer, twin, batch, way.closure)
        equal &= same(model, twin)
    return equal and not same(model, start)


@functools.cache
def resumes(name: str) -> bool:
    """Whether a fresh updater that loads a file goes on with the bits of the one that goes on by itself."""
    way = way_of(name)
    model, other = way.net(), way.net()
    updater = gch.chain(link(name, class_of(name))).bind(model)
    batches = way.batches(STEPS)
    for batch in batches[:LOADED]:
        our_step(updater, model, batch, way.closure)
    again = gch.chain(link(name, class_of(name))).bind(other)
    with tempfile.TemporaryDirectory() as folder:
        updater.save(pathlib.Path(folder) / "run.pt")
        again.load(pathlib.Path(folder) / "run.pt")
    equal = same(model, other)
    for batch in batches[LOADED:]:
        our_step(updater, model, batch, way.closure)
        our_step(again, other, batch, way.closure)
        equal &= same(model, other)
    return equal


@functools.cache
def bf16(name: str) -> str:
    """With weights in bfloat16: "yes" with the bits of the class; "not by itself" where that raises or diverges."""
    way = way_of(name)
    half = replace(way, dtype=torch.bfloat16)
    if not packages.runs(name, class_of(name), half, 4):
        return "not by itself"
    model, twin = half.net(), half.net()
    updater, optimizer = link(name, class_of(name)).bind(model), bare(name, class_of(name), twin)
    equal = True
    for batch in half.batches(4):
        our_step(updater, model, batch, half.closure)
        bare_step(optimizer, twin, batch, half.closure)
        equal &= same(model, twin)
    return "yes" if equal else "no"


TAKEN = [name for name in ALL if name not in REFUSED]
taken = pytest.mark.parametrize("name", TAKEN)


@taken
def test_it_has_the_bits_of_the_class(name):
    assert is_equal(name)


@taken
def test_loaded_from_a_file_it_goes_on_bit_for_bit(name):
    assert resumes(name)


@taken
def test_bfloat16_has_the_bits_of_the_class(name):
    assert bf16(name) != "no"


@pytest.mark.parametrize("name", [n for n in TAKEN if n not in CLOSURES])
def test_behind_a_clip_it_has_the_bits_of_the_class_that_is_given_what_the_clip_made(name):
    """Those are what torch's clip makes, at the precision of the weights."""
    way = way_of(name)
    model, twin, seen = way.net(), way.net(), {}

    def look(g, params):
        seen.update({n: u.clone() for n, u in g.items()})
        return g

    updater = gch.chain(gch.clip_by_norm(0.1), gch.stateless(look), link(name, class_of(name))).bind(model)
    optimizer = bare(name, class_of(name), twin)

    def clip(of):
        torch.nn.utils.clip_grad_norm_(of.parameters(), 0.1)
        for n, p in of.named_parameters():
            torch.testing.assert_close(p.grad, seen[n], rtol=1e-4, atol=0)
            p.grad = seen[n]

    for batch in way.batches(4):
        our_step(updater, model, batch, False)
        bare_step(optimizer, twin, batch, False, clip)
        assert same(model, twin)


@taken
def test_what_has_a_train_and_an_eval_is_listed(name):
    cls = class_of(name)
    assert (callable(getattr(cls, "train", None)) and callable(getattr(cls, "eval", None))) == (name in SWITCHED)


@pytest.mark.parametrize("steps", [1, LOADED, STEPS])
@pytest.mark.parametrize("name", [n for n in TAKEN if n in SWITCHED])
def test_averaged_are_the_weights_that_eval_makes(name, steps, tmp_path):
    """After a load too; and nothing of it is left when the block ends: the weights that are trained have their bits."""
    way = way_of(name)
    model, twin = way.net(), way.net()
    updater, optimizer = link(name, class_of(name)).bind(model), bare(name, class_of(name), twin)
    for t, batch in enumerate(way.batches(steps)):
        if t == LOADED:
            updater.save(tmp_path / "run.pt")
            updater = link(name, class_of(name)).bind(model)
            updater.load(tmp_path / "run.pt")
        our_step(updater, model, batch, way.closure)
        with updater.averaged():
            pass
        bare_step(optimizer, twin, batch, way.closure)
    assert same(model, twin)
    training = copy.deepcopy(model)
    optimizer.eval()
    with updater.averaged():
        assert same(model, twin)
        assert steps < STEPS or not same(model, training)
    assert same(model, training)


FLAGGED = [n for n in TAKEN if "use_muon" in NEEDS.get(n, {})]


@pytest.mark.parametrize("name", FLAGGED)
def test_flags_of_groups_are_rules_per_parameter(name):
    """Without them the class says what it misses; numbers that differ by the flag are told for neither."""
    with pytest.raises(ValueError, match=rf"^from_torch: {name.rpartition('.')[2]}: .*use_muon"):
        gch.from_torch(class_of(name))
    model = Way().net()
    updater = link(name, class_of(name)).bind(model)
    told = updater.hyperparams()
    assert told["from_torch.use_muon"] == {"0.weight": 1.0, "0.bias": 0.0, "2.weight": 1.0}
    assert "from_torch.lr" not in told


@pytest.mark.parametrize("name", FLAGGED)
def test_numbers_of_flagged_groups_take_rules_and_schedules(name):
    """As a user writes them into the groups at each step."""
    lr = {"matrix": lambda t: 0.02 / (t + 1), "rest": lambda t: 0.003}
    given = {**NEEDS[name], "lr": gch.choose((gch.ndim(2), lr["matrix"]), rest=lr["rest"])}
    model, twin = Way().net(), Way().net()
    updater, optimizer = gch.from_torch(class_of(name), **given).bind(model), bare(name, class_of(name), twin)
    for t, batch in enumerate(Way().batches(4)):
        for group in optimizer.param_groups:
            group["lr"] = lr["matrix" if group["use_muon"] else "rest"](t)
        our_step(updater, model, batch, False)
        bare_step(optimizer, twin, batch, False)
        assert same(model, twin)


def row(name: str) -> str:
    short = name.rpartition(".")[2]
    if name in REFUSED:
        reason = (
            refusal(name).partition("cannot be the rule of a chain: ")[2] or refusal(name).partition(f"{short}: ")[2]
        )
        return f"| `{short}` | refused: {reason} | | | |"
    way, yes = way_of(name), {True: "yes", False: "**no**"}
    how = "float32" if way.dtype is torch.float32 else "float64"
    how += "" if way.bias else ", matrices"
    closure = "needs one" if way.closure else "no"
    return f"| `{short}` | {yes[is_equal(name)]}, {how} | {bf16(name)} | {yes[resumes(name)]} | {closure} |"


def written(package: str) -> str:
    head = "| class | equal | bfloat16 | exact resume | closure |\n|---|---|---|---|---|\n"
    rows = [row(f"{package}.{short}") for short in packages.classes(package)]
    return f"## {package}\n\n{head}" + "\n".join(rows) + "\n"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_table_in_the_docs_is_what_came_out(package):
    """Section by section; that of a package that is not installed stays as it is."""
    if not packages.classes(package):
        pytest.skip(f"{package} cannot be imported here")
    section = written(package)
    before, *sections = re.split(r"(?m)^(?=## )", TABLE.read_text())
    now = {s.split("\n", 1)[0]: s.rstrip() + "\n" for s in sections}
    if os.environ.get("GRADCHAIN_WRITE"):
        now[f"## {package}"] = section
        TABLE.write_text(before.rstrip() + "\n\n" + "\n".join(now[title] for title in sorted(now)))
    assert now.get(f"## {package}") == section
