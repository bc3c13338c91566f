"""Interrupts at random times while two threads write large weights. Run in a process of its own: it may be killed.

    PYTHONPATH=tests python tests/updater/atomic_signals.py 300

says how many interrupts came and how many of them left weights, moments and counts of different steps.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from typing import Any

import torch

import gradchain as gch

SIZE = 1 << 20
NAMES = ("a", "b", "c")


def digest(tensors: Any) -> tuple[int, ...]:
    """The sum of the bits of each tensor."""
    return tuple(int(t.detach().view(torch.int32).sum(dtype=torch.int64)) for t in tensors)


class Training:
    """Adam on weights that get a gradient of the step's number: where it stands says all about it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = {n: torch.nn.Parameter(torch.randn(SIZE, generator=generator)) for n in NAMES}
        self.base = {n: torch.randn(SIZE, generator=generator) for n in NAMES}
        self.updater = gch.chain(gch.clip_by_norm(100.0), gch.adam(0.01)).bind(self.weights)

    def step(self) -> None:
        """The step that comes after as many as were applied."""
        t = self.updater.num_updates
        self.updater.step({n: g * (1.0 + t % 7) for n, g in self.base.items()})

    def state(self) -> tuple[int, ...]:
        """Where each weight and moment stands, read from where it lies."""
        held = self.updater._bound.state.links["scale_by_adam"]
        return digest([*self.weights.values(), *held.mu.values(), *held.nu.values()])


class Interrupts(threading.Thread):
    """Sends this process an interrupt at a random time after it is asked to."""

    def __init__(self, longest: float) -> None:
        super().__init__(daemon=True)
        self.longest, self.asked, self.random = longest, threading.Semaphore(0), random.Random(0)

    def run(self) -> None:
        while True:
            self.asked.acquire()
            time.sleep(self.random.uniform(0.0, self.longest))
            os.kill(os.getpid(), signal.SIGINT)


def main(signals: int) -> int:
    """Interrupt so often; how many were mixed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    torch.set_num_threads(2)
    twin, training = Training(), Training()
    twin.step()
    start = time.perf_counter()
    for _ in range(5):
        twin.step()
    known = [Training().state()]
    sender = Interrupts(3.0 * (time.perf_counter() - start) / 5)
    sender.start()
    twin = Training()
    came = mixed = 0
    while came < signals:
        before = came
        sender.asked.release()
        try:
            while True:
                training.step()
        except KeyboardInterrupt:
            came += 1
        assert came == before + 1
        t = training.updater.num_updates
        while len(known) <= t:
            twin.step()
            known.append(twin.state())
        if training.state() != known[t]:
            mixed += 1
            training = Training()
    training.step()
    t = training.updater.num_updates
    while len(known) <= t:
        twin.step()
        known.append(twin.state())
    mixed += training.state() != known[t]
    print(f"{came} interrupts, {mixed} mixed, {training.updater.num_updates} steps")
    return mixed


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1])) else 0)
