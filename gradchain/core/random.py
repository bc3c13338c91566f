"""Random numbers without state: each is a function of what it is for, so nothing has to be kept, sent or restored.

The generator is Philox4x32 with ten rounds (Salmon et al., 2011): a block cipher that makes four words of 32 bits of a
counter of four words and a key of two. The key is a hash of the seed, the link's address and the parameter's name. The
counter has the block of four elements, in the row-major order of the whole tensor, the step and the stream. Whoever
computes a part of a tensor, in whatever order and layout, gets the very numbers of that part.

What is here is the truth that executors are held to. It is integer arithmetic, and `+ - * /` and comparisons of
floats, which round the same everywhere. Normals are made of nothing else: a library's `log` is not another's, and nor
is `sqrt`, which torch has from a library that does not always round to the nearest.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradchain.core.index import Fact
from gradchain.core.sending import sent
from gradchain.core.tensors import Tensors

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # what the key's words grow by from round to round
WORD = 0xFFFFFFFF
AT_ONCE = 1 << 21  # elements of Tensors that are drawn at once: what is made beside them is some 60 bytes for each
MOST_DRAWS = 1 << 28  # the streams of a draw fit into one word of the counter

KINDS = {"bits": 0, "uniform": 2, "signs": 4, "normal": 6}
"""What may be drawn, with the place of its stream among those of one draw; float64 takes the next one besides."""


Entry: TypeAlias = "tuple[Fact, Sequence[int], torch.dtype, torch.device]"
"""What is known of an entry that numbers are drawn for: whose it is, its shape, a compute dtype and a device."""


class Draw(NamedTuple):
    """What is drawn, for all entries of some Tensors.

    Attributes:
        kind: one of `KINDS`.
        seed, address: what the keys are made of, with the entries' names.
        step: applied updates so far.
        stream: which of the streams of one step.
    """

    kind: str
    seed: int
    address: str
    step: Any
    stream: int

    def keys(self, names: tuple[str, ...]) -> list[tuple[int, int]]:
        """The two words that numbers of each entry are made with."""
        return _keys(self.seed, self.address, names)

    def of(self, fact: Fact, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The numbers of one entry, which has this shape, in a compute dtype."""
        return self.of_all([(fact, shape, dtype, device)])[0]

    def of_all(self, entries: Sequence[Entry]) -> list[Tensor]:
        """The numbers of several entries: many small ones by as few calls as one."""
        out: list[Tensor | None] = [None] * len(entries)
        alike: dict[Any, list[int]] = {}
        runs: list[tuple[tuple[int, int], int, int]] = []
        keys = self.keys(tuple(fact.name for fact, *_ in entries))
        for i, ((fact, shape, dtype, device), key) in enumerate(zip(entries, keys, strict=True)):
            place = None if fact.place is None else fact.place.of_reals(shape)
            first = 0 if place is None else place.run(shape)
            runs.append((key, first or 0, math.prod(shape)))
            if place is None or first is not None:
                alike.setdefault((dtype, device), []).append(i)
            else:
                where = place.elements(shape, device)
                out[i] = drawn_at(self.kind, key, self.step, self.stream, where, dtype)
        for like, at in alike.items():
            made = _in_pieces(self, [runs[i] for i in at], *like)
            for i, numbers in zip(at, made, strict=True):
                out[i] = numbers.reshape(tuple(entries[i][1]))
        return [numbers for numbers in out if numbers is not None]


@functools.lru_cache(maxsize=256)
def _keys(seed: int, address: str, names: tuple[str, ...]) -> list[tuple[int, int]]:
    hashes = (
        hashlib.blake2b(
            f"{seed}\0{address}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8, person=b"gradchain-random"
        ).digest()
        for name in names
    )
    return [(int.from_bytes(h[:4], "little"), int.from_bytes(h[4:], "little")) for h in hashes]


def philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, ...]:
    """Four words of 32 bits of a counter of four and a key of two: numbers, or tensors of int64."""
    a, b, c, d = counter
    x, y = key
    for _ in range(ROUNDS):
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]  # of a tensor modulo 2^64, which leaves each half as it is
        a, b, c, d = ((q >> 32) & WORD) ^ b ^ x, q & WORD, ((p >> 32) & WORD) ^ d ^ y, p & WORD
        x, y = (x + KEY_STEPS[0]) & WORD, (y + KEY_STEPS[1]) & WORD
    return a, b, c, d


def drawn(
    kind: str, key: tuple[int, int], step: Any, stream: int, first: int, count: int, dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:  # fmt: skip
    """The numbers of `count` elements from `first` on, flat."""
    blocks = torch.arange(first >> 2, (first + count + 3) >> 2, dtype=torch.int64, device=device)
    return _of_blocks(kind, key, step, stream, blocks, dtype).flatten()[first & 3 :][:count]


def drawn_rows(
    kind: str, keys: Sequence[tuple[int, int]], step: Any, stream: int, runs: Sequence[tuple[int, int]],
    dtype: torch.dtype, device: torch.device | str,
) -> Tensor:  # fmt: skip
    """The numbers of several runs of elements (first, how many), one run behind the other: by as many calls as one."""
    if len(runs) == 1:
        return drawn(kind, keys[0], step, stream, *runs[0], dtype, device)
    blocks = [((first + count + 3) >> 2) - (first >> 2) if count else 0 for first, count in runs]
    ends = list(accumulate(blocks))
    apart = [(first >> 2) - (end - many) for (first, _), end, many in zip(runs, ends, blocks, strict=True)]
    known = sent([apart, *zip(*keys, strict=True)], device, torch.int64)
    repeats = sent(blocks, device, torch.int64)
    each = known.repeat_interleave(repeats, dim=1, output_size=ends[-1])
    numbered = each[0] + torch.arange(ends[-1], dtype=torch.int64, device=device)
    numbers = _of_blocks(kind, (each[1], each[2]), step, stream, numbered, dtype).flatten()
    if all(not (first | count) & 3 for first, count in runs):
        return numbers
    begins = [4 * (end - many) + (first & 3) for (first, _), end, many in zip(runs, ends, blocks, strict=True)]
    return torch.cat([numbers[begin : begin + count] for begin, (_, count) in zip(begins, runs, strict=True)])


def _in_pieces(
    draw: Draw, runs: Sequence[tuple[tuple[int, int], int, int]], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """The numbers of several runs (key, first element, how many): so many at once that memory for it is bounded."""
    groups: list[list[tuple[int, tuple[int, int], int, int]]] = []
    room = 0
    for i, (key, first, count) in enumerate(runs):
        for begin in range(0, max(count, 1), AT_ONCE):
            many = min(AT_ONCE, count - begin)
            if many > room or not groups:
                groups.append([])
                room = AT_ONCE
            groups[-1].append((i, key, first + begin, many))
            room -= many
    found: list[list[Tensor]] = [[] for _ in runs]
    for group in groups:
        at, keys, firsts, counts = zip(*group, strict=True)
        pairs = list(zip(firsts, counts, strict=True))
        numbers = drawn_rows(draw.kind, keys, draw.step, draw.stream, pairs, dtype, device)
        for i, part in zip(at, torch.split(numbers, list(counts)), strict=True):
            found[i].append(part)
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in found]


def drawn_at(
    kind: str, key: tuple[int, int], step: Any, stream: int, elements: Tensor, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """The numbers of some elements, wherever they are."""
    four = _of_blocks(kind, key, step, stream, elements >> 2, dtype)
    return four.gather(-1, (elements & 3).unsqueeze(-1)).squeeze(-1)


def _of_blocks(kind: str, key: tuple[Any, Any], step: Any, stream: int, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of blocks of four elements."""
    step = step.to(torch.int64) if isinstance(step, Tensor) else int(step)

    def words(stream: int) -> Tensor:
        counter = (blocks & WORD, blocks >> 32, step & WORD, stream)
        return torch.stack(philox(counter, key), dim=-1)

    wide = dtype is torch.float64
    high, low = words(stream), words(stream + 1) if wide and kind in ("uniform", "normal") else None
    if kind == "bits":
        return (high >> 8).to(dtype)
    if kind == "signs":
        return (1 - 2 * (high >> 31)).to(dtype)
    if kind == "uniform":
        if low is None:
            return (high >> 8).to(dtype) * 2.0**-24
        return high.to(dtype) * 2.0**-32 + (low >> 11).to(dtype) * 2.0**-53
    return _normals(high, low, dtype)


def _normals(high: Tensor, low: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Two normals of each two words: one says how far from zero, the other in which direction."""
    a, b = high[..., 0::2], high[..., 1::2]
    if low is None:
        u = ((a >> 1) | 1).to(dtype) * 2.0**-31
        x = (((b >> 7) & 0x7FFFFF).to(dtype) - (2.0**22 - 0.5)) * (math.pi / 2 * 2.0**-23)
    else:
        la, lb = ((v >> 11).to(dtype) for v in (low[..., 0::2], low[..., 1::2]))
        u = ((a >> 1).to(dtype) + (la + 0.5) * 2.0**-21) * 2.0**-31
        x = ((b & 0x3FFFFFFF).to(dtype) - 2.0**29 + (lb + 0.5) * 2.0**-21) * (math.pi / 2 * 2.0**-30)
    mantissa, exponent = torch.frexp(u)
    quadrant = b >> 30
    signs = [(1 - 2 * bit).to(dtype) for bit in ((quadrant ^ (quadrant >> 1)) & 1, quadrant >> 1)]
    pair = polar(_TORCH, low is not None, mantissa, exponent.to(dtype), x, (quadrant & 1) == 1, *signs)
    return torch.stack(pair, dim=-1).flatten(-2)


class Language(NamedTuple):
    """What `polar` is written in beside `+ - * / <`.

    Attributes:
        halved: a float whose bits are half those of another, as a whole number, and so many more.
        where: one of two floats.
    """

    halved: Callable[[Any, int], Any]
    where: Callable[[Any, Any, Any], Any]


def _halved(value: Tensor, more: int) -> Tensor:
    whole = torch.int64 if value.dtype is torch.float64 else torch.int32
    return ((value.view(whole) >> 1) + more).view(value.dtype)


_TORCH = Language(_halved, torch.where)


def polar(
    say: Language, wide: bool, mantissa: Any, exponent: Any, x: Any, odd: Any, sign: Any, other: Any
) -> tuple[Any, Any]:
    """Two normals, of a radius and an angle, after Box and Muller: `√(-2 ln u)` times cosine and sine.

    The same lines are computed by torch and printed for kernels. The series are those of `artanh`, sine and cosine, as
    long as float32 or float64 sees another term.

    Args:
        say: the language.
        wide: whether it is float64.
        mantissa: of u, from 1/2 on and below 1.
        exponent: of u.
        x: the angle in its quadrant, from the middle, between -π/4 and π/4.
        odd: whether sine and cosine change places in the quadrant.
        sign: 1 or -1, of the first normal in the quadrant.
        other: that of the second.
    """
    small = mantissa < math.sqrt(0.5)
    m = say.where(small, mantissa + mantissa, mantissa)
    e = say.where(small, exponent - 1.0, exponent)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    log = e * math.log(2) + (s + s) * (z * _series(z, [1 / (2 * k + 1) for k in range(1, 11 if wide else 5)]) + 1.0)
    radius = _root(say, wide, log * -2.0 + 1e-30)
    y = x * x
    terms = range(1, 10 if wide else 6)
    sine = x * (y * _series(y, [(-1) ** k / math.factorial(2 * k + 1) for k in terms]) + 1.0)
    cosine = y * _series(y, [(-1) ** k / math.factorial(2 * k) for k in terms]) + 1.0
    return say.where(odd, sine, cosine) * sign * radius, say.where(odd, cosine, sine) * other * radius


def _root(say: Language, wide: bool, value: Any) -> Any:
    """The square root by Heron: half the exponent is right to a thirtieth, and a step squares what is wrong."""
    root = say.halved(value, 0x1FF7A3BEA91D9B1B if wide else 0x1FBD1DF5)
    for _ in range(4 if wide else 3):
        root = (root + value / root) * 0.5
    return root


def _series(z: Any, terms: Sequence[float]) -> Any:
    """`terms[0] + terms[1] z + …`."""
    *rest, total = terms
    held: Any = z * total
    for term in reversed(rest[1:]):
        held = (held + term) * z
    return held + rest[0]


@dataclass(frozen=True)
class Random:
    """The random numbers of one link in one update: `ctx.random(seed)`.

    Each method gives Tensors with the entries of its argument, of which only names and shapes are looked at, in the
    compute dtype. The same call in the same update gives the same numbers; another seed, step, address, parameter or
    `draw` gives others, and so does another method.

    >>> import torch, gradchain as gch
    >>> g = gch.Tensors.of({"w": torch.zeros(4)})
    >>> ctx = gch.Context(g, step=0)
    >>> ctx.random(0).signs(g)["w"]
    tensor([ 1., -1., -1., -1.])
    >>> bool((ctx.random(0).normal(g)["w"] == ctx.random(0).normal(g)["w"]).all())
    True
    """

    seed: int
    address: str
    step: Any

    def normal(self, like: Tensors, draw: int = 0) -> Tensors:
        """Normal ones, of mean 0 and variance 1. The largest are 6.6 in float32."""
        return self._drawn("normal", like, draw)

    def uniform(self, like: Tensors, draw: int = 0) -> Tensors:
        """Uniform ones, at least 0 and below 1: multiples of 2^-24 in float32, of 2^-53 in float64."""
        return self._drawn("uniform", like, draw)

    def signs(self, like: Tensors, draw: int = 0) -> Tensors:
        """1 or -1, each as often."""
        return self._drawn("signs", like, draw)

    def bits(self, like: Tensors, draw: int = 0) -> Tensors:
        """24 random bits, as a whole number from 0 to 2^24 - 1: as many as every compute dtype can hold."""
        return self._drawn("bits", like, draw)

    def _drawn(self, kind: str, like: Tensors, draw: int) -> Tensors:
        if not isinstance(like, Tensors):
            raise TypeError(f"random.{kind}: takes Tensors, whose names and shapes it follows, got {like!r}.")
        if type(draw) is not int or not 0 <= draw < MOST_DRAWS:
            raise ValueError(f"random.{kind}: draw must be a whole number in [0, 2^28), got {draw!r}.")
        return like._drawn(Draw(kind, self.seed, self.address, self.step, 8 * draw + KINDS[kind]))


def check_seed(owner: str, seed: Any) -> int:
    """The seed, if it is one."""
    if type(seed) is not int:
        raise TypeError(f"{owner}: seed must be a whole number, at least 0, got {seed!r}.")
    if seed < 0:
        raise ValueError(f"{owner}: seed must be a whole number, at least 0, got {seed!r}.")
    return seed
