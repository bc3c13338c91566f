"""A kernel is built from a source that says nothing of the user's, by a compiler that may be none, and checked."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from compiling import (
    ALONE,
    GCC,
    answer,
    fake,
    forget,
    fresh,
    kernel,
    refused,
    scenarios,
    script,
)

import gradchain as gch
from gradchain.core import elementary
from gradchain.core import operations as elementwise
from gradchain.core.operations import OPERATIONS
from gradchain.engine import operations
from gradchain.engine.executors import build, print_c
from gradchain.engine.operations import REDUCTIONS, TYPES
from gradchain.engine.planning.lower import Program

pytestmark = scenarios


# what the source may say


def random_program(seed):
    rng = random.Random(seed)
    dtypes = [rng.choice(list(TYPES)) for _ in range(rng.randint(1, 4))]
    program = Program(columns=list(range(len(dtypes))), scalars=[0, 1, 2], entries=[0, 1])
    truths = []

    def operand():
        kinds = [
            ("load", rng.randrange(len(dtypes))),
            ("scalar", rng.randrange(3)),
            ("entry", rng.randrange(2)),
            ("zero",),
        ]
        if program.instructions:
            kinds += [("value", rng.randrange(len(program.instructions)))] * 3
        return rng.choice(kinds)

    for i in range(rng.randint(1, 30)):
        op = rng.choice(list(OPERATIONS)) if truths else "lt"
        operands = [rng.choice(truths) if kind == "m" else operand() for kind in OPERATIONS[op].takes]
        program.instructions.append((op, tuple(operands)))
        if OPERATIONS[op].mask:
            truths.append(("value", i))
    if rng.random() < 0.5:
        program.reduce = (rng.choice(list(REDUCTIONS)), operand())
    else:
        program.stores = [(column, operand()) for column in program.columns]
    return program, dtypes


def foreign(source):
    """What a source has besides digits and words that stand in the files of the printer and of the tables it reads."""
    files = (print_c.__file__, elementwise.__file__, elementary.__file__, operations.__file__)
    own = {word for file in files for word in re.findall(r"[A-Za-z_]\w*", Path(file).read_text())}
    found = {re.sub(r"(?<=^[a-z])\d+$", "", word) for word in re.findall(r"[A-Za-z_]\w*", source)} - own
    found |= set(re.findall(r"[^\w\s#<>(){}\[\]+\-*/=!?:;,.&|~]", source))
    return found | {
        i for i in re.findall(r"#\s*include.*", source) if i not in ("#include <stdint.h>", "#include <math.h>")
    }


@pytest.mark.parametrize("seed", range(60))
def test_the_source_holds_only_digits_and_our_own_words(seed):
    assert foreign(print_c.source(*random_program(seed))) == set()


@pytest.mark.parametrize("evil", ['"x"', "system(1)", "'x'", "$", "x\\", "#include </etc/passwd>", "__asm__"])
def test_a_foreign_word_would_be_seen(evil):
    assert foreign(print_c.source(*random_program(0)) + evil)


def test_names_and_numbers_of_the_user_do_not_reach_the_source(monkeypatch):
    sources = []

    def load(source):
        sources.append(source)
        raise build.NoKernel("not now")

    monkeypatch.setattr(build, "load", load)
    evil = '*) __attribute__((constructor)) void f() { system("reboot"); } (*'
    model = torch.nn.ParameterDict({evil: torch.nn.Parameter(torch.ones(3))})
    chain = gch.chain((evil, gch.clip_by_norm(0.125)), gch.scale_by_adam(b1=0.8125), gch.scale_by_learning_rate(0.0625))
    updater = fresh(chain.bind(model))
    updater.update(sum(p.sum() for p in model.parameters()))
    assert sources
    for source in sources:
        assert foreign(source) == set()
        assert not any(number in source for number in ("125", "8125", "1875", "0625"))


# compilers


def test_no_compiler(base, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(kernel(7), "none of gcc, clang and cc is in PATH", "install gcc or clang")
    refused(kernel(8), "none of gcc, clang and cc is in PATH")  # and says it again to the engine, but warns once


@pytest.mark.parametrize(
    ("version", "words"),
    [("echo xcrun: error: no tools >&2; exit 1", "xcrun: error: no tools"), ("kill -SEGV $$", "died of SIGSEGV")],
)
def test_a_compiler_that_does_not_even_say_its_version_is_passed_over(version, words, base, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "exit 1", version=f"echo asked >> {tmp_path / 'log'}; {version}")
    refused(kernel(7), words, "install gcc or clang")
    refused(kernel(8), words)
    assert log.read_text() == "asked\n", "once is enough"
    forget(monkeypatch)
    fake(tmp_path, monkeypatch, f'exec {GCC} "$@"', name="cc")
    assert answer(build.load(kernel(7))) == 7


def test_a_program_that_is_none_cannot_be_run(base, monkeypatch, tmp_path):
    fake(tmp_path, monkeypatch, "")
    (tmp_path / "bin" / "gcc").write_bytes(b"\x7fELFjunk")
    refused(kernel(7), "cannot be run (Exec format error)")


def test_a_broken_compiler_is_asked_once_per_source(cache, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "echo In file kernel.c: >&2; echo 'fatal error: no stdint.h' >&2; exit 1")
    for _ in range(3):
        refused(kernel(7), "failed with exit code 1 (fatal error: no stdint.h)", str(tmp_path / "bin" / "gcc"))
    refused(kernel(8), "no stdint.h")
    assert log.read_text().count("run") == 2
    assert os.listdir(cache) == []


GARBAGE = {
    "text": 'echo garbage > "$out"',
    "nothing": "exit 0",
    "an empty file": ': > "$out"',
    "half a file": f'{GCC} "$@" && head -c 3000 "$out" > half && mv half "$out"',
    "a cut file": f'{GCC} "$@" && head -c 9000 "$out" > half && mv half "$out"',
    "another kernel": f'{GCC} -shared -x c /dev/null -o "$out"',
    "a folder": 'mkdir "$out"',
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_compiler_that_writes_garbage(what, cache, monkeypatch, tmp_path):
    find = 'out=; last=; for a in "$@"; do if [ "$last" = -o ]; then out=$a; fi; last=$a; done\n'
    log = fake(tmp_path, monkeypatch, find + GARBAGE[what])
    for _ in range(2):
        refused(kernel(7), "a child that ran a new native kernel")
    assert log.read_text().count("run") == 1
    assert os.listdir(cache) == []


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_hanging_compiler_is_killed_with_all_it_started_and_not_asked_again(cache, monkeypatch, tmp_path):
    pids = tmp_path / "pids"
    monkeypatch.setattr(build, "TIME_LIMIT", 0.5)
    log = fake(tmp_path, monkeypatch, f"echo $$ >> {pids}; sleep 600 & echo $! >> {pids}; wait")
    began = time.monotonic()
    refused(kernel(7), "compiling a kernel with", "took over 0.5 s")
    refused(kernel(7), "took over 0.5 s")
    refused(kernel(8), "took over 0.5 s")  # whatever the source
    assert time.monotonic() - began < 5
    assert log.read_text().count("run") == 1
    assert os.listdir(cache) == []
    time.sleep(0.1)
    started = pids.read_text().split()
    assert len(started) == 2 and not any(map(alive, started))


def test_a_compiler_that_hangs_on_its_version(base, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "TIME_LIMIT", 0.3)
    fake(tmp_path, monkeypatch, "exit 1", version="sleep 600")
    refused(kernel(7), "asking for its version", "took over 0.3 s")


def test_an_interrupted_compilation_ends_the_compiler(cache, monkeypatch, tmp_path):
    pids = tmp_path / "pids"
    fake(tmp_path, monkeypatch, f"echo $$ > {pids}; sleep 600")

    def interrupted(self, *args, **kwargs):
        while not pids.exists() or not pids.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    build.compiler()
    monkeypatch.setattr(build.subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.load(kernel(7))
    assert not alive(int(pids.read_text())) and os.listdir(cache) == []
    assert not build._process.failures and build._process.lock.acquire(blocking=False)


# the check in a child


def test_no_flag_changes_the_arithmetic_or_brings_a_second_openmp():
    flags = [f for each in (build._FLAGS, *build._LEVELS.values(), *build._NATIVE_FLAGS.values()) for f in each]
    assert "-ffp-contract=off" in flags
    for flag in flags:
        assert not re.search(r"fast|unsafe|finite|associative|reciprocal|signed-zeros|limited-range|openmp", flag), flag


def tiny():
    """Numbers that are zero to a process whose arithmetic was changed."""
    return float("5e-324") * 1.0, sys.float_info.min * 0.5, torch.full((64,), 1e-40).mul(0.5).sum().item()


def test_loading_leaves_tiny_numbers_alone(base):
    before = tiny()
    assert all(before)
    build.load(kernel(7))
    build.load(print_c.source(*random_program(0)))
    assert tiny() == before


ILL = {
    "on loading": (
        kernel(7, before="__attribute__((constructor)) static void f(void) { __builtin_trap(); }"),
        "died of",
    ),
    "on the first item": (kernel(7, after="__builtin_trap();"), "died of"),
    "on bad memory": (kernel(7, after="*(volatile int*)8 = 1;"), "died of SIGSEGV"),
    "forever": (kernel(7, after="for (volatile int i = 0; ; ) {}"), "took over 1 s"),
    "without an entry": ("int walk;", "exit code 1"),
    "with a missing symbol": (kernel("absent()", before="double absent(void);"), "exit code 1"),
}


@pytest.mark.parametrize("how", ILL)
def test_what_kills_a_process_kills_the_child(how, cache, monkeypatch):
    source, words = ILL[how]
    if how == "forever":
        build.compiler()
        real = build._check

        def check(built, source):
            monkeypatch.setattr(build, "TIME_LIMIT", 1.0)
            real(built, source)

        monkeypatch.setattr(build, "_check", check)
    refused(source, words)
    assert os.listdir(cache) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets a register of x86")
@pytest.mark.parametrize("bits", ["0x8000", "0x0040"], ids=["flush to zero", "denormals are zero"])
def test_a_file_that_changes_the_arithmetic_of_the_process_is_not_loaded(bits, cache):
    at_loading = f"__attribute__((constructor)) static void f(void) {{ _mm_setcsr(_mm_getcsr() | {bits}); }}"
    refused(kernel(7, before=f"#include <xmmintrin.h>\n{at_loading}"), "changes the arithmetic of the whole process")
    assert all(tiny()) and os.listdir(cache) == []


def test_every_kernel_of_the_printer_passes_the_check(base):
    """The child calls a kernel as the printer prints it: many columns, scalars and entries."""
    for seed in range(5):
        build.load(print_c.source(*random_program(seed)))


@pytest.mark.parametrize("how", ["frozen", "embedded"])
def test_no_application_is_started_in_place_of_python(how, cache, monkeypatch):
    if how == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", "")
    refused(kernel(7), "a frozen application")
    assert os.listdir(cache) == []


# several at once


def test_two_processes_that_compile_at_once_leave_one_whole_file(cache):
    code = ALONE + f"time.sleep(max(0, float(sys.argv[1]) - time.time())); print(answer({kernel(7)!r}))"
    command = [sys.executable, "-c", code, str(time.time() + 0.5)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [p.communicate(timeout=60) for p in both] == [("7.0\n", "")] * 3
    [path] = cache.iterdir()
    assert build._is_sound(path)


def test_two_threads_compile_a_source_once(cache, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, f'sleep 0.2; exec {GCC} "$@"')
    found = []
    threads = [threading.Thread(target=lambda: found.append(build.load(kernel(7)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.read_text().count("run") == 1
    assert len(found) == 4 and len(set(map(id, found))) == 1 and answer(found[0]) == 7


def test_a_fork_while_another_thread_compiles_can_compile(cache):
    code = f"""
    import threading
    holding = threading.Event()
    def hold():
        with build._process.lock:
            holding.set(); time.sleep(1)
    threading.Thread(target=hold).start()
    holding.wait()
    pid = os.fork()
    if not pid:
        os._exit(int(answer({kernel(7)!r})))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert script(ALONE + textwrap.dedent(code)) == "7\n"


def test_a_fork_after_loading_computes_the_same_in_one_thread(cache):
    """The parent has run kernels in threads; a child starts none."""
    code = """
    import os, torch, gradchain as gch
    from gradchain.engine.executors.native import threads_for
    torch.set_num_threads(2)
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.linspace(-1, 1, 1 << 19))})
    updater = gch.chain(gch.clip_by_norm(1.0), gch.scale_by_lion(), gch.scale_by_learning_rate(0.1)).bind(model)
    grads = {"w": torch.linspace(1, -2, 1 << 19)}
    updater.step(grads)
    print(threads_for(1 << 19))
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        updater.step(grads)
        if threads_for(1 << 19) != 1:
            os._exit(3)
        os.write(theirs, model["w"].detach().numpy()[::64].tobytes())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        told = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    updater.step(grads)
    print(told == model["w"].detach().numpy()[::64].tobytes(), repr(updater._bound.engine.reason))
    """
    assert script(code) == "2\nTrue ''\n"


# from end to end


def trained(reference=False):
    """Five steps. Returns the weights and, executor by executor, why those before it could not."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    rule = (gch.clip_by_norm(0.3), gch.scale_by_lion(), gch.add_decayed_weights(0.1), gch.scale_by_learning_rate(0.1))
    updater = fresh(gch.chain(*rule).bind(model))
    if reference:
        updater._bound.engine.executors = ()
    for step in range(5):
        updater.update(model(torch.linspace(-1, 1 + step, 15, dtype=torch.float64).view(3, 5)).square().sum())
    engine = updater._bound.engine
    assert reference or engine.reason == ""
    parts = [part for plan in engine._plans.values() for part in plan.parts]
    return [p.detach().clone() for p in model.parameters()], {part.executor: part.refused for part in parts}


def same(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_chain_runs_native(base):
    got, ran = trained()
    assert ran == {"native": {}}
    same(got, trained(reference=True)[0])


def test_a_chain_without_a_compiler_runs_otherwise_to_the_same_end(base, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="without native kernels.*install gcc or clang") as seen:
        got, ran = trained()
    assert len(seen) == 1
    assert ran and "native" not in ran and all("install gcc or clang" in why["native"] for why in ran.values())
    same(got, trained(reference=True)[0])


def test_a_chain_with_a_broken_compiler_asks_it_once_per_kernel(base, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "echo out of order >&2; exit 1")
    with pytest.warns(UserWarning, match="out of order") as seen:
        got, ran = trained()
    assert len(seen) == 1
    assert "native" not in ran and all("out of order" in why["native"] for why in ran.values())
    assert log.read_text().count("run") == 2  # the norm, and the rest
    same(got, trained(reference=True)[0])


def test_native_kernels_can_be_turned_off(base, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("GRADCHAIN_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody is told what they asked for
        got, ran = trained()
    assert ran and all(why["native"] == "GRADCHAIN_NATIVE=0 turns native kernels off" for why in ran.values())
    assert log.read_text() == ""
    same(got, trained(reference=True)[0])


def test_on_windows_there_are_none(monkeypatch):
    forget(monkeypatch)
    with monkeypatch.context() as elsewhere, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        elsewhere.setattr(build.os, "name", "nt")
        elsewhere.delattr(build.os, "geteuid")
        with pytest.raises(build.NoKernel) as caught:
            build.load(kernel(7))
    assert "for Linux and macOS, not for nt; set GRADCHAIN_NATIVE=0" in str(caught.value) and len(seen) == 1
