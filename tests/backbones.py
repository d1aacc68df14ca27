"""What tests of encoders and decoders share: weights that hide nothing, and how far outputs look."""

import torch
from torch import Tensor, nn


def shake(*modules: nn.Module, std: float = 0.3) -> None:
    """Move parameters away from their first values, so that every branch takes part."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=std)


def looked_at(module: nn.Module, x: Tensor, first: int, last: int) -> tuple[int, int]:
    """First and last time step of x on which the outputs `first` to `last` depend."""
    x = x.requires_grad_()
    outputs = module(x)[..., first : last + 1]
    (gradient,) = torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), x)
    steps = gradient.abs().sum((0, 1)).nonzero()
    return int(steps[0]), int(steps[-1])


def assert_context_is_exact(*parts: nn.Module) -> None:
    """Of encoders and decoders of sound in float64: no more and no less than what an output depends on."""
    for part in parts:
        assert part.context is not None
        (before, after), factor = part.context, part.downsampling_factor
        assert not part.causal or after == 0
        if hasattr(part, "in_channels"):
            frame = -(-before // factor) + 1
            waves = torch.randn(1, part.in_channels, (frame + 2 + -(-after // factor)) * factor, dtype=torch.float64)
            first, last = frame * factor - before, frame * factor + factor - 1 + after
            assert looked_at(part, waves, frame, frame) == (first, last)
        else:
            latents = torch.randn(1, part.dim, before + after + 3, dtype=torch.float64)
            start = (before + 1) * factor
            assert looked_at(part, latents, start, start + factor - 1) == (1, before + 1 + after)
