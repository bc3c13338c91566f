"""A few of the mutations of `mutated_long.py`, of which 10,000 make the table in `mutated_long.txt`."""

import random
from pathlib import Path

import pytest
import torch
from mutated import KINDS, SCENES, TENSOR_KINDS, Scene, Tally, leaves, mutations, of_bytes, plain

from gradchain.core.domain import Domain
from gradchain.core.readable import is_readable
from gradchain.updater import state_dict

scenes = pytest.mark.parametrize("scene", [pytest.param(scene, id=scene.name) for scene in SCENES])


def right(tally: Tally) -> bool:
    """Whether nothing went wrong, and a good part was refused."""
    assert tally.faults == []
    return tally.counts["refused"] > sum(tally.counts.values()) / 3


@scenes
def test_plain_data_with_one_thing_changed(scene: Scene):
    """It is refused, or is what was given and a run goes on with it; the rest stays as it was, to the bit."""
    assert right(plain(scene, random.Random(scene.name), 120))


@scenes
@pytest.mark.parametrize("kind", (*KINDS, *TENSOR_KINDS))
def test_bytes(scene: Scene, kind: str, tmp_path):
    """A file, one without a seal, and one whose pickle was changed under checksums that fit; of safetensors too."""
    assert right(of_bytes(scene, kind, tmp_path, random.Random(scene.name + kind), 20))


BROKEN = {
    "numbers": (Domain, "holds", lambda self, value: isinstance(value, (int, float, torch.Tensor)), "amp_scale"),
    "mean squares": (Domain, "offender", lambda self, tensor: None, "nu/"),
    "memory": (state_dict, "is_readable", lambda tensor: tensor.untyped_storage().nbytes() > 0, "mu/"),
}


@pytest.mark.parametrize("check", BROKEN)
def test_the_mutations_find_what_is_not_checked(check, monkeypatch):
    """With one check taken away, they are no longer all right."""
    owner, name, loose, within = BROKEN[check]
    assert plain(SCENES[0], random.Random(0), 150, within).faults == []
    monkeypatch.setattr(owner, name, loose)
    assert plain(SCENES[0], random.Random(0), 150, within).faults


def test_every_path_of_every_scene_is_mutated():
    """Also what is None, empty or deep in a schedule."""
    for scene in SCENES:
        state = scene.run(1)[1].state_dict()
        paths = {path for path, _ in leaves(state) if path}
        assert {path for _, path, _ in mutations(state)} >= paths
        assert all(is_readable(value) for _, value in leaves(state) if isinstance(value, torch.Tensor))


def test_the_table_is_that_of_the_long_form():
    """Of 10,000, none was silent, poisoned the run, changed anything or came out as another error."""
    lines = Path(__file__).with_name("mutated_long.txt").read_text().splitlines()
    tried, *rest = map(int, lines[-1].removeprefix("all").split())
    assert tried >= 10_000 and rest[-4:] == [0, 0, 0, 0]
    assert len(lines) == 2 + len(SCENES) * (1 + len(KINDS))


def test_scenes_have_windows_overrides_and_unequal_counts():
    """Else nothing would be there to change."""
    states = [scene.run(1)[1].state_dict() for scene in SCENES]
    assert any(s["overrides"] and s["news"] and s["observed"] for s in states)
    assert any(isinstance(f.get("count"), dict) for s in states for f in s["links"].values())
    assert sum(f.get("micro", 0) > 0 for s in states for f in s["links"].values()) >= 3
