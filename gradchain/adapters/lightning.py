"""A callback for Lightning: `Trainer(callbacks=[gradchain.adapters.lightning.callback()])`."""

from __future__ import annotations

import warnings
from typing import Any

from gradchain.adapters.swapping import Swapping, averaging, chains, numbers
from gradchain.updater.deployed import averages_in
from gradchain.updater.in_trainers import has_states

OWNER = "lightning.callback"


def callback(*, averages: bool = True, close_windows: bool = True, log: bool = True) -> Any:
    """A Lightning callback for modules whose `configure_optimizers` gives `updater.as_optimizer()`.

    Args:
        averages: `validate`, `test`, `predict` and the validation of `fit` run with the average weights of a chain that
            has `average_params`. Where `ckpt_path` gives the weights, the average is that of the checkpoint, also with
            a trainer that has trained nothing. It warns where a checkpoint has none to know: one that was saved with
            `save_weights_only=True`; its weights are used as they are.
        close_windows: the end of an epoch applies an open window of `accumulate`.
        log: learning rates, as the coming update will have them, and what links recorded go to the module's logger
            after each batch.
    """
    from lightning.pytorch import Callback  # takes seconds
    from lightning.pytorch.trainer.states import TrainerFn

    class ChainCallback(Callback):
        def __init__(self) -> None:
            self._swapping = Swapping()
            self._of_file: tuple[Any, dict[str, Any]] | None = None  # the module that has weights of one, its averages
            self._heard = False  # of the checkpoint of this run

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self._heard = False
            if stage == "fit":
                self._of_file = None

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            if trainer.state.fn == TrainerFn.FITTING or not averages:
                return
            self._heard, self._of_file = True, (pl_module, {})
            try:
                self._of_file = pl_module, averages_in(OWNER, checkpoint)
            except (ValueError, KeyError) as error:
                warnings.warn(f"{error.args[0]} The checkpoint's own weights are used.", stacklevel=2)
            if not has_states(checkpoint):
                _warn_without(trainer)

        def _enter(self, trainer: Any, pl_module: Any) -> None:
            if not averages or trainer.sanity_checking:
                return
            if trainer.state.fn != TrainerFn.FITTING and trainer.ckpt_path and not self._heard:
                self._heard, self._of_file = True, (pl_module, {})  # Lightning tells callbacks of no such file
                _warn_without(trainer)
            if self._of_file is not None and self._of_file[0] is pl_module:
                self._swapping.enter_others(pl_module.state_dict(), self._of_file[1])
            else:
                self._swapping.enter(trainer.optimizers)

        def _leave(self, trainer: Any, pl_module: Any) -> None:
            self._swapping.leave()

        on_validation_start = on_test_start = on_predict_start = _enter
        on_validation_end = on_test_end = on_predict_end = _leave

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


def _warn_without(trainer: Any) -> None:
    """A warning that nobody knows the average of a checkpoint's weights."""
    own = (
        " that the trainer holds is of other weights"
        if averaging(trainer.optimizers)
        else ", if there was one, is not in it"
    )
    warnings.warn(
        f"{OWNER}: {str(trainer.ckpt_path)!r} must have optimizer_states for its average, and was saved without; the "
        f"average{own}. The checkpoint's own weights are used: save with save_weights_only=False.",
        stacklevel=2,
    )
