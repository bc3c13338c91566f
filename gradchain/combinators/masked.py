"""Let a link see only some of the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.selectors import Predicate


class masked(Transform):
    """Apply a link to the parameters a selector matches; the others pass unchanged.

        u_i = inner(g)_i for i in selector, else g_i

    The inner link sees members only: a norm in it is over the members, its state exists only for them. The others
    pass as they came, so `masked(adamw(…), …)` would add raw gradients to them: bind refuses it. To use different
    rules for different parameters write `partition`; to leave parameters alone write `freeze`.

    Args:
        inner: a Transform.
        selector: which parameters: `min_ndim(2)`, `named("head.*")`, any function of (name, parameter, owner).

    Shapes: as the inner link.
    State: that of the inner link, for the members.
    Raises: TypeError for a wrong argument; ValueError at bind for a selector that matches nothing.
    Equals: optax.masked.

    >>> import gradchain as gch
    >>> gch.masked(gch.add_decayed_weights(0.05), gch.min_ndim(2))
    masked(add_decayed_weights(0.05), min_ndim(2))
    """

    descends = False
    per_parameter = True

    inner: Transform
    selector: Predicate

    def check(self) -> None:
        check_link("masked", "inner", self.inner)
        check_selector("masked", self.selector)

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return as_chain(self.inner).parts(None if index is None else index.members(self.selector))

    def update(self, g: Tensors, state: Links, ctx: Context) -> tuple[Tensors, State]:
        members = ctx.members(self.selector)
        mine = g.select(members)
        out, inner = as_chain(self.inner).update(mine, state, ctx.narrow(members))
        return in_place_of(mine, only_updates("masked", out), g), inner


def as_chain(link: Transform) -> chain:
    """A held link as a chain, so that its address is the holder's, then its name."""
    return link if isinstance(link, chain) else chain(link)


def in_place_of(mine: Tensors, made: Tensors, g: Tensors) -> Tensors:
    """`g` with what a held link made of `mine`, some of its entries: one that the link left out is absent."""
    gone = mine.index.without(made.index)
    return (g.select(g.index.without(gone)) if len(gone) else g).overlay(made)


def only_updates(owner: str, out: object) -> Tensors:
    """What a held link returned, if it is updates: only the outermost chain may hold or own the weights."""
    if isinstance(out, Tensors):
        return out
    what = "held the chain" if out is None else "returned weights"
    raise RuntimeError(f"{owner}: a link in it {what}. Move that link to the outermost chain.")


def check_link(owner: str, name: str, link: object) -> None:
    """TypeError unless `link` is a Transform."""
    if not isinstance(link, Transform):
        hint = " Did you forget to call it?" if isinstance(link, type) and issubclass(link, Transform) else ""
        raise TypeError(f"{owner}: {name} must be a Transform, got {link!r}.{hint}")


def check_selector(owner: str, selector: object) -> None:
    """TypeError unless `selector` can be asked about a parameter."""
    if not callable(selector) or isinstance(selector, (type, Transform)):
        cure = " A name pattern is written gch.named(…)." if isinstance(selector, str) else ""
        raise TypeError(f"{owner}: selector must be a function of (name, parameter, owner), got {selector!r}.{cure}")
