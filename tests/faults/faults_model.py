"""Models, losses and gradients that are others than an update expects, and updaters that share a model."""

from __future__ import annotations

import copy
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from misuse_runs import DROPPED, GOES_ON, SAME, Run, quiet, refused, trials, unchanged
from torch import Tensor, nn
from what_goes_wrong import Fault, Kind

import gradchain as gch

# losses

LOSSES: tuple[Callable[[Tensor], Any], ...] = (
    lambda loss: loss * torch.nan, lambda loss: loss * torch.inf, lambda loss: loss * 1j, lambda loss: loss.expand(2),
    lambda loss: loss.detach(), lambda loss: (3 * loss).long(), lambda loss: loss.item(), lambda loss: None,
    lambda loss: loss.to_sparse(), lambda loss: [loss], lambda loss: True,
)  # fmt: skip
_losses = itertools.cycle(LOSSES)


def _loss(run: Run) -> str:
    make = next(_losses)
    kinds = (TypeError, ValueError, FloatingPointError)
    return refused(lambda: run.ours.update(make(run.loss(0, run.at))), kinds, "update: loss ")


def _stranger(run: Run) -> str:
    with quiet():
        strange = nn.Linear(6, 5)(torch.ones(1, 6)).square().mean()
        said = refused(lambda: run.ours.update(strange), (RuntimeError,), "update: the loss reaches none of the bound")
    run.theirs.zero_grad()  # the window that was open is dropped, which is said
    return said


# gradients

GRADIENTS: tuple[Callable[[], Any], ...] = (
    lambda: torch.ones(6, 5), lambda: torch.ones(5, 6, dtype=torch.int64), lambda: torch.ones(5, 6) * 1j,
    lambda: torch.ones(5, 6, device="meta"), lambda: torch.ones(5, 6).to_sparse(),
    lambda: torch.ones(5, 6).to_sparse_csr(), lambda: torch.ones(5, 6).numpy(), lambda: "ones", lambda: 1.0,
)  # fmt: skip
_gradients = itertools.cycle(GRADIENTS)


def _gradient(run: Run) -> str:
    if run.ours.num_micro % 2:
        run.both()
    make, before = next(_gradients), run.seen(0)

    def step() -> None:
        with quiet():  # torch says that CSR is in beta
            run.ours.step({"weight": make(), "bias": torch.ones(5)})

    said = refused(step, (TypeError, ValueError), "step: ")
    return said or ("" if run.seen(0) == before else "it left something changed")


# beside torch


class Twin:
    """Adam over windows of two with a clip, by torch; the model's gradients are those that lie in `.grad`."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.micro = model, 0
        self.adam = torch.optim.Adam(model.parameters(), lr=0.01)

    def update(self, loss: Tensor) -> None:
        """A micro-batch."""
        loss.backward()
        self.micro += 1
        if self.micro % 2 == 0:
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad /= 2
            self.adam.step()
            self.adam.zero_grad()


def _beside_torch(n: int, folder: Path, act: Callable[[nn.Module, int], object]) -> Iterator[str]:
    """Ours and torch's over ten micro-batches, in float64; before the k-th something is done to both models."""
    for i in range(n):
        torch.manual_seed(i)
        models = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()
        models[1].load_state_dict(models[0].state_dict())
        ours, theirs = gch.chain(gch.accumulate(2), gch.adam(0.01)).bind(models[0]), Twin(models[1])
        for k in range(10):
            rows = torch.randn(4, 6, dtype=torch.float64)
            for model, updater in zip(models, (ours, theirs), strict=True):
                if k == 1 + i % 7:
                    act(model, i)
                if k == 8:
                    model.requires_grad_(True)
                updater.update(model(rows).square().mean())
        far = max((a - b).abs().max().item() for a, b in zip(*(m.parameters() for m in models), strict=True))
        yield "" if far < 1e-12 else f"they are {far} apart"


def _frozen(n: int, folder: Path) -> Iterator[str]:
    def act(model: nn.Module, i: int) -> None:
        (model.weight if i % 2 else model.bias).requires_grad_(False)

    return _beside_torch(n, folder, act)


def _two(n: int, folder: Path) -> Iterator[str]:
    """Two updaters on one model, with parameters in common or not; in turn, as two optimizers of torch's."""
    for i in range(n):
        torch.manual_seed(i)
        models = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()
        models[1].load_state_dict(models[0].state_dict())
        first, second = [(["weight", "bias"], ["weight"]), (["weight"], ["bias"])][i % 2]
        ours = [
            gch.sgd(0.1, momentum=0.9).bind([(name, getattr(models[0], name)) for name in names])
            for names in (first, second)
        ]
        theirs = [
            torch.optim.SGD([getattr(models[1], name) for name in names], lr=0.1, momentum=0.9)
            for names in (first, second)
        ]
        for k in range(8):
            rows = torch.randn(4, 6, dtype=torch.float64)
            ours[k % 2].update(models[0](rows).square().mean())
            models[1].zero_grad()
            models[1](rows).square().mean().backward()
            theirs[k % 2].step()
        far = max((a - b).abs().max().item() for a, b in zip(*(m.parameters() for m in models), strict=True))
        yield "" if far < 1e-12 else f"they are {far} apart"


# the model moves

_dtypes = itertools.cycle((torch.float16, torch.bfloat16, torch.float64))


def _moved(n: int, folder: Path) -> Iterator[str]:
    """To another dtype, in a window or between two: the run goes on in it, as from a file that it writes there."""
    for i in range(n):
        run, again, dtype = Run(i), Run(i), next(_dtypes)
        run.both(i % 5)
        run.models[0].to(dtype)
        run.ours.save(folder / "run.pt")
        again.models[0].to(dtype)
        again.ours.load(folder / "run.pt")
        if i % 3 == 0:
            run.ours.flush(), again.ours.flush()
        for at in range(4):
            rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(at)).to(dtype)
            for one in (run, again):
                one.ours.update(one.models[0](rows).square().mean())
        finite = all(p.isfinite().all() and p.dtype == dtype for p in run.models[0].parameters())
        same = run.seen(0) == again.seen(0) and run.ours.num_updates == again.ours.num_updates
        yield "" if finite and same else f"{dtype}: finite: {bool(finite)}, as from the file: {same}"


def _deleted(run: Run) -> str:
    loss, models = run.loss(0, run.at), run.models
    run.models = (None, models[1])
    run.ours.update(loss)
    run.theirs.update(run.loss(1, run.at))
    run.models, run.at = models, run.at + 1
    return ""


def _copied(run: Run) -> str:
    """A copy in the middle of a window is whole, shares nothing, and goes on as the run does."""
    if run.ours.num_micro % 2 == 0:
        run.both()
    before, twin = run.seen(0), copy.copy(run)
    twin.models, twin.ours = (lambda both: ((both[0], run.models[1]), both[1]))(
        copy.deepcopy((run.models[0], run.ours))
    )
    twin.ours.update(twin.loss(0, run.at))
    if run.seen(0) != before:
        return "the copy shares something"
    run.both()
    return "" if run.seen(0) == twin.seen(0) else "the copy came to something else"


# modes


def _under(mode: Callable[[], Any]) -> Callable[[Run], str]:
    def use(run: Run) -> str:
        loss = run.loss(0, run.at)
        with mode():
            run.ours.update(loss)
        run.theirs.update(run.loss(1, run.at))
        run.at += 1
        return ""

    return use


def _inference(run: Run) -> str:
    loss = run.loss(0, run.at)
    with torch.inference_mode():
        return refused(lambda: run.ours.update(loss), (RuntimeError,), "backward: there is no backward under torch.inf")


def _compiled(run: Run) -> str:
    """A compiled model, and a compiled step."""
    torch._dynamo.reset()
    whole = torch.compile(run.models[0], backend="eager")
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(run.at))
    run.ours.update(whole(rows).square().mean())
    run.theirs.update(run.loss(1, run.at))
    step = torch.compile(lambda rows: run.ours.update(run.models[0](rows).square().mean()), backend="eager")
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(run.at + 1))
    with quiet():  # that it cannot be in one graph
        step(rows)
    run.theirs.update(run.loss(1, run.at + 1))
    run.at += 2
    return ""


# after the end


def _closed(run: Run) -> str:
    """A Checkpointer that was closed saves on; where another has its folder, it is refused."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keeper = gch.Checkpointer(folder, updater=run.ours, signals=())
        keeper.save(at=1)
        keeper.close()
        run.both()
        path, state = keeper.save(at=2), run.seen(0)
        keeper.close()
        other = Run(0)
        at = other.ours.load(path)["at"]
        if at != 2 or other.seen(0) != state:
            return "what it saved is not the run"
        second = gch.Checkpointer(folder, updater=other.ours, signals=())
        second.save(at=3)
        said = refused(lambda: keeper.save(at=4), (RuntimeError,), "Checkpointer: ")
        second.close()
        return said


KIND = Kind(
    "Another model, loss or gradient",
    "Runs as those of `misuse`, or beside torch.optim in float64, whose model, loss, gradients or mode are others than "
    "at the update before. Lost is what is taken in silence, leaves anything changed where it is refused, or comes to "
    "something else than the promise says.",
    (
        Fault("losses", "a loss that is NaN, infinite, complex, an integer, a vector, sparse, without a graph or no "
              "tensor", SAME, unchanged(_loss), 11, 110),
        Fault("a stranger", "a loss of another model", DROPPED, trials(_stranger), 5, 50),
        Fault("gradients", "a gradient of another shape, kind, layout or device, or no tensor", SAME,
              trials(_gradient), 9, 90),
        Fault("frozen", "a parameter is frozen in or between windows, and thawed later",
              "it is updated when torch.optim.Adam would, to 1e-12", _frozen, 3, 40),
        Fault("two", "two updaters on one model, with parameters in common or not",
              "they are two optimizers of torch's in turn, to 1e-12", _two, 4, 40),
        Fault("dtypes", "the model is moved to float16, bfloat16 or float64 in or between windows",
              "the run goes on in it, and bit for bit the same from a file that is saved then", _moved, 6, 60),
        Fault("deleted", "the model is deleted before the update of its loss", GOES_ON, trials(_deleted), 5, 40),
        Fault("copied", "model and updater are copied in the middle of a window",
              "the copy is whole, shares nothing, and comes to the same", trials(_copied), 5, 50),
        Fault("no_grad", "an update under torch.no_grad()", GOES_ON, trials(_under(torch.no_grad)), 5, 40),
        Fault("inference", "an update under torch.inference_mode()", SAME, unchanged(_inference), 5, 40),
        Fault("compiled", "torch.compile around the model, and around the whole step", GOES_ON,
              trials(_compiled), 0, 4),
        Fault("closed", "a Checkpointer is used after close()", "it saves as before; where another writes into its "
              "folder it is refused", trials(_closed), 3, 20),
    ),
    alone=True,
)  # fmt: skip
