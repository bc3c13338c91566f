"""A callback for Lightning: `Trainer(callbacks=[gradchain.adapters.lightning.callback()])`."""

from __future__ import annotations

from typing import Any

from gradchain.adapters.swapping import Swapping, chains, numbers


def callback(*, averages: bool = True, close_windows: bool = True, log: bool = True) -> Any:
    """A Lightning callback for modules whose `configure_optimizers` gives `updater.as_optimizer()`.

    Args:
        averages: validation runs with the average weights of a chain that has `average_params`.
        close_windows: the end of an epoch applies an open window of `accumulate`.
        log: what links recorded goes to the module's logger after each batch.
    """
    from lightning.pytorch import Callback  # takes seconds

    class ChainCallback(Callback):
        def __init__(self) -> None:
            self._swapping = Swapping()

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if averages and not trainer.sanity_checking:
                self._swapping.enter(trainer.optimizers)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self._swapping.leave()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self._swapping.leave()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            for optimizer in chains(trainer.optimizers) if close_windows else ():
                optimizer.flush()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
            if trainer.is_last_batch:  # before the validation that the epoch ends with
                self.on_train_epoch_end(trainer, pl_module)
            if log:
                pl_module.log_dict(numbers(trainer.optimizers))

    return ChainCallback()
