"""The benchmark of a run that saves itself: its rounds save, in the foreground and in the background."""

from benchmarks import saving
from benchmarks.workloads import WORKLOADS


def test_a_round_saves_and_waits_until_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(saving.WORKLOADS, "a", WORKLOADS["d"])
    for background in (False, True):
        run = saving.Run(tmp_path / str(background), background)
        figures = [run.round() for _ in range(3)]
        run.keeper.close()
        assert not run.is_writing()
        assert len([*(tmp_path / str(background)).glob("update_*.pt")]) == 2
        assert all(one["saving"] > 0 and one["plain"] > 0 for one in figures)
