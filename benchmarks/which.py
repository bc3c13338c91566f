"""Which implementation is which: `python -m benchmarks.which` runs every rule beside its peers, writes docs/which.md.

Both have the same weights in float64, and the same gradients in 25 steps, which differ from step to step and depend a
little on the weights. A distance is the largest difference of a weight at the end, in parts of the largest movement of
its tensor. `which_rules.py` and `which_links.py` have the rows, as the code that is shown.

`--rule` runs one, and leaves the rows of others as they stand. timm is in no test: `pip install --no-deps timm
torchvision` runs it too; a row whose package is not installed stays as it stands.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradchain as gch
from benchmarks.which_links import COMPOSING, LINKS, PROJECTIONS, REST
from benchmarks.which_peers import EVERY, Peer, Rule
from benchmarks.which_rules import RULES

ROWS: tuple[Rule, ...] = tuple(sorted((*RULES, *COMPOSING, *LINKS, *PROJECTIONS, *REST), key=lambda row: row.name))
PAGE = Path(__file__).parents[1] / "docs" / "which.md"
SHAPES = {"matrix": (6, 5), "tall": (9, 4), "filters": (4, 3, 2, 2), "bias": (7,)}
STEPS, RATE, EQUAL = 25, 0.05, 1e-12
PACKAGES = (
    "torch", "optax", "pytorch_optimizer", "timm", "torch_optimizer", "transformers", "schedulefree", "lion_pytorch",
    "bitsandbytes", "heavyball",
)  # fmt: skip
INSIDE = {"timm": ("timm.optim",), "transformers": ("transformers.optimization",), "optax": ("optax.contrib",)}
HEAD = """# Which implementation is which

`python -m benchmarks.which` writes this page. For every name of `gch.rules` its peers, as they are and at the arguments
that make them the same rule where there are such, and how far their weights are from gradchain's after {steps} steps in
float64: the largest difference, in parts of the largest movement of its tensor. "equal" is at most {equal:g}. The rate
`lr` is {rate:g} for all; weights are {shapes}; gradients are normal numbers, ten times as large in some steps as in
others, and depend a little on the weights. What has no rate has one behind it: `gch.scale_by_learning_rate(lr)`, or
`optax.scale(-lr)`.

Versions: {versions}.

| rule | peer | at defaults | at pinned arguments | distance | what differs |
|---|---|---|---|---|---|
"""


class MissingError(ImportError):
    """A package of peers that is not installed."""


# the problem


def start(names: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights of these shapes."""
    generator = torch.Generator().manual_seed(0)
    every = {n: torch.randn(s, dtype=torch.float64, generator=generator) for n, s in SHAPES.items()}
    return {n: every[n] for n in names}


def pushes(names: tuple[str, ...], t: int) -> dict[str, Tensor]:
    """The gradients of a step where the weights are zero."""
    generator = torch.Generator().manual_seed(t + 1)
    every = {n: torch.randn(s, dtype=torch.float64, generator=generator) for n, s in SHAPES.items()}
    return {n: every[n] * (0.1 if t % 3 == 1 else 1.0) for n in names}


def loss_of(weights: Mapping[str, Tensor], t: int) -> Tensor:
    """A loss whose gradient is that, and 0.05 tanh w."""
    given = pushes(tuple(weights), t)
    return torch.stack([(given[n] * w).sum() + 0.05 * w.cosh().log().sum() for n, w in weights.items()]).sum()


# what is run


def ours(code: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights after all steps of a chain; a link has a rate behind it."""
    weights = {n: nn.Parameter(w) for n, w in start(names).items()}
    made = evaluated(code, {})
    chain = made if "lr" in code else gch.chain(made, gch.scale_by_learning_rate(RATE))
    updater = chain.bind(weights)
    for t in range(STEPS):
        updater.update(lambda t=t: loss_of(weights, t))
    return {n: w.detach() for n, w in weights.items()}


def theirs(code: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights after all steps of an optimizer of torch's kind, or of a transformation of Optax."""
    if "optax." in code:
        return of_optax(code, names)
    weights = {n: nn.Parameter(w) for n, w in start(names).items()}
    optimizer = evaluated(code, weights)
    getattr(optimizer, "train", lambda: None)()
    for t in range(STEPS):

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(weights, t)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        closure()
        optimizer.step(closure) if "SAM(" in code else optimizer.step()
    return {n: w.detach() for n, w in weights.items()}


def of_optax(code: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The same for Optax, in float64 under jit."""
    import jax
    from jax import experimental

    # the last JAX for Python 3.10 has it among its experiments
    in_float64 = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64
    with in_float64(True):
        params = {n: jax.numpy.asarray(w.numpy()) for n, w in start(names).items()}
        optax = package("optax")
        made = evaluated(code, {})
        tx = made if "lr" in code else optax.chain(made, optax.scale(-RATE))
        state = tx.init(params)

        @jax.jit
        def step(params: Any, state: Any, given: Any) -> Any:
            grads = {n: g + 0.05 * jax.numpy.tanh(params[n]) for n, g in given.items()}
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for t in range(STEPS):
            given = {n: jax.numpy.asarray(g.numpy()) for n, g in pushes(names, t).items()}
            params, state = step(params, state, given)
        return {n: torch.tensor(jax.device_get(params[n])) for n in names}


def evaluated(code: str, weights: Mapping[str, nn.Parameter]) -> Any:
    """What the code of a row makes, which knows the packages, the rate and the weights."""
    known = {name: package(name) for name in PACKAGES if f"{name}." in code}
    helpers = {"projected": projected, "fast_of": fast_of}
    return eval(code, {"gch": gch, "torch": torch, "lr": RATE, "params": [*weights.values()], **known, **helpers})


def package(name: str) -> Any:
    """A package of peers, with what of it a row may name."""
    if name == "timm":
        declare_operators()
    try:
        for module in (name, *INSIDE.get(name, ())):
            import_module(module)
    except ImportError as error:
        raise MissingError(f"{name} is not installed") from error
    if name == "heavyball":
        sys.modules["heavyball.utils"].compile_mode = None  # type: ignore[attr-defined]  # it compiles for long
    return sys.modules[name]


def declare_operators() -> None:
    """Those of torchvision, which timm imports, where its wheel is of another build than torch; nobody calls them."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def projected(lr: float, fn: Callable[..., Any], *given: Any) -> Any:
    """Plain descent of Optax whose weights are projected, each tensor by itself."""
    optax = package("optax")

    def update(updates: Any, state: Any, params: Any) -> Any:
        return {n: fn(params[n] - lr * g, *given) - params[n] for n, g in updates.items()}, state

    return optax.GradientTransformation(lambda params: (), update)


def fast_of(tx: Any) -> Any:
    """optax.lookahead as a transformation of its fast weights: it has pairs of weights."""
    optax = package("optax")

    def init(params: Any) -> Any:
        pair = optax.LookaheadParams.init_synced(params)
        return pair, tx.init(pair)

    def update(updates: Any, state: Any, params: Any) -> Any:
        pair, inner = state
        moves, inner = tx.update(updates, inner, pair)
        pair = optax.apply_updates(pair, moves)
        return {n: pair.fast[n] - p for n, p in params.items()}, (pair, inner)

    return optax.GradientTransformation(init, update)


# what came of it


def distance(mine: str, other: str, names: tuple[str, ...] = EVERY) -> float:
    """How far apart two are at the end; inf where the other has not moved."""
    a, b, begin = ours(mine, names), theirs(other, names), start(names)
    found = []
    for n in names:
        apart, way = (a[n] - b[n]).abs().max().item(), (b[n] - begin[n]).abs().max().item()
        found.append(apart / way if way else math.inf if apart else 0.0)
    return math.inf if any(map(math.isnan, found)) else max(found)


def said(away: float) -> str:
    """A distance as the page has it."""
    return "equal" if away <= EQUAL else "not at all" if away == math.inf else f"{away:.1e}"


@dataclass(frozen=True)
class Found:
    """The distances of a peer: at its defaults, and at pinned arguments where there are any."""

    defaults: float
    pinned: float | None

    @property
    def last(self) -> float:
        """The one that has to be explained if it is not nothing."""
        return self.defaults if self.pinned is None else self.pinned


def measured(rule: Rule, peer: Peer) -> Found:
    """A peer of a rule, run."""
    defaults = distance(rule.code, peer.code, rule.on)
    if not (peer.pinned or peer.ours):
        return Found(defaults, None)
    return Found(defaults, distance(peer.ours or rule.code, peer.pinned or peer.code, rule.on))


def line(rule: Rule, peer: Peer, found: Found) -> str:
    """A row of the page."""
    pinned = ", ".join(f"`{code}`" for code in (peer.ours, peer.pinned) if code)
    last = "" if found.pinned is None else said(found.pinned)
    return f"| `{rule.name}` | `{peer.code}` | {said(found.defaults)} | {pinned} | {last} | {peer.why} |"


def lines(rule: Rule, before: Mapping[str, str]) -> list[str]:
    """The rows of a rule; of a package that is not installed that of `before`, by what it begins with."""
    if not rule.peers:
        return [f"| `{rule.name}` | none | | | | {rule.note} |"]
    out = []
    for peer in rule.peers:
        try:
            out.append(line(rule, peer, measured(rule, peer)))
        except MissingError as missing:
            kept = before.get(beginning(rule, peer))
            out += [kept] if kept else []
            print(f"{rule.name}: {missing}: its row {'stays' if kept else 'is left out'}", file=sys.stderr)
    return out


def beginning(rule: Rule, peer: Peer) -> str:
    """What tells a row from all others."""
    return f"| `{rule.name}` | `{peer.code}` |"


def standing(page: str) -> dict[str, str]:
    """The rows of a page by their first two cells."""
    rows = (row for row in page.splitlines() if row.startswith("| `"))
    return {" |".join(row.split(" |")[:2]) + " |": row for row in rows}


def written(rows: list[str], before: str) -> str:
    """docs/which.md; the version of a package that is not installed is that of the page before."""
    told = []
    for name in PACKAGES:
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            told += re.findall(rf"\b{name} \d[^,\s]*(?=[,.] )", before)[:1]
    shapes = ", ".join(" × ".join(map(str, shape)) for shape in SHAPES.values())
    head = HEAD.format(steps=STEPS, equal=EQUAL, rate=RATE, shapes=shapes, versions=", ".join(told))
    return head + "\n".join(rows) + "\n"


def main() -> int:
    """Print the rows that are run; write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.which", description=__doc__)
    parser.add_argument("--rule", action="append", metavar="NAME", help="may be given often; the others stay")
    chosen = parser.parse_args().rule
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    page = PAGE.read_text() if PAGE.exists() else ""
    rows, before = [], standing(page)
    for rule in ROWS:
        if chosen is None or rule.name in chosen:
            rows += (new := lines(rule, before))
            print(*new, sep="\n", flush=True)
        else:
            rows += [row for start, row in before.items() if start.startswith(f"| `{rule.name}` |")]
    PAGE.write_text(written(rows, page))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
