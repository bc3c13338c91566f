"""What lies in the folder: when a file is due, which stay, what is taken after damage, and who may write."""

from __future__ import annotations

import itertools
import os
import shutil
import time

import pytest
import torch
from processes import forked
from torch import nn

import gradchain as gch
from gradchain.checkpoints import manifest
from gradchain.updater import sealed


def keeper_of(folder, **given):
    model = nn.Linear(1, 1)
    updater = gch.sgd(0.1).bind(model)
    return updater, gch.Checkpointer(folder, updater=updater, **given)


def update(updater, times=1):
    for _ in range(times):
        updater.step({n: torch.ones_like(p) for n, p in updater._bound.parameters().items()})


def names(folder):
    return sorted(file.name for file in folder.iterdir() if file.suffix == ".pt")


def ran(folder, metrics, **given):
    updater, keeper = keeper_of(folder, **given)
    with keeper:
        keeper.resume()
        for value in metrics:
            update(updater)
            keeper.step(**({} if value is None else {"score": value}))
    return updater


def numbered(*numbers):
    return [f"update_{n:08}.pt" for n in numbers]


# when


def test_every_counts_updates_not_micro_batches(tmp_path):
    model = nn.Linear(1, 1)
    updater = gch.chain(gch.accumulate(3), gch.sgd(0.1)).bind(model)
    with gch.Checkpointer(tmp_path, updater=updater, every=2, keep=None) as keeper:
        saved = []
        for _ in range(13):
            updater.update(model(torch.ones(1, 1)).mean())
            saved.append(keeper.step() is not None)
    assert [i + 1 for i, yes in enumerate(saved) if yes] == [6, 12]
    assert names(tmp_path) == numbered(2, 4)


def test_seconds_go_by_a_clock_that_nobody_can_set(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    walls = itertools.cycle([0.0, 4e9, -1e9])
    monkeypatch.setattr(time, "time", lambda: next(walls))
    updater, keeper = keeper_of(tmp_path, seconds=10, keep=None)
    with keeper:
        for passed in (9, 2, 9.9, 0.2):
            clock[0] += passed
            update(updater)
            keeper.step()
    assert names(tmp_path) == numbered(2, 4)


# which


@pytest.mark.parametrize(("rule", "best"), [("min", 2), ("max", 4)])
def test_the_newest_and_the_best_stay(rule, best, tmp_path):
    values = [2.0, 1.0, float("nan"), float("3"), 2.0, float("inf") if rule == "min" else float("nan"), 1.5]
    ran(tmp_path, values[:5], every=1, keep=2, best=("score", rule))
    ran(tmp_path, [values[5], None, values[6]], every=1, keep=2, best=("score", rule))
    assert names(tmp_path) == ["best_score.pt", *numbered(7, 8)]
    updater, _ = keeper_of(tmp_path / "other")
    updater.load(tmp_path / "best_score.pt")
    assert updater.num_updates == best


def test_several_bests_and_numbers_of_tensors(tmp_path):
    updater, keeper = keeper_of(tmp_path, best=[("a", "min"), ("b/c", "max")])
    with keeper:
        assert keeper.step(a=torch.tensor(1.0)).name == "best_a.pt"
        update(updater)
        assert keeper.step(a=torch.tensor(2.0), **{"b/c": 1}).name == "best_b_c.pt"
        assert keeper.step(a=2.0) is None
        with pytest.raises(TypeError, match="a must be a number, for best goes by it, got str"):
            keeper.step(a="low")


def test_only_its_own_files_go(tmp_path):
    mine = ["best_other.pt", "epoch_00000001.pt", "update_1.pt", "update_00000001.pt.bak", "x.pt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    ran(tmp_path, [None] * 5, every=1, keep=2)
    assert names(tmp_path) == sorted([*(n for n in mine if n.endswith(".pt")), *numbered(4, 5)])
    assert (tmp_path / "update_00000001.pt.bak").read_text() == "mine"


def test_nothing_goes_before_the_new_one_is_there(tmp_path, monkeypatch):
    ran(tmp_path, [None] * 3, every=1, keep=1)
    updater, keeper = keeper_of(tmp_path, every=1, keep=1)
    keeper.resume()
    update(updater)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            keeper.step()
    assert names(tmp_path) == numbered(3)
    assert keeper.save() == tmp_path / "update_00000004.pt"
    assert names(tmp_path) == numbered(4)
    keeper.close()


# after damage


def test_the_newest_whole_file_is_taken_and_the_others_are_told(tmp_path):
    ran(tmp_path, [None] * 4, every=1, keep=4)
    for number in (4, 3):
        file = tmp_path / f"update_0000000{number}.pt"
        file.write_bytes(file.read_bytes()[:-9])
    updater, keeper = keeper_of(tmp_path, every=1, keep=2)
    assert keeper.last_good == tmp_path / "update_00000002.pt"
    with keeper, pytest.warns(UserWarning, match=r"00000004.pt' cannot be .*00000003.pt' cannot .* before is used"):
        assert keeper.resume() == {}
        assert updater.num_updates == 2
    for file in tmp_path.glob("*.pt"):
        file.write_bytes(b"torn")
    assert keeper.last_good is None
    with pytest.raises(ValueError, match=r"No other in .* is whole. Move them away to begin anew."):
        keeper_of(tmp_path)[1].resume()


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "of another day", "nonsense"])
def test_a_manifest_that_is_no_help_is_made_anew(damage, tmp_path):
    ran(tmp_path, [None] * 3, every=1)
    path = tmp_path / "manifest_update.json"
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        path.write_text({"empty": "", "torn": text[:-9], "of another day": text.replace('"format": 1', '"format": 9'),
                         "nonsense": text.replace("00000003", "00000001")}[damage])  # fmt: skip
    assert manifest.read(path) is None
    assert ran(tmp_path, [None], every=1).num_updates == 4
    assert [entry.file for entry in manifest.read(path)] == numbered(2, 3, 4)


def test_a_file_that_was_written_as_the_run_was_killed_counts(tmp_path):
    """Its name is there, and the manifest does not say so yet."""
    ran(tmp_path, [None] * 2, every=1)
    before = (tmp_path / "manifest_update.json").read_text()
    ran(tmp_path, [None], every=1)
    (tmp_path / "manifest_update.json").write_text(before)
    assert ran(tmp_path, [], every=1).num_updates == 3


def test_who_went_back_goes_on_from_there(tmp_path):
    """The order is that in which files were saved, not that of their numbers."""
    ran(tmp_path, [None] * 6, every=1, keep=None)
    updater, keeper = keeper_of(tmp_path, every=1, keep=3)
    with keeper:
        updater.load(tmp_path / "update_00000002.pt")
        update(updater)
        keeper.save()
        assert keeper.last_good == tmp_path / "update_00000003.pt"
    assert ran(tmp_path, []).num_updates == 3


def test_the_folder_may_be_removed_meanwhile(tmp_path):
    updater, keeper = keeper_of(tmp_path / "a", every=1)
    with keeper:
        for _ in range(3):
            update(updater)
            keeper.step()
            shutil.rmtree(tmp_path / "a")
        update(updater)
        keeper.step()
    assert names(tmp_path / "a") == numbered(4)
    assert keeper.last_good == tmp_path / "a" / "update_00000004.pt"


def test_what_no_checkpointer_wrote_is_refused(tmp_path):
    updater, keeper = keeper_of(tmp_path)
    update(updater)
    updater.save(tmp_path / "update_00000007.pt")
    with keeper, pytest.raises(ValueError, match="must be a file that a Checkpointer of this version saved"):
        keeper.resume()
    other = gch.adamw(0.1).bind(nn.Linear(1, 1))
    ran(tmp_path / "b", [None], every=1)
    with gch.Checkpointer(tmp_path / "b", updater=other) as refusing, pytest.raises(ValueError, match="scale_by_adam"):
        refusing.resume()


def test_a_file_of_a_later_version_is_no_damage(tmp_path):
    """To go on from the one before would lose a run in silence, and then write over it."""
    ran(tmp_path, [None, None, None], every=1)
    newest = tmp_path / "update_00000003.pt"
    contents = torch.load(newest, weights_only=True)
    with newest.open("wb") as file:
        sealed.write_zip({**contents, "format": 4}, file)
    updater, keeper = keeper_of(tmp_path)
    with keeper, pytest.raises(ValueError, match=r"update_00000003.pt' has format 4, and this version reads 1 to 3"):
        keeper.resume()
    assert updater.num_updates == 0 and names(tmp_path) == numbered(1, 2, 3)


@pytest.mark.parametrize("where", ["file", "file/folder"])
def test_a_folder_that_is_a_file(where, tmp_path):
    (tmp_path / "file").write_text("mine")
    _, keeper = keeper_of(tmp_path / where)
    for act in (keeper.resume, keeper.save):
        with pytest.raises(OSError, match=rf"^save: '.*{where}' cannot be written: .*\.$"):
            act()
    assert keeper.last_good is None and (tmp_path / "file").read_text() == "mine"


def test_every_may_be_another_and_the_best_stays_with_one_kept(tmp_path):
    """A number that is not finite is never the best, not even the first; the record is that of all runs."""
    nan = float("nan")
    ran(tmp_path, [nan, 2.0, nan], every=2, keep=1, best=("score", "min"))
    assert names(tmp_path) == ["best_score.pt", *numbered(2)]
    ran(tmp_path, [3.0, float("-inf"), None], every=3, keep=1, best=("score", "min"))  # from update 2
    assert names(tmp_path) == ["best_score.pt", *numbered(3)]
    assert torch.load(tmp_path / "best_score.pt", weights_only=True)["parts"]["updater"]["state"]["clocks"]["step"] == 2


# who


def test_two_writers_are_noticed(tmp_path):
    """In one process and in two; who was killed leaves no lock."""
    _, first = keeper_of(tmp_path)
    _, second = keeper_of(tmp_path)
    first.save()
    for act in (second.save, second.resume):
        with pytest.raises(RuntimeError, match="must have one writer, got a second: another object of this process"):
            act()
    assert f"process {os.getpid()} on {os.uname().nodename} has it." in elsewhere(tmp_path, "keeper.save()")
    first.close()
    second.save()
    second.close()
    assert elsewhere(tmp_path, "keeper.save(); os.kill(os.getpid(), 9)") == ""
    assert (tmp_path / ".lock").exists()
    told = elsewhere(tmp_path, "keeper.save(); print('saved')")
    assert "which did not close it: taken over." in told and told.endswith("saved")
    assert (tmp_path / ".lock").exists()  # it did not close either


def elsewhere(folder, act):
    code = f"""
import logging, os, sys, torch, gradchain as gch
logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
keeper = gch.Checkpointer({str(folder)!r}, updater=gch.sgd(0.1).bind(torch.nn.Linear(1, 1)))
{act}
"""
    return forked(code)[1]


# file systems


def test_a_rename_that_was_done_and_reported_as_failed(tmp_path, monkeypatch):
    """NFS asks again where an answer was lost, and is told that there is no such file; one not done is an error."""
    _, keeper = keeper_of(tmp_path)
    rename = os.replace

    def twice(source, target):
        rename(source, target)
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", twice)
        keeper.save(at=1)
    assert keeper.resume() == {"at": 1}
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "No such file")))
        with pytest.raises(FileNotFoundError):
            keeper.save(at=2)
    assert keeper.resume() == {"at": 1}
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []
    keeper.close()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_stale_handles(times, tmp_path, monkeypatch):
    """A new look finds what NFS has forgotten; where it never does, that is an error."""
    _, keeper = keeper_of(tmp_path)
    keeper.save(at=1)
    sync, left = os.fsync, [times]

    def stale(handle):
        if left[0]:
            left[0] -= 1
            raise OSError(116, "Stale file handle")
        sync(handle)

    monkeypatch.setattr(os, "fsync", stale)
    if times < 3:
        keeper.save(at=2)
    else:
        with pytest.raises(OSError, match="Stale file handle"):
            keeper.save(at=2)
    assert keeper.resume() == {"at": 2 if times < 3 else 1}
    keeper.close()


@pytest.mark.parametrize("same_time", [False, True])
def test_a_file_that_is_changed_while_it_is_read(same_time, tmp_path, monkeypatch):
    """Between its checksum and its tensors somebody writes into it: the one before is used."""
    weight = ran(tmp_path, [None] * 2, every=1).contents()["weights"]["weight"].numpy().tobytes()
    newest, load = tmp_path / "update_00000002.pt", torch.load

    def meddled(file, **given):
        if file.name == str(newest):
            before, raw = os.stat(newest), newest.read_bytes()
            place = raw.index(weight) + 3
            with open(newest, "r+b") as other:
                other.seek(place)
                other.write(bytes([raw[place] ^ 1]))
            if same_time:
                os.utime(newest, ns=(before.st_atime_ns, before.st_mtime_ns))
        return load(file, **given)

    monkeypatch.setattr(torch, "load", meddled)
    updater, keeper = keeper_of(tmp_path)
    with keeper, pytest.warns(UserWarning, match="changed while it was read"):
        keeper.resume()
    assert updater.num_updates == 1
