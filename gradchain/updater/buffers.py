"""What links write into the model's buffers: only those that say so, and with the step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gradchain.core.roles import WritesBuffers
from gradchain.core.transform import Transform, walk
from gradchain.engine.commit import Copies
from gradchain.updater.averages import copies
from gradchain.updater.target import Target

OfLinks = Mapping[str, Mapping[str, Tensor]]
"""Address of a link → buffer → what it is to be."""


def written(chain: Transform, target: Target, of_links: OfLinks) -> Copies:
    """What writes the buffers that links gave. RuntimeError where one did not say so, ValueError for one of two."""
    declared = {address for address, link, _ in walk(chain, None) if isinstance(link, WritesBuffers)}
    values: dict[str, Tensor] = {}
    for address, given in of_links.items():
        for name, value in given.items():
            if address not in declared:
                raise RuntimeError(
                    f"{address}: writes the buffer {name!r}, and does not say that it writes any. Derive it from "
                    "gch.WritesBuffers in place of gch.Transform."
                )
            if name in values:
                raise ValueError(f"{address}: the buffer {name!r} must be written by one link, a link before it does.")
            values[name] = value
    return copies(target.buffers(), values)


def seen(target: Target, of_links: OfLinks) -> dict[str, Tensor]:
    """The model's buffers as they will be once that is written."""
    return {**target.buffers(), **{name: value for given in of_links.values() for name, value in given.items()}}
