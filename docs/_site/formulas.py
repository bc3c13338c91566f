"""Formulas of docstrings as MathML, which browsers draw by themselves: no script, no font and no network is needed.

The docstrings have one way to write mathematics, and this reads it: `m_(t-1)` is an index, `b1^t` a power, a space a
product, `a b / c d` is (a b / c) d, a name with a parenthesis right behind it is a function, `‖g‖` a norm. What is
neither an argument of the link, a letter nor a function is a word and stays one. `plain` text stays beside it on the
page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

ARTICLES = {"the", "a", "one", "first", "last", "each", "every", "any", "its"}  # what follows one is a word
FUNCTIONS = {
    "sqrt", "cbrt", "sign", "max", "min", "mean", "exp", "ln", "cos", "sin", "tanh", "atan2", "clamp", "clip", "rms",
    "floor", "inner", "first", "second", "fn", "measure", "orthonormal", "linear", "value", "schedule", "predicate",
    "update",
}  # fmt: skip
LETTERS = {
    "pi": "π", "inf": "∞", "eps": "ε", "numel": "n", "nu": "ν", "mu": "μ", "var": "var", "best": "best", "bad": "bad",
    "fast": "fast", "slow": "slow", "step": "step", "loss": "loss", "limit": "limit", "mean": "mean",
    "growth": "growth", "nan": "nan", "gradient": "gradient", "result": "result", "base": "base",
    "factor": "factor", "value": "value",
    "alpha": "α", "beta": "β", "gamma": "γ", "rho": "ρ", "eta": "η", "begin": "begin", "end": "end",
    "border": "border", "True": "True", "False": "False", "steps": "steps", "scale": "scale", "shift": "shift",
}  # fmt: skip
RELATIONS = {"=": "=", "←": "←", "<-": "←", ":=": "≔", "<": "&lt;", ">": "&gt;", "<=": "≤", ">=": "≥", "~": "∼"}
MARKS = {",": ",", ";": ";", ":": ":", "…": "…", "'": "′"}
POSTFIX = {"²": "2", "ᵀ": "⊤", "³": "3"}
_LETTER, _INNER = r"[^\W\d_²³ᵀ]", r"(?:[^\W_²³ᵀ]|[\u0300-\u036f])"
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
      | (?P<quoted>"[^"]*"|`[^`]*`|-th\b)
      | (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?|\.\d+)
      | (?P<name>{_LETTER}{_INNER}*(?:[_.](?:{_INNER})+|[\u0300-\u036f])*(?:_(?=\())?\*?(?=[\W_]|[²³ᵀ]|$))
      | (?P<op>\*\*|//|<=|>=|:=|<-|[-+*/·=←<>~,;:…^√Σ∇Π±()\[\]|‖⟨⟩²³ᵀ_'.×])
      | (?P<other>.)""",
    re.X,
)


@dataclass
class Token:
    """A piece of a formula: its kind, its text, and whether it stands right behind the one before."""

    kind: str
    text: str
    close: bool


def tokens(line: str) -> list[Token]:
    """The pieces of one line."""
    found: list[Token] = []
    close = False
    for match in _TOKEN.finditer(line):
        if match.lastgroup == "space":
            close = False
            continue
        found.append(Token(match.lastgroup or "other", match[0], close))
        close = True
    return found


_TIMES = '<mo>&#x2062;</mo><mspace width="0.16em"></mspace>'


def _row(*parts: str) -> str:
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"


def _op(text: str) -> str:
    return f"<mo>{text}</mo>"


def _words(words: list[str]) -> str:
    return f"<mtext>&nbsp;{escape(' '.join(words))}&nbsp;</mtext>"


@dataclass
class Reader:
    """Reads one line. `names` are the link's arguments, which are set as they are typed."""

    names: frozenset[str]
    line: list[Token]
    at: int = 0
    stops: list[str] = field(default_factory=list)

    def peek(self, ahead: int = 0) -> Token:
        """The next token; one of kind "end" behind the last."""
        index = self.at + ahead
        return self.line[index] if index < len(self.line) else Token("end", "", False)

    def take(self) -> Token:
        """The next token, which is then past."""
        token = self.peek()
        self.at += 1
        return token

    def is_word(self, token: Token, ahead: int = 0) -> bool:
        """Whether it is prose: a name that stands for nothing of the formula."""
        if token.kind == "quoted" or token.text == ".":
            return True
        if token.kind != "name":
            return False
        after = self.peek(ahead + 1)
        if after.text in ("(", "[") and after.close:
            return False
        name = token.text.rstrip("_*")
        if name in self.names or name.partition("_")[0] in self.names:
            return False
        stem = name.partition("_")[0]
        before = self.line[self.at + ahead - 1].text if self.at + ahead else ""
        if before in ARTICLES and len(name) > 1:
            return True
        if name == "mean":
            return after.kind == "name" and after.text in ("of", "over", "itself")
        short = len(re.sub(r"[\u0300-\u036f\d]", "", stem)) <= 1
        if name in ("a", "A") and after.kind == "name" and len(after.text) > 1 and after.text[1] != "_":
            return True
        return not (short or stem in LETTERS or name in LETTERS or stem in ("NS", "ln", "cos"))

    # a line: relations, marks and words between sums

    def sequence(self, closing: str = "") -> list[tuple[str, str]]:
        """Pieces up to `closing`: ("math" or "words", what is written)."""
        out: list[tuple[str, str]] = []
        while self.peek().kind != "end" and self.peek().text != closing:
            token = self.peek()
            if self.is_word(token):
                words = []
                while self.peek().kind != "end" and self.is_word(self.peek()):
                    after = self.take()
                    words.append(after.text if not (after.text == "." and words) else words.pop() + ".")
                out.append(("words", " ".join(words)))
            elif token.text in RELATIONS or token.text in MARKS:
                self.take()
                out.append(("math", _op({**RELATIONS, **MARKS}[token.text])))
            else:
                before = self.at
                out.append(("math", self.sum()))
                if self.at == before:  # nothing that a sum begins with
                    out.append(("math", _op(escape(self.take().text))))
        return out

    def inside(self, closing: str) -> str:
        """What stands between brackets, as one row; the closing one is taken."""
        pieces = self.sequence(closing)
        self.take()
        return _row(*(text if kind == "math" else _words([text]) for kind, text in pieces))

    def sum(self) -> str:
        """Terms with + and - between them."""
        parts: list[str] = []
        while True:
            if self.peek().text in ("+", "-", "±"):
                parts.append(_op({"-": "−"}.get(self.peek().text, self.peek().text)))
                self.take()
            term = self.term()
            if not term:
                break
            parts.append(term)
            if self.peek().text not in ("+", "-"):
                break
        return _row(*parts) if parts else ""

    def term(self) -> str:
        """A product; a slash divides all of it so far by the next factor."""
        parts: list[str] = []
        bare: list[str] = []  # the same without parentheses around all of it
        while True:
            token = self.peek()
            if token.text in ("/", "//") and parts:
                self.take()
                _, below = self.factor()
                fraction = f"<mfrac>{_row(*(bare if len(bare) == 1 else parts))}{below or '<mrow></mrow>'}</mfrac>"
                if token.text == "//":
                    fraction = _row(_op("⌊"), fraction, _op("⌋"))
                parts, bare = [fraction], [fraction]
                continue
            if token.text in ("*", "·", "×") and parts:
                self.take()
                parts.append(_op("·"))
                bare.append(_op("·"))
                continue
            if token.kind == "end" or self.is_word(token):
                break
            full, short = self.factor()
            if not full:
                break
            if (parts and not parts[-1].startswith("<mo>")) or (parts and parts[-1].startswith("<mo>⌊")):
                parts.append(_TIMES)
                bare.append(_TIMES)
            parts.append(full)
            bare.append(short)
        return _row(*parts) if parts else ""

    def factor(self) -> tuple[str, str]:
        """One factor with its powers and indices; and the same without parentheses around all of it."""
        full, bare = self.primary()
        if not full:
            return "", ""
        while True:
            token = self.peek()
            if token.text in POSTFIX:
                self.take()
                power = POSTFIX[token.text]
                full = bare = f"<msup>{full}{_op(power) if power == '⊤' else f'<mn>{power}</mn>'}</msup>"
            elif token.text in ("^", "**"):
                self.take()
                sign = _op("−") if self.peek().text == "-" and self.take() else ""
                _, power = self.factor()
                full = bare = f"<msup>{full}{_row(sign, power) if sign else power}</msup>"
            elif token.text == "_" and token.close:
                self.take()
                _, index = self.factor()
                full = bare = f"<msub>{full}{index}</msub>"
            elif token.text == "(" and token.close and self.line[self.at - 1].text == ")":  # f(…)(t)
                self.take()
                full = bare = _row(full, _op("("), self.inside(")"), _op(")"))
            else:
                return full, bare

    def primary(self) -> tuple[str, str]:
        """A number, a name, a function of something, or something in brackets."""
        token = self.peek()
        if token.kind == "number":
            self.take()
            power = re.fullmatch(r"(\d+)e(-?\d+)", token.text)
            if power:
                base = "" if power[1] == "1" else f"<mn>{power[1]}</mn><mo>·</mo>"
                exponent = power[2].replace("-", "−")
                number = f"{base}<msup><mn>10</mn><mn>{exponent}</mn></msup>"
                return _row(number, "") if base else number, number
            return f"<mn>{token.text}</mn>", f"<mn>{token.text}</mn>"
        if token.text == "√":
            self.take()
            _, under = self.primary()
            return (f"<msqrt>{under}</msqrt>",) * 2
        if token.text in ("Σ", "∇", "Π") and token.kind == "op":
            self.take()
            return (_op({"Σ": "∑"}.get(token.text, token.text)),) * 2
        for opening, closing in (("(", ")"), ("[", "]"), ("‖", "‖"), ("|", "|"), ("⟨", "⟩")):
            if token.text == opening and closing not in self.stops[-1:]:
                self.take()
                self.stops.append(closing if opening == closing else "")
                inner = self.inside(closing)
                self.stops.pop()
                form = ' form="prefix"', ' form="postfix"'
                full = _row(f"<mo{form[0]}>{opening}</mo>", inner, f"<mo{form[1]}>{closing}</mo>")
                return full, inner if opening == "(" else full
        return self.name() if token.kind == "name" else ("", "")

    def name(self) -> tuple[str, str]:
        """A name, its index, and its arguments where it is a function."""
        token = self.take()
        text, after = token.text, self.peek()
        if text.rstrip("_") in ("sqrt", "cbrt", "floor") and after.text == "(":
            self.take()
            inner = self.inside(")")
            if text == "floor":
                return (_row(_op("⌊"), inner, _op("⌋")),) * 2
            root = f"<msqrt>{inner}</msqrt>" if text == "sqrt" else f"<mroot>{inner}<mn>3</mn></mroot>"
            return root, root
        written = self.letter(text)
        if text.endswith("_") and after.text == "(":
            self.take()
            written = f"<msub>{self.letter(text[:-1])}{self.inside(')')}</msub>"
            after = self.peek()
        if after.text == "(" and after.close:
            self.take()
            return (_row(written, "<mo>&#x2061;</mo>", _op("("), self.inside(")"), _op(")")),) * 2
        if text in ("mean", "ln", "cos", "max", "min") and after.kind in ("name", "number") and not self.is_word(after):
            under, _ = self.factor()
            return (_row(written, "<mspace width='0.17em'></mspace>", under),) * 2
        return written, written

    def letter(self, text: str) -> str:
        """A name by itself: an argument as it is typed, a letter in italics, with the index behind its underscore."""
        star = text.endswith("*")
        text = text.rstrip("*")
        if text in self.names:
            made = f'<mi mathvariant="normal" class="argument">{escape(text)}</mi>'
        elif "." in text:
            owner, _, method = text.partition(".")
            made = _row(self.letter(owner), _op("."), f'<mi mathvariant="normal">{escape(method)}</mi>')
        elif "_" in text.strip("_"):
            stem, _, index = text.partition("_")
            made = (
                f"<msub>{self.letter(stem)}{self.letter(index) if not index.isdigit() else f'<mn>{index}</mn>'}</msub>"
            )
        elif text in FUNCTIONS or text in ("NS",):
            made = f'<mi mathvariant="normal">{escape(text)}</mi>'
        elif re.fullmatch(r"[^\W\d_]\d", text):
            made = f"<msub><mi>{text[0]}</mi><mn>{text[1]}</mn></msub>"
        else:
            made = f"<mi>{escape(LETTERS.get(text, text))}</mi>"
        return f"<msup>{made}<mo>*</mo></msup>" if star else made


def _math(inner: str) -> str:
    return f'<math displaystyle="true">{inner}</math>'


def pieces(text: str, names: Iterable[str]) -> str:
    """HTML of a stretch of a line: words as text, so that it wraps, and mathematics between them."""
    out: list[str] = []
    run: list[str] = []
    for kind, part in [*Reader(frozenset(names), tokens(text)).sequence(), ("words", "")]:
        if kind == "math":
            run.append(part)
            continue
        if run:
            out.append(_math("".join(run)))
            run = []
        if part:
            shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(part, quote=False))
            out.append(f"<span>{shown}</span>")
    return " ".join(out)


_RELATION = re.compile(r" (=|←|:=) ")


def _left_and_right(line: str) -> tuple[str, str]:
    """A line cut at its first relation outside of brackets, where only mathematics stands in front of it."""
    found = _RELATION.search(line)
    left = line[: found.start()] if found else ""
    if not found or left.count("(") != left.count(")") or re.search(r"[;:]|\s{2,}\S", left.strip()):
        return "", line.strip()
    return left.strip(), line[found.start() :].strip()


def html(formula: str, names: Iterable[str]) -> str:
    """A formula of one or several lines, with its relations under each other."""
    names = frozenset(names)
    rows = []
    for line in formula.splitlines():
        left, right = _left_and_right(line)
        parts = [pieces(part, names) for part in re.split(r"\s{2,}", right) if part]
        rest = '<span class="gap"></span>'.join(parts)
        if left:
            rows.append(f'<span class="left">{pieces(left, names)}</span><span>{rest}</span>')
        elif rows and line.startswith(" "):  # it goes on with the line above
            rows.append(f"<span></span><span>{rest}</span>")
        else:
            rows.append(f'<span class="wide">{rest}</span>')
    return f'<div class="formula">{"".join(rows)}</div>'
