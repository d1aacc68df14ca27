"""Activations as factories: each is built with the number of channels that it acts on."""

import math

import torch
from torch import Tensor, nn

from vqkit.saving.config import Configured


class Snake(Configured, nn.Module):
    """x + sin^2(a x) / a, with a trainable frequency a > 0 per channel: a bias towards periodic signals.

    Args:
        channels: C.
        frequency: a at the start, in radians per unit of x.

    Source: Ziyin, Hartwig, Ueda 2020 (arXiv:2006.08195); per channel as in DAC (Kumar et al. 2023, arXiv:2306.06546),
    section 3.1.
    Differs: log a is what is trained. So a stays positive and there is no small number to add before dividing by it,
    and weight decay pulls a to 1 and not to 0, where Snake is the identity.

    Raises:
        ValueError: if `channels` or `frequency` is not positive.
    """

    def __init__(self, channels: int, *, frequency: float = 1.0) -> None:
        super().__init__()
        if channels < 1 or frequency <= 0:
            raise ValueError(f"channels={channels}, frequency={frequency}: expected positive numbers")
        self.log_frequency = nn.Parameter(torch.full((channels, 1), frequency).log())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same; computed in float32 or better."""
        frequency = self.log_frequency.to(torch.promote_types(x.dtype, torch.float32)).exp()
        return _plus_squared_sine(x, frequency, frequency)


class SignedSnake(Configured, nn.Module):
    """x + sin^2(a x) / (a + 1e-9), with a trainable frequency a of any sign per channel, as DAC and SNAC released it.

    For published weights, of which some have a < 0: there the squared sine is subtracted, which `Snake` cannot express.
    For a new model take `Snake`, whose a cannot cross 0, where this one is the identity and changes its sign.

    Args:
        channels: C.
        frequency: a at the start, in radians per unit of x, not 0.

    Attributes:
        frequency: a, (C, 1), trained as it is.

    Source: DAC (Kumar et al. 2023, arXiv:2306.06546), section 3.1, with the small number of its released code, which
    only keeps a = 0 from dividing by zero.

    Raises:
        ValueError: if `channels` is not positive, or `frequency` is 0 or not finite.
    """

    SMALL = 1e-9

    def __init__(self, channels: int, *, frequency: float = 1.0) -> None:
        super().__init__()
        if channels < 1 or frequency == 0 or not math.isfinite(frequency):
            raise ValueError(
                f"channels={channels}, frequency={frequency}: expected a positive number of channels and a finite "
                "frequency other than 0, at which nothing would be learned of it"
            )
        self.frequency = nn.Parameter(torch.full((channels, 1), frequency))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same; computed in float32 or better."""
        frequency = self.frequency.to(torch.promote_types(x.dtype, torch.float32))
        return _plus_squared_sine(x, frequency, frequency + self.SMALL)


def _plus_squared_sine(x: Tensor, frequency: Tensor, divisor: Tensor) -> Tensor:
    """Of all three: x + sin^2(frequency x) / divisor, in the dtype of x.

    Without gradients in one tensor that each operation overwrites, with the same numbers: of what these operations take
    on a processor, two thirds are for fresh memory.
    """
    if torch.is_grad_enabled():
        return (x + (x * frequency).sin().square() / divisor).to(x.dtype)
    return (x * frequency).sin_().square_().div_(divisor).add_(x).to(x.dtype)


class SnakeBeta(Configured, nn.Module):
    """x + sin^2(a x) / (b + 1e-9), with a trainable frequency a > 0 and a trainable b > 0 per channel, both 1 at first.

    Args:
        channels: C.

    Source: Lee et al. 2023 (BigVGAN, arXiv:2206.04658) and its released code, whose name it is; log a and log b are
    what is trained.

    Raises:
        ValueError: if `channels` is not positive.
    """

    SMALL = 1e-9

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels={channels}: expected a positive number")
        self.log_frequency = nn.Parameter(torch.zeros(channels, 1))
        self.log_divisor = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same; computed in float32 or better."""
        precision = torch.promote_types(x.dtype, torch.float32)
        frequency, divisor = self.log_frequency.to(precision).exp(), self.log_divisor.to(precision).exp()
        return _plus_squared_sine(x, frequency, divisor + self.SMALL)


class _Elementwise(Configured):
    """An activation without parameters.

    Args:
        channels: C; not needed, taken since every activation is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()


class ELU(_Elementwise, nn.ELU):
    """The exponential linear unit; the activation of SEANet, SoundStream, EnCodec and Mimi.

    Source: Clevert, Unterthiner, Hochreiter 2016 (arXiv:1511.07289).
    """


class GELU(_Elementwise, nn.GELU):
    """The Gaussian error linear unit, exact; the activation of transformers.

    Source: Hendrycks, Gimpel 2016 (arXiv:1606.08415).
    """


class ReLU(_Elementwise, nn.ReLU):
    """The rectified linear unit, max(x, 0)."""


class Tanh(_Elementwise, nn.Tanh):
    """The hyperbolic tangent: behind the decoder of DAC, in the blocks of some ViT-VQGANs."""
