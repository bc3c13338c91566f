"""Exact gates on what a step costs: plans, kernels, operations, memory, vector code. No clock is read."""

from __future__ import annotations

import gc
import re
import subprocess
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twins import Shapes, by_executors, distance, drawn_like

import gradchain as gch
from benchmarks.memory import LiveBytes
from gradchain.core.index import Index
from gradchain.engine import engine
from gradchain.engine import plans as kept_plans
from gradchain.engine.executors import build

SINGLE = (torch.float32,)


def everything() -> gch.chain:
    return gch.chain(
        gch.accumulate(2), gch.amp_scale(1024.0, growth_interval=5, always=True), gch.clip_by_norm(1.0),
        gch.adamw(gch.cosine(0.05, 0.005, 50), mask=gch.min_ndim(2)), gch.average_params(0.9),
    )  # fmt: skip


def clipped() -> gch.chain:
    return gch.chain(gch.clip_by_norm(1.0), gch.adamw(0.01, mask=gch.min_ndim(2)), gch.average_params(0.9))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 3))


def ran(updater: gch.Updater) -> list[str]:
    """What the kernels of the last step did."""
    last = updater._bound.engine.last
    return [part.program.reduce[0] if part.program.reduce else "update" for part in last]


class Watch(TorchDispatchMode):
    """Which of torch's operations run, and how many bytes of new memory they take."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.new: dict[int, int] = {}
        self._kept: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        self.operations.append(str(func))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.new[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                self._kept.append(tensor)  # so that no address is given out twice
        return out

    @property
    def bytes(self) -> int:
        return sum(self.new.values())


# plans


def test_the_names_of_others_are_not_kept():
    params, made = gch.Tensors.of({"a": torch.ones(2), "b": torch.ones(2)}), []
    for _ in range(5):
        grads = gch.Tensors.of({"b": torch.ones(2)})
        made.append(weakref.ref(grads["b"]))
        assert list(params * grads) == ["b"]
        assert params.index.without(grads.index).names == ("a",)
        del grads
    gc.collect()
    assert [ref() for ref in made] == [None] * 5


def test_a_known_step_goes_through_no_names(monkeypatch):
    """Which parameters a mask, a branch and a freeze see is found by identity of what they were asked about."""
    inner = gch.masked(gch.chain(gch.trace(0.9), gch.masked(gch.clip_by_norm(1.0), gch.min_ndim(1))), gch.min_ndim(2))
    branches = gch.partition((gch.bias, gch.sgd(0.1)), (gch.rest, gch.sgd(0.1, weight_decay=0.1)))
    model = Shapes(SINGLE)
    updater = by_executors(gch.chain(gch.freeze(gch.named("*.cube")), inner, branches).bind(model), "native")
    updater._bound.engine._why_without_numbers = lambda request: (
        "not here"
    )  # a step that is run again asks for no subset at all
    asked, subset = [], Index.subset

    def watched(self, names):
        asked.append(type(names))
        return subset(self, names)

    for t in range(3):
        if t == 2:
            monkeypatch.setattr(Index, "subset", watched)
        updater.update(distance(model, t))
        assert updater._bound.engine.reason == ""
    assert set(asked) == {Index}


def test_a_whole_schedule_needs_four_plans():
    """The norm that serves finite check and clip; the update; and for the overflow, a search for
    what is infinite and a step without an update. Schedules, counts, scales and clips make no more of them."""
    model = Shapes(SINGLE)
    updater = by_executors(everything().bind(model), "native")
    plans, kernels, reasons = [], [], []
    for t in range(100):
        info = updater.update(distance(model, t, bad="head.weight" if t in (10, 60) else ""))
        plans.append(updater.num_updates and updater._bound.engine.num_plans)
        reasons.append(info.reason)
        if info.reason != "window":
            kernels.append((info.reason, *ran(updater)))
    assert reasons.count("applied") == 48
    assert reasons.count("overflow") == 2
    assert set(kernels) == {("applied", "sum2", "update", "update"), ("overflow", "sum2", "bad")}
    assert plans[9] == 2
    assert set(plans[11:]) == {4}


KERNELS = {
    "sgd": (lambda: gch.sgd(0.1), ["update"]),
    "adamw": (lambda: gch.adamw(gch.cosine(0.1, 0.0, 50)), ["update"]),
    "decay of some": (lambda: gch.adamw(0.1, mask=gch.min_ndim(2)), ["update", "update"]),
    "clip, average": (clipped, ["sum2", "update", "update"]),
    "finite, clip": (
        lambda: gch.chain(gch.skip_nonfinite(), gch.clip_by_norm(1.0), gch.lion(0.1)), ["sum2", "update"]
    ),
    "two clips": (
        lambda: gch.chain(gch.clip_by_norm(1.0), gch.clip_by_norm(2.0), gch.lion(0.1)), ["sum2", "update"]
    ),
    "two norms": (
        lambda: gch.chain(gch.clip_by_norm(1.0, p=1), gch.clip_by_norm(1.0, p=float("inf")), gch.lion(0.1)),
        ["sum1", "max", "update"],
    ),
    "late clip": (
        lambda: gch.chain(gch.scale_by_adam(), gch.clip_by_norm(1.0), gch.scale(-0.1)), ["sum2", "update"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "kernels"), list(KERNELS.values()), ids=list(KERNELS))
def test_kernels_of_a_step(make, kernels):
    model = plain()
    updater = by_executors(make().bind(model), "native")
    for t in range(4):
        updater.update(distance(model, t))
        assert ran(updater) == kernels
    assert updater._bound.engine.num_plans == len(set(kernels))


def test_constant_plans_where_gradients_come_and_go():
    """One plan per set of parameters that has gradients, not per step."""
    model = plain()
    updater = by_executors(gch.adam(0.01).bind(model), "native")
    names = list(updater.names)
    for t in range(24):
        updater.update(distance(model, t, absent=names[:2] if t % 3 == 0 else ()))
    # counts are unequal after the first step: one number per parameter in place of one for all
    assert updater._bound.engine.num_plans == 2


class restless(gch.Transform):
    """Another structure at each step: a different number of operations."""

    def update(self, u, state, ctx):
        for _ in range(ctx.step):
            u = u.abs().sqrt()
        return u, state


def test_more_plans_than_are_kept_warn_once_and_say_what_differs(monkeypatch):
    monkeypatch.setattr(kept_plans, "MOST_PLANS", 4)
    model = plain()
    updater = by_executors(gch.chain(restless(), gch.sgd(0.01)).bind(model), "blocks")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(8):
            updater.update(distance(model, t))
    texts = [str(w.message) for w in caught]
    assert len(texts) == 1
    assert "4 plans were made for one chain" in texts[0]
    assert "The last two differ in operation" in texts[0]
    assert updater._bound.engine.num_plans == 4


def test_the_warning_names_the_parameters_where_those_differ(monkeypatch):
    monkeypatch.setattr(kept_plans, "MOST_PLANS", 2)
    model = plain()
    updater = by_executors(gch.sgd(0.01).bind(model), "blocks")
    names = list(updater.names)
    with pytest.warns(UserWarning, match="over other parameters"):
        for t in range(3):
            updater.update(distance(model, t, absent=names[:t]))


# operations and memory


@pytest.mark.parametrize(
    "make", [clipped, lambda: gch.lion(0.01), lambda: gch.sgd(0.1, momentum=0.9)], ids=["clipped", "lion", "sgd"]
)
@pytest.mark.parametrize("model", [plain, lambda: Shapes(SINGLE)], ids=["contiguous", "strides of all kinds"])
def test_a_native_step_asks_torch_for_nothing(make, model):
    """Not one operation is dispatched: kernels take addresses, numbers stay on the host, and what bumps the weights'
    versions is no operation. So nothing is allocated either."""
    bound = model()
    updater = by_executors(make().bind(bound), "native")
    for t in range(4):
        for i, p in enumerate(bound.parameters()):
            p.grad = drawn_like(p, t + i)
        with Watch() as watch:
            assert updater.step()
        assert watch.operations == []


def test_the_watch_sees_the_reference():
    bound = plain()
    updater = by_executors(clipped().bind(bound))
    for p in bound.parameters():
        p.grad = torch.ones_like(p)
    with Watch() as watch:
        updater.step()
    assert len(watch.operations) > 20
    assert watch.bytes > 4 * sum(p.numel() for p in bound.parameters())


def test_without_executors_even_a_step_that_writes_nothing_is_the_reference_s(monkeypatch):
    bound = plain()
    window = gch.accumulate(3, dtype=torch.float32)  # in a buffer: a micro-batch that is held is a step of the engine
    updater = by_executors(gch.chain(window, gch.adamw(0.01)).bind(bound))
    monkeypatch.setattr(engine, "Tape", None)
    for t in range(3):
        updater.update(distance(bound, t))
        assert updater._bound.engine.reason == "no executor may run it"
        assert not updater._bound.engine.last
    assert updater.num_updates == 1


def test_a_window_that_is_first_lies_in_the_gradients():
    """The parked window is the tensors autograd summed into: no second buffer, and nothing new but a loss."""
    bound = plain()
    updater = by_executors(gch.chain(gch.accumulate(3), gch.adamw(0.01)).bind(bound), "native")
    for t in range(6):
        updater.backward(distance(bound, t))
        grads = {p.grad.data_ptr() for p in bound.parameters()}
        with Watch() as watch:
            info = updater.step()
        # the mean of the losses, a 0-d tensor; a step that is run again makes none that no link reads
        losses = ["aten.add.Tensor", "aten.div.Tensor"][: 2 if info else 1]
        assert watch.operations == losses or (info and not watch.operations and t > 2)
        assert set(watch.new.values()) <= {8}
        if not info:
            window = updater._bound.state.links["accumulate"].window
            assert {tensor.data_ptr() for tensor in window._data} == grads


def test_a_foreign_gradient_costs_one_copy_of_it():
    bound = plain()
    updater = by_executors(gch.adam(0.01).bind(bound), "native")
    for _ in range(3):
        for p in bound.parameters():
            p.grad = torch.ones_like(p)
        first = next(iter(bound.parameters()))
        first.grad = torch.ones(first.shape[::-1]).t()
        with Watch() as watch:
            updater.step()
        assert watch.bytes == 4 * first.numel()


def test_scratch_of_blocks_is_bounded():
    """Without kernels a step works on cache-sized pieces: its scratch does not grow with the model."""
    sizes = []
    for length in (1 << 20, 1 << 21):
        weights = torch.zeros(length, requires_grad=True)
        updater = by_executors(gch.adam(0.01).bind({"w": weights}), "blocks")
        grad = torch.ones(length)
        updater.step({"w": grad})
        with Watch() as watch:
            updater.step({"w": grad})
        sizes.append(max(watch.new.values()))
    assert sizes[0] == sizes[1] <= 8 << 16


def test_gradients_are_let_go():
    """The engine keeps no gradient beyond its step."""
    import gc
    import weakref

    for names in (("native",), ("patterns", "blocks"), ("blocks",)):
        bound = plain()
        updater = by_executors(clipped().bind(bound), *names)
        for t in range(2):
            updater.backward(distance(bound, t))
            grads = [weakref.ref(p.grad) for p in bound.parameters()]
            updater.step()
            gc.collect()
            assert not any(grad() is not None for grad in grads), names


# vector code

VECTOR = {
    "many columns": lambda: gch.chain(
        gch.trace(0.9), gch.scale_by_adam(), gch.trace(0.5), gch.sgd(0.1), gch.average_params(0.9)
    ),
    "adamw": clipped,
    "everything": everything,
    "lion": lambda: gch.chain(gch.clip_by_norm(1.0, p=1), gch.lion(0.01)),
    "nadamw": lambda: gch.chain(gch.clip_by_norm(1.0, p=float("inf")), gch.clip_by_value(0.5), gch.nadamw(0.01)),
    "nesterov": lambda: gch.chain(
        gch.skip_nonfinite(),
        gch.clip_by_norm(1.0, per="tensor"),
        gch.nan_to_num(),
        gch.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "signs": lambda: gch.chain(gch.trace(0.9), gch.scale_by_sign(), gch.scale(-0.1)),
    "late clip": lambda: gch.chain(gch.scale_by_adam(), gch.clip_by_norm(1.0), gch.scale_by_learning_rate(0.05)),
}


def sources(make, dtype: torch.dtype) -> set[str]:
    model = nn.Linear(3, 2).to(dtype)
    updater = by_executors(make().bind(model), "native")
    for t in range(4):
        size = float("inf") if t == 1 else 1.0  # so that gates look further
        updater.step({name: size * torch.ones_like(p) for name, p in model.named_parameters()})
    plans = updater._bound.engine._plans.values()
    return {part.runner.source for plan in plans for part in plan.parts}


def vectorised(source: str, folder) -> tuple[list[int], set[int]]:
    """The lines where the loops over elements begin, and the lines of which gcc says that it vectorised them."""
    name, version = build.compiler()
    file = folder / "kernel.c"
    file.write_text(source)
    command = [
        name,
        *build.flags(version),
        "-fopt-info-vec-optimized",
        str(file),
        "-o",
        str(folder / "kernel.so"),
        "-lm",
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr
    done = {int(n) for n in re.findall(r"kernel\.c:(\d+):\d+: optimized: (?:loop|basic block part) vectorized", told)}
    lines = source.splitlines()
    return [
        i for i, line in enumerate(lines, 1) if re.match(r"\s*for \(int64_t i = j; i < m|\s*for \(; i \+", line)
    ], done


def are_vector_code(make, dtype: torch.dtype, folder) -> None:
    compiler, version = build.compiler()
    if "gcc" not in version.lower() and "free software foundation" not in version.lower():
        pytest.skip(f"{compiler} does not say which loops it vectorised in gcc's words")
    if not any(flag in torch.backends.cpu.get_cpu_capability() for flag in ("AVX2", "AVX512")):
        pytest.skip("without AVX2 gcc may rightly find that vectors do not pay")
    for source in sources(make, dtype):
        loops, done = vectorised(source, folder)
        assert loops
        for line in loops:
            # a reduction is a loop of lanes within a loop: either may be what is vectorised
            assert done & set(range(line, line + 40)), f"line {line} of\n{source}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", list(VECTOR))
def test_every_loop_is_vector_code(name, dtype, tmp_path):
    are_vector_code(VECTOR[name], dtype, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_a_power_is_vector_code_in_float32(dtype, tmp_path):
    are_vector_code(lambda: gch.rules.madgrad(0.1), dtype, tmp_path)


NARROW = "prefer-vector-width=256"


def test_shorter_vectors_are_for_kernels_that_only_move_memory():
    """A few sums and products of a few columns; no root, no quotient, no reduction, and not many columns."""
    few = [lambda: gch.sgd(0.1), lambda: gch.sgd(0.1, momentum=0.9), lambda: gch.asgd(0.1)]
    many = [
        lambda: gch.rules.schedule_free_sgd(0.1),
        lambda: gch.adagrad(0.1),
        lambda: gch.sgd(0.1, 0.9, nesterov=True),
    ]
    assert all(NARROW in source for make in few for source in sources(make, torch.float32))
    assert not any(NARROW in source for make in many for source in sources(make, torch.float32))
    clipped = sources(lambda: gch.chain(gch.clip_by_norm(1.0), gch.sgd(0.1)), torch.float32)
    assert sorted((NARROW in source, "lane" in source) for source in clipped) == [(False, True), (True, False)]


def test_a_loop_that_cannot_be_vector_code_is_seen(tmp_path):
    source = next(s for s in sources(lambda: gch.sgd(0.1), torch.float32))
    assert vectorised(source, tmp_path)[1]
    slow = re.sub(r"(for \(int64_t i = j; i < m; \+\+i\) \{)", r"\1 if (p0[i] == 3) return;", source)
    assert not vectorised(slow, tmp_path)[1]


# explain


def test_explain_names_executors_reasons_bytes_and_ends():
    model = plain()
    tx = gch.chain(gch.accumulate(2), gch.clip_by_norm(1.0), gch.adamw(gch.cosine(0.1, 0.0, 40)))
    updater = by_executors(tx.bind(model), "native")
    assert "no step has run yet, so nothing is planned" in updater.explain()
    for t in range(4):
        updater.update(distance(model, t))
    lines = updater.explain().removeprefix(f"{updater.chain!r}\n").splitlines()
    elements = sum(p.numel() for p in model.parameters())
    assert lines[0] == f"4 parameters of {elements:,} elements; 0 never had a gradient"
    assert lines[1] == "2 plans so far; the last step ran 2 kernels:"
    assert lines[2] == (
        "  native: reduction sum2 over 0.weight and 3 more: 0 operations, 4 bytes read and 0 written per element, "
        "0 bytes of scratch at most"
    )
    assert re.fullmatch(
        r"  native: update of 3 columns over 0.weight and 3 more: \d+ operations, "
        r"16 bytes read and 12 written per element, 0 bytes of scratch at most",
        lines[3],
    )
    assert f"state of scale_by_adam: {8 * elements:,} bytes" in lines
    assert lines[-1] == ("scale_by_learning_rate.learning_rate ends at update 40, micro-batch 80: cosine(0.1, 0.0, 40)")
    assert "void run(" in updater.explain(source=True)
    assert "void run(" not in updater.explain()


def test_explain_says_why_other_executors_could_not():
    model = plain()
    updater = by_executors(gch.chain(gch.clip_by_norm(1.0), gch.lion(0.1)).bind(model), "patterns", "blocks")
    updater.update(distance(model, 0))
    text = updater.explain()
    assert "not patterns: fused kernels neither reduce, nor take numbers per parameter or several dtypes" in text
    assert "not patterns: no fused kernel of torch computes this" in text
    assert text.count("  blocks: ") == 2


def test_explain_says_that_and_why_the_reference_ran():
    class device(gch.Transform):
        def update(self, u, state, ctx):
            return u * torch.ones((), requires_grad=True), state

    model = plain()
    updater = gch.chain(device(), gch.sgd(0.1)).bind(model)
    updater.update(distance(model, 0))
    assert (
        "the last step ran by the reference: a scalar lives on another device, or requires a gradient"
        in updater.explain()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("executor", ["native", "blocks"])
def test_scratch_is_what_explain_says(executor, dtype):
    """What a run makes and lets go of: nothing natively, in blocks no more than is told, however large the model."""
    model = nn.Linear(900, 900, dtype=dtype)
    updater = by_executors(gch.chain(gch.clip_by_norm(1.0), gch.adamw(0.1)).bind(model), executor)
    grads = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    updater.step(grads)
    with LiveBytes() as live:
        updater.step(grads)
    told = max(part.runner.scratch for part in updater._bound.engine.last)
    assert f"{told:,} bytes of scratch at most" in updater.explain()
    small = 16_384  # what is made for a look at the state, not by a kernel
    assert live.peak <= told + small
    assert told == 0 if executor == "native" else live.peak > told / 3
