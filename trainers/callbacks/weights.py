"""A running average of the weights, with the state of codebooks left as it is."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class WeightEMA(EMAWeightAveraging):
    """Exponential moving average of the parameters; validation, `best.ckpt` and the saved tokenizer use the average.

    Buffers are copied, not averaged: those of an EMA codebook are running means already, pending statistics must not
    be averaged at all, and neither must integers. Parameters of gradient-trained codebooks are averaged like every
    other parameter.

    Args:
        decay: of the average, in [0, 1).
        every_n_steps: optimizer steps between updates; at least 1.
        starting_at_step: first optimizer step that counts. Before it, the average is the model as it was initialized.

    Source: Lightning's `EMAWeightAveraging` around torch.optim.swa_utils.AveragedModel.
    Differs: use_buffers=False; extra state (step counters of codebooks) is taken from the current model when saving,
    because the averaged copy never sees a step.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, decay: float = 0.999, *, every_n_steps: int = 1, starting_at_step: int = 0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number in [0, 1), such as 0.999")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: expected at least 1")
        super().__init__(
            use_buffers=False, decay=decay, update_every_n_steps=every_n_steps, update_starting_at_step=starting_at_step
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average, which was made before the model went to its device."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the model with its quantizer initialized, unless an average was loaded."""
        if self._average_model is not None and trainer.ckpt_path is None:
            self._copy_current_to_average(pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The sanity check runs before training starts."""
        self.on_train_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the model, the model beside it, and the current counters in both."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        current = checkpoint.get("current_model_state", {})
        for name, value in current.items():
            if name.endswith("_extra_state"):
                checkpoint["state_dict"][name] = value

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the average only to go on training: a checkpoint's model is the average already."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _copy_current_to_average(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.module.load_state_dict(pl_module.state_dict())
