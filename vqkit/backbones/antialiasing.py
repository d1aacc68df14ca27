"""Activations at twice the sample rate, so that the frequencies that they add are not folded into the band."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.backbones.activations import SnakeBeta
from vqkit.backbones.temporal import Interval
from vqkit.precision import FullPrecisionModule
from vqkit.saving.config import Configured
from vqkit.unsaved_buffers import UnsavedBuffers

RATIO = 2
TAPS = 12
HALF_WIDTH = 0.6 / RATIO
"""Of the transition of the filter, in cycles for each sample of the double rate."""
SIDE = TAPS // RATIO - 1
"""Samples on each side of its own on which an output depends."""


class AntiAliased(Configured, nn.Module):
    """An activation between a doubling and a halving of the sample rate, both by a windowed sinc of 12 taps.

    It looks at five samples on both sides, so that models with it are not causal. At the ends of a recording its first
    and last sample are repeated.

    Args:
        channels: C.
        activation: builds what acts at the double rate.

    Attributes:
        causal: False.

    Source: Lee et al. 2023 (BigVGAN, arXiv:2206.04658), section 3.2, after Karras et al. 2021 (arXiv:2106.12423); in
    BigCodec (Xin et al. 2024, arXiv:2409.05377) and X-Codec 2, too.
    """

    causal = False

    def __init__(self, channels: int, *, activation: Callable[[int], nn.Module] = SnakeBeta) -> None:
        super().__init__()
        self.activation = activation(channels)
        self.filters = HalfBand()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        return self.filters.down(self.activation(self.filters.up(x)))

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first - SIDE, last + SIDE


class HalfBand(UnsavedBuffers, FullPrecisionModule):
    """Low-pass filter of half the band, a sinc with a Kaiser window, by which the sample rate is doubled and halved."""

    taps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_unsaved("taps", low_pass)

    def up(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C, 2 T)."""
        repeated = F.pad(x, (SIDE, SIDE), mode="replicate")
        filtered = F.conv_transpose1d(repeated, self._of_each(x), stride=RATIO, groups=x.shape[1])
        return RATIO * filtered.narrow(-1, SIDE * RATIO + (TAPS - RATIO) // 2, RATIO * x.shape[-1])

    def down(self, x: Tensor) -> Tensor:
        """(B, C, 2 T) to (B, C, T)."""
        repeated = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(repeated, self._of_each(x), stride=RATIO, groups=x.shape[1])

    def _of_each(self, x: Tensor) -> Tensor:
        return self.taps.to(x.dtype).expand(x.shape[1], 1, -1)


def low_pass() -> Tensor:
    """A sinc that ends at a quarter of the rate, with a Kaiser window for a transition of 0.3 on both sides; sum 1.

    Returns:
        (12,) of float32.

    Source: the shape of the window for an attenuation of more than 50 dB is Kaiser's (1974), as SciPy's `kaiserord` has
    it; the numbers are those of BigVGAN's released code.
    """
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * HALF_WIDTH + 7.95
    window = torch.kaiser_window(TAPS, beta=0.1102 * (attenuation - 8.7), periodic=False)
    filters = window * torch.sinc((torch.arange(TAPS) - (TAPS - 1) / 2) / RATIO)
    return filters / filters.sum()
