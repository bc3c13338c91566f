"""What there is to read of an updater, and how it shows itself. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, overload

from gradchain.core.chain import chain
from gradchain.updater.bound import Bound
from gradchain.updater.explanation import Explanation, explanation
from gradchain.updater.hyperparameters import Settings, by_value
from gradchain.updater.info import Metrics
from gradchain.updater.modes import outside_inference
from gradchain.updater.state_dict import LoadReport


class Readings:
    """The part of an Updater that is only read."""

    _bound: Bound

    @property
    def chain(self) -> chain:
        """The chain, as it was bound."""
        return self._bound.chain

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, in order."""
        return self._bound.target.index.names

    @property
    def loaded(self) -> LoadReport | None:
        """What the last `load` or `load_state_dict` found and moved; None before there was one."""
        return self._bound.loaded

    @property
    def num_updates(self) -> int:
        """How many updates were applied: the clock "step"."""
        return int(self._recovered().clocks["step"])

    @property
    def num_micro(self) -> int:
        """How many micro-batches were stepped, held ones too: the clock "micro"."""
        return int(self._recovered().clocks["micro"])

    @property
    def num_skipped(self) -> int:
        """How many updates were skipped for an overflow or a non-finite gradient."""
        return self._recovered().num_skipped

    @property
    def clocks(self) -> dict[str, float]:
        """Every clock, by name."""
        return dict(self._recovered().clocks)

    @property
    def metrics(self) -> Metrics:
        """The last value of everything that links recorded, by address."""
        return Metrics(self._recovered().records)

    @overload
    def hyperparams(self, *, by: Literal["parameter"] = ...) -> dict[str, Any]: ...

    @overload
    def hyperparams(self, *, by: Literal["value"]) -> dict[str, float]: ...

    def hyperparams(self, *, by: Literal["parameter", "value"] = "parameter") -> dict[str, Any]:
        """Address → the number the coming update will use; a dict of numbers by parameter where they differ.

        Args:
            by: "value" is for loggers: names and floats only. Where parameters have numbers of their own, each number
                comes once, as `address/parameter` with the first parameter that has it: so a group of parameters keeps
                its name while a schedule moves its number. `settings().groups()` counts the parameters of each.

        >>> import torch, gradchain as gch
        >>> lr = gch.multiply(gch.linear(0.0, 1.0, 4), (gch.bias, 0.5))
        >>> model = torch.nn.Linear(2, 1)
        >>> updater = gch.sgd(lr, momentum=0.9).bind(model)
        >>> info = updater.update(model(torch.ones(4, 2)).square().mean())
        >>> updater.hyperparams(by="value")  # doctest: +NORMALIZE_WHITESPACE
        {'trace.decay': 0.9, 'scale_by_learning_rate.learning_rate/weight': 0.25,
         'scale_by_learning_rate.learning_rate/bias': 0.125}
        """
        if by not in ("parameter", "value"):
            raise ValueError(f'hyperparams: by must be "parameter" or "value", got {by!r}.')
        with outside_inference():
            values = self._recovered().hypers.values(self._bound.clocks)
            return by_value(values) if by == "value" else values

    def settings(self) -> Settings:
        """Which number each parameter has of every hyperparameter that differs, and by which rules: print it."""
        self._recovered().target.check()
        with outside_inference():
            return self._bound.hypers.settings(self._bound.clocks)

    def explain(self, *, source: bool = False) -> Explanation:
        """How the last step ran and what the chain holds, in words: kernels and executors, bytes, where schedules end.

        Args:
            source: with the source of compiled kernels.
        """
        with outside_inference():
            return explanation(self._recovered(), source)

    def _recovered(self) -> Bound:
        """What is bound, once all that an earlier call left is put in order."""
        journal = self._bound.journal
        if journal.open:
            journal.settle()
        return self._bound

    # how it shows itself: as it stands, for a repr puts nothing in order

    def __repr__(self) -> str:
        return f"{self._bound.chain!r}.bind(<{len(self.names)} parameters>)"

    def __rich_repr__(self) -> Iterator[Any]:
        yield self._bound.chain
        yield "parameters", len(self.names)
        yield "updates", int(self._bound.clocks["step"])

    def _repr_html_(self) -> str:
        from gradchain.core.html import of_link  # where a notebook asks

        counts = {"parameters": len(self.names), "updates": int(self._bound.clocks["step"])}
        return of_link(self._bound.chain, title=", ".join(f"{name}: {count}" for name, count in counts.items()))
