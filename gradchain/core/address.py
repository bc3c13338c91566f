"""Addresses: one name for a thing everywhere, and any unique suffix of it where one types it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from gradchain.words.arguments import our_words


def find(query: str, addresses: Iterable[str], what: str) -> str:
    """The one known address that is `query` or ends in it, at a `/` or `.`.

    Args:
        query: an address or a suffix of one, as a user typed it.
        addresses: every address there is.
        what: begins the sentence of an error, such as "override".

    Raises:
        KeyError: no address ends so, with near ones that are found; or several do, with all of them.
    """
    addresses = list(addresses)
    if query in addresses:
        return query
    found = _ending(query, addresses)
    if len(found) == 1:
        return found[0]
    if found:
        raise KeyError(f"{what}: {query!r} is ambiguous. It could be any of: {', '.join(found)}.")
    near = dict.fromkeys(clear for word in _near(query, addresses) for clear in _clear(word, addresses))
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise KeyError(f"{what}: there is no {query!r}.{hint} There are: {', '.join(addresses) or 'none'}.")


def _ending(query: str, addresses: list[str]) -> list[str]:
    return [address for address in addresses if address.endswith((f"/{query}", f".{query}"))]


def _near(query: str, addresses: list[str]) -> list[str]:
    """What may be meant: addresses that have its parts in their order, then words of others, then near spellings."""
    short = {address.rpartition(".")[2] for address in addresses}
    *outer, last = re.split("[/.]", query)
    ours = our_words(last, short)
    if outer:
        spelt = [last] if last in short else difflib.get_close_matches(last, short, n=3, cutoff=0.5)
        ends = ours or spelt or [last]
        within = [a for a in addresses for end in ends if _is_within([*outer, end], re.split("[/.]", a))]
        if within:
            return within
    return ours or difflib.get_close_matches(query, [*addresses, *sorted(short)], n=3, cutoff=0.5)


def _is_within(parts: list[str], address: list[str]) -> bool:
    """Whether all parts are in an address, in their order."""
    rest = iter(address)
    return all(part in rest for part in parts)


def _clear(word: str, addresses: list[str]) -> list[str]:
    """What finds one address each: the word, if it does, or else every address that ends in it."""
    ends = _ending(word, addresses)
    return ends if len(ends) > 1 and word not in addresses else [word]
