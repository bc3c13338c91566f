"""A naive plain-torch twin of an updater, and the random actions of a user on both."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import torch
from little import data, loss_of, net, weights
from torch import Tensor, nn

import gradchain as gch

CLIP, B1, B2, EPS, DECAY, AVERAGE = 0.3, 0.9, 0.95, 1e-8, 0.05, 0.8


def rate_at(step: int) -> float:
    """The schedule of the learning rate."""
    return 0.05 / (1 + 0.1 * step)


def chain(k: int, amp: bool, fused: bool = False) -> gch.Transform:
    """The chain that the twin writes out by hand; for torch's fused kernels, without what none of them computes."""
    links: list[gch.Transform] = [gch.accumulate(k)] if k > 1 else []
    links += [gch.amp_scale(256.0, growth_interval=2, always=True)] if amp else []
    return gch.chain(
        *links,
        *([] if fused else [gch.clip_by_norm(CLIP, eps=0)]),
        gch.scale_by_adam(B1, B2, EPS),
        gch.masked(gch.add_decayed_weights(DECAY), gch.min_ndim(2)),
        gch.scale_by_learning_rate(rate_at),
        *([] if fused else [gch.average_params(AVERAGE)]),
    )


class Twin:
    """The same in loops over dicts: gradients by torch.autograd.grad, nothing in `.grad`."""

    def __init__(self, k: int, amp: bool, fused: bool = False) -> None:
        self.k, self.amp, self.fused = k, amp, fused
        self.model = net()
        self.w: dict[str, Tensor] = dict(self.model.named_parameters())
        self.mu = {n: torch.zeros_like(p) for n, p in self.w.items()}
        self.nu = {n: torch.zeros_like(p) for n, p in self.w.items()}
        self.count = dict.fromkeys(self.w, 0)
        self.average = {n: p.detach().clone() for n, p in self.w.items()}
        self.window: list[dict[str, Tensor]] = []  # one row of true gradients per micro-batch
        self.pending: dict[str, Tensor] | None = None
        self.step, self.micro, self.scale, self.good, self.skipped = 0, 0, 256.0, 0, 0
        self.factor, self.rate = 1.0, None

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Those that there are, of parameters that require any."""
        names = [n for n, p in self.w.items() if p.requires_grad]
        found = torch.autograd.grad(loss, [self.w[n] for n in names], allow_unused=True)
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch sum."""
        self.pending = added(self.pending or {}, self.gradients(loss))

    def close(self, grads: dict[str, Tensor] | None = None, last: bool = False) -> None:
        """One micro-batch is over; gradients that are given are true ones, of which the loss scale takes no notice."""
        scaled = grads is None
        grads = self.pending if grads is None else grads
        self.pending = None
        assert grads is not None
        self.micro += 1
        self.window.append(grads)
        if len(self.window) >= self.k or last:
            self.apply(scaled)

    def apply(self, scaled: bool = True) -> None:
        """The window is over: its mean, the scale, the clip, Adam, decay, the rate, the average."""
        total: dict[str, Tensor] = {}
        for grads in self.window:
            total = added(total, grads)
        g = {n: t / len(self.window) for n, t in total.items()}
        self.window = []
        if self.amp and not all(t.isfinite().all() for t in g.values()):
            self.scale, self.good, self.skipped = self.scale / 2, 0, self.skipped + 1
            return
        if self.amp and scaled:
            self.good += 1
            if self.good == 2:
                self.scale, self.good = self.scale * 2, 0
        norm = torch.cat([t.flatten() for t in g.values()]).norm()
        rate = (rate_at(self.step) if self.rate is None else self.rate) * self.factor
        with torch.no_grad():
            for n, t in g.items():
                t = t * min(1.0, CLIP / norm.item()) if norm > 0 and not self.fused else t
                self.count[n] += 1
                self.mu[n] = B1 * self.mu[n] + (1 - B1) * t
                self.nu[n] = B2 * self.nu[n] + (1 - B2) * t * t
                root = (self.nu[n] / (1 - B2 ** self.count[n])).sqrt()
                u = self.mu[n] / (1 - B1 ** self.count[n]) / (root + EPS)
                if t.ndim >= 2:
                    u = u + DECAY * self.w[n]
                self.w[n] -= rate * u
            for n, p in self.w.items():
                self.average[n] = AVERAGE * self.average[n] + (1 - AVERAGE) * p
        self.step += 1


def added(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum of two rows of gradients, in either of which some may be absent."""
    return {n: a[n] + b[n] if n in a and n in b else a.get(n, b.get(n)) for n in {**a, **b}}  # type: ignore[misc]


class User:
    """Does the same to an updater and its twin. `check` compares them; `log` says what was done.

    Every step is run by one executor, by name, or by the reference.
    """

    def __init__(self, k: int, amp: bool, executor: str = "native") -> None:
        self.k, self.amp, self.executor = k, amp, executor
        self.executors = {"reference": [], "patterns": ["patterns", "blocks"]}.get(executor, [executor])
        self.fused = executor == "patterns"
        self.ran: set[str] = set()
        self.model = net()
        self.updater = self.bound()
        self.twin = Twin(k, amp, self.fused)
        self.rows = data(1000)
        self.log: list[str] = []

    def bound(self) -> gch.Updater:
        """The chain bound to the model, left with its one executor."""
        updater = chain(self.k, self.amp, self.fused).bind(self.model)
        engine = updater._bound.engine
        engine.executors = tuple(e for e in engine.executors if e.name in self.executors)
        return updater

    def losses(self, kind: str) -> tuple[Tensor, Tensor]:
        """The same loss of both models: whole, of the second layer alone, or of an overflow."""
        rows = self.rows.pop()
        out = []
        for model in (self.model, self.twin.model):
            if kind == "half":
                out.append(model[2](rows.new_ones(5, 4) * rows.mean()).square().mean())
            else:
                out.append(loss_of(model, rows) * (torch.inf if kind == "overflow" else 1.0))
        return out[0], out[1]

    def _kind(self, draw: random.Random) -> str:
        kinds = ["whole"] * 5
        if any(p.requires_grad for p in self.model[2].parameters()):
            kinds += ["half"] * 2
        return draw.choice(kinds + (["overflow"] if self.amp else []))

    # what a user may do; each takes a source of randomness

    def update(self, draw: random.Random) -> None:
        """update(loss), now and then as the last of its window, or inside context()."""
        ours, theirs = self.losses(self._kind(draw))
        last = draw.random() < 0.15
        self.twin.backward(theirs)
        self.twin.close(last=last)
        self.updater.update(ours, last=last, keep_grads=draw.random() < 0.2)

    def update_in_context(self, draw: random.Random) -> None:
        """The forward under context(last=…), after an evaluation under it and one that failed."""
        last = draw.random() < 0.3
        with self.updater.context(), torch.no_grad():
            self.losses("whole")
        try:
            with self.updater.context(last=True):
                raise ArithmeticError
        except ArithmeticError:
            pass
        with self.updater.context(last=last):
            ours, theirs = self.losses(self._kind(draw))
        self.twin.backward(theirs)
        self.twin.close(last=last)
        self.updater.update(ours)

    def several_backwards(self, draw: random.Random) -> None:
        """Two or three backwards, and one step."""
        for _ in range(draw.choice([2, 3])):
            ours, theirs = self.losses(self._kind(draw))
            self.updater.backward(ours)
            self.twin.backward(theirs)
        self.updater.step()
        self.twin.close()

    def own_gradients(self, draw: random.Random) -> None:
        """step(grads=) with None for some, where no scaled window is open."""
        if self.twin.window:
            return
        _, theirs = self.losses("whole")
        grads = self.twin.gradients(theirs)
        for n in list(grads):
            if len(grads) > 1 and draw.random() < 0.3:
                del grads[n]
        ours = {n: grads[n].clone() if n in grads else None for n in self.updater.names}
        self.twin.close(grads, last=True)
        self.updater.step(ours, last=True)

    def edit_gradient(self, draw: random.Random) -> None:
        """`.grad` of the last bias halved by hand between backward and step, where no window is open."""
        if self.twin.window or not self.model[2].bias.requires_grad:
            return
        ours, theirs = self.losses("whole")
        self.updater.backward(ours)
        self.twin.backward(theirs)
        self.model[2].bias.grad.mul_(0.5)
        assert self.twin.pending is not None
        self.twin.pending["2.bias"] = self.twin.pending["2.bias"] * 0.5
        self.updater.step()
        self.twin.close()

    def zero_grad(self, draw: random.Random) -> None:
        """updater.zero_grad(), now and then with a backward waiting."""
        if draw.random() < 0.5:
            self.updater.backward(self.losses("whole")[0])
        self.updater.zero_grad()
        self.twin.window, self.twin.pending = [], None

    def flush(self, draw: random.Random) -> None:
        """flush(), with or without an open window."""
        info = self.updater.flush()
        if self.twin.window:
            self.twin.apply()
        else:
            assert not info

    def model_zero_grad(self, draw: random.Random) -> None:
        """model.zero_grad() changes nothing."""
        self.model.zero_grad(set_to_none=draw.random() < 0.5)

    def leak(self, draw: random.Random) -> None:
        """Another loss leaves its gradients in `.grad`."""
        loss = self.losses("whole")[0]
        if draw.random() < 0.5:
            loss = loss * 100
        loss.backward()

    def bad_loss(self, draw: random.Random) -> None:
        """A loss that is refused before anything happens."""
        loss = self.losses("whole")[0]
        for wrong in (loss.detach(), loss.repeat(2), 3.0):
            try:
                self.updater.update(wrong, last=True)
            except (ValueError, TypeError):
                continue
            raise AssertionError(f"{wrong!r} was taken")

    def save_and_load(self, draw: random.Random) -> None:
        """The run is killed and goes on in fresh objects, by a file's worth of bytes."""
        buffer = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "updater": self.updater.state_dict()}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        flags = {n: p.requires_grad for n, p in self.model.named_parameters()}
        self.model = net(draw.randrange(100))
        for n, p in self.model.named_parameters():
            p.requires_grad_(flags[n])
        self.updater = self.bound()
        if draw.random() < 0.5:
            self.model.load_state_dict(saved["model"])
            self.updater.load_state_dict(saved["updater"])
        else:
            self.updater.load_state_dict(saved["updater"])
            self.model.load_state_dict(saved["model"], assign=draw.random() < 0.5)
            for n, p in self.model.named_parameters():
                p.requires_grad_(flags[n])

    def toggle(self, draw: random.Random) -> None:
        """requires_grad_ of a layer, or of one parameter; at least one keeps it."""
        names = draw.choice([["0.weight", "0.bias"], ["2.weight", "2.bias"], ["0.bias"], ["2.weight"]])
        for model in (self.model, self.twin.model):
            parameters = dict(model.named_parameters())
            now = parameters[names[0]].requires_grad
            if now and not any(p.requires_grad for n, p in parameters.items() if n not in names):
                return
            for n in names:
                parameters[n].requires_grad_(not now)

    def override(self, draw: random.Random) -> None:
        """The learning rate by number, by factor, or the code's again."""
        choice = draw.randrange(3)
        self.twin.rate, self.twin.factor = None, 1.0
        if choice == 0:
            self.updater.override("learning_rate", 0.03)
            self.twin.rate = 0.03
        elif choice == 1:
            self.updater.override("learning_rate", factor=0.5)
            self.twin.factor = 0.5
        else:
            self.updater.override("learning_rate", None)

    def evaluate_average(self, draw: random.Random) -> None:
        """averaged() shows the twin's average, and is gone afterwards, also after an exception."""
        if self.fused:
            return
        try:
            with self.updater.averaged():
                for n, p in self.model.named_parameters():
                    torch.testing.assert_close(p.detach(), self.twin.average[n], rtol=0, atol=1e-10)
                raise ArithmeticError
        except ArithmeticError:
            pass

    ACTIONS = (
        "update", "update", "update", "update_in_context", "several_backwards", "own_gradients", "edit_gradient",
        "zero_grad", "flush", "model_zero_grad", "leak", "bad_loss", "save_and_load", "toggle", "override",
        "evaluate_average",
    )  # fmt: skip

    def do(self, action: str, seed: int) -> None:
        """One action, drawn from its seed, and the comparison after it."""
        self.log.append(f"{action}({seed})")
        getattr(self, action)(random.Random(seed))
        self.check()

    def check(self) -> None:
        """Weights, counters, scale and the window's length are the twin's; nothing else has run a step."""
        engine = self.updater._bound.engine
        alone = [e.name for e in engine.executors] == self.executors
        assert alone and (engine.reason == "" or self.executor == "reference"), (engine.reason, self.log)
        self.ran |= {part.executor for part in engine.last}
        mine = weights(self.model)
        for n, p in self.twin.w.items():
            torch.testing.assert_close(mine[n], p.detach(), rtol=0, atol=1e-10, msg=lambda m: f"{m}\n{self.log}")
        found: Any = (self.updater.num_updates, self.updater.num_micro, self.updater.num_skipped)
        assert found == (self.twin.step, self.twin.micro, self.twin.skipped), self.log
        state = self.updater._bound.state.links
        if self.k > 1:
            assert state["accumulate"].micro == len(self.twin.window), self.log
        if self.amp:
            assert (state["amp_scale"].scale, state["amp_scale"].growth_tracker) == (self.twin.scale, self.twin.good)


def driven(k: int, amp: bool, seed: int, steps: int, executor: str = "native") -> User:
    """A user who does `steps` random things."""
    user, draw = User(k, amp, executor), random.Random(seed)
    for _ in range(steps):
        if len(user.rows) < 20:
            user.rows = data(1000, seed=draw.randrange(10**6))
        user.do(draw.choice(User.ACTIONS), draw.randrange(10**6))
    return user


def broken(user: User, **changes: Any) -> User:
    """A copy whose twin is another: a control that must be told apart."""
    other = copy.copy(user)
    for name, value in changes.items():
        setattr(other.twin, name, value)
    return other


__all__ = ["Twin", "User", "broken", "chain", "driven", "nn"]
