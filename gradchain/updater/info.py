"""What an update gives back: a snapshot of what happened, read lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from gradchain.core.address import find
from gradchain.core.html import table


class UpdateInfo(Mapping[str, float]):
    """What one update did: a mapping of what links recorded, by address. Truthy if weights changed.

    Attributes:
        applied: whether weights changed. Never waits for a device.
        reason: "applied", "window", "overflow", "nonfinite", "empty" (all that it would be made of has weight 0), or
            the reason a user's link holds for.
        detail: a sentence on why the chain was held, where the link gave one.
        loss: the loss as it was given, detached; None where `step` was called on its own.
        step: applied updates before this one.

    `info["clip_by_norm.norm"]` is what a link recorded (any unique suffix will do); reading it may wait for the
    device, and looking which names there are does not. A name not recorded this time is a KeyError with the reason.
    `dict(info)` is for a logger: full names and floats.
    """

    __slots__ = ("_hyperparams", "_records", "detail", "loss", "reason", "step")

    def __init__(
        self,
        reason: str,
        step: int,
        loss: Any,
        records: Mapping[str, Any],
        hyperparams: Callable[[], dict[str, Any]],
        detail: str = "",
    ) -> None:
        self.reason = reason
        self.step = step
        self.loss = loss
        self.detail = detail
        self._records = records
        self._hyperparams = hyperparams

    @property
    def applied(self) -> bool:
        """Whether weights changed."""
        return self.reason == "applied"

    def __bool__(self) -> bool:
        return self.applied

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Address → number, or numbers by parameter, as this update used it."""
        return self._hyperparams()

    def __getitem__(self, name: str) -> float:
        try:
            address = find(name, self._records, "info")
        except KeyError as error:
            why = "" if self.applied else f" The chain was held ({self.reason!r}); links after the holder did not run."
            raise KeyError(f"{error.args[0]}{why}") from None
        return number(self._records[address])

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(find(name, self._records, "info"))
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        shown = "".join(f", {n}={number(v):.6g}" for n, v in self._records.items())
        return f"UpdateInfo({self.reason!r}, step={self.step}{shown})"

    def __rich_repr__(self) -> Iterator[Any]:
        yield self.reason
        yield "step", self.step
        yield from self.items()

    def _repr_html_(self) -> str:
        told = [("reason", self.reason), ("detail", self.detail), ("step", str(self.step))]
        return table([row for row in told if row[1]] + [(n, f"{v:.6g}") for n, v in self.items()], title="UpdateInfo")


class Metrics(Mapping[str, float]):
    """The last value of everything that links recorded, by address or any unique suffix of it."""

    def __init__(self, records: Mapping[str, Any]) -> None:
        self._records = records

    def __getitem__(self, name: str) -> float:
        return number(self._records[find(name, self._records, "metrics")])

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"Metrics({dict(self.items())})"

    def __rich_repr__(self) -> Iterator[Any]:
        yield from self.items()

    def _repr_html_(self) -> str:
        return table([(name, f"{value:.6g}") for name, value in self.items()], title="Metrics")


def number(value: Any) -> float:
    """A recorded value as a float; this is where a device is waited for."""
    return float(value.item() if isinstance(value, Tensor) else value)
