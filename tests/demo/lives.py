"""Runs of the demo that end by SIGKILL, and the last of them by itself. A process of its own, which forks the lives.

    python lives.py FOLDER SEED [forgetful | torn]

kills one run in FOLDER five times, as the seed has it: at random moments, and once or twice inside the write of a
checkpoint. Then it lets the run end. It prints a line of JSON: each life, and what the last one printed.
forgetful: a life that goes on does not restore torch's generator. torn: checkpoints are written in place.
"""

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from gradchain.demo.__main__ import main
from gradchain.demo.recipe import digits
from gradchain.demo.training import Training
from gradchain.updater import sealed

EPOCHS, EVERY, KILLS = 5, 7, 5
OPTIONS = ["--epochs", str(EPOCHS), "--quiet"]
IN_A_WRITE = ["empty", "half", "unsynced", "unnamed", "named"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_write(point, number):
    """Let the life end inside its `number`-th checkpoint: where, says `point`."""
    write, save, fsync, replace = sealed.write_zip, torch.save, os.fsync, os.replace
    calls = []

    def reached():
        calls.append(1)
        return len(calls) == number

    def empty(contents, file):
        return die() if reached() else write(contents, file)

    def half(contents, file):
        buffer = io.BytesIO()
        save(contents, buffer)
        whole = buffer.getvalue()
        if reached():
            file.write(whole[: len(whole) // 2])
            file.flush()
            die()
        file.write(whole)

    def unsynced(handle):
        return die() if reached() else fsync(handle)

    def unnamed(old, new):
        return die() if reached() else replace(old, new)

    def named(old, new):
        replace(old, new)
        if reached():
            die()

    where = {"empty": (sealed, "write_zip"), "half": (torch, "save"), "unsynced": (os, "fsync")}
    setattr(*where.get(point, (os, "replace")), locals()[point])


def tell_at(micro, pipe):
    """Write to the pipe as this life's `micro`-th update begins; the kill comes soon after. Don't run far ahead."""
    update, calls = Training.steps, []

    def steps(run):
        for _ in update(run):
            calls.append(1)
            if len(calls) == micro:
                os.write(pipe, b"!")
            if len(calls) > micro + 10:
                signal.pause()
            yield

    Training.steps = steps


def torn_write(path, put):
    with open(path, "wb") as file:
        put(file)


def fork(folder, point, number, variant):
    """One life. Returns its wait status, and where it began."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            live(folder, point, number, variant, write)
        except SystemExit as refusal:
            os._exit(refusal.code)
        except BaseException:
            traceback.print_exc()
        os._exit(99)
    os.close(write)
    if point == "moment" and os.read(read, 1):
        time.sleep(random.uniform(0, 0.006))
        os.kill(child, signal.SIGKILL)
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def live(folder, point, number, variant, pipe):
    """In the child."""
    if variant == "forgetful":
        torch.set_rng_state = lambda state: None
    if variant == "torn":
        sealed.write = torn_write
    load = Training.load

    def loading(run, path):
        load(run, path)
        (folder / "begun").write_text(str(run.done))

    Training.load = loading
    if point == "moment":
        tell_at(number, pipe)
    elif point:
        die_in_write(point, number)
    with open(folder / "printed", "w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    code = main([*OPTIONS, "--checkpoint-every", str(EVERY), "--resume", "--out", str(folder / "run")])
    sys.stdout.flush()
    os._exit(code)


def plan(seed, variant):
    """(where, when) of each kill; over seeds 0 to 3 five are in a write, each point once."""
    mine = IN_A_WRITE[seed::4] if variant != "torn" else ["half"]
    points = [*mine, *["moment"] * (KILLS - len(mine))]
    random.shuffle(points)
    return [(point, random.randint(2, 8) if point != "moment" else random.randint(1, 60)) for point in points]


if __name__ == "__main__":
    torch.set_num_threads(1)
    digits()
    folder, seed, variant = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
    random.seed(seed)
    lives = []
    for point, number in [*plan(seed, variant), (None, 0)]:
        (folder / "begun").write_text("0")
        code = fork(folder, point, number, variant)
        left = len(list((folder / "run").glob(".*.tmp")))
        begun = int((folder / "begun").read_text())
        lives.append({"point": point, "number": number, "begun": begun, "code": code, "left": left})
        if code not in (0, -signal.SIGKILL):
            break
    print(json.dumps({"lives": lives, "printed": (folder / "printed").read_text()}))
