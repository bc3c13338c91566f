"""Calls other than an update that write weights or state, broken off at any line."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from atomic_chains import WHOLE, in_turn, run_by, shown
from injected import Tally, Target, Tracer, targets, watched
from little import data, loss_of, net, same, weights
from torch import nn

import gradchain as gch

Pair = tuple[nn.Module, gch.Updater]


@dataclass(frozen=True)
class Call:
    """Something that is asked of an updater.

    Attributes:
        made: a model and its updater, before the call.
        call: the call.
        sides: what may be shown after an exception; the two are given what is shown before and after the call.
    """

    made: Callable[[], Pair]
    call: Callable[[nn.Module, gch.Updater], object]
    sides: Callable[[Any, Any], list[Any]] = lambda before, after: [before, after]


def trained(seed: int, chain: gch.Transform, steps: int) -> Pair:
    """A little model after some micro-batches."""
    model = net(seed, torch.float32)
    updater = chain.bind(model)
    for rows in data(steps, seed, torch.float32):
        updater.update(loss_of(model, rows))
    return model, updater


def _windowed() -> gch.Transform:
    return gch.chain(gch.accumulate(2), gch.adam(0.1), gch.average_params(0.9))


def _ticking() -> gch.Transform:
    return gch.chain(gch.accumulate(3), gch.adam(0.1), gch.average_params(0.9, on="ema", buffers="copy"))


class _follows(gch.AtTicks, gch.WritesBuffers):
    """Doubles a mean when it ticks, and at updates."""

    descends = False
    clock = "double"

    def update(self, g: Any, state: Any, ctx: gch.Context) -> tuple[Any, Any]:
        return g, self.ticked(state, ctx)

    def ticked(self, state: Any, ctx: gch.Context) -> Any:
        ctx.write_buffers({"0.running_mean": 2 * ctx.buffers["0.running_mean"]})
        return state


def _normed() -> Pair:
    """One with a norm, whose statistics a link writes; and an average that moves."""
    model = nn.Sequential(nn.BatchNorm1d(3), net(0, torch.float32))
    updater = gch.chain(_follows(), gch.sgd(0.1), gch.average_params(0.9)).bind(model)
    for rows in data(2, dtype=torch.float32):
        updater.update(loss_of(model, rows))
    return model, updater


def _saved(folder: Path) -> Path:
    path = folder / "saved.pt"
    trained(5, _windowed(), 5)[1].save(path)
    return path


def _evaluated(model: nn.Module, updater: gch.Updater) -> None:
    with updater.averaged():
        assert torch.isfinite(loss_of(model, data(1, dtype=torch.float32)[0]))


def calls(folder: Path) -> dict[str, Call]:
    """Every such call, by name."""
    path = _saved(folder)
    state = trained(5, _windowed(), 5)[1].state_dict()
    return {
        "load": Call(lambda: trained(0, _windowed(), 4), lambda m, u: u.load(path)),
        "load_state_dict": Call(lambda: trained(0, _windowed(), 4), lambda m, u: u.load_state_dict(state)),
        "averaged": Call(lambda: trained(0, _windowed(), 4), _evaluated, lambda before, after: [before]),
        "flush": Call(lambda: trained(0, _windowed(), 3), lambda m, u: u.flush()),
        "copy_average_to": Call(
            lambda: trained(0, _windowed(), 4), lambda m, u: u.copy_average_to(net(3, torch.float32))
        ),
        "reset": Call(lambda: trained(0, _windowed(), 4), lambda m, u: u.reset()),
        "zero_grad": Call(lambda: trained(0, _windowed(), 3), lambda m, u: u.zero_grad()),
        "update_batch_norm": Call(
            _normed,
            lambda m, u: u.update_batch_norm(data(2, dtype=torch.float32)),
        ),
        "tick": Call(lambda: trained(0, _ticking(), 4), lambda m, u: u.tick("ema", 2)),
        "a tick that writes buffers": Call(_normed, lambda m, u: u.tick("double", 2)),
    }


def injections(call: Call, every: int, executors: str = "native", whole: int = 1) -> Tally:
    """Break the call off at one line in `whole` of the files in WHOLE, and at one in `every` of the others."""
    tally = Tally()
    with run_by(executors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, updater = call.made()
        before = shown(model, updater)
        call.call(model, updater)
        sides = call.sides(before, shown(model, updater))
        model, updater = call.made()
        walked = watched(lambda: call.call(model, updater))
        tally.saw(walked)
        for i, target in enumerate(targets(walked, WHOLE)):
            if in_turn(i, target, every, whole):
                _inject(call, target, sides, tally)
    return tally


def _inject(call: Call, target: Target, sides: list[Any], tally: Tally) -> None:
    model, updater = call.made()
    where = f"{target.place[0]}:{target.place[1]} (turn {target.turn})"
    with Tracer(target) as tracer:
        try:
            call.call(model, updater)
        except KeyboardInterrupt:
            tally.sides["raised"] += 1
    if tracer.hit:
        tally.took(target)
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        tally.faults.append(f"{where}: the gradient mode is another")
    if not any(same(shown(model, updater), side) for side in sides):
        tally.faults.append(f"{where}: mixed")
        return
    try:
        call.call(model, updater)
        updater.update(loss_of(model, data(1, dtype=torch.float32)[0]))
    except Exception as error:
        tally.faults.append(f"{where}: it cannot be used any more: {type(error).__name__}: {error}")


# in_backward


def inside() -> Pair:
    """A model whose parameters are updated during backward."""
    model = net(0, torch.float32)
    updater = gch.adam(0.1).bind(model, in_backward=True)
    for rows in data(2, dtype=torch.float32):
        updater.update(loss_of(model, rows))
    return model, updater


def each(model: nn.Module, updater: gch.Updater) -> dict[str, Any]:
    """Weight, slots and count of each parameter, read from where they lie."""
    held = updater._bound.state.links["scale_by_adam"]
    found = weights(model)
    return copy.deepcopy({n: [found[n], held.mu[n], held.nu[n], held.count.of(n)] for n in found})


def injections_in_backward(every: int, whole: int = 1) -> Tally:
    """Break an update during backward off: each parameter is whole, and the updater says that it is torn."""
    tally, rows = Tally(), data(3, dtype=torch.float32)[2]
    model, updater = inside()
    before = each(model, updater)
    saved, own = updater.state_dict(), weights(model)
    walked = watched(lambda: updater.update(loss_of(model, rows)))
    after, end = each(model, updater), shown(model, updater)
    tally.saw(walked)
    for i, target in enumerate(targets(walked, WHOLE)):
        if not in_turn(i, target, every, whole):
            continue
        model, updater = inside()
        where = f"{target.place[0]}:{target.place[1]} (turn {target.turn})"
        with Tracer(target) as tracer:
            try:
                updater.update(loss_of(model, rows))
            except KeyboardInterrupt:
                tally.sides["raised"] += 1
        if tracer.hit:
            tally.took(target)
        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            tally.faults.append(f"{where}: the gradient mode is another")
        tally.faults += [f"{where}: {fault}" for fault in _torn(model, updater, before, after, tally)]
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(own[name])
        updater.load_state_dict(saved)
        updater.update(loss_of(model, rows))
        if not same(shown(model, updater), end):
            tally.faults.append(f"{where}: after a load it goes on otherwise")
    return tally


def _torn(model: nn.Module, updater: gch.Updater, before: Any, after: Any, tally: Tally) -> list[str]:
    """What is wrong with an updater that was broken off in backward."""
    refused = ""
    try:
        steps = updater.num_updates if updater.state_dict() else 0
    except RuntimeError as error:
        refused, steps = str(error), -1
    now = each(model, updater)
    new = [same(now[n], after[n]) for n in now]
    old = [same(now[n], before[n]) for n in now]
    if not all(a or b for a, b in zip(old, new, strict=True)):
        return ["a parameter is torn"]
    side = "before" if all(old) else "after" if all(new) else "torn"
    tally.sides[side] += 1
    if refused:  # all may have had theirs, and only the clock not
        return [] if "load" in refused and side != "before" else [f"{side}, but refused: {refused}"]
    if side == "torn":
        return ["parameters are of different steps, and nothing says so"]
    return [] if steps == (2 if side == "before" else 3) else [f"{side}, but the clock is {steps}"]
