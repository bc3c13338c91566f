"""A copied model with its updater: it goes on bit for bit as the original does, and the two share nothing."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from little import data, loss_of, same, weights
from lives import EXECUTORS, LIVES, Life, execute, run_by
from torch import Tensor, nn

import gradchain as gch

Pair = tuple[nn.Module, gch.Updater]


def _through_a_file(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _sent(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


COPIES: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": _sent, "torch.save": _through_a_file}


def tensors_of(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached from a value, through containers and instances of ours and torch's."""
    if id(value) in seen or isinstance(value, (type, str, bytes)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_of(inner, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for inner in value:
            yield from tensors_of(inner, seen)
    elif type(value).__module__.partition(".")[0] in ("gradchain", "torch", "little", "lives"):
        names = {n for c in type(value).__mro__ for n in getattr(c, "__slots__", ()) if isinstance(n, str)}
        held = [getattr(value, n) for n in names if n not in ("__weakref__", "__dict__") and hasattr(value, n)]
        yield from tensors_of([*held, getattr(value, "__dict__", {})], seen)


def places(pair: Any) -> set[int]:
    """Where the memory of all its tensors begins."""
    return {t.untyped_storage().data_ptr() for t in tensors_of(pair, set()) if t.numel()}


def assert_alike(one: Pair, other: Pair) -> None:
    """Weights, buffers and state are equal to the bit."""
    assert same(dict(one[0].state_dict()), dict(other[0].state_dict()))
    assert same(one[1].state_dict(), other[1].state_dict())
    assert one[1].hyperparams() == other[1].hyperparams()
    assert (one[1].num_updates, one[1].num_micro, one[1].num_skipped) == (
        other[1].num_updates,
        other[1].num_micro,
        other[1].num_skipped,
    )


def assert_goes_on(life: Life, original: Pair, copied: Pair, executor: str, begun: int) -> None:
    """Each moves its own model as the other does, at different times, and neither moves the other's."""
    run_by(copied[1], executor)
    assert not places(original) & places(copied)
    assert_alike(original, copied)
    before = weights(original[0])
    for rows in data(begun + 6)[begun:]:
        life.update(*copied, rows)
    assert same(weights(original[0]), before)
    for rows in data(begun + 6)[begun:]:
        life.update(*original, rows)
    assert not same(weights(original[0]), before)
    assert_alike(original, copied)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", LIVES)
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_copy_goes_on_as_the_original(
    steps: int, how: str, name: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh, after the first step, and after steps that ran again or inside a window."""
    execute(monkeypatch, executor)
    life = LIVES[name]
    model, updater = life.begin(executor)
    for rows in data(steps):
        life.update(model, updater, rows)
    assert_goes_on(life, (model, updater), COPIES[how]((model, updater)), executor, steps)


def _overridden(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.override("learning_rate", gch.linear(0.05, 0.01, 10))


def _per_parameter(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.override("learning_rate", gch.multiply(0.05, (gch.bias, 0.1)))
    life.update(model, updater, data(1)[0])


def _lent(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.averages()
    with updater.averaged():
        pass


def _unequal(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.update(model[0](data(1)[0].to(life.dtype)).sum())


def _given(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.step({n: torch.full_like(p, 0.1) for n, p in model.named_parameters()})


def _skipped(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.step({n: torch.full_like(p, torch.inf) for n, p in model.named_parameters()})
    assert updater.num_skipped == 1


def _loaded(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.load_state_dict(copy.deepcopy(updater.state_dict()))


def _reset(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.reset(gch.bias)


def _frozen(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    model[0].requires_grad_(False)
    updater.rebind(model)
    life.update(model, updater, data(1)[0])
    model[0].requires_grad_(True)


def _observed(life: Life, model: nn.Module, updater: gch.Updater) -> None:
    updater.observe("val_loss", 1.0)


STATES: dict[str, tuple[str, Callable[[Life, nn.Module, gch.Updater], None]]] = {
    "overrides": ("adamw", _overridden),
    "an override per parameter": ("adamw", _per_parameter),
    "an override in backward": ("in backward", _overridden),
    "averages lent": ("average", _lent),
    "unequal counts": ("adamw", _unequal),
    "unequal counts in backward": ("in backward", _unequal),
    "gradients given": ("adamw", _given),
    "a skipped update": ("gates", _skipped),
    "loaded": ("recipe", _loaded),
    "reset": ("recipe", _reset),
    "frozen and thawed": ("adamw", _frozen),
    "something observed": ("adamw", _observed),
}


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_in_every_state(how: str, state: str, executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was done with the original before."""
    execute(monkeypatch, executor)
    name, act = STATES[state]
    life = LIVES[name]
    model, updater = life.begin(executor)
    for rows in data(2):
        life.update(model, updater, rows)
    act(life, model, updater)
    assert_goes_on(life, (model, updater), COPIES[how]((model, updater)), executor, 3)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_copy(how: str) -> None:
    """And of one that has moved."""
    life = LIVES["recipe"]
    pair = life.begin("native")
    for k in range(3):
        life.update(*pair, data(4)[k])
        copied = COPIES[how](pair)
        assert_alike(pair, copied)
        pair = copied
    assert_goes_on(life, pair, COPIES[how](pair), "native", 3)


@pytest.mark.parametrize("how", COPIES)
def test_hooks_of_a_copy_move_its_own_model_once(how: str) -> None:
    """A backward of either model is an update of that one alone, and of that one just once."""
    life = LIVES["in backward"]
    model, updater = life.begin("native")
    life.update(model, updater, data(1)[0])
    other, copied = COPIES[how]((model, updater))
    assert [len(p._post_accumulate_grad_hooks) for p in other.parameters()] == [1, 1, 1, 1]
    assert [len(p._post_accumulate_grad_hooks) for p in model.parameters()] == [1, 1, 1, 1]
    life.update(other, copied, data(2)[1])
    assert (updater.num_updates, copied.num_updates) == (1, 2)
    assert copied.state_dict()["links"]["scale_by_adam"]["count"] == 2
    del updater
    life.update(other, copied, data(2)[1])
    assert copied.num_updates == 3 and not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("how", COPIES)
def test_an_updater_alone_is_copied_with_its_model(how: str) -> None:
    """As torch's optimizers are: it updates what it holds, and leaves the original's model alone."""
    life = LIVES["adamw"]
    model, updater = life.begin("native")
    for rows in data(3):
        life.update(model, updater, rows)
    before, copied = weights(model), COPIES[how](updater)
    copied.step({n: torch.ones_like(p) for n, p in model.named_parameters()}, last=True)
    assert copied.num_updates == updater.num_updates + 1 and same(weights(model), before)


@pytest.mark.parametrize("how", COPIES)
def test_a_group_is_copied_whole(how: str) -> None:
    """With tied models tied."""
    life = LIVES["adamw"]
    model, updater = life.begin("native")
    second = gch.sgd(0.1).bind(model[0])
    both = gch.group(whole=updater, part=second)
    life.update(model, updater, data(1)[0])
    other, copied = COPIES[how]((model, both))
    life.update(other, copied["whole"], data(2)[1])
    life.update(model, both["whole"], data(2)[1])
    copied["part"].update(other[0](data(1)[0]).sum())
    both["part"].update(model[0](data(1)[0]).sum())
    assert same(weights(model), weights(other)) and same(both.state_dict(), copied.state_dict())


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_what_cannot_be_pickled_says_so_by_name(how: str) -> None:
    """A schedule without a name is pickle's to refuse, and it names it."""
    model, updater = Life(lambda: gch.sgd(lambda step: 0.1 / (1 + step))).begin("native")
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        COPIES[how]((model, updater))
    other, copied = copy.deepcopy((model, updater))  # which copies no function
    updater.update(loss_of(model, data(1)[0]))
    copied.update(loss_of(other, data(1)[0]))
    assert same(weights(model), weights(other))


@pytest.mark.parametrize("how", COPIES)
def test_no_copy_where_the_weights_are_not_the_models_own(how: str) -> None:
    """Inside `averaged()` they are averages, and the way back would be lost."""
    life = LIVES["average"]
    model, updater = life.begin("native")
    life.update(model, updater, data(1)[0])
    with updater.averaged(), pytest.raises(RuntimeError, match=r"copy: not inside `with updater.averaged\(\)`"):
        COPIES[how]((model, updater))
    COPIES[how]((model, updater))


@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("how", COPIES)
def test_no_copy_of_weights_without_memory(how: str, size: int) -> None:
    """Torch reads where nothing is. With the memory back it is copied."""
    life = LIVES["adamw"]
    model, updater = life.begin("native")
    life.update(model, updater, data(1)[0])
    name, weight = next(iter(model.named_parameters()))
    kept, storage = weight.detach().clone(), weight.untyped_storage()
    whole = storage.nbytes()
    storage.resize_(size)
    with pytest.raises(
        RuntimeError, match=f"'{name}' must have memory for its elements, got a storage of {size} bytes"
    ):
        COPIES[how](updater)
    storage.resize_(whole)
    weight.data.copy_(kept)
    COPIES[how](updater)


@pytest.mark.parametrize("name", ["adamw", "recipe", "in backward"])
@pytest.mark.parametrize("how", COPIES)
def test_no_copy_between_backward_and_step(how: str, name: str) -> None:
    """Gradients lie in `.grad`, which torch copies for no parameter: they would be lost without a word."""
    life = LIVES[name]
    model, updater = life.begin("native")
    updater.backward(loss_of(model, data(1)[0]))
    with pytest.raises(RuntimeError, match=r"copy: a backward .* its step\(\)"):
        COPIES[how]((model, updater))
    updater.step()
    assert_goes_on(life, (model, updater), COPIES[how]((model, updater)), "native", 1)


def test_no_shallow_copy() -> None:
    """Two updaters over one state would each count half of the steps."""
    _, updater = LIVES["adamw"].begin("native")
    with pytest.raises(TypeError, match=r"copy.copy: .*copy.deepcopy\(\(model, updater\)\)"):
        copy.copy(updater)


def _trains_on(pair: Pair, queue: Any) -> None:
    """In a process of its own: three more micro-batches, and what came out."""
    torch.set_num_threads(1)
    model, updater = pair
    for rows in data(6)[3:]:
        LIVES["recipe"].update(model, updater, rows)
    queue.put({n: w.tolist() for n, w in weights(model).items()})


@pytest.mark.slow
def test_a_spawned_process_goes_on() -> None:
    """What multiprocessing sends, another process trains on."""
    life = LIVES["recipe"]
    model, updater = life.begin("native")
    for rows in data(3):
        life.update(model, updater, rows)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_trains_on, args=(copy.deepcopy((model, updater)), queue))
    process.start()
    found = queue.get(timeout=120)
    process.join()
    for rows in data(6)[3:]:
        life.update(model, updater, rows)
    assert found == {n: w.tolist() for n, w in weights(model).items()}
