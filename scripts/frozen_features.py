"""Quantizers of features that stay as they are."""

import torch
from torch import Tensor

from vqkit import BaseQuantizer


def descended(
    quantizer: BaseQuantizer, rows: Tensor, *, steps: int, batch: int, learning_rate: float, generator: torch.Generator
) -> BaseQuantizer:
    """The quantizer in eval mode, after steps of Adam on rows drawn at random, whose rate falls to 0 in a line.

    Args:
        quantizer: initialized; books that follow running means need no optimizer, and have none.
        rows: (N, D).
        steps: of training.
        batch: rows of a step.
        learning_rate: of the first step.
        generator: of the draws.
    """
    parameters = [*quantizer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate) if parameters else None
    for step in range(steps):
        loss = quantizer(rows[torch.randint(len(rows), (batch,), generator=generator)]).loss
        if optimizer is not None:
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    quantizer.step()
    return quantizer.eval()
