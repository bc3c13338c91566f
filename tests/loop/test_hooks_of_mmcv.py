"""Hooks of mmcv 1.x: what docs/loop.md says that they find here, they do."""

import re
from pathlib import Path

import pytest
import torch

import gradchain as gch

PAGE = (Path(__file__).parents[2] / "docs" / "loop.md").read_text()
TABLE = re.search(r"^\| mmcv 1\.x \| here \|\n\|.*\n((?:\|.*\n)+)", PAGE, flags=re.M)[1]
ROWS = [re.findall(r"`([^`]+)`", row) for row in TABLE.splitlines()]
ASKED = [(texts[0], texts[-1]) for texts in ROWS if "runner." in texts[0] or "self." in texts[0]]


def asking(texts):
    """What a hook gets for expressions, in the second batch of a run; the error where there is one."""
    found = []

    class Hook:
        def after_train_iter(self, runner, batch_idx, outputs):
            for text in texts if batch_idx == 1 else ():
                names = {"self": self, "runner": runner, "batch_idx": batch_idx, "outputs": outputs, "n": 2, "v": 3.0}
                try:
                    found.append(eval(text, names))
                except AttributeError as error:
                    found.append(error)

    model, records = torch.nn.Linear(2, 1), []
    updater = gch.sgd(0.1).bind(model)
    run = gch.loop([torch.ones(4, 2)] * 2, updater, epochs=1, hooks=[Hook()], log=records.append, interval=2)
    for batch in run:
        loss = run.update(model(batch).mean()).loss
    return found, loss, run, records


def test_each_row_names_what_is_there():
    found, loss, run, records = asking([here for _, here in ASKED])
    group = found[5]
    assert found == [True, None, loss, 1, [0.1], group, run._feed.loader] and group[0]["lr"] == 0.1
    assert records[0]["x"] == 3.0


@pytest.mark.parametrize("theirs", [theirs for theirs, _ in ASKED])
def test_what_mmcv_had_is_refused_where_it_is_asked(theirs):
    (found,), *_ = asking([theirs])
    assert isinstance(found, AttributeError)


def test_methods_take_what_they_name():
    calls = []

    class Hook:
        def before_run(self, runner):
            calls.append("before_run")

        def before_train_iter(self, runner):
            calls.append(runner.iter)

        def before_iter(self, runner):
            calls.append("never")

    model = torch.nn.Linear(2, 1)
    run = gch.loop([torch.ones(4, 2)] * 2, gch.sgd(0.1).bind(model), epochs=1, hooks=[Hook()])
    for batch in run:
        run.update(model(batch).mean())
    assert calls == ["before_run", 0, 1]


def test_losses_that_are_made_at_once_are_functions():
    """Of a critic and a generator: a loss whose graph needs weights that have moved is refused."""
    critic, generator = (
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)),
        torch.nn.Linear(2, 2),
    )
    both = {"critic": gch.sgd(0.1).bind(critic), "generator": gch.sgd(0.1).bind(generator)}

    def losses(batch):
        fake = generator(batch)
        return {"critic": lambda: critic(fake.detach()).mean(), "generator": lambda: -critic(fake).mean()}

    run = gch.loop([torch.ones(4, 2)] * 2, both, epochs=1)
    for batch in run:
        for name, loss in losses(batch).items():
            run.update(loss, name)
    assert [updater.num_updates for updater in both.values()] == [2, 2]
    computed = {name: loss() for name, loss in losses(torch.ones(4, 2)).items()}
    run.update(computed["critic"], "critic")
    with pytest.raises(RuntimeError, match="Compute the loss anew after each update"):
        run.update(computed["generator"], "generator")
