"""Addresses: one name for a thing everywhere, and any unique suffix of it where one types it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from gradchain.words.arguments import our_words


def find(query: str, addresses: Iterable[str], what: str) -> str:
    """The one known address that is `query` or ends in it, at a `/` or `.`.

    Args:
        query: an address or a suffix of one, as a user typed it.
        addresses: every address there is.
        what: begins the sentence of an error, such as "override".

    Raises:
        KeyError: no address ends so, with near spellings; or several do, with all of them.
    """
    addresses = list(addresses)
    if query in addresses:
        return query
    found = [address for address in addresses if address.endswith((f"/{query}", f".{query}"))]
    if len(found) == 1:
        return found[0]
    if found:
        raise KeyError(f"{what}: {query!r} is ambiguous. It could be any of: {', '.join(found)}.")
    short = {address.rpartition(".")[2] for address in addresses}
    near = our_words(query, short) or difflib.get_close_matches(query, [*addresses, *sorted(short)], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise KeyError(f"{what}: there is no {query!r}.{hint} There are: {', '.join(addresses) or 'none'}.")
