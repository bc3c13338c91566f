"""Let a link see only some of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.roles import Wraps
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights, in_place_of
from gradchain.selectors import SelectorLike
from gradchain.selectors.base import predicate
from gradchain.words import values


class masked(Wraps):
    """Apply a link to the parameters a selector matches; the others pass unchanged.

        u_i = inner(g)_i for i in selector, else g_i

    The inner link sees members only: a norm in it is over the members, its state exists only for them. The others
    pass as they came, so `masked(adamw(…), …)` would add raw gradients to them: bind refuses it. To use different
    rules for different parameters write `partition`; to leave parameters alone write `freeze`.

    Args:
        inner: a Transform.
        selector: which parameters: `min_ndim(2)`, `named("head.*")`; any function of (name, parameter, owner), of
            (name, parameter) or of (parameter); or a mapping of every name to True or False.

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
    selector: SelectorLike

    def check(self) -> None:
        check_link("masked", "inner", self.inner)
        object.__setattr__(self, "selector", checked_selector("masked", self.selector))

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return as_chain(self.inner).parts(None if index is None else index.members(self.selector))

    def update(self, g: Tensors | Weights, state: Links, ctx: Context) -> tuple[Tensors | Weights, State]:
        members = ctx.members(self.selector)
        mine = g.select(members)
        out, inner = as_chain(self.inner).update(mine, state, ctx.narrow(members))
        if out is None:
            raise RuntimeError("masked: a link in it held the chain. Move that link to the outermost chain.")
        return in_place_of(mine, out, g, ctx), inner


def as_chain(link: Transform) -> chain:
    """A held link as a chain, so that its address is the holder's, then its name."""
    return link if isinstance(link, chain) else chain(link)


def check_link(owner: str, name: str, link: object) -> None:
    """TypeError unless `link` is a Transform."""
    if not isinstance(link, Transform):
        hint = " Did you forget to call it?" if isinstance(link, type) and issubclass(link, Transform) else ""
        raise TypeError(f"{owner}: {name} must be a Transform, got {link!r}.{hint or values.cure(link)}")


def checked_selector(owner: str, selector: Any) -> Any:
    """What can be asked about a parameter, from what was given as a selector. TypeError where that is nothing."""
    if not isinstance(selector, Mapping) and (not callable(selector) or isinstance(selector, (type, Transform))):
        cure = " A name pattern is written gch.named(…)." if isinstance(selector, str) else ""
        raise TypeError(f"{owner}: selector must be a function of (name, parameter, owner), got {selector!r}.{cure}")
    return predicate(selector, owner)
