"""Random numbers, printed: the generator of `core.random` as C and as Triton, bit for bit.

What is integer arithmetic is written here in each language; the floats of a normal are printed by the very function
that computes the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradchain.core.random import KEY_STEPS, MULTIPLIERS, ROUNDS, Language, polar
from gradchain.engine.executors.base import name_of
from gradchain.engine.planning.lower import Drawn

DRAWN = 64  # elements that C draws at once


class _Text:
    """The text of a float, of which each operation makes a line."""

    def __init__(self, text: str, writer: _Writer) -> None:
        self.text, self._writer = text, writer

    def _meet(self, sign: str, other: Any) -> _Text:
        return self._writer.line(f"{self.text} {sign} {self._writer.text(other)}")

    def __add__(self, other: Any) -> _Text:
        return self._meet("+", other)

    def __sub__(self, other: Any) -> _Text:
        return self._meet("-", other)

    def __mul__(self, other: Any) -> _Text:
        return self._meet("*", other)

    def __rmul__(self, other: Any) -> _Text:
        return self._meet("*", other)

    def __truediv__(self, other: Any) -> _Text:
        return self._writer.line(self._writer.divided.format(self.text, self._writer.text(other)))

    def __lt__(self, other: Any) -> _Text:
        return self._writer.line(f"{self.text} < {self._writer.text(other)}", "truth")


class _Writer:
    """Prints `polar`, line by line.

    Attributes:
        divided: a quotient of "{0}" and "{1}".
    """

    def __init__(self, form: str, number: Callable[[float], str], divided: str, halved: str, where: str) -> None:
        self._form, self._number, self.divided = form, number, divided
        self._language = Language(
            lambda a, more: self.line(halved.format(a.text, more)),
            lambda condition, a, b: self.line(where.format(condition.text, a.text, b.text)),
        )
        self._lines: list[str] = []

    def line(self, text: str, kind: str = "number") -> _Text:
        """One more line, and what it is called."""
        name = f"t{len(self._lines)}"
        self._lines.append(self._form.format(kind=kind, name=name, text=text))
        return _Text(name, self)

    def text(self, value: Any) -> str:
        """An operand: a text, or a number."""
        return value.text if isinstance(value, _Text) else self._number(float(value))

    def normals(self, wide: bool) -> tuple[list[str], str, str]:
        """The lines, and what both normals are called in the end."""
        given = [_Text(name, self) for name in ("mantissa", "exponent", "x", "odd", "sign", "other")]
        first, second = polar(self._language, wide, *given)
        return self._lines, first.text, second.text


# C

_WORDS = f"""\
static inline void WORDS(uint32_t* restrict out, uint64_t first, uint32_t x, uint32_t y, uint32_t step,
                         uint32_t stream) {{
#pragma GCC ivdep
  for (int i = 0; i < {DRAWN // 4 + 1}; ++i) {{
    const uint64_t block = (first >> 2) + i;
    uint32_t a = (uint32_t)block, b = (uint32_t)(block >> 32), c = step, d = stream, k = x, l = y;
#pragma GCC unroll {ROUNDS}
    for (int round = 0; round < {ROUNDS}; ++round) {{
      const uint64_t p = (uint64_t)a * {MULTIPLIERS[0]}u, q = (uint64_t)c * {MULTIPLIERS[1]}u;
      a = (uint32_t)(q >> 32) ^ b ^ k; b = (uint32_t)q; c = (uint32_t)(p >> 32) ^ d ^ l; d = (uint32_t)p;
      k += {KEY_STEPS[0]}u; l += {KEY_STEPS[1]}u;
    }}
    out[4 * i] = a; out[4 * i + 1] = b; out[4 * i + 2] = c; out[4 * i + 3] = d;
  }}
}}"""
_MANY = DRAWN + 4  # words of all blocks that so many elements may touch
_ONE_BY_ONE = {
    ("bits", False): "(float)(int32_t)(w[i] >> 8)",
    ("bits", True): "(double)(int32_t)(w[i] >> 8)",
    ("signs", False): "(float)(1 - 2 * (int32_t)(w[i] >> 31))",
    ("signs", True): "(double)(1 - 2 * (int32_t)(w[i] >> 31))",
    ("uniform", False): "(float)(int32_t)(w[i] >> 8) * 0x1p-24f",
    ("uniform", True): "(double)w[i] * 0x1p-32 + (double)(int32_t)(low[i] >> 11) * 0x1p-53",
}
_NORMAL = """\
    const uint32_t a = w[2 * i], b = w[2 * i + 1], quadrant = b >> 30;
    const number u = {u};
    const number x = {x};
    union both bits; bits.f = u;
    const number exponent = (number)((int32_t)(bits.i >> {fraction}) - {bias});
    bits.i = (bits.i & (((whole)1 << {fraction}) - 1)) | ((whole){bias} << {fraction});
    const number mantissa = bits.f;
    const truth odd = quadrant & 1;
    const number sign = (number)(1 - 2 * (int32_t)((quadrant ^ (quadrant >> 1)) & 1));
    const number other = (number)(1 - 2 * (int32_t)(quadrant >> 1));"""
_QUARTER = "0x1.921fb54442d18p+0"  # π/2


def c_helpers(draws: Sequence[Drawn]) -> list[str]:
    """The functions that draw so many elements of a kind at once, each once."""
    found = [_WORDS] if draws else []
    return [*found, *dict.fromkeys(_c_function(draw.kind, draw.wide) for draw in draws)]


def c_keys(draw: Drawn, at: int, entries: int) -> str:
    """The line that has, for one row, what its numbers are made with."""
    x, y, step, first = (_c_cell(operand, entries) for operand in draw.operands)
    return (
        f"const uint32_t kx{at} = (uint32_t)(int64_t){x}, ky{at} = (uint32_t)(int64_t){y}, "
        f"kt{at} = (uint32_t)(int64_t){step}; const uint64_t kf{at} = (uint64_t)(int64_t){first} + (uint64_t)from;"
    )


def _c_cell(operand: tuple[Any, ...], entries: int) -> str:
    kind, at = operand
    return f"scalars[{at}]" if kind == "scalar" else f"entries[r * {entries} + {at}]"


def c_fill(draw: Drawn, at: int, begin: str) -> list[str]:
    """The lines that draw the elements of an item from `begin` on into a buffer."""
    return [
        f"{'double' if draw.wide else 'float'} q{at}[{DRAWN}];",
        f"{_name(draw.kind, draw.wide)}(q{at}, kf{at} + {begin}, kx{at}, ky{at}, kt{at}, {draw.stream}u);",
    ]


def _name(kind: str, wide: bool) -> str:
    return f"DRAW_{kind}_{'f64' if wide else 'f32'}"


def _c_function(kind: str, wide: bool) -> str:
    low = wide and kind in ("uniform", "normal")
    number = "double" if wide else "float"
    words = "x, y, step, stream"
    lines = [
        f"static void {_name(kind, wide)}({number}* restrict out, uint64_t first, uint32_t x, uint32_t y,",
        "    uint32_t step, uint32_t stream) {",
        f"  typedef {number} number; typedef {'uint64_t' if wide else 'uint32_t'} whole; typedef int truth;",
        "  union both { number f; whole i; };",
        f"  uint32_t w[{_MANY}]; number z[{_MANY}];",
        f"  WORDS(w, first, {words});",
        *([f"  uint32_t low[{_MANY}];", f"  WORDS(low, first, {words} + 1u);"] if low else []),
        "#pragma GCC ivdep",
        *(_c_normals(wide) if kind == "normal" else _c_each(_ONE_BY_ONE[kind, wide])),
        "  const int begin = (int)(first & 3);",
        f"  for (int i = 0; i < {DRAWN}; ++i) out[i] = z[begin + i];",
        "}",
    ]
    return "\n".join(lines)


def _c_each(form: str) -> list[str]:
    return [f"  for (int i = 0; i < {_MANY}; ++i) z[i] = {form};"]


def _c_normals(wide: bool) -> list[str]:
    if wide:
        rest = "((double)(int32_t)(low[2 * i{}] >> 11) + 0.5) * 0x1p-21"
        u = f"((double)(int32_t)(a >> 1) + {rest.format('')}) * 0x1p-31"
        x = f"((double)(int32_t)(b & 0x3FFFFFFFu) - 0x1p29 + {rest.format(' + 1')}) * ({_QUARTER} * 0x1p-30)"
    else:
        u = "(float)(int32_t)((a >> 1) | 1u) * 0x1p-31f"
        x = f"((float)(int32_t)((b >> 7) & 0x7FFFFFu) - 4194303.5f) * (float)({_QUARTER} * 0x1p-23)"
    form = dict(zip(("fraction", "bias"), (52, 1022) if wide else (23, 126), strict=True))
    head = _NORMAL.format(u=u, x=x, **form)
    writer = _Writer(
        "    const {kind} {name} = {text};",
        lambda value: f"(number)({value.hex()})",
        divided="{0} / {1}",
        halved="((union both){{.i = ((union both){{.f = {0}}}.i >> 1) + {1}}}).f",
        where="{0} ? {1} : {2}",
    )
    lines, first, second = writer.normals(wide)
    loop = f"  for (int i = 0; i < {_MANY // 2}; ++i) {{"
    return [loop, *head.splitlines(), *lines, f"    z[2 * i] = {first}; z[2 * i + 1] = {second};", "  }"]


# Triton


def triton(draw: Drawn, at: int, compute: str, place: str = "begin + lane") -> list[str]:
    """The lines that draw `r…` for a block of elements, those at `place`, in a kernel that computes in `compute`."""
    number, whole = ("tl.float64", "tl.int64") if draw.wide else ("tl.float32", "tl.int32")
    x, y, step, first = (f"d{name_of(operand)}" for operand in draw.operands)
    lines = [f"element = {first}.to(tl.int64) + {place}"]
    lines += [f"{k} = {v}.to(tl.int64).to(tl.uint32)" for k, v in (("kx", x), ("ky", y), ("kt", step))]
    lines += _triton_words("w", draw.stream)
    if draw.wide and draw.kind in ("uniform", "normal"):
        lines += _triton_words("l", draw.stream + 1)
    if draw.kind == "normal":
        lines += _triton_normals(draw.wide, number, whole)
        return [*lines, f"r{at} = tl.where((element & 1) == 0, near, far).to({compute})"]
    lines += _triton_picked("w")
    if draw.kind == "bits":
        made = f"(w >> 8).to({number})"
    elif draw.kind == "signs":
        made = f"(1 - 2 * (w >> 31).to(tl.int32)).to({number})"
    elif draw.wide:
        lines += _triton_picked("l")
        made = f"w.to({number}) * {2.0**-32!r} + (l >> 11).to({number}) * {2.0**-53!r}"
    else:
        made = f"(w >> 8).to(tl.int32).to({number}) * {2.0**-24!r}"
    return [*lines, f"r{at} = ({made}).to({compute})"]


def _triton_words(name: str, stream: int) -> list[str]:
    """The lines that make four words of each element's block."""
    a, b, c, d = (f"{name}{i}" for i in range(4))
    lines = [
        f"{a} = (element >> 2).to(tl.uint32)",
        f"{b} = (element >> 34).to(tl.uint32)",
        f"{c} = tl.zeros([BLOCK], tl.uint32) + kt",
        f"{d} = tl.full([BLOCK], {stream}, tl.uint32)",
        f"{name}x = tl.zeros([BLOCK], tl.uint32) + kx",
        f"{name}y = tl.zeros([BLOCK], tl.uint32) + ky",
    ]
    for _ in range(ROUNDS):
        lines += [
            f"p = {a}.to(tl.uint64) * tl.full([BLOCK], {MULTIPLIERS[0]}, tl.uint64)",
            f"q = {c}.to(tl.uint64) * tl.full([BLOCK], {MULTIPLIERS[1]}, tl.uint64)",
            f"{a} = (q >> 32).to(tl.uint32) ^ {b} ^ {name}x",
            f"{b} = q.to(tl.uint32)",
            f"{c} = (p >> 32).to(tl.uint32) ^ {d} ^ {name}y",
            f"{d} = p.to(tl.uint32)",
            f"{name}x = {name}x + tl.full([BLOCK], {KEY_STEPS[0]}, tl.uint32)",
            f"{name}y = {name}y + tl.full([BLOCK], {KEY_STEPS[1]}, tl.uint32)",
        ]
    return lines


def _triton_picked(name: str) -> list[str]:
    """The line that takes the word of each element."""
    pair = "tl.where((element & 2) == 0, {0}, {1})"
    even, odd = (pair.format(f"{name}{i}", f"{name}{i + 2}") for i in (0, 1))
    return [f"{name} = tl.where((element & 1) == 0, {even}, {odd})"]


def _triton_normals(wide: bool, number: str, whole: str) -> list[str]:
    """The lines that make both normals of each element's pair, `near` and `far`."""
    pairs = [("a", "w0", "w2"), ("b", "w1", "w3")] + ([("la", "l0", "l2"), ("lb", "l1", "l3")] if wide else [])
    lines = [f"{name} = tl.where((element & 2) == 0, {first}, {second})" for name, first, second in pairs]

    def full(value: float) -> str:
        return f"tl.full([BLOCK], {value!r}, {number})"

    quarter = float.fromhex(_QUARTER)
    if wide:
        for name in ("la", "lb"):
            lines.append(f"{name} = ((({name} >> 11).to({number})) + 0.5) * {full(2.0**-21)}")
        lines += [
            f"u = ((a >> 1).to({number}) + la) * {full(2.0**-31)}",
            f"x = ((b & 0x3FFFFFFF).to({number}) - {full(2.0**29)} + lb) * {full(quarter * 2.0**-30)}",
        ]
    else:
        lines += [
            f"u = ((a >> 1) | 1).to(tl.int32).to({number}) * {full(2.0**-31)}",
            f"x = (((b >> 7) & 0x7FFFFF).to(tl.int32).to({number}) - {full(4194303.5)}) * {full(quarter * 2.0**-23)}",
        ]
    fraction, bias = (52, 1022) if wide else (23, 126)
    lines += [
        f"bits = u.to({whole}, bitcast=True)",
        f"exponent = ((bits >> {fraction}) - {bias}).to({number})",
        f"mantissa = ((bits & {(1 << fraction) - 1}) | {bias << fraction}).to({number}, bitcast=True)",
        "quadrant = (b >> 30).to(tl.int32)",
        "odd = (quadrant & 1) == 1",
        f"sign = (1 - 2 * ((quadrant ^ (quadrant >> 1)) & 1)).to({number})",
        f"other = (1 - 2 * (quadrant >> 1)).to({number})",
    ]
    writer = _Writer(
        "{name} = {text}",
        full,
        divided="({0} / {1})" if wide else "tl.div_rn({0}, {1})",
        halved=f"(({{0}}.to({whole}, bitcast=True) >> 1) + {{1}}).to({number}, bitcast=True)",
        where="tl.where({0}, {1}, {2})",
    )
    printed, near, far = writer.normals(wide)
    return [*lines, *printed, f"near = {near}", f"far = {far}"]
