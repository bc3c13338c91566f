"""By name: `named`."""

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, final

import torch

from gradchain.selectors.base import ParameterFacts, Selector
from gradchain.selectors.source import code


@final
class named(Selector):
    r"""Selects the parameters whose full dotted name matches one of the patterns.

    A string is a glob over the whole name, case and all: `*` is any text, *dots included*, `?` one character, `[ab]`
    one of these. So `"head.*"` is everything below `head`, and `"*.bias"` every bias but one on the root module itself,
    which is `"bias"`. A compiled regex must match the whole name too (`fullmatch`): begin and end it with `.*` to
    search.

    A pattern that matches no parameter is an error where the selector is resolved, also when others match.

    Args:
        patterns: globs and compiled regexes, at least one.
        missing_ok: lets a pattern match nothing, for recipes that serve several models. Where all of them do, a pair of
            `multiply`, `first` or `choose` warns of it and changes nothing; elsewhere it is an error.

    Raises:
        TypeError: a pattern is neither a string nor a compiled regex of strings.
        ValueError: no pattern, or an empty one.

    >>> import gradchain as gch
    >>> import re, torch
    >>> model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    >>> facts = [(name, p, None) for name, p in model.named_parameters()]
    >>> gch.selectors.resolve(gch.named("head.*"), facts)
    ('head.weight', 'head.bias')
    >>> gch.selectors.resolve(gch.named(re.compile(r"(body|neck)\.weight")), facts)
    ('body.weight',)
    >>> gch.selectors.resolve(~gch.named("haed.*"), facts)
    Traceback (most recent call last):
    ValueError: named: the pattern "haed.*" matches none of the 4 parameters. Did you mean "head.*"?
    """

    patterns: tuple[str | re.Pattern[str], ...]
    missing_ok: bool = False

    def __init__(self, *patterns: str | re.Pattern[str], missing_ok: bool = False) -> None:
        if not patterns:
            raise ValueError('named: needs at least one pattern, got none. Write named("head.*"), or everything.')
        for pattern in patterns:
            _check_pattern(pattern)
        if not isinstance(missing_ok, bool):
            raise TypeError(f"named: missing_ok must be True or False, got {code(missing_ok)}.")
        object.__setattr__(self, "patterns", patterns)
        object.__setattr__(self, "missing_ok", missing_ok)
        # a list of a thousand full names is looked up, not gone through for each of a thousand parameters
        whole = frozenset(p for p in patterns if isinstance(p, str) and not set(p) & set("*?["))
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_rest", tuple(p for p in patterns if p not in whole))

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return name in self.__dict__["_whole"] or any(_matches(pattern, name) for pattern in self.__dict__["_rest"])

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.patterns, {"missing_ok": True} if self.missing_ok else {}

    def optional(self) -> bool:
        return self.missing_ok

    def unmatched(self, parameters: Sequence[ParameterFacts]) -> list[str]:
        names = [name for name, _, _ in parameters]
        if self.missing_ok:
            return []
        there = self.__dict__["_whole"].intersection(names)
        idle = {pattern for pattern in self.__dict__["_rest"] if not any(_matches(pattern, name) for name in names)}
        missing = [p for p in self.patterns if p in idle or (p in self.__dict__["_whole"] and p not in there)]
        return [
            f"named: the pattern {code(pattern)} matches none of the {len(names)} parameters. {_cure(pattern, names)}"
            for pattern in missing
        ]


def _check_pattern(pattern: object) -> None:
    if isinstance(pattern, (list, tuple, set, frozenset)):
        raise TypeError(f"named: takes patterns one by one, got a {type(pattern).__name__}. Write named(*patterns).")
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if not isinstance(text, str):
        raise TypeError(
            f"named: a pattern must be a string (a glob) or a compiled regex of strings, got {code(pattern)}. "
            "For a class of modules write owner(...)."
        )
    if not text:
        raise ValueError('named: a pattern must not be empty. For every parameter write "*", or everything.')


def _matches(pattern: str | re.Pattern[str], name: str) -> bool:
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else pattern.fullmatch(name) is not None


def _cure(pattern: str | re.Pattern[str], names: list[str]) -> str:
    if isinstance(pattern, re.Pattern) and any(pattern.search(name) for name in names):
        return "It matches a part of some names, and must match the whole: begin and end it with .*"
    close = [code(text) for text in _suggestions(pattern, names)] if isinstance(pattern, str) else []
    if close:
        return f"Did you mean {' or '.join(close)}?"
    cure = _OWN.get(pattern, "missing_ok=True lets a pattern match nothing")
    return f"The names are like {some(names)}; {cure}." if names else ""


# a pattern that is an argument's default, and what may be given in its place
_OWN: dict[Any, str] = {
    "*head*": 'muon and its kin look for the head by it: head=gch.named("fc.*") says which it is, head=None that there '
    "is none, and matrices= what is made orthogonal in place of both"
}


def _suggestions(pattern: str, names: list[str], most: int = 3) -> list[str]:
    """Returns patterns that do match something: wildcards added, or misspelt words mended."""
    whole = [text for text in (f"*.{pattern}", f"{pattern}.*", f"*.{pattern}.*") if _hits(text, names)]
    if whole:
        return whole[:1]
    words = sorted({word for name in names for word in name.split(".")})
    tokens = re.split(r"(\[[^\]]*\]|[.*?])", pattern)
    mended, best = [], list(tokens)
    for at, token in enumerate(tokens):
        if at % 2 or not token or token in words:
            continue
        for rank, word in enumerate(difflib.get_close_matches(token, words, most)):
            mended.append("".join([*tokens[:at], word, *tokens[at + 1 :]]))
            best[at] = word if rank == 0 else best[at]
    live = [text for text in dict.fromkeys([*mended, "".join(best)]) if _hits(text, names)]
    return live[:most] or difflib.get_close_matches(pattern, names, 1)


def _hits(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def some(names: Sequence[str], most: int = 4) -> str:
    """Returns the first few names as they stand in a sentence.

    Args:
        names: any number of names.
        most: how many to show.
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
