"""chain: a row of links is a link."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.refusal import Diverged, Refusal, nonfinite_in
from gradchain.core.roles import Gate, KeepsWindow
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, named_parts
from gradchain.core.weights import Weights
from gradchain.selectors.source import code
from gradchain.words import values


class chain(Transform):
    """Apply links one after the other, left to right.

        u_0 = gradient;  u_i, s_i = link_i.update(u_(i-1), s_i);  result u_n

    The order is the semantics: `chain(clip_by_norm(1.0), scale_by_adam())` clips the gradient, the reverse clips
    Adam's direction. A chain directly inside another is part of it. A link is named by its class; write
    `("front", clip_by_norm(1.0))` to give it a name of its own. The empty chain is the identity.

    Args:
        *entries: Transforms, or pairs of a name and a Transform.
        links: the same, as one iterable, after them.

    State: that of the links, by name.

    Raises:
        TypeError: for anything that is not a Transform or such a pair.
        ValueError: for a name given twice, or one with `/`, `.` or `#` in it.

    Equals: optax.chain and optax.named_chain, but state is addressed by name, never by position.

    >>> import gradchain as gch
    >>> gch.chain(gch.clip_by_norm(1.0), gch.chain(gch.scale_by_adam(), gch.scale(-0.1)))
    chain(clip_by_norm(1.0), scale_by_adam(), scale(-0.1))
    """

    descends = False  # its links say for themselves
    per_parameter = True

    links: tuple[Transform | tuple[str, Transform], ...]

    def __init__(
        self, *entries: Transform | tuple[str, Transform], links: Iterable[Transform | tuple[str, Transform]] = ()
    ) -> None:
        flat: list[Transform | tuple[str, Transform]] = []
        for entry in (*entries, *links):  # the keyword is what dataclasses.replace calls
            flat.extend(entry.links if isinstance(entry, chain) else [self._checked(entry)])
        names = [e[0] for e in flat if isinstance(e, tuple)]
        for name in names:
            if names.count(name) > 1 or any(type(e).__name__ == name for e in flat):
                raise ValueError(f"chain: names must be unique, got {name!r} twice. Give one of them another name.")
        object.__setattr__(self, "links", tuple(flat))
        object.__setattr__(self, "_named", named_parts(flat))

    @staticmethod
    def _checked(entry: Any) -> Transform | tuple[str, Transform]:
        if isinstance(entry, Transform):
            return entry
        name, link = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, None)
        if isinstance(name, str) and isinstance(link, Transform):
            if not name or set(name) & set("/.#"):
                raise ValueError(f"chain: a name must be free of '/', '.' and '#', got {name!r}.")
            return (name, link)
        hint = " Did you forget to call it?" if isinstance(entry, type) and issubclass(entry, Transform) else ""
        hint = hint or values.cure(link if isinstance(name, str) else entry)
        got = type(entry).__name__ if values.is_model(entry) else code(entry)
        raise TypeError(f"chain: links must be Transforms or (name, Transform) pairs, got {got}.{hint}")

    @property
    def named(self) -> list[tuple[str, Transform]]:
        """The links with their names."""
        named: list[tuple[str, Transform]] = self.__dict__["_named"]
        return named

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return [(name, link, index) for name, link in self.named]

    def init(self, params: Tensors) -> Links:
        return Links({name: link.init(params) for name, link in self.named})

    def update(self, updates: Tensors | Weights, state: Links, ctx: Context) -> tuple[Tensors | Weights | None, Links]:
        states = dict(state.links)
        gate = self._gate(ctx) if ctx.evaluates else None
        try:
            out = self._walked(updates, states, ctx.under_gate() if gate else ctx)
        except Refusal as refusal:
            if gate is None:
                raise
            return None, Links(self._held(gate, refusal.why, state, states, ctx))
        for name, link in self.named if out is not None else ():
            if isinstance(link, Gate) and link.looks_behind() and link.active(ctx.enter(name)):
                assert out is not None
                why = nonfinite_in(out, *self._behind(name, state.links, states))
                if why:
                    return None, Links(self._held((name, link), why, state, states, ctx))
        return out, Links(states)

    def _walked(self, updates: Tensors | Weights, states: dict[str, State], ctx: Context) -> Tensors | Weights | None:
        """The links, left to right; their new states are put into `states`."""
        out: Tensors | Weights | None = updates
        for name, link in self.named:
            try:
                out, states[name] = link.update(out, states[name], ctx.enter(name))
            except Diverged as error:
                error.of_window |= self._behind_window(name)
                raise
            if out is None:
                break
        return out

    def _gate(self, ctx: Context) -> tuple[str, Gate] | None:
        """The link that will hold for what is not finite: the first of the active gates."""
        gates = ((name, link) for name, link in self.named if isinstance(link, Gate))
        return next(((name, gate) for name, gate in gates if gate.active(ctx.enter(name))), None)

    def _behind(self, name: str, *states: Mapping[str, State]) -> Iterator[dict[str, State]]:
        """Of each of these, the states of the links behind that one."""
        names = [n for n, _ in self.named]
        return ({n: each[n] for n in names[names.index(name) + 1 :]} for each in states)

    def _held(
        self, gate: tuple[str, Gate], why: str, before: Links, states: dict[str, State], ctx: Context
    ) -> dict[str, State]:
        """The states where an evaluation was refused: as where the gate holds for the updates.

        Links in front of it keep what they made, as those of a window that closed; it and all behind are as before,
        but for what it makes of the refusal.
        """
        name, link = gate
        names = [n for n, _ in self.named]
        at = ctx.enter(name)
        at.explain(why)
        at.held(link.holds)
        rest = {n: before.links[n] for n in names[names.index(name) :]}
        resolved = link.at(at)
        assert isinstance(resolved, Gate)
        try:
            rest[name] = resolved.refused(why, before.links[name], at)
        except Diverged as error:
            error.of_window |= self._behind_window(name)
            raise
        return {**states, **rest}

    def _behind_window(self, gate: str) -> bool:
        """Whether a link gets windows of micro-batches."""
        in_front = itertools.takewhile(lambda entry: entry[0] != gate, self.named)
        return any(isinstance(link, KeepsWindow) for _, link in in_front)

    def scale_loss(self, loss: Any, state: Links, ctx: Context, until: str | None = None) -> Any:
        """The loss as backward should see it; with `until`, as only the links in front of that one scale it."""
        for name, link in self.named:
            if name == until:
                break
            if type(link).scale_loss is Transform.scale_loss:
                continue
            inner = ctx.enter(name)
            loss = link.at(inner).scale_loss(loss, state.links[name], inner)
        return loss

    def as_call(self) -> Iterator[tuple[str, Any]]:
        return (("", entry) for entry in self.links)

    def __reduce__(self) -> tuple[Any, ...]:
        return chain, self.links
