"""A callback for the Trainer of transformers: `Trainer(…, callbacks=[gradchain.adapters.transformers.callback()])`."""

from __future__ import annotations

from typing import Any

from gradchain.adapters.swapping import Swapping, chains, numbers


def callback(*, averages: bool = True, close_windows: bool = True, log: bool = True) -> Any:
    """A TrainerCallback for `optimizers=(updater.as_optimizer(), scheduler)`.

    Args:
        averages: evaluations inside `train()` run with the average weights of a chain that has `average_params`. One
            that is asked for by `evaluate()` alone is not announced to callbacks: use `with updater.averaged()` there.
        close_windows: the end of an epoch applies an open window of `accumulate`.
        log: learning rates and what links recorded go beside the Trainer's logs, to the callbacks after this one.
    """
    from transformers import TrainerCallback  # takes seconds

    class ChainCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]  # Any where it is not installed
        def __init__(self) -> None:
            self._swapping = Swapping()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if averages and control.should_evaluate:
                self._swapping.enter([given["optimizer"]])

        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            for optimizer in chains([given["optimizer"]]) if close_windows else ():
                optimizer.flush()
            self.on_step_end(args, state, control, **given)

        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self._swapping.leave()

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if log and given.get("logs") is not None:
                given["logs"].update(numbers([given["optimizer"]]))

    return ChainCallback()
