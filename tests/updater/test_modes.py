"""What torch is set to around a call changes nothing of what an updater makes and does, or a sentence says why not."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from little import data, loss_of, net, same, untouched, weights
from lives import EXECUTORS, LIVES, Life, execute
from test_copies import tensors_of
from torch import Tensor, nn

import gradchain as gch


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "grad set off": lambda: torch.set_grad_enabled(False),
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "device meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "inference_mode in enable_grad": lambda: stacked(torch.enable_grad(), torch.inference_mode()),
    "inference_mode on meta in autocast": lambda: stacked(
        torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16)
    ),
}


@contextlib.contextmanager
def stacked(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def assert_normal(updater: gch.Updater) -> None:
    """All tensors that the updater holds are real ones of the host, and no inference tensors."""
    for tensor in tensors_of(updater, set()):
        assert not tensor.is_inference() and tensor.device.type == "cpu", tensor


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """One for each parameter, made here."""
    return {n: torch.full_like(p, 0.1, requires_grad=False).detach() for n, p in model.named_parameters()}


# What is done in a mode: after it, an updater goes on as one to which the same was done outside of it.


def _bind(life: Life, pair: Any, mode: Any) -> Any:
    model = net(0, life.dtype)
    with mode():
        return model, life.tx().bind(model, **life.options)


def _load(life: Life, pair: Any, mode: Any) -> Any:
    saved = copy.deepcopy(pair[1].state_dict())
    with mode():
        pair[1].load_state_dict(saved)
    return pair


def _load_weights(life: Life, pair: Any, mode: Any) -> Any:
    with mode():
        contents = pair[1].contents()
        pair[1].stage_contents(contents)()
    return pair


def _reset(life: Life, pair: Any, mode: Any) -> Any:
    with mode():
        pair[1].reset(gch.bias)
    return pair


def _reset_all(life: Life, pair: Any, mode: Any) -> Any:
    with mode():
        pair[1].reset()
    return pair


def _rebind(life: Life, pair: Any, mode: Any) -> Any:
    with mode():
        pair[1].rebind(pair[0])
    return pair


def _copy(life: Life, pair: Any, mode: Any) -> Any:
    with mode():
        return copy.deepcopy(pair)


def _step(life: Life, pair: Any, mode: Any) -> Any:
    model, updater = pair
    updater.zero_grad()
    given = gradients(model)
    with mode():
        updater.step(given, last=True)
    return pair


def _flush(life: Life, pair: Any, mode: Any) -> Any:
    with mode():
        pair[1].flush()
    return pair


def _look(life: Life, pair: Any, mode: Any) -> Any:
    with mode():
        pair[1].explain(), pair[1].hyperparams(), pair[1].metrics, pair[1].settings(), pair[1].state_dict()
    return pair


def _override(life: Life, pair: Any, mode: Any) -> Any:
    name = next(n for n in pair[1].hyperparams() if n.endswith(("learning_rate", ".lr")))
    with mode():
        pair[1].override(name, 0.02)
    return pair


def _update(life: Life, pair: Any, mode: Any) -> Any:
    model, updater = pair
    loss = loss_of(model, data(1)[0].to(life.dtype))
    with mode():
        updater.update(loss)
    return pair


DOINGS = {
    "bind": _bind,
    "load": _load,
    "load weights": _load_weights,
    "reset": _reset,
    "reset all": _reset_all,
    "rebind": _rebind,
    "copy": _copy,
    "step": _step,
    "flush": _flush,
    "look": _look,
    "override": _override,
    "update": _update,
}


def _possible(doing: str, mode: str) -> bool:
    # there is no backward in inference mode, and torch's own copy of a model would be of inference tensors
    return doing not in ("update", "copy") or "inference" not in mode


def _lived(life: Life, executor: str, doing: str, mode: Any) -> tuple[nn.Module, gch.Updater]:
    """Three micro-batches, something done in a mode, three more."""
    pair = life.begin(executor)
    for rows in data(3):
        life.update(*pair, rows)
    model, updater = DOINGS[doing](life, pair, mode)
    if executor == "reference":
        updater._bound.engine.executors = ()
    assert_normal(updater)
    for rows in data(6)[3:]:
        life.update(model, updater, rows)
    assert_normal(updater)
    return model, updater


# every chain by the default executor, and by the others those that go other ways through the updater
WAYS = [(name, "native") for name in LIVES] + [
    (name, executor) for name in ("recipe", "in backward") for executor in ("blocks", "reference")
]


@pytest.mark.parametrize(
    ("doing", "name", "executor"),
    [(d, n, e) for d in DOINGS for n, e in WAYS if not (d in ("step", "update") and LIVES[n].closure)],
)
def test_the_mode_that_a_call_runs_in_changes_nothing(
    doing: str, name: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mode around each method: afterwards weights and state are, bit for bit, what they are without the mode."""
    execute(monkeypatch, executor)
    life = LIVES[name]
    model, updater = _lived(life, executor, doing, contextlib.nullcontext)
    for mode, enter in MODES.items():
        if not _possible(doing, mode):
            continue
        other, moded = _lived(life, executor, doing, enter)
        assert same(weights(model), weights(other)), mode
        assert same(updater.state_dict(), moded.state_dict()), mode


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_update_in_a_mode(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run in it, forward included, where torch can: what is kept is as outside."""
    execute(monkeypatch, executor)
    for name in ("adamw", "recipe", "sam", "mapped", "from torch", "in backward"):
        life = LIVES[name]
        for mode in ("enable_grad", "default float64", "deterministic", "anomaly"):
            pairs = []
            for enter in (contextlib.nullcontext, MODES[mode]):
                pair = life.begin(executor)
                with enter():
                    for rows in data(5):
                        life.update(*pair, rows)
                pairs.append(pair)
            assert same(weights(pairs[0][0]), weights(pairs[1][0])), (name, mode)
            if (name, mode) != ("from torch", "default float64"):  # its class counts in the default dtype
                assert same(pairs[0][1].state_dict(), pairs[1][1].state_dict()), (name, mode)


def _calls(life: Life) -> dict[str, Callable[[nn.Module, gch.Updater, Any], Any]]:
    return {
        "update": lambda m, u, loss: u.update(loss),
        "backward": lambda m, u, loss: u.backward(loss),
        "update of a closure": lambda m, u, loss: u.update(lambda: loss_of(m, data(1)[0])),
    }


@pytest.mark.parametrize("call", ["update", "backward", "update of a closure"])
@pytest.mark.parametrize("name", ["adamw", "recipe", "sam", "in backward"])
def test_no_gradient_in_inference_mode(name: str, call: str) -> None:
    """A loss made outside of it, or a closure: there is no backward there, and a sentence says so before anything."""
    life = LIVES[name]
    model, updater = life.begin("native")
    life.update(model, updater, data(1)[0])
    loss = loss_of(model, data(1)[0])
    with untouched(model, updater), torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        _calls(life)[call](model, updater, loss)
    life.update(model, updater, data(1)[0])


def test_a_closure_under_no_grad_has_its_graph() -> None:
    """As torch's optimizers have it: a closure is for taking gradients."""
    life = LIVES["sam"]
    model, updater = life.begin("native")
    other, moded = life.begin("native")
    for rows in data(3):
        life.update(model, updater, rows)
        with torch.no_grad():
            life.update(other, moded, rows)
    assert same(weights(model), weights(other))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["momentum", "buffered window", "recipe", "adamw"])
def test_gradients_made_in_inference_mode(name: str, executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given, or put into .grad: what is kept of them, as in a window, can be written to later."""
    execute(monkeypatch, executor)
    life = LIVES[name]
    results = []
    for mode in (contextlib.nullcontext, torch.inference_mode):
        model, updater = life.begin(executor)
        for k in range(4):
            with mode():
                given = gradients(model)
                if k % 2:
                    updater.step(given)
            if not k % 2:
                updater.step(given)
            assert_normal(updater)
        results.append((weights(model), updater.state_dict()))
    assert same(*results)


def test_weights_made_in_inference_mode_are_refused_at_bind() -> None:
    """They can never have a gradient."""
    with torch.inference_mode():
        model = net()
    with pytest.raises(ValueError, match=r"bind: '0.weight' must be .* inference"):
        gch.sgd(0.1).bind(model)


@pytest.mark.parametrize("call", ["update", "backward", "step", "flush", "bind", "load", "reset", "rebind", "averaged"])
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_a_sentence_under_torch_func(transform: str, call: str) -> None:
    """An updater writes to its model, which no transform of functions can follow: the chain itself is pure."""
    life = LIVES["average"]
    model, updater = life.begin("native")
    life.update(model, updater, data(1)[0])
    saved, rows = copy.deepcopy(updater.state_dict()), data(1)[0]

    def inside(x: Tensor) -> Tensor:
        calls: dict[str, Callable[[], Any]] = {
            "update": lambda: updater.update(model(rows).sum() * x.sum()),
            "backward": lambda: updater.backward(model(rows).sum() * x.sum()),
            "step": lambda: updater.step({n: p.detach() * x.sum() for n, p in model.named_parameters()}),
            "flush": updater.flush,
            "bind": lambda: life.tx().bind(model),
            "load": lambda: updater.load_state_dict(saved),
            "reset": updater.reset,
            "rebind": lambda: updater.rebind(model),
            "averaged": lambda: updater.averaged().__enter__(),
        }
        calls[call]()
        return x.sum()

    ones = torch.ones(3, dtype=torch.float64)
    runs: dict[str, Callable[[], Any]] = {
        "grad": lambda: torch.func.grad(inside)(ones),
        "vmap": lambda: torch.func.vmap(inside)(ones),
        "jvp": lambda: torch.func.jvp(inside, (ones,), (ones,)),
    }
    with untouched(model, updater), pytest.raises(RuntimeError, match=r"torch\.func"):
        runs[transform]()
    life.update(model, updater, data(1)[0])


@pytest.mark.parametrize("name", ["matrices", "adamw", "sam", "recipe"])
def test_one_autocast_around_the_whole_loop(name: str) -> None:
    """Autocast keeps casts of weights till it ends; each update ends those of the weights it wrote, and its own
    arithmetic is not cast.
    """
    life = Life(LIVES[name].tx, LIVES[name].options, LIVES[name].closure, torch.float32)
    results = []
    for whole in (True, False):
        model, updater = life.begin("native")
        outer = torch.autocast("cpu", dtype=torch.bfloat16) if whole else contextlib.nullcontext()
        with outer:
            for rows in data(5, dtype=torch.float32):

                def loss(rows: Tensor = rows, model: nn.Module = model, whole: bool = whole) -> Tensor:
                    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=whole):
                        return loss_of(model, rows)

                updater.update(loss if life.closure else loss())
        results.append(weights(model))
    assert same(*results)


# threads


def _in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", LIVES)
def test_an_update_from_another_thread(name: str, executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound in one thread and updated in others, by turns, it gives what one thread gives."""
    execute(monkeypatch, executor)
    life = LIVES[name]
    model, updater = life.begin(executor)
    other, threaded = _in_thread(lambda: life.begin(executor))
    for k, rows in enumerate(data(6)):
        life.update(model, updater, rows)
        if k % 3:
            _in_thread(lambda rows=rows: life.update(other, threaded, rows))
        else:
            life.update(other, threaded, rows)
    assert same(weights(model), weights(other)) and same(updater.state_dict(), threaded.state_dict())


@pytest.mark.parametrize("executor", EXECUTORS)
def test_updaters_in_threads_at_once(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several gives what it gives alone."""
    execute(monkeypatch, executor)
    names = ["adamw", "recipe", "in backward", "partition", "per parameter", "adamw"]
    alone = []
    for name in names:
        model, updater = LIVES[name].begin(executor)
        for rows in data(30):
            LIVES[name].update(model, updater, rows)
        alone.append((weights(model), updater.state_dict()))
    together: list[Any] = [None] * len(names)
    start = threading.Barrier(len(names))

    def run(k: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        model, updater = LIVES[names[k]].begin(executor)
        for rows in data(30):
            LIVES[names[k]].update(model, updater, rows)
        together[k] = (weights(model), updater.state_dict())

    # a model's numbers come from the global generator, which threads share
    made = net

    def locked(*args: Any) -> Any:
        with lock:
            return made(*args)

    lock = threading.Lock()
    monkeypatch.setattr("lives.net", locked)
    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, one, other in zip(names, alone, together, strict=True):
        assert other is not None and same(one, other), name
