"""Send each parameter down one of several branches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from gradchain.combinators.masked import as_chain, check_link, checked_selector
from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights, in_place_of
from gradchain.selectors import SelectorLike, everything, resolve
from gradchain.selectors.source import code
from gradchain.words.arguments import FORMS

Branch: TypeAlias = "tuple[SelectorLike, Transform] | tuple[str, SelectorLike, Transform]"

rest = everything
"""What the branches before it left: the selector for the last branch of a `partition`."""


class partition(Transform):
    """Send each parameter down the first branch whose selector matches it.

        u_i = link_b.update(g_i), b the first branch with selector_b(i)

    Each branch sees its own parameters only. A branch may hold (`accumulate` in it): its parameters are then absent
    from this update, and the others go on. A name makes the branch's address: `partition/critic/scale_by_adam`.

    Args:
        *pairs: pairs (selector, link) or triples (name, selector, link). `rest` as the last selector takes what is
            left.
        branches: the same, as one iterable, after them.

    Shapes: as the links.
    State: that of each branch, for its parameters.
    Raises: TypeError for a wrong argument; ValueError at bind for a parameter that no branch takes, or a branch that
        takes none.
    Equals: optax.partition (multi_transform), with selectors in place of labels.

    >>> import gradchain as gch
    >>> gch.partition(("critic", gch.named("c.*"), gch.sgd(0.1)), (gch.rest, gch.scale(-0.01)))
    partition(("critic", named("c.*"), chain(scale_by_learning_rate(0.1))), (everything, scale(-0.01)))
    """

    descends = False
    per_parameter = True

    branches: tuple[Branch, ...]

    def __init__(self, *pairs: Branch, branches: Iterable[Branch] = ()) -> None:
        object.__setattr__(self, "branches", (*pairs, *branches))  # the keyword is what dataclasses.replace calls
        self.check()

    def check(self) -> None:
        if not self.branches:
            raise ValueError("partition: needs at least one branch (selector, link), got none.")
        names: list[Any] = []
        checked: list[Any] = []
        for branch in self.branches:
            entry: Any = branch
            if not isinstance(entry, tuple) or len(entry) not in (2, 3):
                raise TypeError(
                    f"partition: a branch must be (selector, link) or (name, selector, link), got {branch}. "
                    f"{FORMS['partition']}"
                )
            selector = checked_selector("partition", branch[-2])
            check_link("partition", "a branch's link", branch[-1])
            checked.append((*branch[:-2], selector, branch[-1]))
            if len(branch) == 3:
                names.append(branch[0])
        for name in names:
            if type(name) is not str or not name or set(name) & set("/.#"):
                raise ValueError(f"partition: a name must be a string free of '/', '.' and '#', got {name!r}.")
            if names.count(name) > 1:
                raise ValueError(f"partition: names must be unique, got {name!r} twice.")
        object.__setattr__(self, "branches", tuple(checked))

    @property
    def named_branches(self) -> list[tuple[str, SelectorLike, Transform]]:
        """The branches with their names: the given one, else "branch", "branch#2" in order, "rest" for the rest."""
        out, unnamed = [], 0
        for branch in self.branches:
            if len(branch) == 3:
                out.append(branch)
            elif branch[0] is rest:
                out.append(("rest", *branch))
            else:
                unnamed += 1
                out.append(("branch" if unnamed == 1 else f"branch#{unnamed}", *branch))
        return out

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        if index is None:
            return [(name, as_chain(link), None) for name, _, link in self.named_branches]
        return [(name, as_chain(link), members) for name, link, members in self.members(index)]

    def members(self, index: Index) -> list[tuple[str, Transform, Index]]:
        """Which parameters go down which branch. ValueError if one goes nowhere, or a branch takes none."""
        parts = index.parts(self.branches, lambda: self._resolved(index))
        return [(name, link, members) for (name, link), members in parts]

    def _resolved(self, index: Index) -> list[tuple[tuple[str, Transform], Index]]:
        root = index.root
        left, out = dict.fromkeys(root.names), []
        for name, selector, link in self.named_branches:
            matched = resolve(selector, root.entries, allow_empty=selector is rest)
            mine = [n for n in matched if n in left]
            if matched and not mine and selector is not rest:
                raise ValueError(
                    f"partition: branch {name!r} takes no parameter: earlier branches took all that {code(selector)} "
                    "matches. The first match wins; put it first."
                )
            for n in mine:
                del left[n]
            out.append(((name, link), index.subset(mine)))
        missed = [name for name in left if name in index]
        if missed:
            raise ValueError(
                f"partition: every parameter must go down a branch, but {len(missed)} match none, first "
                f"{missed[0]!r}. Add a last branch (gch.rest, …)."
            )
        return out

    def update(self, g: Tensors | Weights, state: Any, ctx: Context) -> tuple[Tensors | Weights | None, State]:
        states, out, held = dict(state.links), g, False
        for name, link, members in self.members(ctx.params.index):
            mine = g.select(members)
            if not len(mine) and not ctx.micro.flushing:
                continue
            branch, states[name] = as_chain(link).update(mine, states[name], ctx.narrow(members).enter(name))
            if branch is None:
                held = True
                out = out.select(out.index.without(members))
            else:
                out = in_place_of(mine, branch, out, ctx)
        # an update in which every branch held is no update: the chain holds
        return (None if held and not len(out) else out), Links(states)

    def as_call(self) -> Iterator[tuple[str, Any]]:
        return (("", branch) for branch in self.branches)

    def __reduce__(self) -> tuple[Any, ...]:
        return partition, self.branches
