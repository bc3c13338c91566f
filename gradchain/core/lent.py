"""The model's buffers as a link sees them: each a copy from when it is read, so that no write of the link's is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


class Lent(Mapping[str, "Tensor"]):
    """Copies of buffers, made when they are read.

    Args:
        buffers: the model's.
        word: by which the link was given them.
    """

    def __init__(self, buffers: Mapping[str, Tensor], word: str) -> None:
        self._buffers, self._word = buffers, word
        self._copies: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._copies:
            self._copies[name] = self._buffers[name].detach().clone()
        return self._copies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def check(self, owner: str) -> None:
        """RuntimeError where one of the copies was written to: whoever did that meant the buffer."""
        written = [name for name, copy in self._copies.items() if copy._version]
        if written:
            raise RuntimeError(
                f"{owner}: {self._word} must only be read, got a write into {written[0]!r} in place. Derive the link "
                "from gch.WritesBuffers, and give ctx.write_buffers what the buffer is to be."
            )
