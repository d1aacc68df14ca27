"""A running average of the tokenizer's weights, with the state of codebooks left as it is."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from trainers.core.checkpoints import tokenizer_state
from trainers.core.task import task_of


class WeightEMA(EMAWeightAveraging):
    """Exponential moving average of the tokenizer; validation, `best.ckpt` and the saved tokenizer use the average.

    What only training needs (discriminators, the norms of a loss balancer) is used and saved as it is.
    Buffers are copied, not averaged: those of an EMA codebook are running means already, pending statistics must not
    be averaged at all, and neither must integers. Parameters of gradient-trained codebooks are averaged like every
    other parameter; where the quantizer is initialized late, after pre-training, their average starts there.

    Args:
        decay: of the average, in [0, 1).
        every_n_steps: optimizer steps between updates; at least 1.
        starting_at_step: first optimizer step that counts. Before it, the average is the model as it was initialized.

    Source: Lightning's `EMAWeightAveraging` around torch.optim.swa_utils.AveragedModel.
    Differs: only the tokenizer is exchanged; extra state (step counters of codebooks) is taken from
    the current model when saving, because the averaged copy never sees a step.

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
        self.decay = decay
        self._updates = 0
        self._aside: dict[int, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average, of the tokenizer alone."""
        if stage == "fit":
            self._average_model = AveragedModel(
                task_of(pl_module).tokenizer, device=pl_module.device, use_buffers=False, **self._kwargs
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average, which was made before the model went to its device."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the model with its quantizer initialized, unless an average was loaded."""
        if self._average_model is not None and trainer.ckpt_path is None:
            self._average_model.module.load_state_dict(task_of(pl_module).tokenizer.state_dict())

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The sanity check runs before training starts."""
        self.on_train_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The first step after a late initialization: what was averaged so far were codes that are gone."""
        if self._average_model is not None and 0 < trainer.global_step == task_of(pl_module).quantizer_initialized_at:
            quantizer = task_of(pl_module).tokenizer.quantizer
            self._average_model.module.get_submodule("quantizer").load_state_dict(quantizer.state_dict())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take an optimizer step into the average."""
        new = trainer.global_step > self._latest_update_step
        if self._average_model is not None and new and self.should_update(step_idx=trainer.global_step - 1):
            self._take_in(task_of(pl_module).tokenizer)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _take_in(self, model: nn.Module) -> None:
        """`AveragedModel.update_parameters` with its count on the host, where reading it does not wait."""
        assert self._average_model is not None
        average = self._average_model.module
        share = 1 - self.decay if self._updates else 1.0  # the first is copied
        pairs = zip(average.parameters(), model.parameters(), strict=True)
        current = [theirs.to(mine.dtype) for mine, theirs in pairs]  # of 16 bits, where a model of 16 bits is trained
        torch._foreach_lerp_(list(average.parameters()), current, share)
        for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self._updates += 1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the tokenizer, the model beside it, and the current counters in both."""
        if self._average_model is None:
            return
        current = checkpoint["current_model_state"] = checkpoint["state_dict"]
        average = {
            f"tokenizer.{name}": value
            for name, value in self._average_model.module.state_dict().items()
            if not name.endswith("_extra_state")
        }
        checkpoint["state_dict"] = {**current, **average}
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._updates)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the average only to go on training: a checkpoint's model is the average already."""
        if self._average_model is None:
            return
        self._average_model.module.load_state_dict(tokenizer_state(checkpoint))
        if "current_model_state" in checkpoint:
            self._updates = int(checkpoint["averaging_state"]["n_averaged"])
            pl_module.load_state_dict(checkpoint["current_model_state"])

    def _swap_models(self, pl_module: LightningModule) -> None:
        for number, (average, current) in enumerate(self._pairs(pl_module)):
            kept, whole = current.clone(), self._aside.pop(number, None)
            if whole is None and average.dtype != current.dtype:  # the model would bring it back rounded
                self._aside[number] = average.clone()
            current.copy_(average)
            average.copy_(kept if whole is None else whole)

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        for average, current in self._pairs(pl_module):
            current.copy_(average)

    def _pairs(self, pl_module: LightningModule) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._average_model is not None
        return zip(_tensors(self._average_model.module), _tensors(task_of(pl_module).tokenizer), strict=True)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return (tensor.detach() for tensor in itertools.chain(module.parameters(), module.buffers()))
