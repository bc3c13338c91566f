"""Move only where the gradient agrees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradchain.combinators.masked import as_chain, check_link
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.roles import Wraps
from gradchain.core.scalars import Scalars, maximum
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk


class cautious(Wraps):
    """Leave out what a link would move against the gradient, and scale up the rest of the tensor to make up for it.

        u = inner(g),  k = [u g > 0],  u ← u k / max(mean k, least),  the mean over each tensor

    Signs are compared, so that no product underflows. A NaN stays a NaN. The sign must not be flipped inside, so the
    learning rate stands behind it; decoupled decay stays outside of the mask and stands behind it too:
    `chain(cautious(scale_by_adam()), add_decayed_weights(0.1), scale_by_learning_rate(1e-3))`.

    Args:
        inner: a link that turns gradients into a direction, without a learning rate or weights of its own.
        least: what the mean is taken for where it is less, in (0, 1]; 1 leaves the rest as it is.

    Shapes: any; one mean over each whole tensor.
    State: that of the inner link.
    Units: as the inner link.
    Raises: TypeError for an inner that is no link; ValueError for one that flips the sign or owns the weights.
    Equals: timm's `caution` and C-Optim's AdamW and Muon with the default; with 1, the masks that are not normalised.
        pytorch_optimizer's `cautious` and C-Optim's Lion divide by (Σ k + 1) / numel instead: up to a third off on
        small tensors, nothing on large ones.
    Paper: Liang et al., 2024, Algorithm 1, https://arxiv.org/abs/2411.16085

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.cautious(gch.scale_by_lion()), gch.scale_by_learning_rate(1e-4))
    chain(cautious(scale_by_lion()), scale_by_learning_rate(0.0001))
    """

    descends = False
    per_parameter = True

    inner: Transform
    least: Hyper = Hyper(1e-3, "(0, 1]")

    def check(self) -> None:
        check_direction("cautious", "inner", self.inner)

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return as_chain(self.inner).parts(index)

    def update(self, g: Tensors, state: Links, ctx: Context) -> tuple[Tensors, State]:
        u, inner = direction("cautious", self.inner, g, state, ctx)
        k = u.sign() * g.sign() > 0
        share = (1.0 * k).sums() / _reals(u)
        return u * k / maximum(share, self.least), inner


def _reals(u: Tensors) -> Scalars:
    """How many numbers each entry has, at least 1: a complex element is two."""
    pairs = u.index.complex
    return Scalars({n: max(1, many * (1 + (n in pairs))) for n, many in u.numels().items()})


def check_direction(owner: str, name: str, link: Transform) -> None:
    """TypeError unless `link` is one; ValueError where it moves weights, where a direction is wanted."""
    check_link(owner, name, link)
    for address, part, _ in walk(as_chain(link), None):
        if part.descends or part.role == "learning_rate":
            raise ValueError(
                f"{owner}: {name} must be a direction in the sense of the gradient, got {address}, which makes a step "
                f"of it. Put scale_by_learning_rate(…) behind {owner}(…)."
            )
        if part.role in ("weights", "optimizer", "average"):
            raise ValueError(f"{owner}: {name} must be a direction, got {address}, which is one of weights.")


def direction(owner: str, link: Transform, g: Tensors, state: Links, ctx: Context) -> tuple[Tensors, State]:
    """What a held link makes of `g`, and its new state."""
    u, inner = as_chain(link).update(g, state, ctx)
    if not isinstance(u, Tensors):
        raise RuntimeError(
            f"{owner}: a link in it must return updates, got {u!r}. Move that link to the outermost chain."
        )
    return u, inner
