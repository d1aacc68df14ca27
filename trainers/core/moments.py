"""An optimizer's moments of codes that were replaced."""

import torch
from torch import nn
from torch.optim import Optimizer

from vqkit import Codebook


@torch.no_grad()
def forget_rewritten_rows(module: nn.Module, optimizer: Optimizer) -> None:
    """Scale the optimizer's moments of each code by the share of it that was not rewritten.

    A restarted code is a new vector: momentum that was gathered for the old one would carry it off. Call it between the
    backward pass and the optimizer's step; with accumulated gradients once, at the step. All state that the optimizer
    keeps for each row is scaled (`exp_avg` and `exp_avg_sq` of Adam, `momentum_buffer` of SGD), so a row that was
    rewritten in full starts as at the optimizer's first step, but for Adam's bias correction: it counts the steps of
    the whole tensor, so late in training the first step of a restarted row is (1 - beta1) / sqrt(1 - beta2) times the
    learning rate in length (0.4 at betas of 0.9 and 0.95), not once.

    Args:
        module: its codebooks are looked at, those inside of composites too; `Codebook.rewritten` is cleared.
        optimizer: codebooks without a parameter in it are left alone.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for codebook in module.modules():
        if not isinstance(codebook, Codebook):
            continue
        mine = [parameter for parameter in codebook.parameters() if id(parameter) in held]
        for parameter in mine:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape[:1] == codebook.rewritten.shape:
                    kept = (1 - codebook.rewritten).to(value.dtype)
                    value.mul_(kept.reshape(-1, *[1] * (value.ndim - 1)))
        if mine:
            codebook.rewritten.zero_()
