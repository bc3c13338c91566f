"""Adam-mini: Adam with one second moment per block of a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.index import Index
from gradchain.core.scalars import Count, maximum
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules._units import WHOLE_WEIGHTS, of_row, of_whole, rms
from gradchain.selectors import SelectorLike
from gradchain.selectors.base import predicate
from gradchain.selectors.source import code
from gradchain.transforms._correction import correction
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value

Block = Literal["tensor", "row"] | int  # what shares a second moment; a number of blocks of consecutive rows


class AdamMiniState(State):
    """What scale_by_adam_mini remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient of each block, one per row or per tensor


class scale_by_adam_mini(Transform):
    """Divide the mean gradient by the root mean square over a block and over time: Adam with a block's second moment.

        m_t = b1 m_(t-1) + (1 - b1) g
        v_t = b2 v_(t-1) + (1 - b2) mean of g² over the block
        u   = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)

    Half of Adam's memory. What may share one learning rate is what the Hessian has in one dense block: of a transformer
    the queries and keys of a head, an output of any other matrix, a token of an embedding. Selectors say so; with none
    each tensor is a block.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        blocks: pairs (selector, block), of which the first that matches counts. A block is "tensor"; "row", what makes
            one output in torch's layout, of a vector each element; or how many blocks of consecutive rows there are,
            as heads.
        rest: the block of all that no selector matches.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: any; blocks are reduced. Rows must be divisible by the number of blocks.
    State: `count`; `mu`, one tensor per parameter; `nu`, one number per tensor or, for all other blocks, one per row,
        in float32 or wider.
    Units: gradient → dimensionless, about 1 in size: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range; at bind ValueError for a selector that matches
        nothing, or rows that cannot be divided.
    Equals: a float64 twin written from the paper. The authors' package chooses blocks by parts of names.
    Paper: Zhang et al., 2024, Algorithm 1, https://arxiv.org/abs/2406.16793

    >>> import gradchain as gch
    >>> gch.rules.scale_by_adam_mini(blocks=[(gch.named("*.query"), 12), (gch.embedding, "row")])
    scale_by_adam_mini(blocks=((named("*.query"), 12), (embedding, "row")))
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    blocks: Sequence[tuple[SelectorLike, Block]] = ()
    rest: Block = "tensor"
    mu_dtype: torch.dtype | None = None

    def check(self) -> None:
        given: object = self.blocks
        pairs: list[Any] = list(given) if isinstance(given, (tuple, list)) else [given]
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"scale_by_adam_mini: blocks must be pairs (selector, block), got {code(given)}.")
        for _, block in pairs:
            _check_block("a block of blocks", block)
        _check_block("rest", self.rest)
        checked = tuple((predicate(selector, "scale_by_adam_mini"), block) for selector, block in pairs)
        object.__setattr__(self, "blocks", checked)

    def init(self, params: Tensors) -> AdamMiniState:
        nu = params.norms(of_whole).zeros_like()
        for block, members in self._parts(params.index):
            if block == "tensor":
                continue
            for fact in members.facts:
                _check_divides(block, fact.name, fact.parameter)
            nu = nu.overlay(params.select(members).norms(of_row).zeros_like())
        return AdamMiniState(Count(params.index), params.slot(self.mu_dtype), nu)

    def update(self, g: Tensors, state: AdamMiniState, ctx: Context) -> tuple[Tensors, AdamMiniState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = state.nu.select(g.index)
        for block, members in self._parts(ctx.params.index):
            mine = g.select(members)
            if len(mine):
                square = _mean_square(mine, block)
                nu = nu.overlay(self.b2 * nu.select(mine.index) + (1 - self.b2) * square)
        # as scale_by_adam has it: nu over its correction might be infinite
        first, second = 1 - self.b1**count, correction(self.b2, count)
        root = nu.sqrt() + second**0.5 * self.eps
        return mu / (root * (first / second**0.5)), AdamMiniState(count, mu, nu)

    def _parts(self, index: Index) -> list[tuple[Block, Index]]:
        """Which of these parameters have which block."""
        return index.parts((scale_by_adam_mini, self.blocks, self.rest), lambda: self._resolved(index))

    def _resolved(self, index: Index) -> Iterable[tuple[Block, Index]]:
        left, found = index, dict[Block, list[str]]()
        for selector, block in self.blocks:
            members = left.subset(index.members(selector))
            found.setdefault(block, []).extend(members.names)
            left = left.without(members)
        found.setdefault(self.rest, []).extend(left.names)
        return [(block, index.subset(names)) for block, names in found.items() if names]


def _check_block(what: str, block: object) -> None:
    """ValueError for what is no block."""
    if block not in ("tensor", "row") and not (type(block) is int and block > 0):
        raise ValueError(
            f"scale_by_adam_mini: {what} must be 'tensor', 'row' or a number of blocks above 0, got {block!r}."
        )


def _check_divides(block: Block, name: str, parameter: Tensor) -> None:
    """ValueError for rows that are not so many blocks."""
    rows = parameter.shape[0] if parameter.ndim else 1
    if isinstance(block, int) and rows % block:
        raise ValueError(
            f"scale_by_adam_mini: the rows of a parameter must be divisible by the number of its blocks, got {rows} "
            f"rows of {name!r} for {block} blocks."
        )
    if isinstance(block, int) and parameter.is_complex():
        raise ValueError(
            f"scale_by_adam_mini: a parameter of {block} blocks must be real, got {parameter.dtype} of {name!r}. Its "
            "block may be 'tensor' or 'row'."
        )


def _mean_square(g: Tensors, block: Block) -> Any:
    """The mean square over each block: one number per parameter, or Tensors of one per row."""
    if block == "tensor":
        root = rms(g)
        return root * root  # which may be infinite, where a power may not
    norm = g.norms(of_row)
    rows = norm * norm / maximum(g.numels() / maximum(norm.numels(), 1), 1)
    return rows if block == "row" else rows.map(partial(_over_blocks, block))


def _over_blocks(blocks: int, rows: Tensor) -> Tensor:
    """In place of each row's number the mean of those of its block."""
    flat = rows.reshape(blocks, -1)
    return flat.mean(1, keepdim=True).expand_as(flat).reshape(rows.shape)


@answering
def adam_mini(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    blocks: Sequence[tuple[SelectorLike, Block]] = (),
    rest: Block = "tensor",
    mu_dtype: torch.dtype | None = None,
) -> chain:
    """Adam-mini, with decoupled decay of what `mask` selects: Zhang et al., 2024, https://arxiv.org/abs/2406.16793.

    Equals a twin written from the paper; torch and Optax have none.

    >>> import gradchain as gch
    >>> gch.rules.adam_mini(1e-3, weight_decay=0.1, rest="row")
    chain(scale_by_adam_mini(rest="row"), add_decayed_weights(0.1), scale_by_learning_rate(0.001))
    """
    direction = scale_by_adam_mini(b1, b2, eps, blocks, rest, mu_dtype)
    return parts.descent(direction, learning_rate, weight_decay, mask)
